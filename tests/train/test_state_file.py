"""What is written comes back, what is damaged is noticed, and no code hides in it."""

import json
import math
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minift.errors import InputError
from minift.train import state_file
from minift.train.state_file import DTYPES, head, read, write

VALUE = {
    "step": 3, "best": 2.5, "text": "ä\n\"crc32\"", "none": None, "yes": True, "empty": {}, "betas": (0.9, 0.99),
    "optimizers": [{"state": {0: {"m": torch.arange(6.0).view(2, 3), "step": torch.tensor(7.0)}, 12: {}}, "groups": [{"lr": 0.1, "params": [0, 12]}]}],
    "parameters": {"a.b": torch.tensor([True, False, True]), "half": torch.ones(5, dtype=torch.bfloat16), "nothing": torch.zeros(0, 4)},
}    # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and [type(key) for key in a] == [type(key) for key in b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_everything_comes_back_with_its_type(tmp_path):
    write(tmp_path / "deep" / "a", VALUE)
    assert same(VALUE, read(tmp_path / "deep" / "a")) and os.listdir(tmp_path / "deep") == ["a"]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("count", [1, 3, 257])
def test_every_dtype_comes_back_at_odd_sizes_behind_a_narrower_one(tmp_path, dtype, count):
    dice = torch.Generator().manual_seed(count)
    one = torch.randint(0, 2, (count,), generator=dice).to(dtype)
    value = {"narrow": torch.ones(3, dtype=torch.uint8), "one": one, "turned": torch.randn(3, count, generator=dice).to(dtype).T}
    write(tmp_path / "a", value)
    assert same({**value, "turned": value["turned"].contiguous()}, read(tmp_path / "a"))
    assert same(one, load_file(tmp_path / "a")["one"])
    raw = (tmp_path / "a").read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    entries = {name: entry for name, entry in json.loads(raw[8:begin]).items() if name != "__metadata__"}
    assert all((begin + entry["data_offsets"][0]) % DTYPES[entry["dtype"]].itemsize == 0 for entry in entries.values())      # readable in place


def test_numbers_come_back_to_the_bit(tmp_path):
    numbers = [0.1 + 0.2, 5e-324, -0.0, math.inf, 2**70, 1 / 3]
    write(tmp_path / "a", {"numbers": numbers, "nan": math.nan})
    found = read(tmp_path / "a")
    assert found["numbers"] == numbers and math.copysign(1, found["numbers"][2]) == -1 and math.isnan(found["nan"])


def test_any_reader_of_safetensors_shows_the_tensors_by_their_place(tmp_path):
    write(tmp_path / "a", VALUE)
    found = load_file(tmp_path / "a")
    assert set(found) == {"optimizers/0/state/0/m", "optimizers/0/state/0/step", "parameters/a.b", "parameters/half", "parameters/nothing"}
    assert torch.equal(found["optimizers/0/state/0/m"], VALUE["optimizers"][0]["state"][0]["m"])
    with safe_open(tmp_path / "a", "pt") as opened:
        assert opened.metadata()["format"] == "minift state 1" and len(opened.metadata()["crc32"]) == 8


def test_the_rest_can_be_read_without_the_tensors(tmp_path):
    write(tmp_path / "a", VALUE)
    found = read(tmp_path / "a", parts=("parameters",))
    assert same(found["parameters"], VALUE["parameters"]) and found["optimizers"][0]["state"][0] == {"m": None, "step": None} and found["step"] == 3
    assert head(tmp_path / "a")["betas"] == (0.9, 0.99) and head(tmp_path / "a")["parameters"]["half"] is None


def test_a_file_is_a_copy_not_a_view(tmp_path):
    mine = torch.ones(3)
    write(tmp_path / "a", {"mine": mine})
    mine += 1
    found = read(tmp_path / "a")["mine"]
    found += 1
    assert read(tmp_path / "a")["mine"].tolist() == [1, 1, 1]


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the header, in its length, in the checksum, in the tensors: one bit of every byte, read whole or in parts."""
    write(tmp_path / "a", VALUE)
    whole = (tmp_path / "a").read_bytes()
    padding = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    for place in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        for parts in (None, ()):
            with pytest.raises(InputError, match="b is cut short, damaged, or no checkpoint"):
                read(tmp_path / "b", parts)
    assert len(padding) % 8 == 0


def test_a_file_cut_anywhere_or_with_something_behind_it_is_noticed(tmp_path):
    write(tmp_path / "a", VALUE)
    whole = (tmp_path / "a").read_bytes()
    for content in [*(whole[:length] for length in range(len(whole))), whole + b"\0"]:
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(InputError, match="b is cut short, damaged, or no checkpoint"):
            read(tmp_path / "b")
        with pytest.raises(InputError, match="b is cut short, damaged, or no checkpoint"):
            head(tmp_path / "b")


def test_a_missing_file_is_another_thing_than_a_damaged_one(tmp_path):
    for reads in (read, head):
        with pytest.raises(FileNotFoundError):
            reads(tmp_path / "nowhere")


def test_it_can_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    (tmp_path / "raw").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"step": Evil()}, tmp_path / "zip")
    save_file({"a": torch.ones(2)}, tmp_path / "other", metadata={"format": "pt"})
    for name in ("raw", "zip", "other"):
        with pytest.raises(InputError, match=f"{name} is cut short, damaged, or no checkpoint"):
            read(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value, text", [
    ({"a": {"b": object()}}, "a/b is a object: a checkpoint holds tensors, numbers and texts"),
    ({"a": [torch.zeros(2, dtype=torch.complex64)]}, "a/0 is of torch.complex64"),
])    # fmt: skip
def test_what_cannot_come_back_is_not_written(tmp_path, value, text):
    with pytest.raises(TypeError, match=text):
        write(tmp_path / "a", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("patch", ["fsync", "replace"])
def test_whatever_fails_while_writing_the_old_file_stays(tmp_path, monkeypatch, patch):
    write(tmp_path / "a", VALUE)
    before = (tmp_path / "a").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, patch, full)
    with pytest.raises(OSError, match="a cannot be written .*: is the disk full.*What was there before is kept"):
        write(tmp_path / "a", {"step": 4})
    assert (tmp_path / "a").read_bytes() == before and os.listdir(tmp_path) == ["a"]


def test_a_really_full_device_is_the_same_error(tmp_path, monkeypatch):
    honest = open
    monkeypatch.setattr("builtins.open", lambda path, mode: honest("/dev/full", mode))
    with pytest.raises(OSError, match="a cannot be written .*: is the disk full"):
        write(tmp_path / "a", VALUE)
    assert not (tmp_path / "a").exists()


def test_no_copy_of_all_tensors_is_made(tmp_path, monkeypatch):
    """Each tensor's own memory goes to the file; of several parts only those asked for get memory."""
    tensors = {"a": torch.randn(1000), "b": torch.randn(1000)}
    places = {tensor.data_ptr() for tensor in tensors.values()}
    seen, bytes_of = [], state_file._bytes
    monkeypatch.setattr(state_file, "_bytes", lambda tensor: seen.append(tensor.data_ptr()) or bytes_of(tensor))
    write(tmp_path / "one", tensors)
    assert set(seen) == places
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, **more: made.append(given) or empty(*given, **more))
    read(tmp_path / "one", parts=("b",))
    assert made == [([1000],)]
