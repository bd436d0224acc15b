"""Linear4bit and Linear8bit: the function of an nn.Linear with the rounded weight, forward and backward, and nothing of W kept."""

import copy
import dataclasses
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minift import quant
from minift.errors import InputError
from minift.models.linear import without_gradients
from minift.quant import blocks, lookup
from minift.quant import linear as module
from minift.quant.linear import QuantizedLinear, token_by_token
from minift.quant.tensor import tensors

SCHEMES = ["nf4", "fp4", "int8", "int4"]


def made(scheme="nf4", N=33, K=70, bias=True, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return QuantizedLinear.of(torch.nn.Linear(K, N, bias=bias, dtype=dtype), scheme, **options)


def close(y, expected, x, W):
    """Two sums of K products in another order, and in the dtype of x: at most K eps of the sum of their sizes, and a rounding each."""
    sizes = x.abs().double() @ W.abs().double().T
    bound = (x.shape[-1] * 2**-24 + 3 * torch.finfo(x.dtype).eps) * sizes + 2 * torch.finfo(x.dtype).eps * expected.abs().double() + 1e-30
    assert ((y.double() - expected.double()).abs() <= bound).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70,), (1, 70), (2, 70), (5, 70), (2, 3, 70), (256, 70), (257, 70), (0, 70)])
def test_it_is_the_linear_of_the_rounded_weight(monkeypatch, scheme, dtype, shape):
    monkeypatch.setattr(lookup, "NUMBERS", 512)                                       # several pieces
    layer, x = made(scheme, dtype=dtype), torch.randn(shape, dtype=dtype)
    W, b = quant.dequantize(layer.q, torch.float32), layer.bias.float()
    y = layer(x)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 33)
    close(y.reshape(-1, 33), F.linear(x.float(), W, b).reshape(-1, 33), x.reshape(-1, 70), torch.cat([W, b[:, None]], 1)[:, :-1] + b.abs()[:, None])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("M", [1, 5, 300])
def test_the_gradient_of_x_is_dy_w(scheme, M):
    layer, x = made(scheme), torch.randn(M, 70, requires_grad=True)
    dy = torch.randn(M, 33)
    layer(x).backward(dy)
    close(x.grad, dy @ layer.weight, dy, layer.weight.T)
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("M", [1, 4, 300])
def test_nothing_is_kept_for_the_backward_pass(M):
    layer, kept = made(bias=False), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(M, 70, requires_grad=True))
    assert not kept and list(vars(y.grad_fn)) == ["q"] and y.grad_fn.q is layer.q


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that an operation returned."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("M", [1, 16])
def test_few_rows_never_see_more_than_a_piece_of_w(monkeypatch, scheme, M):
    monkeypatch.setattr(lookup, "NUMBERS", 8192)
    layer, x = made(scheme, N=512, K=256, dtype=torch.bfloat16), torch.randn(M, 256, dtype=torch.bfloat16)
    with torch.no_grad(), Largest() as mode:
        mode.known = {t.untyped_storage().data_ptr() for t in [*tensors(layer.q).values(), x]}
        layer(x)
    assert 0 < mode.bytes <= 4 * 8192 < 512 * 256 * 2                                 # float32; W in bfloat16 has 262,144 bytes


