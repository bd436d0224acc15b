"""T5: buckets worked by hand, and identities on tiny models. That the numbers are transformers' is tests/parity/test_t5.py."""

import dataclasses
import json

import pytest
import torch

import minift
from minift import folder as folders
from minift import peft
from minift import tokenizer as tokenizers
from minift.embed import embed
from minift.errors import InputError
from minift.generate import generate, generate_ids, stream
from minift.models.cross import Memory
from minift.models.encoder import Encoder
from minift.models.encoder_decoder import EncoderDecoder, encoder_of
from minift.models.linear import is_product
from minift.models.families import from_hf, to_hf
from minift.models.folder import read_model, write_model
from minift.models.pooling import Pooling
from minift.models.ragged import lay_out
from minift.models.relative import bucket
from minift.sampling import Sampling
from tests.models.small import tokens
from tests.models.small_t5 import PAIRS, encoder, pair, unigram, write_tokenizer

LENGTHS = (5, 2, 9, 2, 1)
PROMPTS = [tokens(n, seed=10 + i).tolist() for i, n in enumerate(LENGTHS)]
THERE = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
IDS = torch.zeros(5, 9, dtype=torch.int64).masked_scatter(THERE, torch.tensor([token for prompt in PROMPTS for token in prompt]))
ANSWERS = torch.cat([torch.zeros(5, 1, dtype=torch.int64), tokens(5, 6, seed=3)], dim=1)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- buckets


def test_buckets_of_a_decoder_worked_by_hand():            # 16 of one distance; then 16 + floor(16 log(n / 16) / log(8))
    back = lambda n: int(bucket(torch.tensor(-n), False, 32, 128))
    assert [back(n) for n in (0, 1, 15)] == [0, 1, 15]
    assert [back(n) for n in (16, 18, 19, 20, 21)] == [16, 16, 17, 17, 18]       # 16 x 8^(1/16) = 18.2, 16 x 8^(2/16) = 20.7
    assert [back(n) for n in (112, 113, 128, 10_000)] == [30, 31, 31, 31]        # 16 x 8^(15/16) = 112.4
    assert bucket(torch.tensor([1, 7, 500]), False, 32, 128).tolist() == [0, 0, 0]                       # ahead: no row of its own, and never seen


def test_buckets_of_an_encoder_worked_by_hand():           # for each side 8 of one distance; then 8 + floor(8 log(n / 8) / log(16)); ahead: 16 more
    rows = lambda *distances: bucket(torch.tensor(distances), True, 32, 128).tolist()
    assert rows(0, -1, -7, -8, -11, -12) == [0, 1, 7, 8, 8, 9]                   # 8 x 16^(1/8) = 11.3
    assert rows(-90, -91, -128, -999) == [14, 15, 15, 15]                        # 8 x 16^(7/8) = 90.5
    assert rows(1, 7, 8, 11, 12, 91, 999) == [17, 23, 24, 24, 25, 31, 31]


def test_odd_tables_have_a_bucket_for_every_distance():
    assert bucket(torch.arange(-40, 1), False, 14, 20).unique().tolist() == list(range(14))
    both = bucket(torch.arange(-40, 41), True, 14, 20)                           # 7 on each side, of which 3 have one distance; no 7: 0 is behind
    assert both.unique().tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]


# ---- one table for all blocks of a stack


def test_a_stack_has_one_table_and_all_its_blocks_read_it():
    one = pair()
    assert [name for name, _ in one.named_parameters() if "relative" in name] == ["encoder.relative.weight", "decoder.relative.weight"]
    assert one.encoder.relative.weight.shape == (14, 3)
    seen, ids = {}, tokens(1, 12)
    with torch.no_grad():
        one.encoder.hidden(ids, capture=seen)
        one.encoder.relative.weight[bucket(torch.tensor(2), True, 14, 20)] = 999.0                       # two ahead outshouts all else
        after = {}
        one.encoder.hidden(ids, capture=after)
    for layer in range(3):
        weights = after[f"blocks.{layer}.attention.weights"][0]                                          # (H, T, T)
        assert (weights.diagonal(2, 1, 2) > 0.99).all() and (seen[f"blocks.{layer}.attention.weights"][0].diagonal(2, 1, 2) < 0.99).any()


