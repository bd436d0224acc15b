import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.train import state_file
from minift.train.checkpoint import (
    Place, load_parameters, random_state, read, restore, running_buffers, set_random_state, state_of, trained_parameters,
)    # fmt: skip


def trainer(seed=0):
    """A model of which one part is frozen and one tied, with an optimizer that has momentum."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "inner": nn.Linear(3, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    model["inner"].bias.requires_grad_(False)
    return model, [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)]


def step(model, optimizers):
    x = model["embed"](torch.randint(5, (4,)))
    loss = model["head"](torch.dropout(model["inner"](x), 0.5, True)).square().sum()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_only_what_is_trained_is_kept_and_a_tied_matrix_once():
    assert set(trained_parameters(trainer()[0])) == {"embed.weight", "inner.weight"}


def test_trap37_going_on_from_a_checkpoint_is_the_same_to_the_bit(tmp_path):
    model, optimizers = trainer()
    step(model, optimizers)
    state_file.write(tmp_path / "one", state_of(model, optimizers, Place(1, best=2.5, bad=3, evaluated=1, score=4.0)))
    step(model, optimizers)
    other, others = trainer(seed=7)
    other["inner"].bias.data.copy_(model["inner"].bias)                            # frozen: comes from the base model, not from here
    assert restore(read(tmp_path / "one"), other, others) == Place(step=1, best=2.5, bad=3, evaluated=1, score=4.0)
    step(other, others)                                                            # draws the same rows and the same dropout
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_the_random_state_is_the_one_it_was_given():
    model, optimizers = trainer()
    before = random_state()
    expected = torch.rand(3)
    state = state_of(model, optimizers, Place(), before)                           # some numbers later
    restore(state, model, optimizers)
    assert torch.equal(torch.rand(3), expected)


def test_on_a_gpu_its_random_state_comes_back_too(monkeypatch):
    """Without a GPU: what torch is asked for, and told."""
    told, device = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda asked: torch.tensor([7], dtype=torch.uint8) if asked == device else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, where: told.append((state.tolist(), where)))
    state = random_state(device)
    set_random_state(state, device)
    assert told == [([7], device)]
    set_random_state(random_state(), device)                                       # a CPU's has none to set
    assert len(told) == 1


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    state_file.write(tmp_path / "a", {"step": 3, "parameters": {}})
    with pytest.raises(InputError, match="a is no checkpoint of a run: it has no bad, best, buffers, evaluated, extra"):
        read(tmp_path / "a")


def test_a_checkpoint_of_another_number_of_optimizers_is_refused():
    model, optimizers = trainer()
    state = state_of(model, [*optimizers, *optimizers], Place())
    with pytest.raises(InputError, match="holds the states of 2 optimizers or averages, this run has 1: use the same settings"):
        restore(state, model, optimizers)


def test_other_parameters_or_shapes_are_refused_and_nothing_is_copied():
    model, _ = trainer()
    saved = {name: value.clone() + 1 for name, value in trained_parameters(model).items()}
    for change, text in [({"embed.weight": saved["embed.weight"]}, r"trained other parameters than this run \(1 differ, e.g. inner.weight\)"),
                         ({**saved, "inner.bias": torch.ones(3)}, r"\(1 differ, e.g. inner.bias\)"),
                         ({**saved, "inner.weight": torch.ones(2, 3)}, r"inner.weight is \(2, 3\), this run's is \(3, 3\)")]:    # fmt: skip
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(InputError, match=text):
            load_parameters(model, change)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())), text


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)


def test_running_averages_of_what_trains_come_back_and_others_are_refused(tmp_path):
    model = nn.ModuleDict({"counting": Counting(), "frozen": Counting().requires_grad_(False)})
    optimizers = [torch.optim.AdamW([model["counting"].w])]
    model["counting"].seen += 3
    assert set(running_buffers(model)) == {"counting.seen"}
    state_file.write(tmp_path / "one", state_of(model, optimizers, Place(1)))
    model["counting"].seen.zero_()
    restore(read(tmp_path / "one"), model, optimizers)
    assert model["counting"].seen.tolist() == [3, 3]
    model["counting"].register_buffer("more", torch.zeros(1))
    with pytest.raises(InputError, match="holds 1 running averages, this run 2 or others"):
        restore(read(tmp_path / "one"), model, optimizers)
