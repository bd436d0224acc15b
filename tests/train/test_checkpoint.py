import os
import pickle

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.train.checkpoint import load_parameters, read, restore, running_buffers, trained_parameters, write


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


def test_going_on_from_a_checkpoint_is_the_same_to_the_bit(tmp_path):
    model, optimizers = trainer()
    step(model, optimizers)
    write(tmp_path / "a" / "last.pt", model, optimizers, 1, best=2.5, bad=3)
    step(model, optimizers)
    other, others = trainer(seed=7)
    other["inner"].bias.data.copy_(model["inner"].bias)                            # frozen: comes from the base model, not from here
    state = read(tmp_path / "a" / "last.pt")
    restore(state, other, others)
    assert (state["step"], state["best"], state["bad"]) == (1, 2.5, 3)
    step(other, others)                                                            # draws the same rows and the same dropout
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_a_checkpoint_is_a_copy_not_a_view(tmp_path):
    model, optimizers = trainer()
    write(tmp_path / "last.pt", model, optimizers, 0, None, 0)
    before = model["inner"].weight.detach().clone()
    with torch.no_grad():
        model["inner"].weight += 1
    assert torch.equal(read(tmp_path / "last.pt")["parameters"]["inner.weight"], before)


@pytest.mark.parametrize("patch", ["fsync", "replace", "save"])
def test_whatever_fails_while_writing_the_old_checkpoint_stays(tmp_path, monkeypatch, patch):
    model, optimizers = trainer()
    write(tmp_path / "last.pt", model, optimizers, 1, None, 0)
    before = (tmp_path / "last.pt").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def half(state, file):
        file.write(b"PK half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")      # what torch.save says on a full disk

    monkeypatch.setattr(*{"fsync": (os, "fsync", full), "replace": (os, "replace", full), "save": (torch, "save", half)}[patch])
    with pytest.raises(OSError, match="last.pt cannot be written .*: is the disk full.*What was there before is kept"):
        write(tmp_path / "last.pt", model, optimizers, 2, None, 0)
    assert (tmp_path / "last.pt").read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_really_full_device_is_the_same_error(tmp_path, monkeypatch):
    honest = open
    monkeypatch.setattr("builtins.open", lambda path, mode: honest("/dev/full", mode))
    model, optimizers = trainer()
    with pytest.raises(OSError, match="last.pt cannot be written .*: is the disk full"):
        write(tmp_path / "last.pt", model, optimizers, 1, None, 0)
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("content", ["empty", "text", "cut", "other", "list"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    model, optimizers = trainer()
    path = tmp_path / "last.pt"
    write(path, model, optimizers, 1, None, 0)
    if content in ("other", "list"):
        torch.save({"a": torch.ones(2)} if content == "other" else [1], path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": path.read_bytes()[:300]}[content])
    with pytest.raises(InputError, match="last.pt is not a readable checkpoint .*: start without --resume"):
        read(path)


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint .*last.pt to go on from"):
        read(tmp_path / "last.pt")


def test_a_checkpoint_can_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"step": Evil()}, tmp_path / "zip.pt")
    for name in ("raw.pt", "zip.pt"):
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            read(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


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
    write(tmp_path / "last.pt", model, optimizers, 1, best=None, bad=0)
    model["counting"].seen.zero_()
    restore(read(tmp_path / "last.pt"), model, optimizers)
    assert model["counting"].seen.tolist() == [3, 3]
    model["counting"].register_buffer("more", torch.zeros(1))
    with pytest.raises(InputError, match="holds 1 running averages, this run 2 or others"):
        restore(read(tmp_path / "last.pt"), model, optimizers)