def test_a_score_is_q_k_plus_the_bias_and_is_not_divided():
    one, ids, seen = encoder(), tokens(1, 7), {}
    with torch.no_grad():
        one.hidden(ids, capture=seen)
        block = one.blocks[0]
        x = block.norm1(one.embed(ids))
        q, k = (part(x).view(1, 7, 3, 6).transpose(1, 2) for part in (block.attention.q, block.attention.k))
        places = torch.arange(7)
        bias = one.relative.weight[bucket(places[None] - places[:, None], True, 14, 20)].permute(2, 0, 1)            # (H, T, T)
        close(seen["blocks.0.attention.weights"], (q @ k.transpose(-1, -2) + bias).softmax(-1), 1e-5)          # captured in float32


def test_an_encoder_tells_what_is_ahead_from_what_is_behind():
    one, ids = encoder(), tokens(1, 8)
    with torch.no_grad():
        before = one.hidden(ids)
        one.relative.weight[7:] += 1.0                                                                   # what lies ahead
        after = one.hidden(ids)
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-3
    with torch.no_grad():
        assert (one.hidden(ids.flip(1)).flip(1) - after).abs().max() > 1e-2


# ---- the encoder alone


@pytest.mark.parametrize("side", ["right", "left"])
def test_traps_9_10_11_pads_change_nothing_on_either_side(side):
    one = encoder()
    ids, there = (IDS, THERE) if side == "right" else (IDS.flip(1), THERE.flip(1))
    ids = ids if side == "right" else torch.zeros_like(ids).masked_scatter(there, torch.tensor([token for prompt in PROMPTS for token in prompt]))
    with torch.no_grad():
        stream_ = one.hidden(ids, segments=(~there).long())
        assert torch.isfinite(stream_).all()
        for row, prompt in enumerate(PROMPTS):
            close(stream_[row][there[row]], one.hidden(torch.tensor([prompt]))[0])


def test_traps_9_10_11_texts_end_to_end_are_the_texts_alone():
    one = encoder()
    row, ragged, order = lay_out(PROMPTS)
    with torch.no_grad():
        for text, number in zip(one.hidden(row, ragged=ragged)[0].split(ragged.lengths().tolist()), order.tolist()):
            close(text, one.hidden(torch.tensor([PROMPTS[number]]))[0])


def test_gradients_of_texts_end_to_end_are_the_padded_ones():
    one = encoder()
    weights = [torch.randn(len(prompt), 20, generator=torch.Generator().manual_seed(i)).double() for i, prompt in enumerate(PROMPTS)]
    row, ragged, order = lay_out(PROMPTS)
    (one.hidden(row, ragged=ragged)[0] * torch.cat([weights[i] for i in order])).sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in one.named_parameters()}
    one.zero_grad()
    (one.hidden(IDS, segments=(~THERE).long())[THERE] * torch.cat(weights)).sum().backward()
    assert together["relative.weight"].abs().max() > 0.1
    for name, parameter in one.named_parameters():
        close(together[name], parameter.grad, 1e-10)


def test_recomputing_blocks_gives_the_same_gradients_down_to_the_table():
    one, found = pair(), []
    for on in (False, True):
        one.checkpointing = on
        assert one.encoder.checkpointing == one.decoder.checkpointing == on
        one.zero_grad()
        one(IDS, ANSWERS, THERE).logsumexp(-1).sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in one.named_parameters()})
    for name, grad in found[0].items():
        close(found[1][name], grad, 1e-10)


