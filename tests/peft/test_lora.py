"""LoRA's arithmetic: worked by hand, at the start, merged, in other dtypes."""

import warnings

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.cache import KVCache
from minift.peft.attach import put_in
from minift.peft.lora import LoRAEmbedding, LoRALinear
from minift.train.optim import adamw, parameter_groups
from tests.peft.small import filled, gpt2, llama


def test_lora_worked_by_hand():
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    lora = LoRALinear(base, rank=1, scale=3.0)
    lora.A.data, lora.B.data = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [5.0]])
    x = torch.tensor([[4.0, 1.0]])                    # W x = (6, 16);  A x = 3;  3 * B * 3 = (18, 45)
    assert torch.equal(lora(base, x), torch.tensor([[24.0, 61.0]]))
    # W + 3 B A = [[1 + 6, 2 - 6], [3 + 15, 4 - 15]]
    assert torch.equal(lora.merged(base)["weight"], torch.tensor([[7.0, -4.0], [18.0, -11.0]]))


@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA])
def test_an_embedding_stays_in_float32_under_autocast_and_nothing_warns(method):
    model, ids = llama(), torch.tensor([[1, 2, 3]])
    peft.attach(model, method(rank=2, alpha=2, targets=("embed",)))
    filled(model)
    with torch.no_grad(), warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        rounded = model.embed(ids)
        model(ids)                                    # a norm in float32 reads the stream
    assert rounded.dtype == torch.float32
    if method is peft.LoRA:
        small = model.get_submodule("embed").adapters["default"]
        most = (small.A.abs().T[ids] @ small.B.abs().T).max().item()           # of the sum of |a b|; a, b and the sum round to 8 bits, 2^-8 at most
        torch.testing.assert_close(rounded, model.embed(ids), rtol=0, atol=3.1 * 2.0**-8 * most)


def test_lora_on_an_embedding_worked_by_hand():
    base = nn.Embedding(3, 2)
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    lora = LoRAEmbedding(base, rank=1, scale=2.0)
    lora.A.data, lora.B.data = torch.tensor([[1.0, 0.0, -3.0]]), torch.tensor([[1.0], [10.0]])
    expected = torch.tensor([[-1.0, -54.0], [3.0, 4.0]])      # row 2: (5, 6) + 2 * -3 * (1, 10);  row 1 has A = 0
    assert torch.equal(lora(base, torch.tensor([2, 1])), expected)
    assert torch.equal(lora.merged(base)["weight"], torch.tensor([[3.0, 22.0], [3.0, 4.0], [-1.0, -54.0]]))


class Conv1D(nn.Module):
    """As in transformers' GPT-2: y = x W + b with W (K, N)."""

    def __init__(self, N, K):
        super().__init__()
        self.nf, self.weight, self.bias = N, nn.Parameter(torch.randn(K, N)), nn.Parameter(torch.randn(N))

    def forward(self, x):
        return x @ self.weight + self.bias


def test_a_weight_stored_transposed_is_merged_transposed():
    model, x = nn.Sequential(Conv1D(5, 7), Conv1D(5, 5)), torch.randn(3, 7)     # (5, 5): a wrong transposition would fit too
    peft.attach(model, peft.LoRA(rank=2))
    assert model[0].adapters["default"].A.shape == (2, 7)
    after = filled(model)(x)
    peft.merge(model)
    assert model[0].weight.shape == (7, 5)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-4)           # float32 sums of size up to 30


@pytest.mark.parametrize("rslora, scale", [(False, 12 / 4), (True, 12 / 2)])
def test_the_scale_is_alpha_over_rank_and_over_its_root_for_rslora(rslora, scale):
    model = nn.Sequential(nn.Linear(7, 5))
    peft.attach(model, peft.LoRA(rank=4, alpha=12, rslora=rslora))
    base, lora = model[0].base, filled(model)[0].adapters["default"]
    x = torch.randn(3, 7)
    torch.testing.assert_close(model(x), base(x) + scale * x @ lora.A.T @ lora.B.T)


