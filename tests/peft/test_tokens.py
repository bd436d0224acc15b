"""Only the rows of a few tokens train."""

import pytest
import torch

from minift import peft
from minift.errors import InputError
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("tied", [True, False])
def test_step_0_is_the_base_then_the_trained_rows_count_and_no_other(make, tied):
    model = make(tie_embeddings=tied)
    before = model(IDS)
    peft.attach(model, peft.NewTokens(ids=(7, 2)))
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-6)       # a logit may come from another product's rounding
    assert peft.trainable(model).trained == 2 * 12
    plain = make(tie_embeddings=tied)
    plain.load_state_dict({k.replace(".base.", "."): v for k, v in model.state_dict().items() if ".adapters." not in k})
    filled(model)
    with torch.no_grad():
        rows = model.embed.adapters["default"].rows
        plain.embed.weight[7], plain.embed.weight[2] = rows[0], rows[1]
    torch.testing.assert_close(model(IDS), plain(IDS), rtol=0, atol=1e-5)
    merged = model(IDS)
    peft.merge(model)
    torch.testing.assert_close(model(IDS), merged, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embed.weight[torch.tensor([2, 7])], rows[torch.tensor([1, 0])])
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before)


def test_the_gradient_is_that_of_the_rows_alone():
    model, plain = (llama(tie_embeddings=True) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    plain(IDS).square().mean().backward()
    peft.attach(model, peft.NewTokens(ids=(10, 3, 4)))
    model(IDS).square().mean().backward()
    torch.testing.assert_close(model.embed.adapters["default"].rows.grad, plain.embed.weight.grad[[10, 3, 4]], rtol=1e-4, atol=1e-8)


def test_a_saved_set_comes_back_and_a_file_of_an_untied_base_is_refused(tmp_path):
    model = llama()
    peft.attach(model, peft.NewTokens(ids=(7, 2)))
    filled(model)
    after = model(IDS)
    peft.save(model, tmp_path / "a")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "a")
    assert torch.equal(model(IDS), after)
    with pytest.raises(InputError, match="1 left over: base_model.model.lm_head.trainable_tokens_delta"):
        peft.load(llama(tie_embeddings=False), tmp_path / "a")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    tensors["base_model.model.lm_head.trainable_tokens_delta"] += 1
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(InputError, match="are one tensor in this model, but two in the file"):
        peft.load(llama(), tmp_path / "a")


def test_a_bf16_base_keeps_float32_rows_and_its_dtype():
    model = llama().bfloat16()
    peft.attach(model, peft.NewTokens(ids=(1,)))
    assert model.embed.adapters["default"].rows.dtype == torch.float32 and model(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("ids, said", [((), "wanted at least one"), ((3, 3), "none twice"), ((-1,), "none negative")])
def test_ids_that_name_no_rows_are_refused(ids, said):
    with pytest.raises(InputError, match=said):
        peft.NewTokens(ids=ids)


def test_a_token_beyond_the_vocabulary_is_refused():
    with pytest.raises(InputError, match="token 11 is not in the vocabulary of 11"):
        peft.attach(llama(), peft.NewTokens(ids=(11,)))