def test_a_mean_of_a_texts_own_tokens_is_its_vector(tmp_path):
    one = encoder()
    with torch.no_grad():
        one.embed = torch.nn.Embedding.from_pretrained(torch.randn(800, 20, generator=torch.Generator().manual_seed(0)).double())
    one.config = dataclasses.replace(one.config, vocab_size=800)
    write_tokenizer(tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    texts = ["A list of all names.", "Raised when", "the end of a file is reached, and what follows it"]
    vectors = embed(one, tokenizer, texts, pooling=Pooling("mean", normalize=False))
    with torch.no_grad():
        for text, vector in zip(texts, vectors):
            ids = tokenizer.encode(text)
            assert ids[-1] == 1
            close(vector, one.hidden(torch.tensor([ids]))[0].mean(0).float(), 1e-6)


# ---- the pair


def test_the_answer_looks_back_and_at_the_whole_prompt():
    one = pair()
    with torch.no_grad():
        logits = one(IDS[2:3], ANSWERS[2:3])
        changed = ANSWERS[2:3].clone()
        changed[0, 4] = (changed[0, 4] + 1) % 31
        moved = (one(IDS[2:3], changed) - logits).abs().amax(-1)[0]
        assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()
        other = IDS[2:3].clone()
        other[0, 8] = (other[0, 8] + 1) % 31                                                             # the prompt's last token
        assert ((one(other, ANSWERS[2:3]) - logits).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", PAIRS)
def test_padded_prompts_and_answers_are_each_alone(name):
    one = pair(name)
    with torch.no_grad():
        logits = one(IDS, ANSWERS, THERE)
        for row, prompt in enumerate(PROMPTS):
            close(logits[row], one(torch.tensor([prompt]), ANSWERS[row : row + 1])[0])
            close(logits[row, :3], one(torch.tensor([prompt]), ANSWERS[row : row + 1, :3])[0])


def test_the_first_t5_scales_the_stream_before_its_tied_head():
    one = pair("t5")
    assert one.head.weight is one.embed.weight and one.encoder.embed is one.decoder.embed is one.embed
    with torch.no_grad():
        stream_ = one.decoder.hidden(ANSWERS, memory=one.memory(IDS, THERE))
        close(one(IDS, ANSWERS, THERE), stream_ @ one.embed.weight.T / 20**0.5)
    two = pair("flan")
    with torch.no_grad():
        close(two(IDS, ANSWERS, THERE), two.decoder.hidden(ANSWERS, memory=two.memory(IDS, THERE)) @ two.head.weight.T)


@pytest.mark.parametrize("name", PAIRS)
def test_a_cache_that_read_the_prompts_without_pads_gives_the_same_token_by_token(name):
    one = pair(name)
    with torch.no_grad():
        whole = one.hidden(ANSWERS, memory=one.memory(IDS, THERE))
        cache = one.new_cache(PROMPTS, 7)
        for step in range(7):
            close(one.hidden(ANSWERS[:, step : step + 1], cache=cache)[:, 0], whole[:, step])


def test_the_prompts_keys_and_values_are_computed_once():
    one, calls = pair(), []
    for block in one.decoder.blocks:
        block.cross.k.register_forward_hook(lambda *_: calls.append("k"))
        block.cross.v.register_forward_hook(lambda *_: calls.append("v"))
    generate_ids(one, PROMPTS, max_new_tokens=6, eos_ids=())
    assert sorted(calls) == ["k", "k", "v", "v"]                                 # two blocks, one reading


def test_a_cache_keeps_rows_and_copies_them_with_their_prompts():
    one = pair()
    with torch.no_grad():
        whole = one.hidden(ANSWERS, memory=one.memory(IDS, THERE))
        cache = one.new_cache(PROMPTS, 7)
        one.hidden(ANSWERS[:, :2], cache=cache)
        kept, rows = cache.copies([4, 2, 2], 7), torch.tensor([1, 3])
        close(one.hidden(ANSWERS[[4, 2, 2], 2:4], cache=kept), whole[[4, 2, 2], 2:4])
        cache.keep_rows(rows)
        close(one.hidden(ANSWERS[rows, 2:5], cache=cache), whole[rows, 2:5])


def test_an_answer_wants_its_prompt():
    one = pair()
    with pytest.raises(InputError, match="pass its memory, or a cache that was made for it"):
        one.hidden(ANSWERS)
    with pytest.raises(InputError, match="pass its memory, or a cache that was made for it"):
        one.hidden(ANSWERS, memory=Memory(torch.zeros(5, 3, 20)), cache=one.new_cache(PROMPTS, 7))


def test_dropout_falls_on_the_embeddings_and_the_branches(monkeypatch):
    one, rates = pair(), []
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, rate, training: rates.append((rate, training)) or x)
    one(IDS, ANSWERS, THERE)
    assert rates.count((0.1, False)) == len(rates)
    rates.clear()
    one.train()(IDS, ANSWERS, THERE)
    assert rates == [(0.1, True)] * (1 + 3 * 2 + 1 + 2 * 3)                      # two embeddings; two branches in 3 blocks, three in 2


# ---- generation


def greedy(one, prompt, steps):
    """The whole answer again at every step, no cache."""
    ids = [0]
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(one(torch.tensor([prompt]), torch.tensor([ids]))[0, -1].argmax()))
    return ids[1:]