def test_the_start_is_the_one_of_the_paper():
    lora = LoRALinear(nn.Linear(64, 9), rank=50, scale=1.0)
    assert torch.count_nonzero(lora.B) == 0
    assert lora.A.shape == (50, 64) and lora.B.shape == (9, 50)
    assert lora.A.abs().max() <= 1 / 8                                     # uniform on +-1/sqrt(64)
    assert lora.A.abs().max() > 0.99 / 8                                   # 3200 draws come that close (missed with p = e^-32)
    assert lora.A.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
    rows = LoRAEmbedding(nn.Embedding(11, 6), rank=50, scale=1.0)
    assert torch.count_nonzero(rows.A) == 0 and rows.B.std().item() == pytest.approx(1.0, rel=0.3)


def test_a_fresh_adapter_changes_nothing():
    for shape in [(6,), (3, 6), (2, 5, 6)]:
        model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(shape)
        before = model(x)
        peft.attach(model, peft.LoRA(rank=2))
        assert torch.equal(model(x), before)


def test_only_a_and_b_learn_and_their_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(6, 5)).double()
    peft.attach(model, peft.LoRA(rank=3, alpha=6))
    base, lora = model[0].base, filled(model)[0].adapters["default"]
    x, seen = torch.randn(4, 6, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    (model(x) * seen).sum().backward()
    change = 2.0 * seen.T @ x                                              # d loss / d (B A), (N, K)
    torch.testing.assert_close(lora.A.grad, lora.B.T @ change)
    torch.testing.assert_close(lora.B.grad, change @ lora.A.T)
    assert base.weight.grad is None and base.bias.grad is None


def test_dropout_is_on_the_low_rank_path_only_and_only_while_training():
    model = nn.Sequential(nn.Linear(40, 5))
    peft.attach(model, peft.LoRA(rank=4, dropout=0.5))
    base, lora, x = model[0].base, filled(model)[0].adapters["default"], torch.randn(3, 40)
    model.eval()
    exact = model(x)
    torch.testing.assert_close(exact, base(x) + 4 * x @ lora.A.T @ lora.B.T)
    model.train()
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    thinned = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(dropped, base(x) + 4 * thinned @ lora.A.T @ lora.B.T)
    assert not torch.allclose(dropped, exact)


def test_rank_and_alpha_patterns_change_single_modules():
    model = nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6), "wide_v": nn.Linear(6, 6)})
    peft.attach(model, peft.LoRA(rank=2, alpha=8, rank_pattern={"v": 4}, alpha_pattern={"q|v": 1}))
    lora = {name: module.adapters["default"] for name, module in model.items()}
    assert {name: (part.A.shape[0], part.scale) for name, part in lora.items()} == {"q": (2, 0.5), "v": (4, 0.25), "wide_v": (2, 4.0)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trap34_trained_parameters_are_float32_on_a_half_precision_base(dtype):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to(dtype)
    before = model(torch.ones(2, 6, dtype=dtype))
    peft.attach(model, peft.LoRA(rank=2))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 4 and {p.dtype for p in trained} == {torch.float32}
    y = filled(model)(torch.ones(2, 6, dtype=dtype))
    assert y.dtype == before.dtype == dtype
    y.float().sum().backward()
    assert {p.grad.dtype for p in trained} == {torch.float32}              # what a GradScaler can unscale


def test_trap34_a_step_too_small_for_bfloat16_is_not_lost():
    model = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    peft.attach(model, peft.LoRA(rank=2))
    A = model[0].adapters["default"].A
    A.data.fill_(1.0)
    A.grad = torch.full_like(A, 1.0)
    torch.optim.SGD([A], lr=1e-4).step()                                   # bf16 has 8 bits: 1 - 1e-4 rounds to 1
    assert (A < 1).all()


def test_autocast_gives_the_low_precision_result_and_full_precision_gradients():
    model = nn.Sequential(nn.Linear(6, 5))
    peft.attach(model, peft.LoRA(rank=2))
    lora, x = filled(model)[0].adapters["default"], torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=2**-6, atol=2**-5)     # a few roundings of 2^-9 at size <= 4
    y.float().sum().backward()
    assert lora.A.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(rank=0), "rank is 0"),
        (dict(rank=2.5), "rank is 2.5"),
        (dict(alpha=0), "alpha is 0"),
        (dict(alpha=float("nan")), "alpha is nan"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(lr_ratio=0), "lr_ratio is 0"),
        (dict(lr_ratio=float("inf")), "lr_ratio is inf"),
        (dict(rank_pattern={"q": 0}), "rank is 0"),
        (dict(alpha_pattern={"(": 1}), "not a regular expression"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.LoRA(**wrong)


def test_a_rank_above_the_matrix_is_refused_and_the_largest_possible_one_is_not():
    model = nn.ModuleDict({"wide": nn.Linear(9, 7), "narrow": nn.Linear(7, 3), "rows": nn.Embedding(2, 8)})
    with pytest.raises(InputError, match="rank is 4, but a change of narrow, 3 x 7, has rank 3 at most: .* rank_pattern"):
        peft.attach(model, peft.LoRA(rank=4))
    with pytest.raises(InputError, match="rank is 3, but a change of rows, 8 x 2, has rank 2 at most"):
        peft.attach(model, peft.LoRA(rank=3, targets=["rows"]))
    assert peft.names(model) == []
    peft.attach(model, peft.LoRA(rank=7, targets=["wide", "narrow"], rank_pattern={"narrow": 3}))


def test_a_file_may_hold_a_rank_above_the_matrix(tmp_path):
    model, x = nn.Sequential(nn.Linear(7, 3)), torch.randn(2, 7)
    method = peft.LoRA(rank=5)                                              # as of Hugging Face peft on a classifier of three classes
    put_in(model, method, method.build(model), "default")
    after = filled(model)(x)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(x), after)


