"""Bottleneck adapters: worked by hand, in their three places, at the start, in other dtypes, on any module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.cache import KVCache
from minift.models.transformer import Transformer
from minift.peft.attach import state_of
from minift.peft.bottleneck import Bottleneck, after, around_norm, factor
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
KINDS = [peft.Houlsby, peft.Pfeiffer, peft.Parallel]
FALCON = dict(family="gpt_neox", norm="layernorm", gated=False, parallel=True, kv_heads=3)


def hand(activation="relu", **options) -> Bottleneck:
    """f(h) = s (relu(h1 - h2 + 1) (2, 5) + (0, 10))"""
    f = Bottleneck(peft.BottleneckAdapter(width=1, activation=activation, **options), after, 2, nn.Linear(1, 1), "here")
    f.D.data, f.d.data = torch.tensor([[1.0, -1.0]]), torch.tensor([1.0])
    f.U.data, f.u.data = torch.tensor([[2.0], [5.0]]), torch.tensor([0.0, 10.0])
    return f


def test_the_bottleneck_worked_by_hand():
    h = torch.tensor([[4.0, 1.0], [1.0, 4.0]])                    # D h + d = 4 and -2, so relu gives 4 and 0
    assert torch.equal(hand().change(h), torch.tensor([[8.0, 30.0], [0.0, 10.0]]))
    assert torch.equal(hand(scale=3.0).change(h), torch.tensor([[24.0, 90.0], [0.0, 30.0]]))


@pytest.mark.parametrize(
    "name, value", [("relu", 0.0), ("swish", -0.238406), ("silu", -0.238406), ("gelu", -0.0455003), ("gelu_new", -0.0454023), ("tanh", -0.964028)]
)
def test_the_activations_at_minus_two(name, value):              # x sigmoid(x), x Phi(x), and its tanh form
    change = hand(name).change(torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(change, torch.tensor([2 * value, 5 * value + 10]))


def test_the_adapter_stands_behind_its_module_or_around_the_norm_worked_by_hand():
    f, double, x = hand(), nn.Linear(2, 2, bias=False), torch.tensor([2.0, 0.5])
    double.weight.data = 2 * torch.eye(2)
    assert torch.equal(f(double, x), torch.tensor([4.0 + 8.0, 1.0 + 30.0]))           # z = (4, 1), f(z) = (8, 30)
    f.form, half = around_norm, nn.Linear(2, 2, bias=False)
    half.weight.data = torch.eye(2) / 2                                               # in place of a LayerNorm
    y = torch.tensor([8.0, 2.0])                                                      # f(y / 2) = (8, 30); (y + f) / 2
    assert torch.equal(f(half, y), torch.tensor([8.0, 16.0]))


def by_the_book(model: Transformer, kind: type, ids) -> torch.Tensor:
    """The logits of a model with one adapter set, block by block from the table in bottleneck.py's docstring."""
    wrappers, seen = state_of(model).wrappers, {}
    f = lambda path: wrappers[path].adapters["default"].change
    with peft.disabled(model):
        grab = model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0], context=inputs[1]))
        model(ids)
        grab.remove()
        x = seen["x"]
        for n, block in enumerate(model.blocks):
            z = block.attention(block.norm1(x), seen["context"])
            if kind is peft.Houlsby:
                z = z + f(f"blocks.{n}.attention.out")(z)
            attended = x + z
            stream = x if model.config.parallel else attended             # what the MLP branch starts from
            z = block.mlp((block.norm2 or block.norm1)(stream))
            if kind is peft.Houlsby:
                z = z + f(f"blocks.{n}.mlp.down")(z)
            if kind is peft.Parallel:
                z = z + f(f"blocks.{n}.mlp.down")(stream)
            x = attended + z
            if kind is peft.Pfeiffer:
                x = x + f(f"blocks.{n}")(x)
        return model.head(model.norm(x))


