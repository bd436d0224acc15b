"""Lion, Adafactor, GaLore, SGD and Muon: by hand, beside a reference written from the paper, smaller as promised, and the same after a stop."""

from typing import get_args

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.train.adafactor import Adafactor
from minift.train.galore import GaLore
from minift.train.lion import Lion
from minift.train.loop import LoopConfig
from minift.train.optim import Name, Projection, optimizers_of, set_learning_rate

NAMES = [name for name in get_args(Name) if name != "paged-adamw8bit"]                # paged wants a GPU
ONE_TRAINS_ALL = ["adamw", "adamw8bit", "adafactor", "lion", "sgd"]
FEW = Projection(rank=4, every=2, scale=0.5)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def descend(optimizer, params, gradients):
    """One step for each list of gradients."""
    for step in gradients:
        for p, g in zip(params, step):
            p.grad = g.to(p.dtype)
        optimizer.step()
    return params


def close(ours, wanted, atol=1e-12):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(wanted, dtype=ours.dtype), rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------------- by hand


def test_lion_worked_by_hand():
    # 1: +0.3, step +.                        w = 2 * 0.95 - 0.1     m = 0.003
    # 2: 0.9 m - 0.1 * 0.02 = +0.0007: the average outvotes the gradient     m = 0.99 m - 0.0002 = 0.00277
    # 3: 0.9 m - 0.1 * 0.03 = -0.000507, though the average that is kept stays positive: 0.99 m - 0.0003
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = Lion([p], lr=0.1, weight_decay=0.5)
    for g, w in ((0.3, 1.8), (-0.02, 1.8 * 0.95 - 0.1), (-0.03, 1.61 * 0.95 + 0.1)):
        descend(optimizer, [p], [[torch.tensor([g])]])
        close(p, [w], 1e-7)


def test_adafactor_worked_by_hand():
    # rows of g²: (2.5, 12.5), columns (5, 10), mean 7.5; V = row column / 7.5; u² = g² / V = 0.6, 1.2, 1.08, 0.96: rms sqrt(0.96) < 1
    g, u = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.6, 1.2], [1.08, 0.96]], dtype=torch.float64).sqrt()
    for clip, longest in ((1.0, 1.0), (0.5, 0.96**0.5 / 0.5)):
        p = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        descend(Adafactor([p], lr=0.1, clip=clip, weight_decay=0.5), [p], [[g]])
        close(p, 0.95 - 0.1 * u / longest)


def test_adafactors_average_of_a_vector_worked_by_hand():
    # step 1: b = 0, v = 4. step 2: 1 - b = 2^-0.8 = 0.574349, v = 4 + 0.574349 (1 - 4) = 2.276953: u = 1 / sqrt(v) = 0.662709
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    descend(Adafactor([p], lr=1.0), [p], [[torch.tensor([2.0])], [torch.tensor([1.0])]])
    close(p, [-1 - 0.662709], 1e-6)


def test_a_row_without_gradient_is_not_divided_by_zero():
    p = nn.Parameter(torch.ones(3, 2))
    descend(Adafactor([p], lr=0.1), [p], [[torch.zeros(3, 2)], [torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 2.0]])]])
    assert torch.isfinite(p).all() and torch.equal(p[1], torch.ones(2))


def test_galore_worked_by_hand():
    # rank 1 of diag(3, 1): the first row is all it sees, Adam's first step is the sign, times lr * scale. P is kept for a step, then is the second row
    p = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = GaLore([p], lr=0.1, rank=1, every=2, scale=0.5, betas=(0.0, 0.0))
    steps = [([[3, 0, 0], [0, 1, 0]], [[-0.05, 0, 0], [0, 0, 0]]),
             ([[0, 0, 1], [0, 9, 0]], [[-0.05, 0, -0.05], [0, 0, 0]]),
             ([[0, 0, 1], [0, 9, 0]], [[-0.05, 0, -0.05], [0, -0.05, 0]])]    # fmt: skip
    for g, w in steps:
        descend(optimizer, [p], [[torch.tensor(g)]])
        close(p, w, 1e-8)


def test_sgd_worked_by_hand():
    # momentum 0.9, decay beside it: 2 * 0.95 - 0.1 * 0.3 = 1.87; then 1.87 * 0.95 - 0.1 (0.9 * 0.3 + 0.3). Torch's own decay would be in the momentum
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(2.0)
    (optimizer,) = optimizers_of("sgd", layer, 0.1, 0.5, (0.9, 0.99))
    descend(optimizer, [layer.weight], [[torch.tensor([[0.3]])], [torch.tensor([[0.3]])]])
    close(layer.weight, [[1.87 * 0.95 - 0.057]], 1e-7)