def test_lora_plus_lets_b_learn_faster_and_leaves_no_trace_in_the_file(tmp_path):
    model = nn.ModuleDict({"up": nn.Linear(6, 5), "rows": nn.Embedding(7, 4)})
    peft.attach(model, peft.LoRA(rank=2, targets=["up", "rows"], lr_ratio=16))
    groups = {group["lr"]: group["params"] for group in parameter_groups(model, lr=0.01, weight_decay=0.0)}
    assert sorted(groups) == [0.01, 0.16]
    assert [p.shape for p in groups[0.16]] == [(5, 2), (4, 2)] and [p.shape for p in groups[0.01]] == [(2, 6), (2, 7)]
    peft.save(model, tmp_path / "adapter")
    assert "lr_ratio" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    plain = nn.ModuleDict({"up": nn.Linear(6, 5), "rows": nn.Embedding(7, 4)})
    peft.attach(plain, peft.LoRA(rank=2, targets=["up", "rows"]))
    assert [group["lr"] for group in parameter_groups(plain, lr=0.01, weight_decay=0.0)] == [0.01]


def test_lora_plus_moves_b_sixteen_times_as_far():             # Adam's first step is lr whatever the size of the gradient
    model = nn.Sequential(nn.Linear(6, 5))
    peft.attach(model, peft.LoRA(rank=2, lr_ratio=16))
    lora = filled(model)[0].adapters["default"]
    before = {name: p.detach().clone() for name, p in lora.named_parameters()}
    (optimizer,) = adamw(model, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999))
    (model(torch.randn(3, 6)) * torch.randn(3, 5)).sum().backward()
    optimizer.step()
    torch.testing.assert_close((lora.A - before["A"]).abs(), torch.full((2, 6), 0.001), rtol=1e-3, atol=0)
    torch.testing.assert_close((lora.B - before["B"]).abs(), torch.full((5, 2), 0.016), rtol=1e-3, atol=0)


def test_the_factors_are_the_change_with_its_scale():
    lora = LoRALinear(nn.Linear(7, 5), rank=2, scale=-3.0)
    nn.init.normal_(lora.B)
    A, B = lora.factors()
    assert A.dtype == B.dtype == torch.float64 and torch.equal(B @ A, -3 * lora.B.double() @ lora.A.double())


