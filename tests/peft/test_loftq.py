"""LoftQ starts nearer to the full weights than rounding does, and its base and its files are what it says they are."""

import json

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.peft.loftq import alternate
from minift.quant import Linear4bit, Linear8bit, QuantizedLinear, dequantize, quantize, quantize_model
from tests.models.small import model, tokens
from tests.peft.test_quantized import codes, same_codes


def attached(**options) -> nn.Module:
    decoder = model("llama")
    peft.attach(decoder, peft.LoftQ(**{"rank": 4, "alpha": 4, **options}))
    return decoder.eval()


def test_one_step_worked_by_hand():
    """int8 with absmax 127: the grid is whole numbers. W - Q = [[0.5, 0, 0], [0, 0.25, 0]] times (1, 1), to the lower code of a middle, whose
    singular values are 0.5 and 0.25. With alpha / r = 2 the rank-1 answer [[0.5, 0, 0], [0, 0, 0]] is 2 B A, A and B alike in size: 1/2 each."""
    W = torch.tensor([[10.5, 3.0, 127.0], [5.0, 20.25, 127.0]])
    q, A, B = alternate(W, peft.LoftQ(scheme="int8"), 1, 1, 2.0)
    torch.testing.assert_close(dequantize(q), torch.tensor([[10.0, 3.0, 127.0], [5.0, 20.0, 127.0]]))
    torch.testing.assert_close(2 * B @ A, torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]), rtol=0, atol=1e-5)
    assert abs(A.norm() - 0.5) < 1e-5 and abs(B.norm() - 0.5) < 1e-5


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8", "int4"])
def test_the_error_falls_with_the_first_step_and_falls_on(scheme):
    """‖W - Q‖ alone, then ‖W - Q - s B A‖ after 1, 2 and 5 alternations."""
    torch.manual_seed(0)
    W, config = torch.randn(96, 130), peft.LoftQ(scheme=scheme)
    errors = [(W - dequantize(quantize(W, scheme))).norm()]
    for steps in (1, 2, 5):
        q, A, B = alternate(W, config, steps, 16, 0.5)
        errors.append((W - dequantize(q) - 0.5 * B @ A).norm())
    assert errors[0] > 1.2 * errors[1] and errors[1] > 1.02 * errors[2] and errors[2] > errors[3]


def test_the_first_answer_is_the_best_of_its_rank():
    """Eckart and Young: what is left of W - Q are its other singular values."""
    torch.manual_seed(1)
    W = torch.randn(40, 33)
    q, A, B = alternate(W, peft.LoftQ(), 1, 6, 1.0)
    left = torch.linalg.svdvals(W - dequantize(q))[6:].norm()
    torch.testing.assert_close((W - dequantize(q) - B @ A).norm(), left, rtol=1e-5, atol=0)


def test_attached_it_rounds_all_linears_but_the_head_and_starts_nearer_to_the_full_model():
    full, rounded, ids = model("llama"), model("llama"), tokens(2, 7)
    quantize_model(rounded, "nf4")
    decoder = attached()
    assert all(isinstance(decoder.get_submodule(path).base, Linear4bit) for path in decoder._peft.wrappers)
    assert type(decoder.head) is type(full.head) and torch.equal(decoder.head.weight, full.head.weight)
    with torch.no_grad():
        wanted = full(ids)
        assert (decoder(ids) - wanted).norm() < 0.9 * (rounded(ids) - wanted).norm()
        with peft.disabled(decoder):
            assert torch.equal(decoder(ids), rounded(ids))                         # T = 1: the plainly rounded base
    peft.remove(decoder, "default")
    assert same_codes(decoder, codes(rounded))
    assert not any(p.requires_grad for m in decoder.modules() if isinstance(m, QuantizedLinear) for p in m.parameters())


def test_linears_outside_the_targets_are_rounded_too():
    decoder, rounded = attached(targets=["q", "v"], scheme="int8"), model("llama")
    quantize_model(rounded, "int8")
    assert isinstance(decoder.blocks[0].mlp.up, Linear8bit) and set(decoder._peft.wrappers) == {f"blocks.{n}.attention.{p}" for n in (0, 1) for p in "qv"}
    assert torch.equal(decoder.blocks[0].mlp.up.q.packed, rounded.blocks[0].mlp.up.q.packed)


