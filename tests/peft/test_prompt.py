"""Prompt tuning: where it starts, what learns, what a file holds. That rows act as words is proved in tests/models/test_virtual.py.

Two float32 runs that differ in the order of their sums agree to 1e-5 for logits of size ~1; bf16 has 8 bits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from tests.models.small import model as family
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def table(model, name="default"):
    return model.virtual.adapters[name].table


@pytest.mark.parametrize("name", ["llama3", "gemma", "gpt2", "bloom"])
def test_started_from_a_text_it_is_the_model_that_has_read_the_text(name):
    model, text = family(name), (7, 8, 9)
    expected = model(torch.cat([torch.tensor([text] * 2), IDS], dim=1))[:, 3:]
    peft.attach(model, peft.Prompt(length=3, init="text", init_ids=text))
    torch.testing.assert_close(model(IDS), expected, rtol=1e-5, atol=1e-5)
    assert model(IDS).shape == (2, 5, 31)


def test_a_texts_rows_are_repeated_or_cut_to_the_length():
    for length, ids in ((5, [7, 8, 7, 8, 7]), (1, [7])):
        model = llama()
        peft.attach(model, peft.Prompt(length=length, init="text", init_ids=(7, 8)))
        assert torch.equal(table(model), model.embed.weight[ids])


def test_the_vocabularys_rows_are_those_of_frequent_tokens():
    model = llama(vocab_size=20000)
    model.embed.weight.data = torch.arange(20000.0)[:, None].expand(20000, 12).clone()
    peft.attach(model, peft.Prompt(length=15))                             # the default start
    rows = table(model)[:, 0]
    assert torch.equal(table(model), rows[:, None].expand(15, 12)) and rows.max() < 5000
    assert len(rows.unique()) > 10                                         # 15 draws of 5000: 5 repeats come once in 1e7


def test_random_rows_are_uniform_on_half_a_unit():
    model = llama(max_positions=200)
    peft.attach(model, peft.Prompt(length=100, init="random"))
    assert table(model).abs().max() <= 0.5 and table(model).abs().max() > 0.49     # missed by 1200 draws with p = e^-24
    assert table(model).std().item() == pytest.approx(12**-0.5, rel=0.1)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_only_the_rows_learn_and_the_base_comes_back_exactly(make):
    model = make()
    before = model(IDS)
    peft.attach(model, peft.Prompt(length=3))
    assert peft.trainable(model).trained == 3 * 12
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["virtual.adapters.default.table"]
    after = filled(model)(IDS)
    assert (after - before).abs().max() > 1e-3
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
        assert model.virtual_count() == 0
    after.square().sum().backward()
    assert (table(model).grad.abs().amax(dim=1) > 0).all()                 # every row hears of the loss
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before)


def test_sets_are_switched_and_generation_follows():
    model, texts = family("llama3"), {}
    for name, length in (("short", 2), ("long", 5)):
        peft.attach(model, peft.Prompt(length, init="random"), name)
        table(model, name).data *= 5
    for name, length in (("short", 2), ("long", 5)):
        peft.switch(model, name)
        assert model.virtual_count() == length
        texts[name], ids = generate_ids(model, [[3, 1]], max_new_tokens=6, eos_ids=())[0], [3, 1]
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert texts[name] == ids[2:]
    assert texts["short"] != texts["long"]


def test_it_is_saved_as_one_table_and_loads_as_it_was(tmp_path):
    model = llama()
    peft.attach(model, peft.Prompt(length=3))
    after = filled(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    assert torch.equal(load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"], table(model))
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = dict(peft_type="PROMPT_TUNING", num_virtual_tokens=3, token_dim=12, num_layers=2, num_attention_heads=3)
    assert wanted.items() <= fields.items() and fields["num_transformer_submodules"] == 1
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter", "again")
    assert torch.equal(model(IDS), after) and table(model, "again").requires_grad


def test_a_file_for_another_width_an_encoder_decoder_or_with_nan_is_refused(tmp_path):
    model, where = llama(), tmp_path / "adapter"
    peft.attach(model, peft.Prompt(length=3))
    peft.save(model, where)
    with pytest.raises(InputError, match=r"prompt_embeddings has shape \(3, 12\), but .* \(3, 24\)"):
        peft.load(llama(hidden_size=24), where)
    good = load_file(where / "adapter_model.safetensors")
    save_file({"prompt_embeddings": good["prompt_embeddings"] * float("nan")}, where / "adapter_model.safetensors")
    with pytest.raises(InputError, match="prompt_embeddings contains NaN"):
        peft.load(llama(), where)
    save_file({"prompt_embedding": good["prompt_embeddings"]}, where / "adapter_model.safetensors")
    with pytest.raises(InputError, match="1 missing: prompt_embeddings. 1 left over: prompt_embedding"):
        peft.load(llama(), where)
    fields = json.loads((where / "adapter_config.json").read_text())
    (where / "adapter_config.json").write_text(json.dumps({**fields, "num_transformer_submodules": 2}))
    with pytest.raises(InputError, match="encoder-decoder"):
        peft.load(llama(), where)


def test_it_cannot_be_merged():
    model = llama()
    peft.attach(model, peft.Prompt(length=3))
    with pytest.raises(InputError, match="not inside a weight, so there is nothing to merge"):
        peft.merge(model)


def test_a_batch_shares_its_virtual_tokens():
    model = llama()
    peft.attach(model, peft.Prompt(length=3))
    with peft.rows(model, ["default", None]), pytest.raises(InputError, match="virtual tokens, which all rows of a batch share"):
        model(IDS)


def test_trap33_gradients_are_the_same_with_checkpointing_and_over_a_bfloat16_base_they_are_float32():
    gradients, model = [], llama()
    peft.attach(model, peft.Prompt(length=3))
    filled(model)
    for model.checkpointing in (False, True):
        table(model).grad = None
        model(IDS).square().sum().backward()
        gradients.append(table(model).grad)
    assert torch.equal(*gradients)
    half = llama().to(torch.bfloat16)
    peft.attach(half, peft.Prompt(length=3))
    assert table(half).dtype == torch.float32                              # trap 34
    half(IDS).float().square().sum().backward()
    assert half(IDS).dtype == torch.bfloat16 and table(half).grad.dtype == torch.float32


def test_a_model_without_the_door_is_refused():
    for model in (nn.Sequential(nn.Linear(3, 2)), nn.ModuleDict({"virtual": nn.Linear(3, 2)})):
        with pytest.raises(InputError, match="has no door for them: it needs a module `virtual`"):
            peft.attach(model, peft.Prompt(length=3))
        assert peft.names(model) == []


def test_a_prompt_longer_than_the_context_is_refused():
    peft.attach(llama(), peft.Prompt(length=15))
    with pytest.raises(InputError, match="a prompt longer than the context: 16 virtual tokens leave no room for text in this model's 16"):
        peft.attach(llama(), peft.Prompt(length=16))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(length=0), "prompt length is 0"),
        (dict(length=2.5), "prompt length is 2.5"),
        (dict(init="class"), 'prompt init is \'class\': choose "vocabulary", "random" or "text"'),
        (dict(init="text"), "with 0 init_ids: .* give both"),
        (dict(init_ids=(1, 2)), "'vocabulary' with 2 init_ids"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.Prompt(**wrong)


def test_a_start_from_unknown_tokens_is_refused():
    with pytest.raises(InputError, match="token id 11 is to start a virtual token, but the model knows 0 to 10"):
        peft.attach(llama(), peft.Prompt(length=3, init="text", init_ids=(4, 11)))


def test_the_papers_own_counts_without_the_memory():
    """GPT-3 175B with a prompt of length 264: 3.2M (table of LoRA's paper); T5-XXL's width with length 5: 20,480."""
    shape = dict(vocab_size=50257, kv_heads=96, head_dim=128, heads=96, mlp_size=4 * 12288, max_positions=2048, family="gpt2", gated=False)
    with torch.device("meta"):
        gpt3 = Transformer(ModelConfig(**shape, hidden_size=12288, layers=2))      # no block has a part in it
        t5 = Transformer(ModelConfig(**shape, hidden_size=4096, layers=1))
    for model, length, wanted in ((gpt3, 264, 3_244_032), (t5, 5, 20_480)):
        peft.attach(model, peft.Prompt(length=length))
        assert peft.trainable(model).trained == wanted and table(model).is_meta