@pytest.mark.parametrize("name", PAIRS)
def test_a_ragged_batch_writes_what_each_prompt_gets_alone_without_a_cache(name):
    one = pair(name)
    expected = [greedy(one, prompt, 12) for prompt in PROMPTS]
    assert generate_ids(one, PROMPTS, max_new_tokens=12, eos_ids=()) == expected
    assert len({tuple(ids) for ids in expected}) > 1
    ends = [expected[0][3]]                                                      # rows that end leave the batch
    cut = [ids[: ids.index(ends[0]) + 1] if ends[0] in ids else ids for ids in expected]
    assert generate_ids(one, PROMPTS, max_new_tokens=12, eos_ids=ends) == cut and len({len(ids) for ids in cut}) > 1


def test_draws_depend_on_the_row_alone_even_if_one_prompt_is_asked_twice():
    one, sampling = pair(), Sampling(temperature=5.0, top_k=20)
    asked, seeds = [PROMPTS[0], PROMPTS[2], PROMPTS[0]], [1, 2, 3]
    together = generate_ids(one, asked, sampling, max_new_tokens=8, seed=seeds, eos_ids=())
    assert together == [generate_ids(one, [prompt], sampling, max_new_tokens=8, seed=[seed], eos_ids=())[0] for prompt, seed in zip(asked, seeds)]
    assert together[0] != together[2]


def test_a_repetition_is_one_of_the_answer_not_of_the_prompt():
    one = pair()
    free = generate_ids(one, [PROMPTS[2]], max_new_tokens=1, eos_ids=())[0][0]
    prompt = [*PROMPTS[2], free]
    first = generate_ids(one, [prompt], max_new_tokens=1, eos_ids=())[0]
    assert first[0] in prompt and generate_ids(one, [prompt], Sampling(repetition_penalty=1e6), max_new_tokens=1, eos_ids=())[0] == first
    long = generate_ids(one, [prompt], Sampling(repetition_penalty=1e6), max_new_tokens=10, eos_ids=())[0]
    assert len(set(long)) == 10 and 0 not in long                                # each once, and the start token counts as written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A FLAN-like folder with a tokenizer of 800 tokens, whose last rows no token has."""
    root = tmp_path_factory.mktemp("flan") / "model"
    write_model(pair(vocab_size=808), root)
    write_tokenizer(root)
    return root


def test_a_text_in_a_text_out_whole_or_in_pieces(folder):
    model, tokenizer = minift.load(folder)
    assert isinstance(model, EncoderDecoder) and model.config == dataclasses.replace(PAIRS["flan"], vocab_size=808)
    asked = ["Translate this: a list of names.", "What follows?"]
    answers = minift.generate(model, tokenizer, asked, max_new_tokens=15)
    ids = [tokenizer.encode(text) for text in asked]
    assert all(i[-1] == 1 for i in ids)                                          # the encoder reads </s>: a prompt is a text of its own
    expected = [tokenizer.decode(i) for i in generate_ids(model, ids, max_new_tokens=15)]
    assert answers == expected
    assert ["".join(stream(model, tokenizer, text, 15)) for text in asked] == answers
    cut = answers[0][4:7]
    assert generate(model, tokenizer, asked[:1], max_new_tokens=15, stop=cut) == [answers[0][: answers[0].index(cut)]]


def test_minift_generate_prints_the_answer_below_the_prompt(folder, capsys):
    from minift.recipes import generate as recipe

    recipe.run(recipe.Config(model=str(folder), prompt=("Translate this.",), max_new_tokens=9))
    one = capsys.readouterr().out
    recipe.run(recipe.Config(model=str(folder), prompt=("Translate this.", "And that."), max_new_tokens=9))
    two = capsys.readouterr().out
    model, tokenizer = minift.load(folder)
    a, b = generate(model, tokenizer, ["Translate this.", "And that."], max_new_tokens=9)
    assert one == f"Translate this.\n{a}\n" and two == f"Translate this.\n{a}\n\n---\nAnd that.\n{b}\n"


# ---- folders


@pytest.mark.parametrize("name", PAIRS)
def test_a_folder_goes_out_and_in(name, tmp_path):
    one = pair(name)
    write_model(one, tmp_path / "model")
    again = read_model(tmp_path / "model", torch.float64)
    assert isinstance(again, EncoderDecoder) and again.config == one.config and not again.training
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    write_model(one.encoder, tmp_path / "encoder")
    alone = read_model(tmp_path / "encoder", torch.float64)
    assert isinstance(alone, Encoder) and alone.config == encoder_of(one.config)
    with torch.no_grad():
        assert torch.equal(alone(IDS[2:3]), one.encoder(IDS[2:3]))