MODELS = {"llama": llama, "gpt2": gpt2, "side by side": lambda: llama(**FALCON), "one norm": lambda: llama(**FALCON, shared_norm=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", MODELS)
def test_each_kind_stands_where_its_paper_puts_it(family, kind):
    model = MODELS[family]().double().eval()
    base = model(IDS)
    peft.attach(model, kind(width=3))
    y = filled(model)(IDS)
    torch.testing.assert_close(y, by_the_book(model, kind, IDS))
    assert (y - base).abs().max() > 1e-3
    places = {peft.Houlsby: 2, peft.Pfeiffer: 1, peft.Parallel: 1}[kind]
    assert peft.trainable(model).trained == 2 * places * (3 * 12 + 3 + 12 * 3 + 12)


def test_parallel_adapters_start_at_the_base_exactly_and_the_others_near_it():
    for new in (llama, gpt2):
        model = new()
        before = model(IDS)
        peft.attach(model, peft.Parallel())
        assert torch.equal(model(IDS), before)
        for kind in (peft.Houlsby, peft.Pfeiffer):
            peft.attach(model, kind(), name=kind.__name__)
            assert not torch.equal(model(IDS), before)
            torch.testing.assert_close(model(IDS), before, rtol=0, atol=0.05 * before.abs().max().item())
            peft.attach(model, kind(init="mam_adapter"), name=kind.__name__ + "0")
            assert torch.equal(model(IDS), before)


def test_the_starts_are_those_of_the_papers():
    new = lambda **options: Bottleneck(peft.BottleneckAdapter(width=50, **options), after, 64, nn.Linear(1, 1), "here")
    f = new(init="houlsby")
    for matrix in (f.D, f.U):                                     # a normal cut at 2 deviations has 0.880 of its deviation (3200 draws: +-1.3 %)
        assert matrix.abs().max() <= 0.02 and matrix.std().item() == pytest.approx(0.0088, rel=0.06)
    f = new(init="bert")
    for matrix in (f.D, f.U):
        assert matrix.abs().max() > 0.04 and matrix.std().item() == pytest.approx(0.02, rel=0.06)
    f = new(init="mam_adapter")
    assert torch.count_nonzero(f.U) == 0 and 0.99 / 8 < f.D.abs().max() <= 1 / 8
    assert all(torch.count_nonzero(bias) == 0 for bias in (f.d, f.u))
    assert [kind().init for kind in KINDS] == ["houlsby", "bert", "mam_adapter"]
    assert [(kind().reduction_factor, kind().activation, kind().scale) for kind in KINDS] == [(16, "swish", 1), (16, "relu", 1), (2, "relu", 4)]


def test_the_width_is_c_over_the_factor_rounded_down_and_at_least_one():
    for factor_, width in [(16, 1), (5, 2), (0.5, 24), (2, 6)]:
        model = llama()
        peft.attach(model, peft.Houlsby(reduction_factor=factor_))
        assert model.blocks[0].mlp.down.adapters["default"].D.shape == (width, 12)


@pytest.mark.parametrize("C", [7, 12, 24, 768, 4096])
def test_a_width_is_written_as_a_factor_that_gives_it_back(C):
    for width in {1, 2, 3, C // 3, C // 2, C - 1, C, 2 * C + 1}:
        assert int(C // factor(C, width)) == width


def test_the_gradients_are_those_of_the_equation():
    base, x = nn.Linear(5, 4).double(), torch.randn(3, 5, dtype=torch.double)
    model, seen = nn.Sequential(base), torch.randn(3, 4, dtype=torch.double)
    peft.attach(model, peft.Houlsby(width=2, activation="tanh", scale=1.5, targets=["0"]))
    f = filled(model)[0].adapters["default"]
    (model(x) * seen).sum().backward()
    z = base(x)
    low = torch.tanh(z @ f.D.T + f.d)                                                     # (3, 2)
    slope = (1 - low**2) * (1.5 * seen @ f.U)                                             # d loss / d (D z + d)
    for parameter, wanted in [(f.U, 1.5 * seen.T @ low), (f.u, 1.5 * seen.sum(0)), (f.D, slope.T @ z), (f.d, slope.sum(0))]:
        torch.testing.assert_close(parameter.grad, wanted)
    assert base.weight.grad is None and base.bias.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_trap32_gradients_are_equal_with_checkpointing_and_every_matrix_has_one(kind):
    model = gpt2()
    peft.attach(model, kind(width=3, activation="tanh"))              # relu may be dead for all ten tokens
    filled(model).train()
    grads = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        model(IDS).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys() and all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    assert all(grad.abs().max() > 0 for grad in grads[0].values())


def test_trap34_trained_parameters_are_float32_on_a_half_precision_base():
    for kind in KINDS:
        model = llama().bfloat16()
        peft.attach(model, kind(width=3))
        trained = [p for p in filled(model).parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        y = model(IDS)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert {p.grad.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_the_low_precision_result_and_full_precision_gradients(kind):
    model = llama()
    peft.attach(model, kind(width=3))
    exact = filled(model)(IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(IDS)
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=2**-5 * exact.abs().max().item())      # tens of roundings of 2^-9
    y.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_and_packing_give_the_same_logits(kind):
    model = llama().eval()
    peft.attach(model, kind(width=3))
    whole = filled(model)(IDS)
    cache = KVCache(model.config, 2, 5, torch.float32, "cpu")
    parts = torch.cat([model(IDS[:, :3], cache=cache), model(IDS[:, 3:4], cache=cache), model(IDS[:, 4:], cache=cache)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    packed = model(IDS.reshape(1, 10), segments=torch.tensor([[0] * 5 + [1] * 5]))
    torch.testing.assert_close(packed.reshape(2, 5, -1), whole, rtol=0, atol=1e-5)


def test_dropout_is_on_what_the_adapter_adds_and_only_while_training():
    model, x = nn.Sequential(nn.Linear(40, 30)), torch.randn(3, 40)
    peft.attach(model, peft.Houlsby(width=4, dropout=0.5, targets=["0"]))
    base, f = model[0].base, filled(model)[0].adapters["default"]
    model.eval()
    torch.testing.assert_close(model(x), base(x) + f.change(base(x)))
    added = f.change(base(x))
    model.train()
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, base(x) + F.dropout(added, 0.5))


def test_adapters_go_on_any_module_by_name():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4, 6)
    before = model(x)
    peft.attach(model, peft.Houlsby(width=2, targets=["0"], init="mam_adapter"))
    assert torch.equal(model(x), before)
    f = filled(model)[0].adapters["default"]
    z = model[0].base(x)
    torch.testing.assert_close(model(x), model[2](torch.tanh(z + f.change(z))))
    peft.attach(model, peft.Parallel(width=2, targets="all-linear"), name="beside")       # 6 -> 2 -> 5, beside the linear
    assert torch.equal(model(x), before)
    f = filled(model)[0].adapters["beside"]
    g = model[2].adapters["beside"]
    assert (f.D.shape, f.U.shape, g.D.shape, g.U.shape) == ((2, 6), (5, 2), (2, 5), (3, 2))
    h = torch.tanh(model[0].base(x) + f.change(x))
    torch.testing.assert_close(model(x), model[2].base(h) + g.change(h))


def test_an_adapter_stands_behind_an_embedding_too_but_not_beside_it():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match="0 is an embedding: a parallel adapter reads vectors"):
        peft.attach(model, peft.Parallel(width=2, targets=["0"]))
    peft.attach(model, peft.Houlsby(width=2, targets=["0"]))
    f, rows = filled(model)[0].adapters["default"], model[0].base(torch.tensor([5, 5, 1]))
    torch.testing.assert_close(model(torch.tensor([5, 5, 1])), model[1](rows + f.change(rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_refused_and_changes_nothing_and_removal_leaves_the_model_as_it_was(kind):
    model = llama()
    before, types = model(IDS), [type(m) for m in model.modules()]
    peft.attach(model, kind(width=3))
    after = filled(model)(IDS)
    with pytest.raises(InputError, match="cannot be merged: the activation"):
        peft.merge(model)
    assert torch.equal(model(IDS), after)
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before) and [type(m) for m in model.modules()] == types


def test_each_row_is_answered_by_its_own_set():
    model = llama().eval()
    peft.attach(model, peft.Pfeiffer(width=3), name="a")
    peft.attach(model, peft.Parallel(width=3), name="b")
    filled(model)
    alone = []
    for name in ("a", "b"):
        peft.switch(model, name)
        alone.append(model(IDS))
    with peft.rows(model, ["b", "a"]):
        both = model(IDS)
    torch.testing.assert_close(both, torch.stack([alone[1][0], alone[0][1]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(reduction_factor=0), "reduction_factor is 0"),
        (dict(reduction_factor=float("inf")), "reduction_factor is inf"),
        (dict(reduction_factor={"0": 2}), "reduction_factor is {'0': 2}"),
        (dict(width=0), "width is 0"),
        (dict(width=2.5), "width is 2.5"),
        (dict(activation="softplus"), "activation is 'softplus': minift has relu, swish"),
        (dict(init="zero"), "init is 'zero': minift has houlsby, bert, mam_adapter"),
        (dict(scale=0), "scale is 0"),
        (dict(scale="learned"), "scale is 'learned'"),
        (dict(dropout=1.0), "dropout is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.BottleneckAdapter(**wrong)


def test_a_model_without_known_blocks_is_refused_with_a_way_out():
    with pytest.raises(InputError, match=r"no blocks that minift knows.*say where with targets=\[...\]"):
        peft.attach(nn.Sequential(nn.Linear(3, 3)), peft.Houlsby())
    with pytest.raises(InputError, match="matches no linear or embedding"):
        peft.attach(llama(), peft.Houlsby(targets=["mlp.dwn"]))
