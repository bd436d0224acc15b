"""Which checkpoint files there are after each write, and which one a run goes on from."""

import os

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.train.checkpoint import Place, state_of
from minift.train.kept import Checkpoints


def state(step, score=None):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, step)
    return state_of(model, [torch.optim.SGD(model.parameters(), lr=1.0)], Place(step, score=score))


def steps(kept):
    return sorted(int(name.split("-")[1].split(".")[0]) for name in os.listdir(kept.folder))


def damage(kept, step):
    file = kept.file(step)
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def test_the_newest_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    found = []
    for step, score in [(2, 3.0), (4, 1.0), (6, None), (8, 2.0), (10, 1.0), (12, 0.5), (14, None)]:
        kept.write(state(step, score))
        found.append(steps(kept))
    assert found == [[2], [2, 4], [4, 6], [4, 6, 8], [4, 8, 10], [10, 12], [12, 14]]           # of 1.0 twice, the first is the best
    assert kept.best_step() == 12 and len(kept) == 2


def test_several_best_ones(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=1, keep_best=3)
    for step, score in [(1, 5.0), (2, 4.0), (3, 1.0), (4, 2.0), (5, 9.0), (6, None)]:
        kept.write(state(step, score))
    assert steps(kept) == [2, 3, 4, 6]
    assert kept.is_good(3.9) and not kept.is_good(4.0) and not kept.is_good(None)
    assert torch.equal(kept.best()["parameters"]["weight"], torch.full((1, 2), 3.0))
    again = Checkpoints(tmp_path, keep_last=1, keep_best=3)                                    # another process knows the scores from the headers
    assert again.scores == kept.scores == {2: 4.0, 3: 1.0, 4: 2.0, 6: None}


def test_an_old_file_goes_only_when_the_new_one_is_whole_and_in_place(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.write(state(1))
    order, replace, unlink = [], os.replace, os.unlink
    monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), order.append(("placed", len(steps_of(kept))))))
    monkeypatch.setattr(os, "unlink", lambda path, **more: (order.append(("deleted", os.path.basename(path), kept.file(2).exists())), unlink(path, **more)))
    kept.write(state(2))
    assert order[0] == ("placed", 2) and all(there for kind, *_, there in order if kind == "deleted") and steps(kept) == [2]


def steps_of(kept):
    return [name for name in os.listdir(kept.folder) if name.startswith("step-")]


def test_a_full_disk_costs_no_older_file(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.write(state(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="step-2.safetensors cannot be written"):
            kept.write(state(2))
    assert steps(kept) == [1] and kept.newest()["step"] == 1 and kept.scores == {1: None}


def test_a_run_goes_on_from_the_newest_that_is_whole_and_says_so(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        kept.write(state(step))
    damage(kept, 3)
    kept.file(2).write_bytes(b"half")
    said = []
    again = Checkpoints(tmp_path, keep_last=3)
    assert again.newest(said.append)["step"] == 1
    assert len(said) == 2 and all("is cut short, damaged, or no checkpoint" in text and "going on from step 1" in text for text in said)
    assert sorted(os.listdir(again.folder)) == ["step-1.safetensors", "step-2.safetensors.damaged", "step-3.safetensors.damaged"]
    again.write(state(2))
    again.write(state(3))
    assert Checkpoints(tmp_path).newest(said.append)["step"] == 3 and len(said) == 2


def test_step_10_is_newer_than_step_9(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (9, 10):
        kept.write(state(step))
    assert kept.newest()["step"] == Checkpoints(tmp_path).newest()["step"] == 10


def test_a_damaged_file_does_not_count_as_one_that_is_kept(tmp_path):
    """It was the newest and the best by its header: had it counted, the whole one before it would be deleted at the next write."""
    kept = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    kept.write(state(1, score=2.0))
    kept.keep_last = 2
    kept.write(state(2, score=1.0))
    damage(kept, 2)
    again = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    again.newest(lambda text: None)
    assert again.best_step() == 1
    again.write(state(2, score=3.0))
    assert sorted(again.scores) == [1, 2]


def test_with_no_whole_one_left_nothing_is_touched(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.write(state(1))
    damage(kept, 1)
    for _ in range(2):                                                                         # and the second try does not start from nothing
        with pytest.raises(InputError, match="step-1.safetensors is cut short.*no earlier checkpoint in .* is whole: start again with --overwrite"):
            Checkpoints(tmp_path).newest(lambda text: None)
    assert os.listdir(kept.folder) == ["step-1.safetensors"]


def test_none_yet_means_the_first_step(tmp_path):
    said = []
    assert Checkpoints(tmp_path).restore(nn.Linear(2, 1), [], said.append) == (Place(), {})
    assert "no checkpoint in" in said[0] and "starting from the first step" in said[0]


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_what_earlier_versions_pickled_is_refused_and_never_opened(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")        # would run a program if unpickled
    with pytest.raises(InputError, match=rf"{name} was pickled by an earlier version.*can run any program.*--overwrite"):
        Checkpoints(tmp_path).newest()
    Checkpoints(tmp_path).write(state(1))
    assert Checkpoints(tmp_path).newest()["step"] == 1


def test_what_a_kill_left_half_written_is_removed_and_never_read(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.write(state(1))
    (kept.folder / ".step-2.safetensors.writing").write_bytes(b"half")
    again = Checkpoints(tmp_path)
    assert again.newest()["step"] == 1
    again.write(state(3))
    assert sorted(os.listdir(kept.folder)) == ["step-1.safetensors", "step-3.safetensors"]


def test_a_new_run_keeps_nothing_of_an_older_one(tmp_path):
    Checkpoints(tmp_path).write(state(9, score=0.0))
    kept = Checkpoints(tmp_path)
    kept.begin()
    kept.write(state(1, score=5.0))
    assert steps(kept) == [1] and kept.best_step() == 1


def test_a_best_one_that_cannot_be_read_says_how_to_go_on(tmp_path):
    kept = Checkpoints(tmp_path)
    for step, score in [(1, 1.0), (2, 2.0)]:
        kept.write(state(step, score))
    damage(kept, 1)
    with pytest.raises(InputError, match="best checkpoint cannot be read.*Delete it, and run the same command with --resume: it ends with the best of the others"):
        kept.best(("parameters",))
    kept.file(1).unlink()
    assert Checkpoints(tmp_path).best()["step"] == 2


def test_a_damaged_best_one_is_told_of_and_set_aside_when_the_run_goes_on(tmp_path):
    kept, said, model = Checkpoints(tmp_path), [], nn.Linear(2, 1)
    for step, score in [(2, 0.5), (4, 0.9), (6, None), (8, None)]:
        kept.write(state(step, score) | {"best": 0.5})
    kept.write(state(10, 0.8) | {"best": 0.5})
    assert steps(kept) == [2, 8, 10]
    file = kept.file(2)
    file.write_bytes(file.read_bytes()[:20])
    again = Checkpoints(tmp_path)
    place, _ = again.restore(model, [torch.optim.SGD(model.parameters(), lr=1.0)], said.append)
    assert place.step == 10 and place.best == 0.8                                              # 0.5 is of a file that is no more
    assert len(said) == 1 and "step-2.safetensors is cut short" in said[0] and "going on from step 10" in said[0]
    assert file.with_name("step-2.safetensors.damaged").exists() and not file.exists()
    again.write(state(12, 0.7))
    assert again.best_step() == 12
