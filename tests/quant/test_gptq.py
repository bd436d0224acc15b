"""GPTQ, and the walk over a model's blocks that it shares with AWQ."""

import copy

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.quant import Linear4bit, QuantizedLinear, dequantize, int4, quantize_model
from minift.quant import gptq as method
from minift.quant.calibrate import Inputs, blocks_of, first_inputs, measure, run_block
from minift.quant.errors import output_error
from minift.quant.gptq import gptq, inverse_factor
from minift.quant.model import quantizable

SHAPE = dict(vocab_size=61, hidden_size=24, layers=3, heads=3, kv_heads=1, head_dim=8, mlp_size=37, max_positions=64)


def lively(**fields):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SHAPE, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6 if parameter.ndim == 2 else 1
    return model


@pytest.fixture
def batches():
    dice = torch.Generator().manual_seed(1)
    return [torch.randint(0, 61, (4, length), generator=dice) for length in (23, 17, 9)]


def correlated(tokens, K):
    """X (tokens, K) whose columns have much in common, and lengths from 0.1 to 10."""
    torch.manual_seed(3)
    return torch.randn(tokens, K) @ (torch.eye(K) + torch.randn(K, K) / 2) * torch.logspace(-1, 1, K)[torch.randperm(K)]


# ---------------------------------------------------------------------------------------------------------------------- one matrix