def test_an_encoder_is_read_out_of_the_file_of_a_pair(tmp_path):
    one = pair()
    write_model(one, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["T5EncoderModel"]}))
    with torch.no_grad():
        assert torch.equal(read_model(tmp_path / "model", torch.float64)(IDS[2:3]), one.encoder(IDS[2:3]))


def test_whether_the_head_is_the_embedding_the_weights_say(tmp_path):
    for name, tied in (("t5", True), ("flan", False)):
        write_model(pair(name), tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["tie_word_embeddings"] == tied and config["scale_decoder_outputs"] == tied
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": not tied}))        # as transformers 5 may have it
        again = read_model(tmp_path / name, torch.float64)
        assert (again.head.weight is again.embed.weight) == tied
        with torch.no_grad():
            assert torch.equal(again(IDS, ANSWERS, THERE), pair(name)(IDS, ANSWERS, THERE))


def test_other_names_of_the_embedding_are_one_embedding(tmp_path):
    from safetensors.torch import load_file, save_file

    write_model(pair("t5"), tmp_path / "model")
    tensors, file = load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "model" / "model.safetensors"
    shared = tensors.pop("shared.weight")
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(14, 3)}           # the first T5s' files hold it
    both = {name: shared.clone() for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}
    for more in ({"shared.weight": shared, **both}, both):
        save_file({**tensors, **unused, **more}, file)
        assert torch.equal(read_model(tmp_path / "model", torch.float64).embed.weight, shared)
    save_file({**tensors, "shared.weight": shared, "decoder.embed_tokens.weight": shared + 1}, file)
    with pytest.raises(InputError, match="decoder.embed_tokens.weight and shared.weight are one matrix in minift, and are stored with different values"):
        read_model(tmp_path / "model", torch.float64)


SAID = dict(model_type="t5", vocab_size=31, d_model=20, num_layers=3, num_heads=3, d_kv=6, d_ff=26, architectures=["T5ForConditionalGeneration"])


def test_what_a_config_does_not_say_is_t5s_default():
    config = from_hf(SAID)
    assert (config.activation, config.gated, config.tie_embeddings, config.head_scale) == ("relu", False, True, 20**-0.5)
    assert (config.decoder_layers, config.start_token_id, config.eos_token_id, config.pad_token_id, config.bos_token_id) == (3, 0, 1, 0, None)
    assert (config.relative_buckets, config.relative_furthest, config.norm_eps, config.dropout) == (32, 128, 1e-6, 0.1)
    assert from_hf({**SAID, "tie_word_embeddings": False}).head_scale == 1.0
    assert from_hf({**SAID, "tie_word_embeddings": True, "scale_decoder_outputs": False}).head_scale == 1.0
    multilingual = from_hf({**SAID, "model_type": "mt5"})
    assert (multilingual.activation, multilingual.gated, multilingual.head_scale) == ("gelu_tanh", True, 1.0)
    assert from_hf({**SAID, "feed_forward_proj": "gated-gelu"}).activation == "gelu_tanh" and from_hf({**SAID, "feed_forward_proj": "gelu"}).activation == "gelu"


@pytest.mark.parametrize("fields, text", [
    (dict(model_type="umt5"), "model_type is 'umt5': each of its blocks has a table of relative positions of its own"),
    (dict(architectures=["T5ForSequenceClassification"]), r"minift reads \.\.\.ForConditionalGeneration and \.\.\.EncoderModel"),
    (dict(feed_forward_proj="gated-gelu", dense_act_fn="relu"), "the two name different activations"),
    (dict(feed_forward_proj="sparse-gelu"), "wanted an activation, or gated- and an activation"),
    (dict(pad_token_id=None), "with a start_token_id"),
])
def test_configs_that_are_none_of_ours_are_refused(fields, text):
    with pytest.raises(InputError, match=text):
        from_hf({**SAID, **fields})


def test_a_family_says_what_it_can_and_refuses_the_rest():
    with pytest.raises(InputError, match="a t5 folder has no place for scores"):
        to_hf(dataclasses.replace(encoder_of(PAIRS["t5"]), top="pooler", labels=2))
    with pytest.raises(InputError, match="cannot express activation 'gelu'"):
        to_hf(dataclasses.replace(PAIRS["flan"], activation="gelu"))
    with pytest.raises(ValueError, match="neither parallel nor norm_after"):
        dataclasses.replace(PAIRS["t5"], cross=True, norm_after=True)


# ---- adapters, 4 bits


