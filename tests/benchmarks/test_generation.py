"""benchmarks/generation.py: tokens that differ stop a row, our sides write what generate_ids writes, and the page says what was measured.
What takes transformers is in tests/parity/test_generation_speed.py."""

import json
import multiprocessing

import pytest
import torch

from benchmarks import generation, harness
from benchmarks.generation_case import BATCHES, CASES, QUICK, keep, prompts, same_tokens
from benchmarks.generation_ours import cost_of_int8, nats_token_by_token
from benchmarks.generation_report import AIMS, aims, line, write_page
from minift.generate import generate_ids
from minift.models.config import ModelConfig
from minift.models.folder import read_model, write_model
from minift.models.transformer import Transformer
from minift.quant import whole_numbers


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What write_start writes, without transformers."""
    folder = tmp_path_factory.mktemp("start")
    for name, shape in QUICK.shapes.items():
        torch.manual_seed(0)
        write_model(Transformer(ModelConfig(vocab_size=shape.vocab, hidden_size=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.heads,
                                            head_dim=shape.width // shape.heads, mlp_size=shape.inner, max_positions=64, tie_embeddings=True)), folder / name)  # fmt: skip
    return folder


def test_a_row_of_ours_is_measured_and_its_tokens_are_those_of_generate_ids(start, tmp_path):
    run = harness.Run(multiprocessing.get_context("spawn"), start, QUICK, 1, tmp_path / "log", ["minift", "minift, int8"])
    row = generation.compare(run, "15m-b8", "fp32")
    assert row["tokens"] == 8 * QUICK.new and set(row["sides"]) == {"minift", "minift, int8"} and row["faster"] == {}
    model, asked = read_model(start / "15m"), prompts(QUICK, "15m-b8").tolist()
    assert json.loads((start / "written" / "15m-b8" / "0-minift.json").read_text()) == generate_ids(model, asked[0], max_new_tokens=QUICK.new, eos_ids=())


def test_tokens_that_differ_or_are_too_few_stop_the_row(tmp_path):
    for batch in range(2):
        for side in ("minift", "static"):
            keep(tmp_path, "it", side, batch, [[1, 2, 3], [4, 5, 6]])
    assert same_tokens(tmp_path, "it", 3) == 12                                # one side's beside the other's, of two batches
    with pytest.raises(RuntimeError, match=r"wrote \[3, 3\] tokens, and 4 are wanted"):
        same_tokens(tmp_path, "it", 4)
    keep(tmp_path, "it", "static", 1, [[1, 2, 3], [4, 7, 6]])
    with pytest.raises(RuntimeError, match="static and minift differ from token 1 of row 1 on, batch 1"):
        same_tokens(tmp_path, "it", 3)


def test_prompts_are_the_rows_that_the_case_names():
    assert prompts(QUICK, "110m-b8-first").shape == (BATCHES, 8, QUICK.prompt) and CASES["110m-b8-first"].new(QUICK) == 1 and CASES["110m-b8"].new(QUICK) == QUICK.new


def test_rounding_to_int8_costs_something_and_not_much():
    found = cost_of_int8(2, ("python",))
    assert 0 < abs(found["int8"] - found["full"]) < 0.02 and 0 < abs(found["both"] - found["full"]) < 0.02 and found["tokens"] > 100
    assert found["both"] != found["int8"] or not whole_numbers.exact_sums()
    assert line("int8-loss fp32", {"full": 3.0, "int8": 3.0012, "both": 2.9998, "tokens": 1234}) == (
        "loss of the bundled model, 1,234 tokens: 3.0000, int8 3.0012 (+0.0012 nats per token), with all that linears read in 8 bits 2.9998 (-0.0002 nats per token)"
    )


def test_start_up_is_measured_in_fresh_processes(tmp_path):
    run = harness.Run(None, tmp_path, QUICK, 1, tmp_path / "log", ["minift", "minift --help"])
    row = generation.compare(run, "startup", "fp32")
    assert set(row["sides"]) == {"minift", "minift --help"} and row["sides"]["minift --help"]["ms"] < 1000
    assert "usage: minift VERB" in (tmp_path / "log").read_text()


same = lambda ratio: {kind: {"median": ratio, "least": ratio, "most": ratio} for kind in ("wall", "cpu")}
ROW = {
    "tokens": 1024, "absent": {"HF, compiled": "no compiler"},
    "sides": {name: {"ms": ms, "cpu_s": 2 * ms / 1000, "peak_mib": 500} for name, ms in (("HF generate", 3200), ("HF, static cache", 4000), ("minift", 2000), ("minift, int8", 1600))},
    "faster": {"HF generate": same(1.6), "HF generate / minift, int8": same(1.9), "HF, static cache": same(2.0), "HF, static cache / minift, int8": same(2.5)},
}  # fmt: skip
START = {"sides": {name: {"ms": ms, "cpu_s": ms / 1000, "peak_mib": 50} for name, ms in (("transformers, peft, trl", 900), ("minift", 30), ("minift --help", 40))},
         "faster": {"transformers, peft, trl": same(30.0), "transformers, peft, trl / minift, to train": same(2.0)}}  # fmt: skip


def test_lines_of_the_page():
    lines = line("15m-b8 fp32", ROW).splitlines()
    assert lines[0] == "| 15m-b8 | HF generate | 3,200 | 320 | 1.60 (1.60 to 1.60) | 1.60 (1.60 to 1.60) | 1.90 (1.90 to 1.90) | 500 |"
    assert lines[2] == "| 15m-b8 | minift | 2,000 | 512 |  |  |  | 500 |" and lines[-1] == "| 15m-b8 | HF, compiled | no compiler | | | | | |"
    assert line("15m-b8-first fp32", ROW).splitlines()[0] == "| 15m-b8-first | HF generate | 3,200 | 1.60 (1.60 to 1.60) | 1.60 (1.60 to 1.60) | 1.90 (1.90 to 1.90) |"
    assert line("startup fp32", START).splitlines()[1] == "| minift | 30 | 30 | 50 |"


def test_what_was_wanted_is_met_or_missed():
    assert aims({"15m-b8 fp32": ROW, "15m-b1-first fp32": ROW, "startup fp32": START}) == [
        "| 15m-b8 | HF generate | 1.45 / 2 | 1.60 (1.60 to 1.60) | met |",
        "| 15m-b8 | HF, static cache | | 2.00 (2.00 to 2.00) | |",
        "| 15m-b8, int8 | HF generate | 2 | 1.90 (1.90 to 1.90) | **missed** |",
        "| 15m-b1, first token | HF generate | 1 | 1.60 (1.60 to 1.60) | met |",
        "| import minift | import transformers, peft, trl | 2.5 | 30.00 (30.00 to 30.00) | met |",
        "| import what training needs | import transformers, peft, trl | 2.5 | 2.00 (2.00 to 2.00) | **missed** |",
        "| minift --help | | under 1 s | 0.04 s | met |",
    ]


def test_the_page_and_the_picture_are_made_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- table -->\nold\n<!-- end of table -->\n\nWhat it means.\n")
    machine = {"cpu": "C", "threads": 2, "python": "P", "commit": "abc", **dict.fromkeys(("torch", "transformers", "peft", "trl"), "V")}
    rows = {f"{case} fp32": ROW for case in AIMS} | {"startup fp32": START, "int8-loss fp32": {"full": 3.0, "int8": 3.0012, "both": 3.0, "tokens": 12}}
    for _ in range(2):
        write_page(page, {"rows": rows, "machine": machine})
    written = page.read_text()
    assert written.startswith("# Speed\n\n<!-- table -->\n![") and written.endswith("<!-- end of table -->\n\nWhat it means.\n") and "old" not in written
    assert line("110m-b1 fp32", ROW) in written and "int8 is lossy: loss of" in written and (tmp_path / "page.png").stat().st_size > 5000


def test_a_text_read_token_by_token_costs_what_it_costs_read_at_once(start):
    model, rows = read_model(start / "15m"), [[5, 9, 2, 700], [3, 8], [11, 12, 13, 14, 15, 16]]
    ours = nats_token_by_token(model, rows)
    with torch.no_grad():
        each = [-model(torch.tensor([row]))[0, :-1].log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0] for row in rows]
    # nats of about 10, whose last digit is worth 5e-7, at the end of some twenty sums in another order
    torch.testing.assert_close(torch.tensor(sorted(ours)), torch.cat(each).sort().values, rtol=0, atol=1e-5)
