"""One set made of several: always the changes that are added, never their factors (trap 28)."""

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.transformer import Transformer
from minift.peft.attach import state_of
from minift.peft.combine import dare, of_rank, ties
from minift.peft.targets import published_names
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SETS = {
    "a": peft.LoRA(rank=2, alpha=6, targets=["q", "out", "embed"]),                                  # scale 3
    "b": peft.LoRA(rank=3, alpha=2, rslora=True, targets=["q", "mlp.up", "embed"]),                  # scale 2 / sqrt 3
    "c": peft.LoRA(rank=1, alpha=5, targets=["q", "head"], rank_pattern={r"layers\.1\.self_attn\.q_proj": 4}, alpha_pattern={"lm_head": 7}),
}


def with_sets(model: Transformer | None = None) -> Transformer:
    model = llama() if model is None else model
    for name, method in SETS.items():
        peft.attach(model, method, name)
    return filled(model)


def change(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Path -> ΔW of a set in its weight's own layout, by what its merge does to a weight of zeros."""
    found = {}
    for path, wrapper in state_of(model).wrappers.items():
        if name in wrapper.adapters:
            bare = type("Bare", (), {"weight": torch.zeros(wrapper.base.weight.shape, dtype=torch.float64)})
            found[path] = wrapper.adapters[name].merged(bare)["weight"]
    return found


def total(model: nn.Module, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    found = {}
    for name, weight in weights.items():
        for path, value in change(model, name).items():
            found[path] = found.get(path, 0) + weight * value
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], size: float = 1e-6) -> None:
    """Float32 factors of a float64 result: a rounding of 6e-8 on each of at most 9 products of size <= 10."""
    assert one.keys() == other.keys()
    for path in one:
        torch.testing.assert_close(one[path], other[path], rtol=0, atol=size, msg=lambda text: f"{path}: {text}")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("how", ["linear", "concat", "svd"])
def test_trap28_one_set_at_weight_one_reproduces_itself_and_minus_one_negates(how, name):
    model = with_sets()
    peft.switch(model, name)
    after = model(IDS)
    kept = peft.combine(model, {name: 1.0}, "same", how=how)
    assert {path: part.share for path, part in kept.items()} == {path: pytest.approx(1.0) for path in change(model, name)} and peft.names(model)[-1] == "same"
    torch.testing.assert_close(model(IDS), after, rtol=0, atol=1e-4)                # it answers; logits up to 30, two blocks of float32
    peft.combine(model, {name: -1.0}, "opposite", how=how)
    equal(change(model, "same"), change(model, name))
    equal(change(model, "opposite"), total(model, {name: -1.0}))