def test_low_rank_changes_go_into_both_stacks_and_not_into_the_head():
    one = pair()
    before = one(IDS, ANSWERS, THERE)
    peft.attach(one, peft.LoRA(rank=2))
    close(one(IDS, ANSWERS, THERE), before)
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    for place in ("encoder.blocks.2.attention.q", "decoder.blocks.1.attention.v", "decoder.blocks.0.cross.k", "decoder.blocks.1.cross.out", "decoder.blocks.0.mlp.gate"):
        assert any(name.startswith(place) for name in trained), place
    assert not any(name.startswith(("head", "embed")) or "relative" in name for name in trained)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name in trained:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    moved = one(IDS, ANSWERS, THERE)
    assert not torch.allclose(moved, before, atol=1e-2)
    peft.merge(one)
    close(one(IDS, ANSWERS, THERE), moved, 1e-3)                                 # the changes are float32


def test_an_adapter_goes_out_and_in_under_the_familys_names(tmp_path):
    one = pair()
    peft.attach(one, peft.LoRA(rank=2, targets=["q", "v", "embed"]))
    with torch.no_grad():
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter += 0.2
    moved = one(IDS, ANSWERS, THERE)
    peft.save(one, tmp_path / "adapter")
    again = pair()
    plain = again(IDS, ANSWERS, THERE)
    peft.load(again, tmp_path / "adapter")
    close(again(IDS, ANSWERS, THERE), moved)
    assert not torch.allclose(plain, moved, atol=1e-2)
    from safetensors.torch import load_file

    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert "base_model.model.decoder.block.1.layer.1.EncDecAttention.q.lora_A.weight" in keys
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["task_type"] == "SEQ_2_SEQ_LM"


def test_linears_in_8_bits_write_on(folder):
    model, tokenizer = minift.load(folder, quantize="int8")
    assert type(model.decoder.blocks[0].cross.k).__name__ != "Linear" and is_product(model.head)
    assert isinstance(minift.generate(model, tokenizer, ["Translate this."], max_new_tokens=5)[0], str)


# ---- refusals


def test_what_wants_a_decoder_refuses_a_pair_and_says_what_it_can_do(folder, tmp_path):
    with pytest.raises(InputError, match=r"is an encoder-decoder \(t5\).*minift sft, evaluate, generate; its encoder: minift embed, encode, search"):
        folders.decoder(folder)
    with pytest.raises(InputError, match="an encoder-decoder, which writes and gives no scores"):
        folders.load(folder, scores=2)
    with pytest.raises(InputError, match="which cannot be answered by several sets"):
        generate_ids(pair(), PROMPTS, sets=[None] * 5)
    with pytest.raises(InputError, match="EncoderDecoder has no door for them"):
        peft.attach(pair(), peft.Prompt(length=2))


def test_vectors_are_made_by_the_encoder_of_a_pair(folder):
    model, tokenizer = folders.embedder(folder)
    assert isinstance(model, Encoder)
    whole, _ = folders.load(folder)
    texts = ["A list.", "What follows it, and what does not?"]
    assert torch.equal(embed(model, tokenizer, texts), embed(whole.encoder, tokenizer, texts))
    with pytest.raises(InputError, match="pass model.encoder"):
        embed(whole, tokenizer, texts)


# ---- the tokenizer


def test_a_text_ends_with_its_end_token_and_the_sentinels_come_last(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (None, 1, 0, 2)
    assert tokenizer.vocab_size == 800 and tokenizer.encode("<extra_id_0>")[0] == 799 and tokenizer.encode("<extra_id_99>")[0] == 700
    ids = tokenizer.encode("a <extra_id_1> b")
    assert ids[-1] == 1 and ids.count(798) == 1 and tokenizer.decode(ids) == "a b"
    assert tokenizer.encode("a<extra_id_1>b") == ids                             # blanks around a sentinel say nothing
    assert tokenizer.encode("") == [1] and tokenizer.encode("a</s>").count(1) == 1
    assert tokenizer.encode("a", add_special_tokens=False) == tokenizer.encode("a")[:-1]
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")                                  # where no config.json names the family
    assert again.encode("x <extra_id_7>") == tokenizer.encode("x <extra_id_7>") and again.vocab_size == 800


def test_a_folder_says_how_many_sentinels_there_are(tmp_path):
    write_tokenizer(tmp_path, "mt5", tokenizer_class="MT5Tokenizer", extra_ids=0)
    assert tokenizers.load(tmp_path).vocab_size == 700
    assert b"\x01" in unigram()                                                  # the same file, read by two folders