def test_a_weight_of_fewer_digits_than_x_is_that_weight():
    layer = made(dtype=torch.bfloat16)
    for M in (1, 4, 300):
        x = torch.randn(M, 70)
        W, b = layer.weight.float(), layer.bias.float()
        close(layer(x), F.linear(x, W, b), x, W + b.abs()[:, None])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dtype_changes_what_is_computed_not_what_is_stored(scheme):
    layer = made(scheme)
    before = {name: t.clone() for name, t in tensors(layer.q).items()}
    layer.to(torch.bfloat16)
    after = tensors(layer.q)
    assert all(torch.equal(before[name], t) and before[name].dtype == t.dtype for name, t in after.items())
    assert layer.weight.dtype == layer.bias.dtype == layer(torch.randn(2, 70, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.to(torch.float32)
    assert torch.equal(layer.weight, quant.dequantize(made(scheme).q)) and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("M", [1, 5, 300])
def test_x_in_float64_is_multiplied_in_float64(scheme, M):
    layer, x = made(scheme), torch.randn(M, 70, dtype=torch.float64)
    W, b = quant.dequantize(layer.q, torch.float64), layer.bias.double()
    y = layer(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, F.linear(x, W, b), rtol=0, atol=72 * 2**-53 * (x.abs().sum(1).max().item() + 1))     # |W| < 1


@pytest.mark.parametrize("x, text", [
    (torch.ones(2, 70, dtype=torch.int64), r"x is torch.int64 \(2, 70\): this linear takes floating-point numbers \(\.\.\., 70\)"),
    (torch.ones(2, 69), r"x is torch.float32 \(2, 69\): this linear takes"), (torch.tensor(1.0), r"x is torch.float32 \(\): this linear takes"),
])  # fmt: skip
@pytest.mark.parametrize("scheme", SCHEMES)
def test_x_that_does_not_fit(scheme, x, text):
    with pytest.raises(InputError, match=text):
        made(scheme)(x)


def test_meta_and_back_moves_its_tensors():
    layer = made().to("meta")
    assert {t.device.type for t in tensors(layer.q).values()} == {"meta"}


@pytest.mark.parametrize("M", [1, 5, 300])
def test_under_autocast_it_computes_in_its_dtype(M):
    layer, x = made(), torch.randn(M, 70)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    W, b = layer.weight, layer.bias
    close(y, F.linear(x, W, b), x.bfloat16(), W + b.abs()[:, None])


def test_to_others_it_is_a_linear():
    layer = made("nf4", bias=False)
    assert isinstance(layer, torch.nn.Linear) and type(layer) is quant.Linear4bit and type(made("int8")) is quant.Linear8bit
    assert (layer.in_features, layer.out_features, layer.bias) == (70, 33, None) and layer.weight.shape == (33, 70)
    assert repr(layer) == "Linear4bit(in_features=70, out_features=33, bias=False, scheme=nf4)"
    assert list(layer.parameters()) == [] and [name for name, _ in made().named_parameters()] == ["bias"]
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(33, 70)


def test_training_and_inference_modes_carry_over():
    base = torch.nn.Linear(8, 8).eval()
    assert not QuantizedLinear.of(base, "nf4").training
    with torch.inference_mode():
        assert torch.equal(made()(torch.ones(1, 70)), made()(torch.ones(1, 70)))


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("M", [0, 1, 3, 7, 8, 20])
def test_on_a_gpu_kernels_decode_where_they_multiply(monkeypatch, scheme, double_quant, M):                   # here in Triton's interpreter
    layer, x = made(scheme, N=17, K=64, double_quant=double_quant), torch.randn(M, 64, requires_grad=True)
    expected, dy = layer(x), torch.randn(M, 17)
    (dx,) = torch.autograd.grad(expected, x, dy)
    called = []
    product = module.by_kernel
    monkeypatch.setattr(module, "on_gpu", lambda t: True)
    monkeypatch.setattr(blocks, "on_gpu", lambda t: True)
    monkeypatch.setattr(module, "by_kernel", lambda x, q: called.append(len(x)) or product(x, q))
    y = layer(x)
    W, b = layer.weight, layer.bias
    close(y, expected, x, W + b.abs()[:, None])
    (there,) = torch.autograd.grad(y, x, dy)
    close(there, dx, dy, W.T)
    assert called == ([M] if M else [])                                               # of no rows there is nothing to multiply


def test_on_a_gpu_other_schemes_dtypes_and_many_rows_take_w_as_a_whole(monkeypatch):
    monkeypatch.setattr(module, "on_gpu", lambda t: True)
    x = torch.zeros(2, 70)
    assert module.quick(x, made("int4").q) is None and module.quick(x, made("int8").q) is None
    assert module.quick(x.bfloat16(), made("nf4").q) is None and module.quick(x, made("nf4").q) is module.by_kernel
    layer = made()
    monkeypatch.setattr(module, "by_kernel", None)
    assert layer(torch.zeros(257, 70)).shape == (257, 33)


WHOLE = dict(N=36, K=80)
"""A size that PyTorch's int8 kernel can take."""


@pytest.mark.parametrize("rows", [1, 2, 17, 300])
def test_where_a_text_is_written_int8_multiplies_its_whole_numbers(monkeypatch, rows):
    monkeypatch.setattr(module, "by_pieces", None)                                    # never called
    layer, x = made("int8", **WHOLE), torch.randn(rows, 80)
    W = layer.q.packed.double() * layer.q.absmax.double()[:, None] / 127
    exact = x.bfloat16().double() @ W.T
    with without_gradients(), token_by_token():
        y = layer(x)
    bound = 2**-8 * exact.abs() + 80 * 2**-24 * (x.abs().double() @ W.abs().T) + 1e-6  # a sum in float32, rounded to bfloat16 once
    assert y.dtype == torch.float32 and ((y - layer.bias).double() - exact).abs().le(bound).all()


@pytest.mark.parametrize("scheme, rows, size, dtype", [
    ("int8", 2, WHOLE, torch.bfloat16), ("nf4", 2, WHOLE, torch.float32),
    ("int8", 2, dict(N=36, K=72), torch.float32), ("int8", 2, dict(N=33, K=80), torch.float32),
])  # fmt: skip
def test_elsewhere_where_a_text_is_written_the_weights_alone_are_rounded(scheme, rows, size, dtype):
    layer, x = made(scheme, dtype=dtype, **size), torch.randn(rows, size["K"], dtype=dtype)
    expected = layer(x)
    with without_gradients(), token_by_token():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-5)


def test_whole_numbers_at_an_odd_address_are_not_given_to_a_kernel_that_would_crash():
    layer = made("int8", **WHOLE)
    memory = torch.empty(36 * 80 + 1, dtype=torch.int8)
    odd = memory[1:].view(36, 80)
    odd.copy_(layer.q.packed)
    assert layer.q.in_whole_steps and not dataclasses.replace(layer.q, packed=odd).in_whole_steps


def test_int8_does_not_round_what_it_reads_in_training_nor_where_it_is_told_not_to_nor_in_another_thread():
    layer, x, ys = made("int8", **WHOLE), torch.randn(3, 80), []
    with token_by_token():
        thread = threading.Thread(target=torch.inference_mode()(lambda: ys.append(layer(x))))
        thread.start()
        thread.join()
        ys.append(layer(x).detach())                                                  # somebody may ask for a gradient
    with without_gradients():
        ys.append(layer(x))
    with without_gradients(), token_by_token(exact=True):
        ys.append(layer(x))
    W = quant.dequantize(layer.q)
    for y in (*ys, layer(x)):
        close(y, x.double() @ W.double().T + layer.bias, x, W)


def test_where_a_text_is_written_a_rows_numbers_do_not_depend_on_how_many_there_are():
    layer, x = made("int8", **WHOLE), torch.randn(40, 1, 80)
    with without_gradients(), token_by_token():
        together = layer(x)
        assert all(torch.equal(layer(x[i, None])[0], together[i]) for i in range(40))


def test_what_was_said_of_rounding_is_true_again_behind_a_block_inside_it_and_after_an_error():
    layer, x = made("int8", **WHOLE), torch.randn(3, 80)
    with token_by_token(), pytest.raises(ValueError):
        with token_by_token(exact=True):
            raise ValueError
    with token_by_token():
        with token_by_token(exact=True):
            pass
        with without_gradients():
            rounded = layer(x)
    with without_gradients():
        assert not torch.equal(layer(x), rounded) and not module.rounding()


def test_a_weight_of_a_shorter_dtype_is_not_multiplied_with_more_digits_than_it_has():
    layer, x = made("int8", dtype=torch.bfloat16, **WHOLE), torch.randn(2, 80)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    with without_gradients(), token_by_token():
        close(layer(x), expected, x, layer.weight.float())