@pytest.mark.parametrize("how", ["linear", "concat"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_trap28_the_sum_is_of_the_changes_not_of_their_factors(how, make):
    model = make()
    sets = SETS if make is llama else {"a": peft.LoRA(rank=2, alpha=6), "b": peft.LoRA(rank=3, rslora=True, targets=["qkv", "positions"])}
    for name, method in sets.items():
        peft.attach(model, method, name)
    weights = dict(zip(sets, (0.7, -0.3, 2.5)))
    peft.combine(filled(model), weights, "sum", how=how)
    equal(change(model, "sum"), total(model, weights), 4e-6)                        # weights up to 2.5


def test_every_method_whose_change_is_a_product_can_be_combined():
    model = llama()
    sets = {"a": peft.LoRA(rank=2), "p": peft.PiSSA(rank=2, alpha=3), "e": peft.AdaLoRA(init_r=3, target_r=2, alpha=5), "v": peft.VeRA(rank=40)}
    for name, method in sets.items():
        peft.attach(model, method, name)
    weights = {"a": 0.5, "p": -1.0, "e": 2.0, "v": 0.1}
    filled(model)
    wanted = {}
    for name, weight in weights.items():                                            # what each merge adds to the real weights
        for path, wrapper in state_of(model).wrappers.items():
            added = wrapper.adapters[name].merged(wrapper.base)["weight"] - wrapper.base.weight
            wanted[path] = wanted.get(path, 0) + weight * added.double()
    kept = peft.combine(model, weights, "sum")
    equal(change(model, "sum"), wanted, 1e-4)                                       # VeRA's products have 40 terms, of size up to 10
    assert kept["blocks.0.attention.v"].rank == 4 and kept["blocks.0.attention.q"].rank == 12


def test_linear_takes_the_smallest_rank_and_concat_adds_the_ranks():
    model = with_sets()
    peft.combine(model, {"a": 1.0, "b": 1.0}, "linear")
    peft.combine(model, {"a": 1.0, "b": 1.0}, "concat", how="concat")
    rank = lambda name, path: len(state_of(model).wrappers[path].adapters[name].A)
    assert rank("linear", "blocks.0.attention.q") == rank("concat", "blocks.0.attention.q") == 2 + 3
    assert rank("linear", "blocks.0.attention.out") == rank("concat", "blocks.0.attention.out") == 2
    with torch.no_grad():
        for wrapper in state_of(model).wrappers.values():                           # now b's first two rows are a's, where both are
            if {"a", "b"} <= set(wrapper.adapters):
                wrapper.adapters["b"].A[:2] = wrapper.adapters["a"].A
    peft.combine(model, {"a": 1.0, "b": 1.0}, "less")
    assert rank("less", "blocks.0.attention.q") == 3 and rank("less", "embed") == 3
    equal(change(model, "less"), total(model, {"a": 1.0, "b": 1.0}))
    peft.combine(model, {"a": 0.5, "less": 0.0}, "halved")                          # a sum of weight 0 adds nothing, not even rank
    assert rank("halved", "blocks.0.attention.q") == 2


def test_sets_that_cancel_leave_a_fresh_set_that_can_learn():
    model = with_sets()
    peft.combine(model, {"a": 1.0}, "twin", how="concat")
    before = model(IDS)
    peft.combine(model, {"a": 1.0, "twin": -1.0}, "nothing")
    with peft.disabled(model):
        base = model(IDS)
    torch.testing.assert_close(model(IDS), base, rtol=0, atol=1e-4)
    assert not torch.allclose(before, base)
    model(IDS).square().sum().backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(".nothing." in key for key in trained)
    assert all(p.grad.count_nonzero() for key, p in trained.items() if key.endswith("q.adapters.nothing.B"))


def test_svd_is_the_nearest_of_its_rank_and_says_what_it_kept():
    model = with_sets()
    weights = {"a": 1.0, "b": -2.0, "c": 0.5}
    kept = peft.combine(model, weights, "cut", how="svd", rank=2)
    for path, whole in total(model, weights).items():
        U, S, Vt = torch.linalg.svd(whole)
        rank = min(2, len(S))
        torch.testing.assert_close(change(model, "cut")[path], U[:, :rank] * S[:rank] @ Vt[:rank], rtol=0, atol=4e-6)
        assert kept[path].share == pytest.approx((S[:rank].square().sum() / S.square().sum()).item())
        assert kept[path].rank == (1 if path == "head" else 2)                      # where c alone is, of rank 1
    assert min(part.share for part in kept.values()) < 0.95 < max(part.share for part in kept.values())
    peft.combine(model, weights, "usual", how="svd")                                # no rank: the largest of the sets, module by module
    ranks = {path: len(w.adapters["usual"].A) for path, w in state_of(model).wrappers.items() if "usual" in w.adapters}
    assert ranks["blocks.0.attention.q"] == 3 and ranks["blocks.1.attention.q"] == 4 and ranks["blocks.0.attention.out"] == 2


def test_ties_worked_by_hand():
    one = torch.tensor([[4.0, -3.0, 0.5, 2.0], [-1.0, 6.0, 5.0, 0.0]])
    two = torch.tensor([[-1.0, 5.0, 8.0, 4.0], [0.1, -2.0, 3.0, -9.0]])
    # half of 8 kept:  one -> 4 -3 . . / . 6 5 .      two -> . 5 8 4 / . . . -9
    # sums 4 2 8 4 / 0 6 5 -9 elect + + + + / + + + -; of one -3 disagrees: 4 5 8 4 / 0 6 5 -9, each alone
    assert torch.equal(ties([one, two], 0.5), torch.tensor([[4.0, 5.0, 8.0, 4.0], [0.0, 6.0, 5.0, -9.0]]))
    # all kept: sums 3 2 8.5 6 / -.9 4 8 -9; agreeing: 4 | 5 | .5, 8 | 2, 4 / -1 | 6 | 5, 3 | -9
    assert torch.equal(ties([one, two], 1.0), torch.tensor([[4.0, 5.0, 4.25, 3.0], [-1.0, 6.0, 4.0, -9.0]]))


def test_ties_elects_the_sign_of_the_weighted_changes():
    one, two = torch.tensor([[3.0]]), torch.tensor([[-2.0]])
    assert torch.equal(ties([0.1 * one, 1.0 * two], 1.0), two)                      # 0.3 against -2: the light voice loses


def test_dare_drops_at_random_and_keeps_the_mean():
    dice = lambda: torch.Generator().manual_seed(5)
    ones = torch.ones(100, 100)
    thinned = dare([ones], 0.2, dice())
    assert set(thinned.unique().tolist()) == {0.0, 5.0} and torch.equal(thinned, dare([ones], 0.2, dice()))
    assert thinned.mean().item() == pytest.approx(1.0, abs=5 * (4 / 1e4) ** 0.5)     # an entry's variance is 0.2 * 5² - 1 = 4
    both = dare([ones, 10 * ones], 0.5, dice())
    assert set(both.unique().tolist()) == {0.0, 2.0, 20.0, 22.0}                    # each set draws for itself
    assert torch.equal(dare([ones, -2 * ones], 1.0, dice()), -ones)


@pytest.mark.parametrize("how, vote", [("ties", lambda parts, dice: ties(parts, 0.6)), ("dare", lambda parts, dice: dare(parts, 0.6, dice))])
def test_ties_and_dare_work_on_each_modules_change_and_are_cut_to_the_rank(how, vote):
    model, weights = with_sets(), {"a": 0.7, "b": -0.4, "c": 1.0}
    kept = peft.combine(model, weights, "vote", how=how, density=0.6, rank=4, seed=3)
    dice, names = torch.Generator().manual_seed(3), {}
    for path in kept:
        parts = [w * (c[path].T if path == "embed" else c[path]) for name, w in weights.items() if path in (c := change(model, name))]
        names[path] = vote(parts, dice)
        A, B, share = of_rank(*torch.linalg.svd(names[path], full_matrices=False), 4)
        found = change(model, "vote")[path]
        torch.testing.assert_close(found.T if path == "embed" else found, B @ A, rtol=0, atol=1e-5)
        assert kept[path].share == pytest.approx(share)
    assert len(names) == 2 + 2 + 2 + 1 + 1                                          # q, out, up twice; embed, head


def test_a_seed_gives_one_result_and_another_seed_another():
    results = []
    for seed in (0, 1, 2):
        torch.manual_seed(9)
        model = llama()
        peft.attach(model, SETS["a"], "a")
        filled(model)
        torch.rand(seed)                                                            # the global dice have no say
        peft.combine(model, {"a": 1.0}, "d", how="dare", seed=seed // 2)
        results.append(model(IDS))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_combined_set_is_a_plain_lora_file(tmp_path):
    model = with_sets()
    peft.combine(model, {"a": 1.0, "b": 0.5, "c": -1.0}, "sum")
    after = model(IDS)
    peft.save(model, tmp_path / "sum", "sum")
    for name in peft.names(model):
        peft.remove(model, name)
    peft.load(model, tmp_path / "sum")
    assert torch.equal(model(IDS), after)
    scales = {w.adapters["default"].scale for w in state_of(model).wrappers.values()}
    assert scales == {1.0} and len({len(w.adapters["default"].A) for w in state_of(model).wrappers.values()}) > 1


def test_a_pattern_for_one_module_does_not_reach_another_whose_path_ends_alike(tmp_path):
    model = nn.ModuleDict({"up": nn.Linear(7, 6), "inner": nn.ModuleDict({"up": nn.Linear(7, 6)}), "down": nn.Linear(7, 6)})
    peft.attach(model, peft.LoRA(rank=2, targets=["up", "down"], rank_pattern={"^up": 3}), "a")
    peft.combine(filled(model), {"a": 1.0}, "b")
    assert {path: len(w.adapters["b"].A) for path, w in state_of(model).wrappers.items()} == {"up": 3, "inner.up": 2, "down": 2}
    assert published_names(model)["inner.up"] == "inner.up"


@pytest.mark.parametrize("wrong, words", [
    (dict(weights={}), "weights is {}"),
    (dict(weights={"a": float("nan")}), "weights is {'a': nan}"),
    (dict(weights={"a": 1.0, "z": 1.0}), r"no set named 'z'; it has \['a', 'b', 'c'\]"),
    (dict(how="mean"), "how is 'mean': wanted one of linear, concat, svd, ties, dare"),
    (dict(rank=3), "rank 3 has no effect on 'linear', which is exact: how='svd' cuts"),
    (dict(how="svd", rank=0), "rank is 0"),
    (dict(how="ties", density=0.0), "density is 0.0"),
    (dict(how="dare", density=1.5), "density is 1.5"),
    (dict(name="b"), "already has a set named 'b'"),
])    # fmt: skip
def test_what_cannot_be_combined(wrong, words):
    model = with_sets()
    with pytest.raises(InputError, match=words):
        peft.combine(model, **{"weights": {"a": 1.0, "b": 1.0}, **wrong})
    assert peft.names(model) == ["a", "b", "c"]


def test_ranks_that_add_up_to_more_than_the_matrix_are_refused_by_concat_and_compressed_by_linear():
    model = nn.Sequential(nn.Linear(6, 3))
    for name in "ab":
        peft.attach(model, peft.LoRA(rank=2), name)
    with pytest.raises(InputError, match="ranks at 0 add up to 4, more than a change of 3 x 6 can have: how='linear'"):
        peft.combine(filled(model), {"a": 1.0, "b": 1.0}, how="concat")
    peft.combine(model, {"a": 1.0, "b": 1.0}, "sum")
    assert len(model[0].adapters["sum"].A) == 3
    equal(change(model, "sum"), total(model, {"a": 1.0, "b": 1.0}))


def test_a_set_that_is_no_low_rank_change_is_refused_by_its_methods_name():
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 4))
    peft.attach(model, peft.LoRA(rank=2), "a")
    peft.attach(model, peft.Full(), "whole")
    with pytest.raises(InputError, match="the set 'whole' is Full, whose change is no low-rank product"):
        peft.combine(model, {"a": 1.0, "whole": 1.0})
