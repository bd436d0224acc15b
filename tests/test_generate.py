"""Generation: the cache, the batch and the stream may not change what is written; the filters are worked by hand."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from minift import peft, quant
from minift.errors import InputError
from minift.generate import LONG, Answer, generate, generate_ids, head_for, position_limit, stream
from minift.models.cache import KVCache
from minift.models.config import ModelConfig, RopeScaling
from minift.models.transformer import Transformer
from minift.quant import whole_numbers
from minift.quant.linear import Linear8bit, rounding
from minift.quant.model import quantize_model
from minift.sampling import Sampling, adjust, choose, keep_min_p, keep_top_k, keep_top_p, penalize, row_seeds

LLAMA = ModelConfig(vocab_size=258, hidden_size=24, layers=2, heads=6, kv_heads=2, head_dim=4, mlp_size=20, max_positions=64)
CONFIGS = {
    "rope": LLAMA,
    "window": dataclasses.replace(LLAMA, windows=(3, None)),
    "learned": dataclasses.replace(LLAMA, position="learned", norm="layernorm", kv_heads=6, qkv="joined", qkv_bias=True),
    "alibi": dataclasses.replace(LLAMA, position="alibi", norm="layernorm", kv_heads=6, qkv="grouped", embed_norm=True),
    "parallel": dataclasses.replace(LLAMA, parallel=True, shared_norm=True, kv_heads=1, qkv="joined", rope_dim=2),
    "dynamic": dataclasses.replace(LLAMA, max_positions=8, rope_scaling=RopeScaling("dynamic", factor=2.0)),
}
RAGGED = [[256, 7], [256, 3, 141, 59, 26, 53, 58, 97], [11], [256, 200, 31, 4, 15]]
NEG = float("-inf")


class Bytes:
    """A tokenizer whose tokens are UTF-8 bytes; 256 is BOS, 257 EOS."""

    vocab_size, bos_id, eos_id, adds_bos, adds_eos, end_ids = 258, 256, 257, True, False, {257}

    def encode(self, text, add_special_tokens=True, continues=False):
        return [256] * self.adds_bos + list(text.encode()) + [257] * self.adds_eos

    def decode(self, ids, skip_special_tokens=True, continues=False):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class Pieces:
    """A tokenizer of whole words that eats a blank at the start of what it decodes, as sentencepiece does."""

    words = ["", " once", " upon", " a", " time", "."]
    vocab_size, bos_id, eos_id, adds_bos, adds_eos, end_ids = 6, 0, None, False, False, set()

    def encode(self, text, add_special_tokens=True, continues=False):
        return [self.words.index(f" {word}") for word in text.split()]

    def decode(self, ids, skip_special_tokens=True, continues=False):
        return "".join(self.words[i] for i in ids).removeprefix("" if continues else " ")


def opinionated(config, seed=0):
    """A random model whose logits differ by whole units, so that rounding cannot decide between two tokens."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model.eval()


def writes(script, vocab_size=258):
    """A model whose likeliest token at position p is script[p]: attention and MLP add nothing, the position says it all."""
    width = len(script)
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=width, layers=1, heads=1, kv_heads=1, head_dim=2, mlp_size=2, max_positions=width,
        position="learned", tie_embeddings=False,
    )
    model = Transformer(config)
    with torch.no_grad():
        for part in (model.embed, model.blocks[0].attention.out, model.blocks[0].mlp.down, model.head):
            part.weight.zero_()
        model.positions.weight.copy_(torch.eye(width))
        for place, token in enumerate(script):
            model.head.weight[token, place] = 5.0
    return model