def test_sgd_without_decay_is_torchs():
    ours, theirs = (nn.Linear(3, 5, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    gradients = [[draw(5, 3, seed=s), draw(5, seed=s + 50)] for s in range(5)]
    descend(optimizers_of("sgd", ours, 0.1, 0.0, (0.9, 0.99))[0], list(ours.parameters()), gradients)
    descend(torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), list(theirs.parameters()), gradients)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_a_step_of_muon_is_about_as_long_as_one_of_adam_and_goes_in_all_directions():
    model = nn.ModuleDict({"blocks": nn.Linear(40, 30, bias=False)})
    weight = model["blocks"].weight
    before, (muon,) = weight.detach().clone(), optimizers_of("muon", model, 0.1, 0.0, (0.9, 0.99))
    descend(muon, [weight], [[draw(30, 40) * torch.logspace(-1, 0, 30)[:, None]]])
    moved = (before - weight.detach()) / 0.1
    sizes = torch.linalg.svdvals(moved)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)            # Adam's is 0.2 to 0.4, says arXiv:2502.16982
    assert sizes.max() / sizes.min() < 3                                                  # the gradient's are more than 10 apart
    assert torch.linalg.cond(draw(30, 40) * torch.logspace(-1, 0, 30)[:, None]) > 10


# ---------------------------------------------------------------------------------------------------------------- beside the papers


def lion_by_the_paper(w, gradients, eta, beta1, beta2, decay):
    """Algorithm 2 of arXiv:2302.06675, line by line; the decay is theirs, added to the sign."""
    m = torch.zeros_like(w)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        w = w - eta * (c.sign() + decay * w)
        m = beta2 * m + (1 - beta2) * g
    return w


def test_lion_is_the_papers_algorithm():
    p, gradients = nn.Parameter(draw(5, 3, seed=9)), [draw(5, 3, seed=s) for s in range(12)]
    wanted = lion_by_the_paper(p.detach().clone(), gradients, 0.01, 0.8, 0.95, 0.3)
    descend(Lion([p], lr=0.01, betas=(0.8, 0.95), weight_decay=0.3), [p], [[g] for g in gradients])
    close(p, wanted)


def galore_by_the_paper(w, gradients, eta, rank, every, scale, beta1, beta2, decay):
    """Algorithm 2 of arXiv:2403.03507, from the left for N <= K and from the right else. The signs of singular vectors are arbitrary, and matter
    when the averages outlive them: both are asked of the same routine, for the transposed matrix in the second case."""
    N, K = w.shape
    for t, g in enumerate(gradients, 1):
        if (t - 1) % every == 0:
            U = torch.linalg.svd(g if N <= K else g.T, full_matrices=False)[0][:, :rank]
        R = U.T @ g if N <= K else g @ U
        if t == 1:
            M, V = torch.zeros_like(R), torch.zeros_like(R)
        M, V = beta1 * M + (1 - beta1) * R, beta2 * V + (1 - beta2) * R * R
        step = (M / (1 - beta1**t)) / ((V / (1 - beta2**t)).sqrt() + 1e-8)
        w = w - eta * decay * w - eta * scale * (U @ step if N <= K else step @ U.T)
    return w


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3])
def test_galore_is_the_papers_algorithm(shape, rank):
    p, gradients = nn.Parameter(draw(*shape, seed=9)), [draw(*shape, seed=s) for s in range(8)]
    wanted = galore_by_the_paper(p.detach().clone(), gradients, 0.03, rank, 3, 0.25, 0.8, 0.9, 0.1)
    descend(GaLore([p], lr=0.03, betas=(0.8, 0.9), weight_decay=0.1, rank=rank, every=3, scale=0.25), [p], [[g] for g in gradients])
    close(p, wanted, 1e-11)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4,)])
