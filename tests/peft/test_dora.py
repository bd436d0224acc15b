"""DoRA's arithmetic: worked by hand, the lengths without the matrix, the detached norm, dropout, half precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.dora import DoRAEmbedding, DoRALinear, lengths, stretched
from tests.peft.small import filled, gpt2, llama
from tests.peft.test_lora import FAMILIES, IDS, Conv1D, agrees_with_cache_packing_and_checkpointing


def trained_like(dora):
    """Random A and B, and lengths that moved away from those of the base."""
    nn.init.normal_(dora.A), nn.init.normal_(dora.B)
    with torch.no_grad():
        dora.magnitude.mul_(torch.rand_like(dora.magnitude) + 0.5)
    return dora


def whole(base, dora):
    """W + s B A, (N, K), built."""
    stored_transposed = isinstance(base, (Conv1D, nn.Embedding))
    return (base.weight.T if stored_transposed else base.weight) + dora.scale * dora.B @ dora.A


def reference(base, dora, x):
    """Equation 5 with the norm detached, from the built matrix."""
    W = whole(base, dora)
    turned = dora.magnitude[:, None] * W / W.norm(dim=1, keepdim=True).detach()
    return F.embedding(x, turned.T) if isinstance(base, nn.Embedding) else F.linear(x, turned, base.bias)


def places():
    return {"linear": nn.Linear(7, 5), "no bias": nn.Linear(7, 5, bias=False), "conv1d": Conv1D(5, 7), "embedding": nn.Embedding(7, 5)}


def make(base, rank=3, scale=1.5):
    return (DoRAEmbedding if isinstance(base, nn.Embedding) else DoRALinear)(base, rank, scale)


def some_input(base):
    return torch.tensor([[3, 6, 0], [1, 1, 5]]) if isinstance(base, nn.Embedding) else torch.randn(2, 3, 7)


def test_dora_worked_by_hand():
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([10.0, 20.0])
    dora = DoRALinear(base, rank=1, scale=2.0)
    assert torch.equal(dora.magnitude, torch.tensor([5.0**0.5, 4.0]))
    dora.A.data, dora.B.data, dora.magnitude.data = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [1.5]]), torch.tensor([10.0, 7.0])
    # W + 2 B A = [[3, 4], [3, 7]], of lengths 5 and sqrt(58);  x = (1, -2) gives (-5, -11)
    expected = torch.tensor([[-5 * 10 / 5 + 10, -11 * 7 / 58**0.5 + 20]])
    torch.testing.assert_close(dora(base, torch.tensor([[1.0, -2.0]])), expected)
    torch.testing.assert_close(dora.merged(base)["weight"], torch.tensor([[6.0, 8.0], [21 / 58**0.5, 49 / 58**0.5]]))


@pytest.mark.parametrize("where", places())
def test_outputs_and_gradients_are_those_of_the_built_matrix_with_a_detached_norm(where):
    base = places()[where].double().requires_grad_(False)
    dora, x = trained_like(make(base)), some_input(base)
    x = x if isinstance(base, nn.Embedding) else x.double().requires_grad_()
    wanted = [dora.A, dora.B, dora.magnitude] + ([] if isinstance(base, nn.Embedding) else [x])
    ours, expected = dora(base, x), reference(base, dora, x)
    weigh = torch.randn_like(expected)
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(torch.autograd.grad((ours * weigh).sum(), wanted), torch.autograd.grad((expected * weigh).sum(), wanted)):
        torch.testing.assert_close(mine, theirs)


def test_trap29_the_norm_has_no_gradient():
    base = nn.Linear(7, 5, bias=False).requires_grad_(False)
    dora, x = trained_like(make(base)), torch.randn(3, 7)
    W = whole(base, dora)
    attached = F.linear(x, dora.magnitude[:, None] * F.normalize(W, dim=1))
    with_it = torch.autograd.grad(attached.square().sum(), dora.B)[0]
    ours = torch.autograd.grad(dora(base, x).square().sum(), dora.B)[0]
    assert not torch.allclose(ours, with_it, rtol=0.01)


@pytest.mark.parametrize("where", places())
@pytest.mark.parametrize("scale", [0.25, -3.0])
def test_the_lengths_are_those_of_the_matrix_that_is_never_built(where, scale):
    base = places()[where]
    dora = trained_like(make(base, rank=4, scale=scale))
    n = dora.lengths(base, dora.A, dora.B, dora.scale)
    exact = whole(base.double(), dora.double()).norm(dim=1)
    assert not n.requires_grad
    # float32 sums of ~ K + 2 K r products of size <= ||W||² + ||s B A||², which may cancel: K r eps of that over 2 n²
    torch.testing.assert_close(n.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("where", places())
def test_step_0_is_the_base_to_the_bit(where):
    base = places()[where]
    x = some_input(base)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        base = base.to(dtype)
        x = x if isinstance(base, nn.Embedding) else x.to(dtype)
        assert torch.equal(make(base)(base, x), base(x))


def test_a_fresh_set_changes_no_model():
    for model in (llama(), gpt2()):
        before = model(IDS)
        peft.attach(model, peft.DoRA(rank=3, targets=["out", "down", "embed", "head"]))
        assert torch.equal(model(IDS), before)


def test_trap29_dropout_thins_all_that_the_adapter_scales_and_nothing_else():
    model, x = nn.Sequential(nn.Linear(40, 5)), torch.randn(3, 40)
    peft.attach(model, peft.DoRA(rank=4, alpha=6, dropout=0.5))
    base, dora = model[0].base, trained_like(model[0].adapters["default"])
    g = dora.magnitude / whole(base, dora).norm(dim=1)
    change = lambda thinned: (g - 1) * (thinned @ base.weight.T) + g * 1.5 * (thinned @ dora.A.T @ dora.B.T)
    model.eval()
    torch.testing.assert_close(model(x), base(x) + change(x))
    model.train()
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, base(x) + change(F.dropout(x, 0.5)))
    assert not torch.allclose(dropped, model.eval()(x))


@pytest.mark.parametrize("where", places())
def test_merged_is_unmerged_and_unmerge_is_exact(where):
    model = nn.ModuleDict({"here": places()[where]})
    base, x = model["here"], some_input(model["here"])
    before = base.weight.clone()
    peft.attach(model, peft.DoRA(rank=2, targets=["here"]) if where != "conv1d" else peft.DoRA(rank=2))
    trained_like(model["here"].adapters["default"])
    after = model["here"](x)
    peft.merge(model)
    torch.testing.assert_close(model["here"](x), after, rtol=1e-5, atol=1e-5)      # 7 products of size <= 10, in another order
    peft.unmerge(model)
    assert torch.equal(base.weight, before) and torch.equal(model["here"](x), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_trap32_cache_packing_and_checkpointing_agree(family):
    make_model, targets = FAMILIES[family]
    model = make_model()
    peft.attach(model, peft.DoRA(rank=3, alpha=5, targets=targets, rank_pattern={"down_proj|c_fc": 2}, rslora=True))
    filled(model)
    for name, parameter in model.named_parameters():
        if name.endswith("magnitude"):
            parameter.data.abs_()
    agrees_with_cache_packing_and_checkpointing(model)


@pytest.mark.parametrize("targets", [["head"], ["embed"], ["embed", "head"]])
def test_trap25_merging_a_tied_weight_unties(targets):
    model = llama()
    peft.attach(model, peft.DoRA(rank=2, targets=targets))
    after = filled(model)(IDS)
    peft.merge(model)
    torch.testing.assert_close(model(IDS), after, rtol=1e-5, atol=1e-5)
    assert model.config.tie_embeddings is False and model.head.weight is not model.embed.weight
    peft.unmerge(model)
    assert model.head.weight is model.embed.weight


def test_save_and_load_give_the_same_outputs_and_the_same_settings(tmp_path):
    model = llama()
    peft.attach(model, peft.DoRA(rank=3, alpha=5, targets=["q", "embed", "head"], rank_pattern={"q_proj": 2}))
    after = filled(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after) and type(model._peft.sets["default"]) is peft.DoRA
    assert type(model.blocks[0].attention.q.adapters["default"]) is DoRALinear


def test_the_lengths_follow_every_write_without_gradients():
    base = nn.Linear(7, 5)
    dora, x = trained_like(make(base)), torch.randn(2, 7)

    @torch.no_grad()
    def agrees():
        for _ in range(2):                                                 # the second time from what was kept
            torch.testing.assert_close(dora(base, x), reference(base, dora, x))

    agrees()
    nn.init.normal_(dora.A), agrees()
    nn.init.normal_(dora.B), agrees()
    nn.init.normal_(base.weight), agrees()
    base.weight = nn.Parameter(torch.randn(5, 7))
    agrees()
    dora.A.data = torch.randn(3, 7)
    agrees()
    dora.B.data.normal_()                                                  # a write that leaves no trace, as some optimizers do,
    dora(base, x).sum().backward()                                         # but a training step passed by
    agrees()
    dora.B.data.normal_()
    dora.eval()                                                            # or the mode changed
    agrees()
    twin, other = copy.deepcopy((dora, base))
    nn.init.normal_(other.weight)
    dora, base = twin, other
    agrees()


def test_kept_lengths_cost_no_product_on_the_next_token(monkeypatch):
    base, calls = nn.Linear(7, 5), []
    dora = trained_like(make(base))
    monkeypatch.setattr("minift.peft.dora.product", lambda *inputs: calls.append(1) or inputs[1] @ inputs[0].weight.T)
    with torch.no_grad():
        for _ in range(3):
            dora(base, torch.randn(1, 7))
    assert len(calls) == 1
    dora(base, torch.randn(1, 7)), dora(base, torch.randn(1, 7))
    assert len(calls) == 3


def test_a_row_of_zeros_stays_finite():
    base = nn.Linear(7, 5)
    base.weight.data[2] = 0
    dora, x = DoRALinear(base, 2, 1.0), torch.randn(3, 7)
    y = dora(base, x)
    assert torch.equal(y, base(x))
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in dora.parameters())
    nn.init.zeros_(dora.B)
    dora.B.data[0] = 0.5                                                   # W + s B A nearly cancels: nothing is divided by 0
    dora.A.data[0] = -2 * base.weight[0].detach()
    dora.A.data[1] = 0
    assert dora(base, x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_with_float32_numbers_to_train(dtype):
    base = nn.Linear(33, 9).to(dtype).requires_grad_(False)
    dora, x = make(base), torch.randn(4, 33, dtype=dtype)
    assert {p.dtype for p in dora.parameters()} == {torch.float32}         # trap 34
    nn.init.normal_(dora.A, std=0.1), nn.init.normal_(dora.B, std=0.1)
    y = dora(base, x)
    exact = reference(copy.deepcopy(base).double(), copy.deepcopy(dora).double(), x.double())
    assert y.dtype == dtype
    # three roundings of eps/2 each at size <= 4: of x WT + b, of the sum with B A, of the result
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=6 * torch.finfo(dtype).eps)
    weigh, wide = torch.randn(4, 9), copy.deepcopy(dora).double()
    (y.float() * weigh).sum().backward()
    (reference(copy.deepcopy(base).double(), wide, x.double()) * weigh.double()).sum().backward()
    for mine, theirs in zip(dora.parameters(), wide.parameters()):
        assert mine.grad.dtype == torch.float32
        error = (mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 8 * torch.finfo(dtype).eps                          # a few roundings of eps/2 in each factor of the products


def test_a_length_that_moved_by_a_thousandth_is_not_lost_in_bfloat16():
    v, b = torch.randn(4000, 3, dtype=torch.bfloat16), torch.tensor([0.0, 0.5, -2.0])
    for bias in (b, None):                                                 # g itself would round to 1 (steps of 2^-7 above it, 2^-8 below)
        moved = stretched(v, torch.full((3,), 1.003), bias).double() - v.double()
        wanted = 0.003 * (v.double() - (0 if bias is None else bias.double()))
        assert (moved * wanted).sum() / wanted.square().sum() == pytest.approx(1.0, abs=0.15)      # roundings average out


def test_autocast_keeps_the_lengths_in_float32():
    model, x = nn.Sequential(nn.Linear(33, 9)), torch.randn(4, 33)
    peft.attach(model, peft.DoRA(rank=3))
    base, dora = model[0].base, trained_like(model[0].adapters["default"])
    exact = dora.lengths(base, dora.A, dora.B, dora.scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dora.lengths(base, dora.A, dora.B, dora.scale), exact)
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0, atol=0.03 * y.abs().max().item())      # 2^-8 each of some 6 roundings
    y.float().sum().backward()
    assert dora.magnitude.grad.dtype == torch.float32


class Packed(nn.Linear):
    """Stands for a 4-bit linear: the weight cannot be read, only called."""

    def __init__(self, W, bias):
        super().__init__(W.shape[1], W.shape[0], bias=bias)
        self.W, self.weight = W, nn.Parameter(torch.zeros(W.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.W.to(x.dtype), self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_base_is_only_called_and_cannot_be_merged(bias):
    base = Packed(torch.randn(5, 300), bias)                               # more columns than are asked for at a time
    torch.testing.assert_close(lengths(base, torch.zeros(1, 300)), base.W.norm(dim=1))
    plain = nn.Linear(300, 5, bias=bias)
    plain.weight.data, plain.bias = base.W, base.bias
    dora, x = trained_like(DoRALinear(plain, 2, 1.5)), torch.randn(2, 300)
    torch.testing.assert_close(dora(base, x), dora(plain, x))
    with pytest.raises(InputError, match="round the change away"):
        dora.merged(base)


def test_a_dora_change_is_no_low_rank_product_and_cannot_be_combined():
    model = nn.Sequential(nn.Linear(7, 5))
    peft.attach(model, peft.DoRA(rank=2))
    with pytest.raises(InputError, match="DoRA"):
        peft.combine(model, {"default": 1.0})


@pytest.mark.parametrize("wrong, words", [(dict(rank=0), "rank is 0"), (dict(alpha=0), "alpha is 0"), (dict(dropout=1), "dropout is 1")])
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.DoRA(**wrong)


def test_a_rank_above_the_matrix_is_refused():
    with pytest.raises(InputError, match="rank is 6, but a change of 0, 5 x 7, has rank 5 at most"):
        peft.attach(nn.Sequential(nn.Linear(7, 5)), peft.DoRA(rank=6))


def test_counting_needs_no_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40_000, 30_000, bias=False))
    peft.attach(model, peft.DoRA(rank=8))
    assert peft.trainable(model).trained == 8 * 70_000 + 30_000
