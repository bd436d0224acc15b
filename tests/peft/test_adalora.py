"""AdaLoRA: its arithmetic, importance and budget worked by hand; masks, files and resuming."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft import training
from minift.peft.adalora import AdaLoRALinear
from minift.peft.attach import state_of
from tests.peft.small import filled, gpt2, llama
from tests.peft.test_lora import Conv1D

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SMALL = peft.AdaLoRA(init_r=3, target_r=1, alpha=6, tinit=2, tfinal=3, deltaT=2, beta1=0.5, beta2=0.75)


def parts(model) -> list[AdaLoRALinear]:
    return [wrapper.adapters["default"] for wrapper in state_of(model).wrappers.values()]


def linear(r=2, scale=1.0, weight=0.0, N=2, K=2) -> AdaLoRALinear:
    return AdaLoRALinear(nn.Linear(K, N, bias=False), [True] * r, scale, weight)


def learn(model, step: int, steps: int) -> None:
    """One step with gradients of dice, seeded by its number."""
    torch.manual_seed(step)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
            p.data -= 0.1 * p.grad
    training.after_step(model, step, steps)


def test_adalora_worked_by_hand():
    base, part = nn.Linear(2, 2, bias=False), linear(scale=3.0)
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    part.Q.data, part.E.data = torch.tensor([[1.0, -1.0], [2.0, 1.0]]), torch.tensor([[2.0], [0.0]])
    part.P.data = torch.tensor([[1.0, 7.0], [5.0, 7.0]])
    x = torch.tensor([[4.0, 1.0]])                  # W x = (6, 16);  Q x = (3, 9);  E *: (6, 0);  P: (6, 30);  times 3
    assert torch.equal(part(base, x), torch.tensor([[24.0, 106.0]]))
    # W + 3 P E Q = W + 3 [[2, -2], [10, -10]]
    assert torch.equal(part.merged(base)["weight"], torch.tensor([[7.0, -4.0], [33.0, -26.0]]))


def test_the_scale_is_alpha_over_the_first_rank_and_the_start_is_small_and_silent():
    model = nn.Sequential(nn.Linear(70, 60))
    peft.attach(model, peft.AdaLoRA(init_r=50, target_r=8, alpha=25))
    part = parts(model)[0]
    assert part.scale == pytest.approx(0.5, rel=1e-6)
    assert torch.count_nonzero(part.E) == 0 and part.E.shape == (50, 1) and part.Q.shape == (50, 70) and part.P.shape == (60, 50)
    assert part.Q.std().item() == pytest.approx(0.02, rel=0.1) and part.P.std().item() == pytest.approx(0.02, rel=0.1)


def test_importance_worked_by_hand():
    part = linear(r=2, N=2, K=4)
    part.Q.data, part.Q.grad = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]), torch.tensor([[-4.0, 0, 0, 0], [1.0, 1, 1, 1]])
    part.E.data, part.E.grad = torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [-2.0]])
    part.P.data, part.P.grad = torch.ones(2, 2), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    with torch.no_grad():
        part.note(beta1=0.5, beta2=0.75)
    # I of E = (6, 2): sensitivity = half = (3, 1), uncertainty = a quarter of |I - sensitivity| = (0.75, 0.25), product (2.25, 0.25)
    torch.testing.assert_close(part.sensitivity_E, torch.tensor([[3.0], [1.0]]))
    torch.testing.assert_close(part.uncertainty_E, torch.tensor([[0.75], [0.25]]))
    # the product is I^2 / 16. Rows of Q: I = (4, 0, 0, 0), mean 1/4, and (2, 2, 2, 2), mean 1/4. Columns of P: 0, and (2, 4), mean 20/32
    torch.testing.assert_close(part.importance(), torch.tensor([2.25 + 0.25 + 0, 0.25 + 0.25 + 0.625]))
    with torch.no_grad():
        part.note(beta1=0.5, beta2=0.75)
    torch.testing.assert_close(part.sensitivity_E, torch.tensor([[4.5], [1.5]]))                 # (3 + 6) / 2
    torch.testing.assert_close(part.uncertainty_E, torch.tensor([[0.9375], [0.3125]]))           # 0.75 * 0.75 + 0.25 * (6 - 4.5)


def test_the_budget_falls_with_the_cube_from_all_triplets_to_the_wanted_ones():
    method = peft.AdaLoRA(tinit=2, tfinal=4)                               # of 16 steps: 10 steps to choose in
    found = [method.budget(step, 16, start=120, end=80) for step in range(1, 17)]
    assert found == [120, 120, *[int(40 * (1 - t / 10) ** 3 + 80) for t in range(1, 11)], 80, 80, 80, 80]
    assert found[2:5] == [109, 100, 93]                                    # 80 + 40 * 0.729, 0.512, 0.343


def test_tinit_and_tfinal_are_steps_or_shares_of_them_and_too_few_steps_are_refused():
    assert peft.AdaLoRA().schedule(200) == (20, 100)                       # a tenth, and the second half
    assert peft.AdaLoRA(tinit=30, tfinal=0.25).schedule(200) == (30, 150)
    assert peft.AdaLoRA(tinit=0, tfinal=0).schedule(1) == (0, 1)
    with pytest.raises(InputError, match="wants 30 steps with all triplets and 70 with the chosen ones, .* 100 steps are too few"):
        peft.AdaLoRA(tinit=30, tfinal=70).schedule(100)
    model = nn.Sequential(nn.Linear(6, 5))
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2, tinit=5, tfinal=5))
    with pytest.raises(InputError, match="Train longer, or lower tinit and tfinal"):
        learn(model, 1, 10)                                                # on the very first step, not on the last


def test_the_least_important_triplets_of_the_whole_model_go_and_the_choice_becomes_final():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    peft.attach(model, SMALL)
    filled(model)
    left = []
    for step in range(1, 11):
        learn(model, step, 10)
        on = torch.cat([part.on for part in parts(model)])
        if step in (4, 6, 7):                                              # every deltaT = 2 steps from tinit = 2 on, and at 10 - tfinal = 7
            scores = torch.cat([part.importance() for part in parts(model)])
            assert scores[on].min() > scores[~on].max()
        if step in (4, 6) or step >= 7:                                    # between two choices a triplet may come back
            assert torch.equal(torch.cat([part.E[:, 0] != 0 for part in parts(model)]), on)
        if step == 5:
            assert (torch.cat([part.E[:, 0] for part in parts(model)])[~on] != 0).all()
        left.append(int(on.sum()))
    # 6 triplets; int(4 * (3/5)^3 + 2) = 2 at 4, int(4 * (1/5)^3 + 2) = 2 at 6, and 2 at 7, which is target_r = 1 per module
    assert left == [6, 6, 6, 2, 2, 2, 2, 2, 2, 2]
    frozen = parts(model)[0].sensitivity_E.clone()
    learn(model, 9, 10)
    assert torch.equal(parts(model)[0].sensitivity_E, frozen)              # nothing is weighed any more


def test_the_final_choice_is_made_whatever_deltaT_says():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    peft.attach(model, dataclasses.replace(SMALL, deltaT=100))
    filled(model)
    left = []
    for step in range(1, 11):
        learn(model, step, 10)
        left.append(sum(int((part.E != 0).sum()) for part in parts(model)))
    assert left == [6] * 6 + [2] * 4


def test_a_whole_module_may_lose_its_rank(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(3, 6)
    peft.attach(model, SMALL)
    filled(model)
    for step in range(1, 11):
        for part, size in zip(parts(model), (1.0, 1e-3)):
            for p in part.parameters():
                p.grad = size * torch.ones_like(p)
        training.after_step(model, step, 10)
    assert [int(part.on.sum()) for part in parts(model)] in ([2, 0], [3, 0])
    after = model(x)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert parts(model)[1].E.shape == (0, 1) and torch.equal(model(x), after)
    training.penalty(model).backward()                                     # nothing of nothing is orthogonal
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=0, atol=1e-6)


def test_the_penalties_of_all_modules_add_up_to_the_mean_over_their_matrices():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2, orth_reg_weight=0.4))
    filled(model)
    distances = [((part.Q @ part.Q.T - torch.eye(3)).norm(), (part.P.T @ part.P - torch.eye(3)).norm()) for part in parts(model)]
    expected = 0.4 * torch.stack([one for pair in distances for one in pair]).mean()
    torch.testing.assert_close(training.penalty(model), expected)
    part = parts(model)[2]                                                 # (4 -> 3): P can be orthogonal
    part.P.data = torch.linalg.qr(torch.randn(3, 3, dtype=torch.double)).Q
    part.Q.data = torch.linalg.qr(torch.randn(4, 3, dtype=torch.double)).Q.T
    assert part.penalty().item() < 1e-12
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert part.penalty().item() < 1e-6                                # products of 8 bits would miss 1 by 1e-3


def test_a_fresh_adapter_changes_nothing_and_merging_is_undone_to_the_bit():
    for model, x in [(llama(), IDS), (gpt2(), IDS), (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(2, 6))]:
        before = model(x)
        peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2))
        assert torch.equal(model(x), before)
        after = filled(model)(x)
        assert (after - before).abs().max() > 1e-3
        peft.merge(model)
        torch.testing.assert_close(model(x), after, rtol=0, atol=2e-6)     # two blocks of numbers of size 1
        peft.unmerge(model)
        assert torch.equal(model(x), after)
        with peft.disabled(model):
            assert torch.equal(model(x), before)


def test_a_weight_stored_transposed_is_merged_transposed():
    model, x = nn.Sequential(Conv1D(5, 7), Conv1D(5, 5)), torch.randn(3, 7)     # (5, 5): a wrong transposition would fit too
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2))
    after = filled(model)(x)
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-4)           # float32 sums of size up to 30


def test_only_the_triplets_learn_and_their_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(6, 5)).double()
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2, alpha=6))
    base, part = model[0].base, filled(model)[0].adapters["default"]
    x, seen = torch.randn(4, 6, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    (model(x) * seen).sum().backward()
    change = 6 / (3 + 1e-5) * seen.T @ x                                   # d loss / d (P E Q), (N, K)
    torch.testing.assert_close(part.Q.grad, part.E * (part.P.T @ change))
    torch.testing.assert_close(part.P.grad, change @ (part.E * part.Q).T)
    torch.testing.assert_close(part.E.grad, ((part.P.T @ change) * part.Q).sum(1, keepdim=True))
    assert base.weight.grad is None and base.bias.grad is None


def test_dropout_is_on_the_low_rank_path_only_and_only_while_training():
    model = nn.Sequential(nn.Linear(40, 5))
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2, dropout=0.5))
    base, part, x = model[0].base, filled(model)[0].adapters["default"], torch.randn(3, 40)
    path = lambda x: part.scale * (x @ (part.E * part.Q).T) @ part.P.T
    model.eval()
    torch.testing.assert_close(model(x), base(x) + path(x))
    model.train()
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, base(x) + path(nn.functional.dropout(x, 0.5)))


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("steps_done", [0, 1, 5, 10])
def test_saved_at_any_time_it_comes_back_the_same(model, steps_done, tmp_path):
    model = model().eval()
    peft.attach(model, SMALL)
    filled(model)
    for step in range(1, steps_done + 1):
        learn(model, step, 10)
    after, counted = model(IDS), sum(int(part.alive().sum()) for part in parts(model))
    peft.save(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(len(value) for key, value in stored.items() if key.endswith("lora_E")) == counted
    assert counted == (len(parts(model)) if steps_done == 10 else 3 * len(parts(model)))      # at 5 all had come back
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["total_step"], config["tinit"], config["tfinal"]) == ((10, 2, 3) if steps_done else (1000, 2, 3))
    assert (config["rank_pattern"] is None) is (steps_done < 10)
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    torch.testing.assert_close(model(IDS), after, rtol=0, atol=1e-6)        # without the zeros: other sums
    peft.save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(again[key], value) for key, value in stored.items())
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["rank_pattern"] == config["rank_pattern"]


def test_a_finished_adapter_can_be_trained_on_for_any_number_of_steps(tmp_path):
    model = llama()
    peft.attach(model, SMALL)
    filled(model)
    for step in range(1, 11):
        learn(model, step, 10)
    peft.save(model, tmp_path / "adapter")
    other = llama()
    peft.load(other, tmp_path / "adapter")
    shapes = [part.E.shape for part in parts(other)]
    for step in range(1, 5):
        learn(other, step, 4)
    assert [part.E.shape for part in parts(other)] == shapes and all((part.E != 0).all() for part in parts(other))


def test_trap37_its_averages_are_buffers_so_a_resumed_run_makes_the_same_choices():
    whole, first, second = llama(), llama(), llama()
    second.load_state_dict(whole.state_dict())
    first.load_state_dict(whole.state_dict())
    for model in (whole, first, second):
        torch.manual_seed(0)
        peft.attach(model, SMALL)
        filled(model)
    for step in range(1, 11):
        learn(whole, step, 10)
    for step in range(1, 6):
        learn(first, step, 10)
    second.load_state_dict(first.state_dict())                             # strict: every buffer is there
    for step in range(6, 11):
        learn(second, step, 10)
    for one, two in zip(parts(whole), parts(second), strict=True):
        assert torch.equal(one.E, two.E) and torch.equal(one.on, two.on) and torch.equal(one.sensitivity_Q, two.sensitivity_Q)
        assert int(two.steps) == 10


def test_trap34_triplets_are_float32_on_a_bf16_base_and_autocast_runs():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to(torch.bfloat16)
    peft.attach(model, peft.AdaLoRA(init_r=2, target_r=1))
    y = filled(model)(torch.ones(2, 6, dtype=torch.bfloat16))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert y.dtype == torch.bfloat16 and len(trained) == 6 and {p.dtype for p in trained} == {torch.float32}
    (y.float().sum() + training.penalty(model)).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in trained)
    model = nn.Sequential(nn.Linear(6, 5))
    peft.attach(model, peft.AdaLoRA(init_r=2, target_r=1))
    with torch.autocast("cpu", torch.bfloat16):
        filled(model)(torch.ones(2, 6)).float().sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_trap32_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = llama()
        peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2))
        filled(model).checkpointing = checkpointing
        model(IDS).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 42 and all(torch.equal(a, b) and a.any() for a, b in zip(*grads))


def test_a_skeleton_without_memory_is_counted():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 11008))
    peft.attach(model, peft.AdaLoRA())
    assert peft.trainable(model).trained == 12 * (4096 + 4096 + 1) + 12 * (4096 + 11008 + 1)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(init_r=0), "init_r is 0"),
        (dict(target_r=2.5), "target_r is 2.5"),
        (dict(init_r=4, target_r=8), "triplets are only taken away"),
        (dict(alpha=0), "alpha is 0"),
        (dict(tinit=-1), "tinit is -1"),
        (dict(tfinal=2.5), "tfinal is 2.5"),
        (dict(tinit=float("nan")), "tinit is nan"),
        (dict(tinit=0.5, tfinal=0.5), "leave no steps between them"),
        (dict(deltaT=0), "deltaT is 0"),
        (dict(beta1=1.0), "beta1 is 1.0"),
        (dict(beta2=0.0), "beta2 is 0.0"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(orth_reg_weight=-1.0), "orth_reg_weight is -1.0"),
        (dict(rank_pattern={"q.lora_E": [True]}), "wanted a list of init_r = 12 times true or false"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.AdaLoRA(**wrong)


def test_more_triplets_than_the_matrix_can_hold_and_patterns_of_other_models_are_refused():
    with pytest.raises(InputError, match="init_r is 12, but a change of blocks.0.attention.k, 4 x 12, has rank 4 at most"):
        peft.attach(llama(), peft.AdaLoRA())
    with pytest.raises(InputError, match="rank_pattern names elsewhere.lora_E, which is no target"):
        peft.attach(llama(), peft.AdaLoRA(init_r=2, target_r=1, rank_pattern={"elsewhere.lora_E": [True, False]}))
    with pytest.raises(InputError, match="total_step is None"):
        peft.AdaLoRA.from_file({"target_modules": ["q"]})