def test_galore_at_full_rank_is_adamw(shape):
    ours, theirs = (nn.Parameter(draw(*shape, seed=9)) for _ in range(2))
    gradients, how = [[draw(*shape, seed=s)] for s in range(6)], dict(lr=0.03, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    descend(GaLore([ours], rank=4, **how), [ours], gradients)
    descend(torch.optim.AdamW([theirs], **how), [theirs], gradients)
    close(ours, theirs.detach())


def test_where_the_gradients_leading_directions_are_rows_galore_is_adamw_too():
    # rows 1 and 3 alone have gradients, in columns of their own: their axes are the singular vectors, and nothing is lost
    rows = torch.zeros(4, 7, dtype=torch.float64)
    rows[1, :4], rows[3, 4:] = 1, 2
    ours, theirs = (nn.Parameter(draw(4, 7, seed=9)) for _ in range(2))
    gradients = [[rows * (1 + draw(4, 7, seed=s).square())] for s in range(6)]
    descend(GaLore([ours], lr=0.03, rank=2, every=100, scale=1.0, weight_decay=0.1), [ours], gradients)
    descend(torch.optim.AdamW([theirs], lr=0.03, weight_decay=0.1), [theirs], gradients)
    close(ours, theirs.detach(), 1e-11)


def test_at_full_rank_a_projection_would_be_another_optimizer():
    """Why matrices that are no wider than the rank are not projected: Adam does not commute with rotations."""
    p, gradients = draw(4, 6, seed=9), [draw(4, 6, seed=s) for s in range(3)]
    rotated = galore_by_the_paper(p, gradients, 0.1, 4, 100, 1.0, 0.9, 0.999, 0.0)
    plain = nn.Parameter(p.clone())
    descend(torch.optim.AdamW([plain], lr=0.1, weight_decay=0.0), [plain], [[g] for g in gradients])
    assert (rotated - plain).abs().max() > 0.05


# ---------------------------------------------------------------------------------------------------------------- what is remembered


def remembered(optimizer, p) -> int:
    """Bytes of tensors in the state of p."""
    return sum(t.nbytes for t in optimizer.state[p].values() if isinstance(t, torch.Tensor) and t.ndim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_that_each_remembers(dtype):
    def held(make, *shape):
        p = nn.Parameter(torch.zeros(shape, dtype=dtype))
        descend(optimizer := make([p]), [p], [[draw(*shape)]])
        return remembered(optimizer, p)

    assert held(Lion, 64, 100) == 4 * 6400 and held(Lion, 100) == 4 * 100
    assert held(Adafactor, 64, 100) == 4 * (64 + 100) and held(Adafactor, 100) == 4 * 100
    eight = lambda params: GaLore(params, rank=8)
    assert held(eight, 64, 100) == held(eight, 100, 64) == 4 * (64 * 8 + 2 * 8 * 100)     # AdamW: 4 * 2 * 6400, six times as much
    assert held(eight, 8, 100) == 4 * 2 * 800 and held(eight, 100) == 4 * 2 * 100


# ---------------------------------------------------------------------------------------------------------------- in a training


class Tiny(nn.Module):
    """Matrices inside and outside, vectors, and one tied pair."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        self.embed, self.blocks, self.norm = nn.Embedding(9, 6), nn.Sequential(nn.Linear(6, 70), nn.Tanh(), nn.Linear(70, 6)), nn.LayerNorm(6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype)
        for place, p in enumerate(self.parameters()):
            p.data = draw(*p.shape, seed=seed + place, dtype=dtype)


def with_gradients(model, step):
    for place, p in enumerate(model.parameters()):
        p.grad = draw(*p.shape, seed=1000 * step + place, dtype=p.dtype)


def plain_data(value):
    """What a checkpoint may hold: tensors, numbers, strings, None, and lists and dicts of them."""
    if isinstance(value, dict):
        return {key: plain_data(v) for key, v in value.items()}
    if isinstance(value, list | tuple):                                                   # betas, which torch keeps in a tuple
        return [plain_data(v) for v in value]
    assert value is None or isinstance(value, torch.Tensor | int | float | str), type(value)
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_trap37_each_goes_on_from_its_state_to_the_bit(name, dtype):
    models = Tiny(), Tiny(seed=77)
    models = [model.to(dtype) for model in models]
    first, second = (optimizers_of(name, model, 1e-2, 0.1, (0.9, 0.99), FEW) for model in models)

    def step(model, optimizers, number):
        with_gradients(model, number)
        set_learning_rate(optimizers, 1 / number)
        for optimizer in optimizers:
            optimizer.step()

    for number in range(1, 4):                                                            # GaLore looks for its directions at steps 1, 3, 5
        step(models[0], first, number)
    with torch.no_grad():
        for p, q in zip(models[0].parameters(), models[1].parameters()):
            q.copy_(p)
    for one, other in zip(first, second, strict=True):
        other.load_state_dict(plain_data(one.state_dict()))
    for number in range(4, 7):
        step(models[0], first, number)
        step(models[1], second, number)
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(p, q) and torch.isfinite(p).all()
    for one, other in zip(first, second):
        for p, q in zip((p for g in one.param_groups for p in g["params"]), (q for g in other.param_groups for q in g["params"])):
            for key, value in one.state[p].items():
                same = other.state[q][key]
                assert (torch.equal(value, same) and value.dtype == same.dtype) if isinstance(value, torch.Tensor) else value == same, key


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_everything_and_decays_matrices_only(name):
    # no gradient at all but in the decay: matrices shrink by lr * decay, vectors stay
    model = Tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = optimizers_of(name, model, 0.1, 0.5, (0.9, 0.99), FEW)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    for n, p in model.named_parameters():
        close(p, before[n] * (0.95 if p.ndim == 2 else 1.0), 1e-6)
    with_gradients(model, 1)
    after = {n: p.detach().clone() for n, p in model.named_parameters()}
    for optimizer in optimizers:
        optimizer.step()
    assert all((p - after[n]).abs().max() > 1e-4 for n, p in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_each_lowers_a_loss(name):
    torch.manual_seed(0)
    model, ids = Tiny(seed=5), torch.arange(9)
    value = lambda: nn.functional.cross_entropy(model.head(model.norm(model.blocks(model.embed(ids)))), ids.roll(1))
    optimizers, start = optimizers_of(name, model, 3e-2, 0.0, (0.9, 0.99), FEW), value().item()
    for _ in range(60):
        for optimizer in optimizers:
            optimizer.zero_grad()
        value().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert value().item() < 0.5 * start


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_of_lora_plus_learns_faster_with_each(name):
    slow, fast = (nn.ModuleDict({"blocks": nn.Linear(5, 6, bias=False)}) for _ in range(2))
    fast["blocks"].load_state_dict(slow["blocks"].state_dict())
    fast["blocks"].weight.lr_scale = 4.0
    both, start = nn.ModuleList([slow, fast]), slow["blocks"].weight.detach().clone()
    optimizers = optimizers_of(name, both, 1e-2, 0.0, (0.9, 0.99), FEW)
    set_learning_rate(optimizers, 0.5)
    for p in both.parameters():
        p.grad = draw(6, 5, dtype=torch.float32)
    for optimizer in optimizers:
        optimizer.step()
    moved = [model["blocks"].weight.detach() - start for model in (slow, fast)]
    torch.testing.assert_close(moved[1], 4 * moved[0], rtol=1e-3, atol=1e-6)
    assert moved[0].abs().max() > 1e-4


def test_a_weight_without_gradient_is_left_alone():
    for make in (Lion, Adafactor, GaLore):
        p, q = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
        optimizer = make([p, q], lr=0.1, weight_decay=0.5)
        p.grad = torch.ones(3, 4)
        optimizer.step()
        assert torch.equal(q, torch.ones(3, 4)) and q not in optimizer.state and not torch.equal(p, q)


# ---------------------------------------------------------------------------------------------------------------- what is refused


def test_another_optimizers_state_or_another_models_is_refused():
    narrow, wide = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(4, 8))
    narrow.grad, wide.grad = torch.ones(4, 6), torch.ones(4, 8)
    made = {make: make([narrow]) for make in (Lion, Adafactor, GaLore)}
    for optimizer in made.values():
        optimizer.step()
    with pytest.raises(InputError, match="holds m, Adafactor's column, row, step: another optimizer wrote it"):
        made[Adafactor].load_state_dict(made[Lion].state_dict())
    with pytest.raises(InputError, match=r"the saved column is of shape \(6,\), this run's of \(8,\)"):
        Adafactor([wide]).load_state_dict(made[Adafactor].state_dict())
    with pytest.raises(InputError, match="holds m, step, v, GaLore's P, m, step, v"):
        GaLore([narrow], rank=2).load_state_dict(made[GaLore].state_dict())


@pytest.mark.parametrize("name", ["muon", "galore"])
def test_what_wants_matrices_says_so(name):
    frozen = nn.Sequential(nn.Linear(200, 200), nn.LayerNorm(200))
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match=f"--optimizer {name} is for .*weights of linears.* none of them is trained: take --optimizer adamw"):
        optimizers_of(name, frozen, 1e-3, 0.0, (0.9, 0.99))


def test_a_rank_at_which_nothing_would_be_projected_is_refused():
    with pytest.raises(InputError, match="wider than --galore-rank 128, and the smaller side of the widest of them is 6: pass a smaller --galore-rank"):
        optimizers_of("galore", Tiny(), 1e-3, 0.0, (0.9, 0.99))


@pytest.mark.parametrize("settings, text", [
    (dict(galore_rank=8), "--galore-rank is an option of --optimizer galore: leave it out"),
    (dict(galore_every=8), "--galore-every is an option of --optimizer galore"),
    (dict(galore_scale=1.0), "--galore-scale is an option of --optimizer galore"),
    (dict(optimizer="galore", galore_rank=0), "--galore-rank 0"),
    (dict(optimizer="adafactor", betas=(0.9, 0.95)), "--betas is an option of every --optimizer but adafactor"),
    (dict(cooldown=0.2), "--cooldown is an option of --schedule wsd"),
    (dict(schedule="wsd", cooldown=0.0), "--cooldown is 0.0, --warmup 0.05"),
    (dict(schedule="wsd", cooldown=0.6, warmup=0.5), "together at most 1"),
    (dict(ema=1.0), "--ema is 1.0: wanted 0 to below 1"),
])    # fmt: skip
def test_trap22_options_without_effect_or_meaning_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        LoopConfig(**settings)