def test_trap23_merging_into_an_integer_weight_is_refused():
    base = nn.Linear(4, 4)
    lora = LoRALinear(base, rank=2, scale=1.0)
    base.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)     # 4 bits, packed
    with pytest.raises(InputError, match="round the change away"):
        lora.merged(base)


FAMILIES = {
    "llama": (llama, ["q", "k", "v", "out", "gate", "up", "down", "embed", "head"]),
    "gpt2": (gpt2, ["qkv", "out", "up", "down", "embed", "positions", "head"]),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def agrees_with_cache_packing_and_checkpointing(model):
    """What holds for a model must hold with its adapters: step by step, packed, recomputed."""
    whole = model(IDS)
    with torch.no_grad():
        cache = KVCache(model.config, batch=2, capacity=6)
        steps = [model(IDS[:, :3], cache=cache), *(model(IDS[:, t : t + 1], cache=cache) for t in (3, 4, 5))]
    rounding = 1e-5 * max(1.0, whole.abs().max().item())                              # sums of <= 20 float32 products, of the logits' size
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=rounding)
    row, segments = torch.cat([IDS[0, :2], IDS[1], IDS[0]])[None], torch.tensor([[0] * 2 + [1] * 6 + [2] * 6])
    packed = model(row, segments=segments)[0]
    torch.testing.assert_close(torch.stack([packed[8:], packed[2:8]]), whole, rtol=0, atol=rounding)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(whole.square().sum(), trained)
    model.checkpointing = True
    again = torch.autograd.grad(model(IDS).square().sum(), trained)
    assert all(torch.equal(a, b) and a.count_nonzero() for a, b in zip(plain, again))


@pytest.mark.parametrize("family", FAMILIES)
def test_trap32_cache_packing_and_checkpointing_agree_on_linears_embeddings_and_fused_qkv(family):
    make, targets = FAMILIES[family]
    model = make()
    peft.attach(model, peft.LoRA(rank=3, alpha=5, targets=targets, rank_pattern={"down_proj|c_fc": 2}, rslora=True))
    agrees_with_cache_packing_and_checkpointing(filled(model))


def test_generation_with_an_adapter_is_generation_with_the_merged_weights():
    model, ids = llama(), torch.tensor([[3], [7], [0]])
    peft.attach(model, peft.LoRA(rank=3, targets=["q", "down", "embed", "head"], alpha=30))
    cache, text = KVCache(filled(model).config, batch=3, capacity=9), ids
    with torch.no_grad():
        for _ in range(8):
            ids = model(ids, cache=cache)[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, ids], dim=1)
        peft.merge(model)
        again = text[:, :1]
        for _ in range(8):
            again = torch.cat([again, model(again)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(text, again) and len(text.unique()) > 3


@pytest.mark.parametrize("targets", [["head"], ["embed"], ["embed", "head"]])
def test_trap25_on_a_tied_weight_each_side_has_its_own_change(targets):
    model = llama()
    E = model.embed.weight.detach().clone()
    assert model.head.weight is model.embed.weight
    peft.attach(model, peft.LoRA(rank=3, alpha=6, targets=targets))
    filled(model)
    h, ids, parts = torch.randn(2, 12), torch.tensor([4, 0, 10]), {t: getattr(model, t).adapters["default"] for t in targets}
    head = E + 2 * parts["head"].B @ parts["head"].A if "head" in targets else E
    embed = E + 2 * (parts["embed"].B @ parts["embed"].A).T if "embed" in targets else E
    torch.testing.assert_close(model.head(h), h @ head.T)
    torch.testing.assert_close(model.embed(ids), embed[ids])
    peft.merge(model)
    torch.testing.assert_close(model.head.weight, head)
    torch.testing.assert_close(model.embed.weight, embed)
    peft.unmerge(model)
    assert model.head.weight is model.embed.weight and torch.equal(model.embed.weight, E)
