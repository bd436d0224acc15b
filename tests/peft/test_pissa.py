"""PiSSA: the start from singular vectors, the base left alone, files as plain LoRA of twice the rank."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.pissa import PiSSALinear, largest
from tests.peft.small import filled, gpt2, llama
from tests.peft.test_lora import FAMILIES, IDS, Conv1D, agrees_with_cache_packing_and_checkpointing


def moved(model):
    """As after some training: A and B near their start, but off it."""
    for name, parameter in model.named_parameters():
        if ".adapters." in name:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def mlp():
    return nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))


def test_the_start_worked_by_hand():
    base = nn.Linear(3, 2, bias=False)
    base.weight.data = torch.tensor([[0.0, 0.0, -8.0], [18.0, 0.0, 0.0]])       # singular values 18 and 8, along axes
    pissa = PiSSALinear(base, rank=1, scale=2.0)
    # 18 / 2 = 9 shared as 3 and 3, up to a common sign: A = +-(3, 0, 0), B = +-(0, 3)
    torch.testing.assert_close(pissa.A.abs(), torch.tensor([[3.0, 0.0, 0.0]]))
    torch.testing.assert_close(pissa.B @ pissa.A, torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
    assert torch.equal(pissa.A, pissa.A0) and torch.equal(pissa.B, pissa.B0)
    pissa.B.data *= 2                                                       # W' = W - 2 B0 A0 + 2 (2 B0) A0 = W with 36 for 18
    torch.testing.assert_close(pissa(base, torch.tensor([[1.0, 5.0, 1.0]])), torch.tensor([[-8.0, 36.0]]))
    torch.testing.assert_close(pissa.merged(base)["weight"], torch.tensor([[0.0, 0.0, -8.0], [36.0, 0.0, 0.0]]))


@pytest.mark.parametrize("options, scale", [(dict(alpha=6), 2.0), (dict(alpha=6, rslora=True), 6 / 3**0.5), (dict(alpha=0.3), 0.1)])
def test_a_and_b_hold_the_closest_matrix_of_their_rank_whatever_the_scale(options, scale):
    model = nn.Sequential(nn.Linear(9, 7))
    W = model[0].weight.detach().clone()
    peft.attach(model, peft.PiSSA(rank=3, **options))
    pissa = model[0].adapters["default"]
    U, S, Vt = torch.linalg.svd(W)
    torch.testing.assert_close(scale * pissa.B @ pissa.A, U[:, :3] * S[:3] @ Vt[:3])
    torch.testing.assert_close(pissa.A.norm(dim=1), (S[:3] / scale).sqrt())      # the root of each singular value on either side
    torch.testing.assert_close(pissa.B.norm(dim=0), (S[:3] / scale).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_step_0_is_the_base_to_the_bit(dtype):
    for model, x in ((llama(), IDS), (gpt2(), IDS), (mlp(), torch.randn(4, 9)), (nn.Sequential(Conv1D(7, 9)), torch.randn(4, 9))):
        x = x.to(dtype) if x.is_floating_point() else x
        before = model.to(dtype)(x)
        peft.attach(model, peft.PiSSA(rank=3))
        assert torch.equal(model(x), before)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}     # trap 34


def test_trap30_the_base_is_never_touched():
    model = llama()
    before, weights = model(IDS), {name: p.detach().clone() for name, p in model.named_parameters()}
    peft.attach(model, peft.PiSSA(rank=3, targets=["q", "down", "head"]), "first")
    peft.attach(model, peft.LoRA(rank=2), "other")
    other = filled(model)(IDS)
    peft.switch(model, "first")
    moved(model)
    assert not torch.allclose(model(IDS), before, atol=1e-2)
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    peft.switch(model, "other")
    assert not torch.equal(model(IDS), before)
    for name in ("first", "other"):
        peft.remove(model, name)
    assert torch.equal(model(IDS), before) and all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert other.shape == before.shape


def test_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(9, 7)).double()
    peft.attach(model, peft.PiSSA(rank=3, alpha=6))
    base, pissa = model[0].base, moved(model)[0].adapters["default"]
    x, weigh = torch.randn(4, 9, dtype=torch.double), torch.randn(4, 7, dtype=torch.double)
    explicit = F.linear(x, base.weight - 2 * pissa.B0 @ pissa.A0 + 2 * pissa.B @ pissa.A, base.bias)
    torch.testing.assert_close(model(x), explicit)
    wanted = [pissa.A, pissa.B]
    ours, theirs = (torch.autograd.grad((y * weigh).sum(), wanted) for y in (model(x), explicit))
    torch.testing.assert_close(ours, theirs)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.adapters.default.A", "0.adapters.default.B"]


def test_in_bfloat16_only_what_was_learned_is_rounded():
    base = nn.Linear(64, 48, bias=False).to(torch.bfloat16)
    nn.init.normal_(base.weight, std=4.0)
    pissa, x = PiSSALinear(base, rank=8, scale=1.0), torch.randn(16, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        pissa.A.add_(torch.randn_like(pissa.A), alpha=1e-3)
        pissa.B.add_(torch.randn_like(pissa.B), alpha=1e-3)
    change = x.double() @ (pissa.B.double() @ pissa.A.double() - pissa.B0.double() @ pissa.A0.double()).T
    A, B = pissa.change()
    ours = F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype)).double()
    apart = [F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)).double() for a, b in ((pissa.A, pissa.B), (pissa.A0, pissa.B0))]
    error = lambda y: (y - change).norm() / change.norm()
    assert error(ours) < 2**-6 and error(apart[0] - apart[1]) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_trap32_cache_packing_and_checkpointing_agree(family):
    make, targets = FAMILIES[family]
    model = make()
    targets = [target for target in targets if target not in ("embed", "positions")]
    peft.attach(model, peft.PiSSA(rank=3, alpha=5, targets=targets, rank_pattern={"down_proj|c_fc": 2}, rslora=True))
    agrees_with_cache_packing_and_checkpointing(moved(model))


@pytest.mark.parametrize("make, x", [(llama, IDS), (gpt2, IDS), (mlp, torch.ones(2, 9)), (lambda: nn.Sequential(Conv1D(7, 7)), torch.ones(2, 7))])
def test_merged_is_unmerged_and_unmerge_is_exact(make, x):
    model = make()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    peft.attach(model, peft.PiSSA(rank=3))
    after = moved(model)(x)
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-5)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_trap25_a_tied_head_gets_the_change_and_the_embedding_does_not():
    model = llama()
    E = model.embed.weight.detach().clone()
    peft.attach(model, peft.PiSSA(rank=3, targets=["head"]))
    after = moved(model)(IDS)
    assert torch.equal(model.embed.weight, E)
    peft.merge(model)
    torch.testing.assert_close(model(IDS), after, rtol=1e-5, atol=1e-5)
    assert model.config.tie_embeddings is False and torch.equal(model.embed.weight, E)


@pytest.mark.parametrize("rslora", [False, True])
def test_trap30_it_is_saved_as_plain_lora_of_twice_the_rank(rslora, tmp_path):
    model = llama()
    method = peft.PiSSA(rank=5, alpha=3, targets=["q", "up", "down"], rslora=rslora, rank_pattern={"down_proj": 7}, alpha_pattern={"q_proj": 9})
    peft.attach(model, method)
    after = moved(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True and config["r"] == 10 and config["rank_pattern"] == {"down_proj": 14}
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")                                  # 2 x 7 is more than the 12 x 20 of down_proj can have
    torch.testing.assert_close(model(IDS), after, rtol=0, atol=1e-6)
    assert type(model._peft.sets["default"]) is peft.LoRA
    assert model.blocks[0].mlp.down.adapters["default"].A.shape == (14, 20)


def test_a_and_b_alone_are_found_again_on_the_same_base_and_go_on_as_pissa(tmp_path):
    model = gpt2()
    peft.attach(model, peft.PiSSA(rank=3, alpha=6, as_lora=False))
    after = moved(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
    first = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    torch.testing.assert_close(model(IDS), after, rtol=0, atol=1e-6)
    assert type(model._peft.sets["default"]) is peft.PiSSA
    peft.save(model, tmp_path / "again")
    second = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_dropout_thins_what_was_learned_and_leaves_step_0_alone():
    model, x = nn.Sequential(nn.Linear(40, 7)), torch.randn(3, 40)
    before = model(x)
    peft.attach(model, peft.PiSSA(rank=3, dropout=0.5))
    pissa = model[0].adapters["default"]
    assert torch.equal(model(x), before)
    moved(model)
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    change = pissa.scale * (pissa.B @ pissa.A - pissa.B0 @ pissa.A0)
    torch.testing.assert_close(dropped, before + F.dropout(x, 0.5) @ change.T)
    assert not torch.allclose(dropped, model.eval()(x))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_fast_svd_finds_what_the_full_one_does(shape):
    U, _, Vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    W = U * (0.8 ** torch.arange(40)) @ Vt
    U, S, Vt = largest(W, 5, niter=4)
    assert (U.shape, S.shape, Vt.shape) == ((shape[0], 5), (5,), (5, shape[1]))
    # the error falls as (s_14 / s_5)^(2 niter + 1) = 0.8^81; what is left is float32's
    torch.testing.assert_close(S, 0.8 ** torch.arange(5), rtol=1e-5, atol=0)
    exact = largest(W, 5, None)
    torch.testing.assert_close(U * S @ Vt, exact[0] * exact[1] @ exact[2], rtol=0, atol=1e-5)
    again = largest(W, 5, niter=4)
    assert all(torch.equal(a, b) for a, b in zip((U, S, Vt), again))        # the same random projection every time


def test_the_fast_svd_draws_nothing_from_the_runs_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    largest(torch.eye(40), 5, niter=1)
    assert torch.equal(torch.rand(2), expected)


def test_the_fast_start_is_step_0_too_and_is_saved_exactly(tmp_path):
    model, x = nn.Sequential(nn.Linear(60, 40)), torch.randn(4, 60)
    before = model(x)
    peft.attach(model, peft.PiSSA(rank=5, niter=0))                         # a poor split is still a split
    assert torch.equal(model(x), before)
    after = moved(model)(x)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    torch.testing.assert_close(model(x), after, rtol=0, atol=1e-5)


def test_the_factors_are_the_whole_change():
    base = nn.Linear(9, 7)
    pissa = PiSSALinear(base, rank=3, scale=2.0)
    nn.init.normal_(pissa.A)
    A, B = pissa.factors()
    exact = 2 * (pissa.B.double() @ pissa.A.double() - pissa.B0.double() @ pissa.A0.double())
    assert A.dtype == torch.float64
    torch.testing.assert_close(B @ A, exact, rtol=0, atol=1e-6)             # A - A0 is rounded to float32


def test_counting_needs_no_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40_000, 30_000, bias=False))
    peft.attach(model, peft.PiSSA(rank=8, niter=2))
    assert peft.trainable(model).trained == 8 * 70_000


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(alpha=-8), "alpha is -8.*above 0"),
        (dict(alpha_pattern={"q": -1}), "alpha_pattern {'q': -1}.*above 0"),
        (dict(niter=-1), "niter is -1"),
        (dict(niter=1.5), "niter is 1.5"),
        (dict(niter=4, as_lora=False), "will not find again"),
        (dict(rank=0), "rank is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.PiSSA(**wrong)


def test_what_cannot_be_split_is_refused_by_name():
    model = nn.ModuleDict({"rows": nn.Embedding(11, 8), "narrow": nn.Linear(9, 2), "packed": nn.Linear(8, 8)})
    model["packed"].weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    for target, words in [("rows", "rows is an embedding"), ("narrow", "rank is 8, but narrow has only 2"), ("packed", "packed is torch.uint8")]:
        with pytest.raises(InputError, match=words):
            peft.attach(model, peft.PiSSA(targets=[target]))
    assert peft.names(model) == []
    with pytest.raises(InputError, match="lm_head shares its weight with model.embed_tokens"):
        peft.attach(llama(), peft.PiSSA(rank=2, targets=["head"], as_lora=False))


@pytest.mark.parametrize("start, words", [("pissa_niter_4", "random numbers that are in no file"), ("loftq", "make up for the rounding of .*, which is not rounded here")])
def test_a_start_that_cannot_be_repeated_is_refused(start, words, tmp_path):
    model = llama()
    peft.attach(model, peft.PiSSA(rank=2, as_lora=False))
    peft.save(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"pissa"', f'"{start}"'))
    with pytest.raises(InputError, match=words):
        peft.load(model, tmp_path / "adapter", "again")