def without_cache(model, prompt, count):
    """Greedy decoding as its definition has it: the whole text through the model for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


# --- the cache and the batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dynamic"])      # its frequencies change as a text grows
def test_cached_greedy_ids_are_the_uncached_ones(name):
    model = opinionated(CONFIGS[name])
    for prompt in RAGGED:
        assert generate_ids(model, [prompt], max_new_tokens=12) == [without_cache(model, prompt, 12)]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dynamic"])
def test_rows_of_one_length_and_of_several_write_the_uncached_ids_for_long(name):
    model, new = opinionated(CONFIGS[name]), LONG + 8                         # the head's weight is put in order first
    prompts = [RAGGED[-1], RAGGED[-1][::-1], RAGGED[0]]
    new = min(new, int(position_limit(model)) - max(map(len, prompts))) if CONFIGS[name].position == "learned" else new
    alone = [without_cache(model, prompt, new) for prompt in prompts]
    assert generate_ids(model, prompts[:2], max_new_tokens=new) == alone[:2] and generate_ids(model, prompts, max_new_tokens=new) == alone


def test_in_int8_too_a_row_is_what_it_is_alone_however_many_write_beside_it(tmp_path):
    model = opinionated(dataclasses.replace(LLAMA, hidden_size=32, heads=8, mlp_size=48))
    quantize_model(model, "int8")
    assert all(block.mlp.up.q.in_whole_steps for block in model.blocks)
    prompts = [[256, *range(5, 6 + i % 7), 3 * i] for i in range(20)]
    ends = {generate_ids(model, [prompt], max_new_tokens=3)[0][-1] for prompt in prompts[:6]}           # so that rows leave, at several times
    assert generate_ids(model, prompts, max_new_tokens=24, eos_ids=tuple(ends)) == [generate_ids(model, [prompt], max_new_tokens=24, eos_ids=tuple(ends))[0] for prompt in prompts]


@pytest.mark.parametrize("exact", [False, True])
def test_prompts_are_read_in_whole_numbers_too_where_those_are_fast_but_not_exactly(monkeypatch, exact):
    model, seen = opinionated(dataclasses.replace(LLAMA, hidden_size=32, heads=8, mlp_size=48)), []
    quantize_model(model, "int8")
    monkeypatch.setattr(whole_numbers, "way", lambda q, prompt: lambda x, q: seen.append((prompt, len(x))) or x @ quant.dequantize(q).T)
    generate_ids(model, [[5, 6, 7], [8, 9]], max_new_tokens=2, exact=exact)
    assert set(seen) == (set() if exact else {(True, 6), (False, 2)})


def test_the_head_is_in_int8_where_the_linears_are_and_not_where_it_is_to_be_exact(monkeypatch):
    for name, value in (("FAST", True), ("LARGE", 0), ("exact_sums", lambda: True)):
        monkeypatch.setattr(whole_numbers, name, value)
    model = opinionated(dataclasses.replace(LLAMA, hidden_size=32, heads=8, mlp_size=48, vocab_size=260))
    assert not isinstance(head_for(model, LONG, False), Linear8bit)
    quantize_model(model, "int8")
    head = head_for(model, LONG, False)
    assert isinstance(head, Linear8bit) and (head.weight - model.head.weight).abs().max() < model.head.weight.abs().max() / 250
    assert head_for(model, 1, False) is head, "a longer answer begins as a shorter one"
    assert head_for(model, LONG - 1, True) is model.head and not isinstance(head_for(model, LONG, True), Linear8bit)
    said = []
    head.register_forward_hook(lambda *_: said.append(rounding()))
    monkeypatch.setattr(whole_numbers, "way", lambda q, prompt: lambda x, q: x @ quant.dequantize(q).T)
    generate_ids(model, [[5, 6]], max_new_tokens=2)
    generate_ids(model, [[5, 6]], max_new_tokens=1, exact=True)
    assert said == ["token", "token"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, top_k=40, top_p=0.9, repetition_penalty=1.3)])
def test_trap10_a_ragged_batch_writes_what_each_prompt_gets_alone(name, sampling):
    model = opinionated(CONFIGS[name])
    together = generate_ids(model, RAGGED, sampling, max_new_tokens=12, seed=5)
    alone = [generate_ids(model, [p], sampling, max_new_tokens=12, seed=[s])[0] for p, s in zip(RAGGED, row_seeds(5, len(RAGGED)))]
    assert together == alone
    assert len({tuple(row) for row in together}) > 1                          # and they are not all the same text


def test_rows_that_end_early_leave_the_others_alone():
    model = opinionated(LLAMA)
    free = generate_ids(model, RAGGED, max_new_tokens=12)
    ends = {free[0][2], free[3][5]}                                           # tokens that will now end the rows they come up in
    bounded = generate_ids(model, RAGGED, max_new_tokens=12, eos_ids=tuple(ends))
    for long, short in zip(free, bounded):
        stop = next((i + 1 for i, token in enumerate(long) if token in ends), 12)
        assert short == long[:stop]                                           # the end token itself is there
    assert len(bounded[0]) <= 3 and len(bounded[3]) <= 6


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_does_not_show(batch_size):
    model, sampling = opinionated(LLAMA), Sampling(temperature=1.0)
    expected = generate_ids(model, RAGGED, sampling, max_new_tokens=6)
    assert generate_ids(model, RAGGED, sampling, max_new_tokens=6, batch_size=batch_size) == expected


def test_finished_rows_leave_the_batch():
    model, rows = opinionated(LLAMA), []
    hidden = model.hidden
    model.hidden = lambda ids, cache: rows.append(len(ids)) or hidden(ids, cache=cache)
    generate_ids(model, RAGGED, max_new_tokens=4, finish=lambda row, token: row in (0, 2))
    assert rows == [4, 2, 2, 2]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_that_several_rows_answer_is_run_once(name):
    model, tokens = opinionated(CONFIGS[name]), []
    asked, sampling = [RAGGED[i] for i in (3, 0)] + [RAGGED[3][::-1], RAGGED[3], RAGGED[3], RAGGED[0]], Sampling(temperature=1.5, repetition_penalty=1.3)
    alone = [generate_ids(model, [p], sampling, max_new_tokens=12, seed=[s])[0] for p, s in zip(asked, row_seeds(5, 6))]
    hidden = model.hidden
    model.hidden = lambda ids, cache: tokens.append(tuple(ids.shape)) or hidden(ids, cache=cache)
    assert generate_ids(model, asked, sampling, max_new_tokens=12, seed=5) == alone and len(set(map(tuple, alone))) == 6
    if name != "dynamic":
        assert tokens == [(3, max(map(len, asked)))] + [(6, 1)] * 11


def test_the_head_sees_one_position_per_row():
    model, shapes = opinionated(LLAMA), []
    model.head.register_forward_hook(lambda head, inputs, output: shapes.append(tuple(output.shape)))
    generate_ids(model, RAGGED, max_new_tokens=2)
    assert shapes == [(4, 258), (4, 258)]


def test_end_tokens_come_from_the_config_unless_given():
    model = opinionated(LLAMA)
    free = generate_ids(model, [[1, 2]], max_new_tokens=8)[0]
    end = free[3]
    model.config = dataclasses.replace(LLAMA, eos_token_id=(end, 9999))
    assert generate_ids(model, [[1, 2]], max_new_tokens=8)[0] == free[: free.index(end) + 1]
    assert generate_ids(model, [[1, 2]], max_new_tokens=8, eos_ids=())[0] == free
    assert generate_ids(model, [[1, 2]], max_new_tokens=8, eos_ids=free[0])[0] == free[:1]


def test_learned_positions_end_a_row_and_only_that_row():
    model = opinionated(dataclasses.replace(CONFIGS["learned"], max_positions=10))
    long, short = [5] * 8, [6, 7]
    both = generate_ids(model, [long, short], max_new_tokens=5)
    assert [len(row) for row in both] == [3, 5]                               # the token drawn at the last position needs no place
    assert both[1] == without_cache(model, short, 5)
    assert len(generate_ids(model, [[5] * 10], max_new_tokens=5)[0]) == 1
    with pytest.raises(InputError, match="prompt 1 has 11 tokens, but this model has 10 learned positions"):
        generate_ids(model, [short, [5] * 11], max_new_tokens=5)


def test_a_bfloat16_model_is_sampled_in_float32():
    model, dtypes = opinionated(LLAMA).to(torch.bfloat16), []
    hidden = model.hidden
    model.hidden = lambda ids, cache: dtypes.append(cache.keys.dtype) or hidden(ids, cache=cache)
    generate_ids(model, RAGGED, Sampling(temperature=1.0, top_p=0.9), max_new_tokens=3)
    assert dtypes == [torch.bfloat16] * 3


def test_the_mode_comes_back_and_dropout_is_off():
    model = opinionated(dataclasses.replace(LLAMA, dropout=0.5))
    expected = generate_ids(model, RAGGED, max_new_tokens=6)
    model.train()
    assert generate_ids(model, RAGGED, max_new_tokens=6) == expected
    assert model.training and model.blocks[0].training
    with pytest.raises(ZeroDivisionError):
        generate_ids(model, RAGGED, max_new_tokens=6, finish=lambda row, token: 1 / 0)
    assert model.training
    model = writes(list(b"abcdefgh")).train()
    pieces = stream(model, Bytes(), "a", max_new_tokens=6)
    assert next(pieces) == "b" and not model.training
    assert torch.is_grad_enabled()                                            # a paused stream does not switch gradients off outside
    pieces.close()
    assert model.training


def test_the_package_shows_the_function_wherever_the_module_was_imported_first():
    code = "import minift; from minift.generate import stream; import minift.recipes; assert callable(minift.generate), minift.generate"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_adapter_generates_as_the_model_it_is_merged_into():
    model = opinionated(LLAMA)
    base = generate_ids(model, RAGGED, max_new_tokens=6)
    peft.attach(model, peft.LoRA(rank=3, alpha=6))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    adapted = generate_ids(model, RAGGED, max_new_tokens=6)
    with peft.disabled(model):
        assert generate_ids(model, RAGGED, max_new_tokens=6) == base != adapted
    peft.merge(model)
    assert generate_ids(model, RAGGED, max_new_tokens=6) == adapted


# --- chance --------------------------------------------------------------------------------------------------------------------


def test_a_seed_says_it_all_and_two_seeds_differ():
    model, sampling = opinionated(LLAMA), Sampling(temperature=2.0)
    torch.manual_seed(1)
    first = generate_ids(model, [[1, 2]] * 3, sampling, max_new_tokens=8, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert generate_ids(model, [[1, 2]] * 3, sampling, max_new_tokens=8, seed=7) == first
    assert torch.equal(torch.get_rng_state(), state)                          # the global generator is neither read nor moved
    assert generate_ids(model, [[1, 2]] * 3, sampling, max_new_tokens=8, seed=8) != first
    assert len({tuple(row) for row in first}) == 3                            # equal prompts in one call get different samples


def test_tokens_are_drawn_with_their_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    die, n = torch.Generator().manual_seed(0), 20_000
    drawn = choose(probabilities.log().expand(n, 4), Sampling(temperature=1.0), [die] * n)
    share = drawn.bincount(minlength=4) / n
    assert share[1] == 0
    assert (share - probabilities).abs().max() < 4 * 0.5 / n**0.5             # four standard deviations of the largest share


def test_temperature_sharpens_as_it_should():
    logits = torch.tensor([[2.0, 1.0]])
    half = adjust(logits, Sampling(temperature=0.5)).softmax(-1)[0]
    assert half[0] / half[1] == pytest.approx(math.exp(2), rel=1e-5)          # (2 - 1) / 0.5
    assert adjust(logits, Sampling(temperature=1e-30)).softmax(-1).tolist() == [[1.0, 0.0]]


# --- the filters, worked by hand: logits are logs of 0.4, 0.3, 0.2, 0.1 in mixed order ------------------------------------------

LOGITS = torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log()


def kept(logits):
    return [i for i, value in enumerate(logits[0].tolist()) if value > NEG]


@pytest.mark.parametrize("k, expected", [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])])
def test_top_k_keeps_the_k_likeliest(k, expected):
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize("p, expected", [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [0, 1, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_token_that_crosses_p(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize("p, expected", [(0.0, [0, 1, 2, 3]), (0.24, [0, 1, 2, 3]), (0.26, [0, 1, 3]), (0.51, [1, 3]), (1.0, [1])])
def test_min_p_is_relative_to_the_likeliest(p, expected):
    assert kept(keep_min_p(LOGITS, p)) == expected


def test_filters_are_applied_in_order_and_rows_are_independent():
    rows = torch.cat([LOGITS, LOGITS.flip(-1)])
    both = adjust(rows, Sampling(temperature=1.0, top_k=3, top_p=0.75))       # of 4/9, 3/9, 2/9 the first two hold 0.78
    assert kept(both[:1]) == [1, 3] and kept(both[1:]) == [0, 2]
    assert kept(keep_top_p(LOGITS, 0.75)) == [0, 1, 3]                        # of all four they hold 0.7: top-p first would keep three
    hot = adjust(LOGITS, Sampling(temperature=4.0, top_p=0.5))                # heat comes before top-p: 0.4 has become 0.30
    assert kept(hot) == [1, 3] and kept(adjust(LOGITS, Sampling(temperature=0.25, top_p=0.5))) == [1]


def test_the_repetition_penalty_makes_both_signs_less_likely():
    seen = torch.tensor([[True, True, False, False]])
    assert penalize(torch.tensor([[3.0, -3.0, 3.0, -3.0]]), seen, 2.0).tolist() == [[1.5, -6.0, 3.0, -3.0]]


def test_the_penalty_knows_the_prompt_and_the_answer_but_no_pad():
    model = writes([4] * 8, vocab_size=6)                                     # would say 4 for ever: its logit is 5, the others' 0
    assert generate_ids(model, [[1, 2]], max_new_tokens=3) == [[4, 4, 4]]
    with torch.no_grad():
        model.head.weight[3] = 4.0                                            # second choice
        model.head.weight[0] = 3.0                                            # third; 0 is also what pads are made of
    penalty = Sampling(repetition_penalty=2.0)
    assert generate_ids(model, [[1, 2], [4, 3, 1]], penalty, max_new_tokens=3) == [[4, 3, 0], [0, 4, 4]]


# --- texts ---------------------------------------------------------------------------------------------------------------------


def test_generate_gives_the_answer_without_the_prompt_and_stops_at_the_end_token():
    model = writes(list(b"x=one two") + [257] + list(b"more"))                # the token at position p follows prompt token p
    assert generate(model, Bytes(), ["a"]) == ["=one two"]                    # BOS and a: the next token is at position 1
    assert generate(model, Bytes(), [[1, 2, 3]], max_new_tokens=3) == ["one"]             # ids as they are, and the length limit


@pytest.mark.parametrize("stop, expected", [("e t", "=on"), (["two", "ne"], "=o"), ("=", ""), ("nowhere", "=one two")])
def test_stop_strings_may_span_tokens_and_are_not_part_of_the_answer(stop, expected):
    model = writes(list(b"x=one two") + [257])
    assert generate(model, Bytes(), ["a"], stop=stop) == [expected]
    assert "".join(stream(model, Bytes(), "a", stop=stop)) == expected


def test_a_stop_string_ends_its_own_row_only():
    model = writes(list(b"abcdefgh"))
    assert generate(model, Bytes(), [[1], [1, 1, 1], [1]], stop="d", max_new_tokens=6) == ["abc", "c", "abc"]


def test_a_stream_never_shows_half_a_character_nor_part_of_a_stop_string():
    text = "é日🙂!ENaENDx"
    model = writes([0] + list(text.encode()) + [257])
    pieces = list(stream(model, Bytes(), "a", stop=["END", "🙂?"]))
    assert pieces == ["é", "日", "🙂!", "ENa"]                                # 🙂 waits for its successor, EN for what follows
    assert generate(model, Bytes(), ["a"], stop=["END", "🙂?"]) == ["".join(pieces)]


def test_a_character_cut_off_by_the_length_limit_is_left_out():
    model = writes([0] + list("ab日".encode()))
    assert generate(model, Bytes(), ["a"], max_new_tokens=4) == ["ab"]
    assert list(stream(model, Bytes(), "a", max_new_tokens=4)) == ["a", "b"]


def test_bytes_that_are_no_character_do_not_hold_up_the_text():
    answer = Answer(Bytes(), [256], ())
    for byte in [0xFF, 0xE6, *b"ok"]:
        answer.add(byte)
    assert answer.finish() == "\ufffd\ufffdok"


def test_whole_characters_in_a_token_that_ends_inside_one_are_not_lost():
    answer = Answer(Bytes(), [256], ["z"])
    answer.decoder.held = [*b"ab", 0xE6]                                      # as one token of a byte-level BPE may be
    assert (answer.text, answer.finish()) == ("", "ab")
    answer.decoder.held = [*b"yz", 0xE6]
    assert answer.finish() == "aby"                                           # and a stop string in them still counts


def test_streaming_equals_generating_for_any_sample():
    model = opinionated(LLAMA)
    for seed in range(8):
        options = dict(max_new_tokens=40, temperature=1.0, top_p=0.95, seed=seed, stop=["e", "\n"])
        pieces = list(stream(model, Bytes(), "héllo", **options))
        assert "".join(pieces) == generate(model, Bytes(), ["héllo"], **options)[0] and "" not in pieces


def test_the_blank_between_prompt_and_answer_is_kept():
    model = writes([0, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5], vocab_size=6)
    assert generate(model, Pieces(), ["upon once"], max_new_tokens=4) == [" upon a time."]
    assert generate(model, Pieces(), [""], max_new_tokens=3) == ["upon a"]    # with no text before it there is no blank
    assert list(stream(model, Pieces(), "upon once", max_new_tokens=4)) == [" upon", " a", " time", "."]


def test_an_empty_prompt_starts_from_bos_or_is_refused():
    model, tokenizer = opinionated(LLAMA), Bytes()
    tokenizer.adds_bos = False
    assert generate(model, tokenizer, [""], max_new_tokens=4) == generate(model, tokenizer, [[256]], max_new_tokens=4)
    tokenizer.bos_id = None
    with pytest.raises(InputError, match="no BOS token to start from"):
        generate(model, tokenizer, [""])
    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate_ids(model, [[1], []])


def test_a_tokenizer_that_appends_eos_does_not_end_the_prompt():
    model, tokenizer = opinionated(LLAMA), Bytes()
    expected = generate(model, tokenizer, ["ab"], max_new_tokens=5)
    tokenizer.adds_eos = True
    assert generate(model, tokenizer, ["ab"], max_new_tokens=5) == expected


# --- bad input -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temperature=-1.0), "temperature is -1.0: wanted 0"),
        (dict(temperature=math.nan), "temperature is nan"),
        (dict(temperature=1.0, top_k=0), "top_k is 0: wanted 1 or more, or None"),
        (dict(temperature=1.0, top_p=0.0), "top_p is 0.0: wanted more than 0"),
        (dict(temperature=1.0, top_p=1.5), "top_p is 1.5"),
        (dict(temperature=1.0, min_p=-0.1), "min_p is -0.1"),
        (dict(repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (dict(top_p=0.9), "top_p=0.9 has no effect at temperature 0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0: wanted 1 or more"),
        (dict(stop=["a", ""]), "a stop string is empty"),
        (dict(seed=[1, 2]), "2 seeds for 1 prompts"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        generate(opinionated(LLAMA), Bytes(), ["a"], **options)
    if "seed" not in options:
        with pytest.raises(InputError, match=message):
            stream(opinionated(LLAMA), Bytes(), "a", **options)              # at the call, not at the first piece


def test_other_bad_input_is_named():
    model = opinionated(LLAMA)
    with pytest.raises(InputError, match="pass a list of prompts"):
        generate(model, Bytes(), "a single string")
    with pytest.raises(InputError, match="prompt 0 has token ids 3 to 258, the model knows 0 to 257"):
        generate_ids(model, [[3, 258]])
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        generate_ids(model, [[3]])
    assert generate_ids(model, []) == []


def test_a_cache_is_copied_row_by_row_with_other_room():
    cache = KVCache(LLAMA, batch=2, capacity=3)
    cache.lengths, cache.filled, cache.virtual = torch.tensor([3, 2]), 3, 1
    cache.keys.normal_(), cache.values.normal_()
    keys = cache.keys.clone()
    other = cache.copies([1, 0, 1], 5)
    assert other.lengths.tolist() == [2, 3, 2] and (other.capacity, other.filled, other.virtual) == (5, 3, 1)
    assert torch.equal(other.keys[:, :, :, :3], keys[:, [1, 0, 1]]) and torch.equal(other.values[:, :, :, :3], cache.values[:, [1, 0, 1]])
    other.append(0, torch.ones(3, LLAMA.kv_heads, 1, LLAMA.head_dim), torch.ones(3, LLAMA.kv_heads, 1, LLAMA.head_dim))
    assert torch.equal(cache.keys, keys) and cache.keys.shape[3] == 3


def test_a_cache_that_keeps_rows_keeps_their_lengths():
    cache = KVCache(LLAMA, batch=3, capacity=4)
    cache.lengths = torch.tensor([1, 2, 3])
    cache.keep_rows(torch.tensor([0, 2]))
    assert cache.lengths.tolist() == [1, 3] and cache.keys.shape[1] == 2
