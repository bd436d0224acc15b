"""`minift kernel`: what it shows, from which source, and what it says where one is missing. The stored results in here are made up."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from minift.recipes import kernel as recipe
from minift_kernels.registry import kernels

ROOT = Path(__file__).parents[2]
PACKAGED = recipe.GATE
SHEET = "--gpu", "h100"


@pytest.fixture(autouse=True)
def nothing_stored(monkeypatch, tmp_path):
    """No gate record and no results."""
    monkeypatch.setattr(recipe, "RESULTS", tmp_path)
    monkeypatch.setattr(recipe, "GATE", tmp_path / "gate.json")
    return tmp_path


def row(said, name):
    """The cells of the line that begins with these words."""
    line = next(line for line in said.splitlines() if line.strip().startswith(name + "  "))
    return line.strip().removeprefix(name).split()


def words_of(said):
    """All words and numbers, in no order; a table's rules are none."""
    return sorted(word for word in said.split() if word.strip("─"))


def test_without_a_name_every_kernel_has_its_line(minift):
    status, said, _ = minift("kernel")
    assert status == 0 and all(row(said, name) for name in kernels())
    assert "Dequantize 4 bits: two codes in a byte -> two numbers." in said


@pytest.mark.parametrize("name", kernels())
def test_every_kernel_shows_its_maths_and_all_its_cases(minift, name):
    status, said, complaint = minift("kernel", name)
    assert status == 0, complaint
    kernel = kernels()[name]
    assert recipe.folded(recipe.page(kernel), 120) in said and "\n\n" in recipe.page(kernel)
    for case, fields in kernel.benches.items():
        assert row(said, case)[0] == f"{kernel.work(**fields).bytes / 1e6:,.4g}"


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", kernels())
def test_every_kernel_fits_a_narrow_terminal_and_no_word_is_split(minift, monkeypatch, name, width):
    def at(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        return minift("kernel", name)

    monkeypatch.setattr(recipe, "GATE", PACKAGED)
    narrow = at(width)[1]
    assert max(map(len, narrow.splitlines())) <= width
    assert words_of(narrow) == words_of(at(400)[1])
    assert "shared," in narrow and set(recipe.page(kernels()[name]).split()) <= set(narrow.split())


def test_a_sentence_is_filled_up_and_an_equation_keeps_its_line():
    text = "One.\n\n    y = x W + b\n\nTwo goes\non here.\nThree:\n- a point that\n  goes on\n- another"
    assert recipe.folded(text, 20) == text
    wide = text.replace("on here.", "on here, and longer than the terminal.")
    assert recipe.folded(wide, 25) == ("One.\n\n    y = x W + b\n\nTwo goes on here, and\nlonger than the terminal.\nThree:\n"
                                       "- a point that goes on\n- another")  # fmt: skip
    assert recipe.folded("    y = x W + b          x: (T, K)     W: (K, N)", 40) == "    y = x W + b      x: (T, K)\n        W: (K, N)"
    assert recipe.folded("- one two three", 9) == "- one two\n  three"


def test_a_bound_worked_by_hand(minift):
    said = minift("kernel", "dequantize", *SHEET)[1]
    assert "Data sheet: 3.35 TB/s, 989 TFLOP/s in bf16; nothing measured here" in " ".join(said.split())
    moved = 4096 * 4096 * (0.5 + 2 + 4 / 64)                               # 42,991,616 bytes at 3.35e12 a second: 12.8 us
    assert moved == 42_991_616 and row(said, "4096 x 4096") == ["42.99", "0.01678", "0.39", "12.8", "0.017", "bytes"]


def test_the_h200s_bound_says_that_it_is_over_what_was_given_to_us_and_not_measured_here(minift):
    said = " ".join(minift("kernel", "dequantize")[1].split())
    assert "4.30 TB/s in a copy (data sheet 4.80), 788 TFLOP/s in a bf16 product (data sheet 989)" in said
    assert "given to us as measured on another one, by no script here" in said
    assert row(minift("kernel", "dequantize")[1], "4096 x 4096")[-3:] == ["10", "0.0213", "bytes"]      # 42,991,616 bytes; 2^24 FLOPs


def test_a_case_of_ones_own_takes_the_other_fields_from_the_first(minift):
    said = minift("kernel", "dequantize", *SHEET, "--shape", "n", 1000, "dtype", "float32", "block-size", 128)[1]
    assert row(said, "yours")[0] == "0.004531"                                # 1000 (0.5 + 4 + 4 / 128) = 4531.25
    assert "yours: n 1000, block_size 128, dtype float32, nested False" in said
    nested = minift("kernel", "dequantize", *SHEET, "--shape", "n", 16384, "nested", "true")[1]
    assert row(nested, "yours")[0] == "0.04122"                             # 16384 * 2.5 + 256 + 4


def test_products_of_many_rows_are_bound_by_flops(minift):
    said = minift("kernel", "gemm", *SHEET)[1]
    assert row(said, "M 8, 4096 x 4096")[-1] == "bytes" and row(said, "M 256, 14336 x 4096")[-1] == "FLOPs"


@pytest.mark.parametrize("words, said", [
    (["dequantise"], "there is no kernel 'dequantise'; near names: dequantize"),
    (["deq"], "near names: dequantize"),
    (["dequantize", "--shape", "m", "3"], "--shape m: dequantize has no such field; it has n 16777216, block_size 64, dtype bfloat16, nested False"),
    (["dequantize", "--shape", "n", "many"], "--shape n is 'many': wanted a whole number"),
    (["dequantize", "--shape", "dtype", "bf16"], "--shape dtype is 'bf16': wanted a dtype, as bfloat16"),
    (["dequantize", "--shape", "dtype", "nn"], "--shape dtype is 'nn': wanted a dtype, as bfloat16"),
    (["dequantize", "--shape", "block_size", "0"], "cannot have the case n 16777216, block_size 0, dtype bfloat16, nested False: division by zero"),
    (["dequantize", "--shape", "n", "-4"], "it would move -10 bytes"),
    (["--shape", "n", "3"], "--shape belongs to one kernel: minift kernel NAME --shape ..."),
    (["dequantize", "--gpu", "b200"], "b200"),
])  # fmt: skip
def test_wrong_words_are_answered_before_anything_is_shown(minift, words, said):
    status, shown, complaint = minift("kernel", *words)
    assert (status, shown) == (2, "") and said in complaint


def test_without_triton_it_says_what_to_install(minift, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, complaint = minift("kernel", "dequantize")
    assert status == 2 and "the kernels are written in Triton, which is not installed: pip install triton" in complaint


def test_without_a_record_or_results_it_says_so(minift):
    said = minift("kernel", "dequantize")[1]
    assert "no record of the compile gate is stored here" in said and "Measured: nothing is stored" in said


GATE = {"kernel": "dequantize", "build": "made up", "chip": "sm90", "triton": "3.6.0", "warps": 4, "stages": 3, "registers": 48, "spill": 0,
        "shared": 2048, "instructions": 276, "loop": 0, "weights": 4096, "slots": 8.0, "kinds": {}, "failures": []}  # fmt: skip


def test_the_gates_record_is_shown_for_the_chip_asked_for_only(minift, nothing_stored):
    records = [GATE, {**GATE, "chip": "sm80", "registers": 99}, {**GATE, "kernel": "gemm", "registers": 77}]
    (nothing_stored / "gate.json").write_text(json.dumps(records))
    said = minift("kernel", "dequantize", "--gpu", "h200")[1]
    # 8 instructions a weight over 132 * 128 * 1.755e9 a second: 0.27 us for a million
    assert row(said, "made up") == ["4", "48", "2,048", "276", "8", "0.270"] and said.count("made up") == 1 and "none spills" in said
    assert row(minift("kernel", "dequantize", "--gpu", "a100")[1], "made up")[1] == "99"
    assert "for gfx942: nothing is stored of it" in minift("kernel", "dequantize", "--gpu", "mi300x")[1]


def test_of_several_versions_of_triton_the_newest_is_shown_and_what_spills_is_said(minift, nothing_stored):
    records = [{**GATE, "triton": "3.10.0", "registers": 50, "spill": 16}, GATE, {**GATE, "triton": "3.7.1", "registers": 49}]
    (nothing_stored / "gate.json").write_text(json.dumps(records))
    said = minift("kernel", "dequantize")[1]
    assert row(said, "made up") == ["4", "50", "16", "2,048", "276", "8", "0.270"] and said.count("made up") == 1
    assert "Triton 3.10.0" in said and "some spill" in said and "none spills" not in said


def test_the_record_travels_with_the_package_and_is_the_one_that_make_gate_writes():
    assert PACKAGED.read_text() == (ROOT / "benchmarks" / "results" / "kernel_gate.json").read_text()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert declared["minift_kernels"] == [PACKAGED.name]


def test_measured_results_are_shown_with_what_they_were_measured_on(minift, nothing_stored):
    us = lambda median: {"median": median, "p20": median, "p80": median}
    providers = {"minift": {"us": us(12.34), "roofline": 0.81},
                 "torch eager": {"us": us(99.0), "roofline": 0.1, "ours_faster": {"median": 8.02, "low": 7.9, "high": 8.1}}}  # fmt: skip
    cases = {"4096 x 4096": {"providers": providers}, "14336 x 4096": {"accuracy": {"failure": "wrong"}}}
    record = {"cases": cases, "troubles": ["14336 x 4096: 3 values differ"], "torch": "2.11.0", "triton": "3.6.0", "commit": "abc",
              "date": "2026-01-02T03"}  # fmt: skip
    (nothing_stored / "kernels-made-up.json").write_text(json.dumps({"gpu": "A made-up GPU", "kernels": {"dequantize": record}}))
    said = minift("kernel", "dequantize")[1]
    assert "Measured on A made-up GPU (torch 2.11.0, triton 3.6.0, commit abc, 2026-01-02)" in " ".join(said.split())
    measured = said[said.index("Measured on") :]
    assert "8.02x (7.90 to 8.10)" in measured and "12.3" in measured and "81 %" in measured
    assert "failed there: 14336 x 4096: 3 values differ" in measured
    assert "Measured: nothing is stored" in minift("kernel", "gemm")[1]