def test_of_a_bf16_model_the_start_is_computed_in_float32_and_the_base_stays_bf16():
    decoder = model("llama").bfloat16()
    peft.attach(decoder, peft.LoftQ(rank=4, alpha=8, iterations=2))
    wrapper = decoder.blocks[0].mlp.up
    assert wrapper.base.weight.dtype == torch.bfloat16 and wrapper.adapters["default"].A.dtype == torch.float32
    q, A, B = alternate(model("llama").bfloat16().blocks[0].mlp.up.weight, peft.LoftQ(), 2, 4, 2.0)
    assert torch.equal(wrapper.base.q.packed, q.packed) and torch.equal(wrapper.adapters["default"].B, B)


def test_it_learns_and_its_file_is_plain_lora_on_the_rounded_base(tmp_path):
    decoder, ids = attached(alpha=8), tokens(2, 7)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = decoder(ids).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    peft.save(decoder, tmp_path / "a")
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert fields["init_lora_weights"] is True and (fields["r"], fields["lora_alpha"]) == (4, 8)
    other = model("llama")
    quantize_model(other, "nf4")
    peft.load(other.eval(), tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(other(ids), decoder(ids))
        before = decoder(ids)
        peft.merge(decoder)
        torch.testing.assert_close(decoder(ids), before, rtol=0, atol=1e-4 * before.abs().max().item())
    assert generate_ids(other, [[3, 1, 4]], max_new_tokens=2, eos_ids=())


def written_by_peft(folder, steps: int):
    """The folder of an adapter whose config says what peft's does."""
    peft.save(attached(), folder)
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": steps}}
    path.write_text(json.dumps(fields))
    return folder


def test_a_file_that_says_loftq_is_loaded_on_a_rounded_base_only(tmp_path):
    folder, ids = written_by_peft(tmp_path / "a", 1), tokens(2, 5)
    with pytest.raises(InputError, match=r"make up for the rounding of model.layers.0.self_attn.q_proj, which is not rounded here.*quantize=\"nf4\""):
        peft.load(model("llama"), folder)
    rounded = model("llama")
    quantize_model(rounded, "nf4")
    peft.load(rounded.eval(), folder)
    with torch.no_grad():
        assert torch.equal(rounded(ids), attached()(ids))
    peft.load(rounded, folder, "again")                                            # beside a set that is there
    with pytest.raises(InputError, match="'loftq' with 5 iterations: its base is what they left, not the rounded weights"):
        peft.load(rounded, written_by_peft(tmp_path / "b", 5), "third")


@pytest.mark.parametrize("options, words", [
    (dict(iterations=0), "LoftQ iterations is 0: it must be a whole number, at least 1"),
    (dict(alpha=-8), "A and B share a root of it, so it must be above 0"),
    (dict(rank=30), "has rank 24 at most"),
    (dict(targets=["embed"]), "embed_tokens is none that is rounded: leave it out, or take LoRA"),
    (dict(scheme="nf3"), "no scheme is called 'nf3': choose one of nf4, fp4, int8, int4"),
    (dict(block_size=60), "block_size is 60: nf4 takes one of 32, 64"),
])    # fmt: skip
def test_what_cannot_be_is_refused_with_the_model_as_it_was(options, words):
    decoder = model("llama")
    with pytest.raises(InputError, match=words):
        peft.attach(decoder, peft.LoftQ(**{"rank": 4, **options}))
    assert not any(isinstance(module, QuantizedLinear) for module in decoder.modules()) and peft.names(decoder) == []


def test_it_needs_the_full_weights_and_no_other_sets():
    rounded, adapted = model("llama"), model("llama")
    quantize_model(rounded, "nf4")
    with pytest.raises(InputError, match="q_proj is quantized already, and LoftQ needs what rounding loses: load the model unquantized"):
        peft.attach(rounded, peft.LoftQ(rank=2))
    peft.attach(adapted, peft.LoRA(rank=2))
    with pytest.raises(InputError, match="there are sets that were trained on the full weights: peft.remove them first"):
        peft.attach(adapted, peft.LoftQ(rank=2), "other")
    odd = model("llama")
    odd.blocks[1].mlp.down.weight.data[3, 4] = float("nan")                        # the last linear
    with pytest.raises(InputError, match=r"the weight holds nan at \[3, 4\]"):
        peft.attach(odd, peft.LoftQ(rank=2))
    assert not any(isinstance(module, QuantizedLinear) for module in odd.modules())
    with pytest.raises(InputError, match="cannot name a set of adapters"):
        peft.attach(fresh := model("llama"), peft.LoftQ(rank=2), "a/b")
    assert not any(isinstance(module, QuantizedLinear) for module in fresh.modules())


def test_the_head_as_a_target_gets_plain_lora_and_stays_full():
    decoder = attached(targets=["q", "head"])
    assert not isinstance(decoder.head.base, QuantizedLinear) and not decoder.head.adapters["default"].B.any()