def test_a_row_worked_by_hand():
    # 15 sets the grid: scale 1, zero 0. 7.4 is rounded down by 0.4; the last column makes up for H[1, 2] / H[2, 2] = 1 times that, and so
    # stands at 3.7 when its turn comes: 4. (Rounding to nearest has 3.) Lost: 2 (0.4)^2 - 2 (0.4)(0.7) + 0.7^2 = 0.25 instead of 0.65.
    W, H = torch.tensor([[15.0, 7.4, 3.3]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    assert dequantize(int4.quantize(W, 128)).tolist() == [[15.0, 7.0, 3.0]]
    assert dequantize(gptq(W, H, 128, damping=0.0)).tolist() == [[15.0, 7.0, 4.0]]
    lost = [(W - rounded) @ H @ (W - rounded).T for rounded in (torch.tensor([[15.0, 7.0, 3.0]]), torch.tensor([[15.0, 7.0, 4.0]]))]
    torch.testing.assert_close(torch.cat(lost).flatten(), torch.tensor([0.65, 0.25]))


def test_errors_cross_into_later_groups_whose_grids_are_fixed_when_they_are_reached():
    # Two groups of one column each, H as above: 7.4 on the grid of {0, 7.4} is exact up to float16, so take three columns, the first two in a
    # group. Scale 1 as before; the third column alone has scale (3.3 + 0.4) / 15 and comes out as what it was moved to: 3.7.
    W, H = torch.tensor([[15.0, 7.4, 3.3]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    q = gptq(W, H, 2, damping=0.0)
    torch.testing.assert_close(dequantize(q), torch.tensor([[15.0, 7.0, 3.7]]), rtol=2**-11, atol=0)       # the scale is rounded to float16
    assert q.scale.shape == q.zero.shape == (1, 2) and q.scale[0, 1] == torch.tensor(3.7 / 15).half()


@pytest.mark.parametrize("N, K, group_size", [(5, 37, 8), (3, 130, 128), (1, 8, 8), (4, 9, 64)])
@pytest.mark.parametrize("c", [1e-3, 1.0, 700.0])
def test_with_uncorrelated_inputs_of_one_size_it_is_rounding_to_nearest(N, K, group_size, c):
    torch.manual_seed(0)
    W = torch.randn(N, K)
    ours, nearest = gptq(W, c * torch.eye(K), group_size), int4.quantize(W, group_size)
    assert all(torch.equal(getattr(ours, name), getattr(nearest, name)) for name in ("packed", "scale", "zero"))
    assert (ours.shape, ours.dtype, ours.group_size) == (nearest.shape, nearest.dtype, nearest.group_size)


def test_without_any_input_it_is_rounding_to_nearest_and_an_input_always_0_does_no_harm():
    W = torch.randn(3, 20)
    assert torch.equal(gptq(W, torch.zeros(20, 20), 8).packed, int4.quantize(W, 8).packed)
    X = correlated(300, 20)
    X[:, 7] = 0
    q = gptq(W, 2 * X.T @ X, 32)
    assert output_error(W, dequantize(q), X.T @ X) < output_error(W, dequantize(int4.quantize(W, 32)), X.T @ X)


@pytest.mark.parametrize("group_size", [8, 16, 32, 128])
def test_on_correlated_inputs_a_tenth_or_more_of_the_output_error_goes_away(group_size):
    X = correlated(500, 67)                                                           # odd, so that the last group is short
    W, H = torch.randn(24, 67), 2 * X.T @ X
    nearest = (X @ (W - dequantize(int4.quantize(W, group_size))).T).norm()
    q = gptq(W, H, group_size)
    assert (X @ (W - dequantize(q)).T).norm() < 0.9 * nearest                         # 0.78 to 0.86 where this was written
    assert q.packed.shape == (24, 34) and q.scale.shape == (24, -(-67 // group_size))


def test_the_lazy_update_changes_nothing_a_column_at_a_time_would_not_have():
    X = correlated(200, 21)
    W, H = torch.randn(4, 21), 2 * X.T @ X
    q, U, V = gptq(W, H, 8), inverse_factor(H, 0.01), W.clone()
    for k in range(21):                                                               # q's own grids, and every column changed at once
        scale, zero = (t[:, k // 8 : k // 8 + 1] for t in (q.scale, q.zero))
        rounded = (int4.codes(V[:, k : k + 1], scale, zero, 1).float() - zero.float()) * scale.float()
        torch.testing.assert_close(rounded, dequantize(q)[:, k : k + 1], rtol=0, atol=0)
        V -= (V[:, k : k + 1] - rounded) / U[k, k] * torch.cat([torch.zeros(k), U[k, k:]])


def test_the_factor_is_that_of_the_damped_inverse():
    H = 2 * correlated(100, 12).T @ correlated(100, 12)
    U = inverse_factor(H, 0.25)
    damped = H.double() + 0.25 * H.diagonal().double().mean() * torch.eye(12)
    torch.testing.assert_close((U.double().T @ U.double()) @ damped, torch.eye(12).double(), rtol=0, atol=2e-4)    # condition number x 2^-24
    assert torch.equal(U, U.triu()) and (U.diagonal() > 0).all()


def test_more_texts_than_columns_are_not_needed():
    X = torch.randn(3, 40)                                                            # H has rank 3
    q = gptq(torch.randn(5, 40), 2 * X.T @ X, 8)
    assert torch.isfinite(dequantize(q)).all()


# ------------------------------------------------------------------------------------------------------------------------ a model


def test_the_sums_are_those_of_the_inputs_however_they_are_cut():
    X, sums = torch.randn(2, 5, 7), Inputs.none(7, torch.device("cpu"))
    sums.add(X[:1]), sums.add(X[1, :2]), sums.add(X[1:, 2:])
    flat = X.view(10, 7)
    torch.testing.assert_close(sums.hessian, 2 * flat.T @ flat)
    torch.testing.assert_close(sums.magnitude / sums.tokens, flat.abs().mean(0))
    s = torch.rand(7) + 0.5
    torch.testing.assert_close(sums.divided(s).hessian, 2 * (flat / s).T @ (flat / s))
    torch.testing.assert_close(sums.divided(s).magnitude, (flat / s).abs().sum(0))


def test_each_linear_is_measured_once_per_token_and_those_that_read_the_same_share(batches):
    model = lively()
    blocks = blocks_of(model)
    streams, others = first_inputs(model, list(blocks.values()), batches)
    names = {path.removeprefix("blocks.0."): m for path, m in quantizable(model).items() if path.startswith("blocks.0.")}
    found = measure("blocks.0", names, lambda: (run_block(model.blocks[0], x, *rest[0]) for x, rest in zip(streams, others)))
    assert found.keys() == names.keys() and all(sums.tokens == 4 * (23 + 17 + 9) for sums in found.values())
    assert found["attention.q"] is found["attention.k"] is found["attention.v"] and found["mlp.gate"] is found["mlp.up"]
    assert found["attention.q"] is not found["mlp.up"]
    read = torch.cat([model.blocks[0].norm1(x).flatten(0, 1) for x in streams])
    whole = 2 * read.T @ read
    few_roundings = 196**0.5 * 2**-24 * whole.diagonal().max()              # of sums of 196 products, as they drift in a random walk
    torch.testing.assert_close(found["attention.q"].hessian, whole, rtol=0, atol=few_roundings.item())


@pytest.mark.parametrize("fields", [
    {}, {"norm": "layernorm", "position": "learned", "gated": False, "activation": "gelu", "qkv": "joined", "kv_heads": 3, "mlp_bias": True},
    {"parallel": True, "shared_norm": True, "position": "alibi", "kv_heads": 3},
])    # fmt: skip
def test_every_linear_of_a_model_is_in_int4_and_the_model_is_nearer_to_what_it_was(batches, fields):
    model = lively(**fields)
    logits = lambda m: torch.cat([m(batch).flatten(0, 1) for batch in batches]).detach()
    full, nearest = logits(model), copy.deepcopy(model)
    quantize_model(nearest, "int4", 16)
    linears = list(quantizable(model))
    errors = method.quantize_model(model, batches, 16)
    assert list(errors) == linears and all(isinstance(model.get_submodule(path), Linear4bit) for path in linears)
    assert (logits(model) - full).norm() < 0.9 * (logits(nearest) - full).norm()
    assert sum(e.output for e in errors.values()) < 0.9 * sum(e.nearest for e in errors.values())
    assert not model.training and not isinstance(model.head, QuantizedLinear)


def test_what_the_walk_says_of_a_layer_is_so(batches):
    """By hand for blocks.1.mlp.down: its inputs are what it reads in a model whose first block is rounded. Each block has its own mask."""
    model = lively(windows=(2, None, 5))
    half, found = copy.deepcopy(model), copy.deepcopy(model)
    errors = method.quantize_model(found, batches, 16)
    half.blocks[0] = found.blocks[0]
    read = []
    half.blocks[1].mlp.down.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, 1)))
    for batch in batches:
        half(batch)
    X, W = torch.cat(read), model.blocks[1].mlp.down.weight
    q = gptq(W, 2 * X.T @ X, 16)
    wanted = (X @ (W - found.blocks[1].mlp.down.weight).T).norm() / (X @ W.T).norm()
    assert errors["blocks.1.mlp.down"].output == pytest.approx(wanted.item(), rel=1e-3)
    torch.testing.assert_close(dequantize(q), found.blocks[1].mlp.down.weight, rtol=0, atol=0)


def test_blocks_are_run_with_the_masks_that_are_their_own(batches):
    model = lively(windows=(4, None, 2))
    blocks = list(blocks_of(model).values())
    streams, others = first_inputs(model, blocks, batches)
    for x, rest, batch in zip(streams, others, batches):
        for number, block in enumerate(blocks):
            x = run_block(block, x, *rest[number])
        torch.testing.assert_close(model.head(model.norm(x)), model(batch), rtol=0, atol=0)


class Odd(nn.Module):
    """Another module: blocks that return tuples, one linear before them, and one that no token reaches."""

    def __init__(self):
        super().__init__()
        self.embed, self.before = nn.Embedding(61, 10), nn.Linear(10, 10)
        self.layers = nn.ModuleList(OddBlock() for _ in range(2))
        self.head = nn.Linear(10, 61)

    def forward(self, ids):
        x = self.before(self.embed(ids))
        for layer in self.layers:
            x, _ = layer(x, twice=2.0)
        return self.head(x)


class OddBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x, twice):
        return x + twice * self.used(x).relu(), None


def test_other_modules_go_too_and_linears_that_read_nothing_are_rounded_to_nearest(batches):
    torch.manual_seed(0)
    model = Odd().train()
    before = copy.deepcopy(model)
    errors = method.quantize_model(model, batches, 8)
    assert model.training and isinstance(model.head, nn.Linear) and type(model.head) is nn.Linear
    for path in ("before", "layers.1.unused"):
        assert torch.equal(model.get_submodule(path).q.packed, int4.quantize(before.get_submodule(path).weight, 8).packed)
        assert errors[path].output is None
    assert errors["layers.1.used"].output < errors["layers.1.used"].nearest
    assert torch.equal(model.layers[0].used.bias, before.layers[0].used.bias)


def test_no_hook_stays_behind_and_dropout_is_off(batches):
    model = lively(dropout=0.5).train()
    torch.manual_seed(0)
    one = method.quantize_model(copy.deepcopy(model), batches, 16)
    torch.manual_seed(1)
    assert method.quantize_model(model, batches, 16) == one and model.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def nan(model):
    with torch.no_grad():
        model.blocks[2].mlp.up.weight[5, 3] = float("nan")


@pytest.mark.parametrize("change, few, size, text", [
    (lambda m: None, True, 16, "there are no calibration texts: give at least one batch of token ids"),
    (lambda m: None, False, 3, "int4 needs a whole number of columns per group, at least 8"),
    (lambda m: quantize_model(m, "nf4"), False, 16, "blocks.0.attention.q is in nf4 already: quantizing twice"),
    (nan, False, 16, "blocks.2.mlp.up: the weight holds nan at [5, 3]"),
    (lambda m: m.embed.weight.data.fill_(float("inf")), False, 16, "blocks.0.attention.q reads NaN or infinite numbers on the calibration texts"),
])    # fmt: skip
def test_what_cannot_be_calibrated_is_refused_before_anything_is_changed(batches, change, few, size, text):
    model = lively()
    change(model)
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(InputError) as refusal:
        method.quantize_model(model, [] if few else batches, size)
    assert text in str(refusal.value) and [type(m) for m in model.modules()] == kinds


def test_a_model_without_blocks_is_told_to_round_to_nearest(batches):
    with pytest.raises(InputError, match="has no list of blocks .* round to nearest"):
        method.quantize_model(nn.Sequential(nn.Embedding(61, 8), nn.Linear(8, 8)), batches)
