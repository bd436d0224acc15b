"""benchmarks/embedding_speed.py: results that differ stop a row, and the page says what was measured. What takes sentence-transformers is in
tests/parity/test_embedding_speed.py."""

import numpy as np
import pytest

from benchmarks import embedding_speed
from benchmarks.embedding_speed_case import Sizes, real_pairs, sentences
from benchmarks.embedding_speed_report import line, memory, write_page

SIDE = {"ms": 3000, "cpu_s": 5.5, "peak_mib": 1700, "added_mib": 900}
ROW = {
    "rounds": 3, "apart": 2e-6, "sides": {"sentence-transformers": SIDE, "minift": {"ms": 1500, "cpu_s": 2.5, "peak_mib": 850, "added_mib": 400}},
    "faster": {"sentence-transformers": {"wall": {"median": 2.0, "least": 1.9, "most": 2.2}, "cpu": {"median": 2.2, "least": 2.1, "most": 2.3}}},
}  # fmt: skip
CACHED = {"sides": {"minift, 32 at once": {"ms": 900, "peak_mib": 700, "added_mib": 300}, "minift": {"ms": 20000, "peak_mib": 760, "added_mib": 360}}}


def test_a_line_of_the_page():
    assert line("real fp32", ROW) == (
        "| real | fp32 | sentence-transformers | 3,000 | 1,500 | **2.00** (1.90 to 2.20) | 2 | 2.20 (2.10 to 2.30) | 1,700 / 850 | 2e-06 |"
    )


def test_the_best_batch_size_is_named():
    best = {**ROW, "best": 16, "sides": {"at its best batch size": SIDE, "minift": SIDE}, "faster": {"at its best batch size": ROW["faster"]["sentence-transformers"]}}
    assert line("encode fp32", best).startswith("| encode | fp32 | at its best batch size, 16 | 3,000 |")


def test_memory_is_a_table_of_its_own():
    assert memory(CACHED) == "| 32 | 32 | 900 | 700 | 300 |\n| 512 | 32 | 20,000 | 760 | 360 |" == line("gradcache fp32", CACHED)


def test_the_tables_are_put_between_the_pages_marks_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- table -->\nold\n<!-- end of table -->\n\nWhat it means.\n")
    machine = {"cpu": "C", "threads": 2, "torch": "T", "transformers": "F", "sentence-transformers": "S", "python": "P", "commit": "abc"}
    for _ in range(2):
        write_page(page, {"rows": {"real fp32": ROW, "gradcache fp32": CACHED}, "machine": machine})
    written = page.read_text()
    assert written.startswith("# Speed\n\n<!-- table -->\n| | dtype |") and written.endswith("<!-- end of table -->\n\nWhat it means.\n")
    assert line("real fp32", ROW) in written and memory(CACHED) in written and "old" not in written and written.count("| real |") == 1


def test_losses_that_differ_stop_the_row_and_a_smaller_batch_has_its_own():
    assert embedding_speed.losses_apart({"a": [0.5, 0.7], "b": [0.5, 0.75]}, "step", 0.1) == pytest.approx(0.05)
    assert embedding_speed.losses_apart({"minift, 32 at once": [9.0], "minift": [0.5], "minift, 512 at once": [0.5]}, "gradcache", 0.1) == 0
    for other in (0.7, float("nan")):
        with pytest.raises(RuntimeError, match="differ"):
            embedding_speed.losses_apart({"a": [0.5], "b": [other]}, "step", 0.01)


def test_vectors_that_differ_stop_the_row(tmp_path):
    for name, value in (("minift", 0.5), ("32", 0.5 + 2e-6), ("16", 0.5)):
        np.save(tmp_path / f"vectors-{name}.npy", np.full((2, 3), value))
    assert embedding_speed.vectors_apart(tmp_path) == pytest.approx(2e-6)
    np.save(tmp_path / "vectors-16.npy", np.full((2, 3), 0.6))
    with pytest.raises(RuntimeError, match="the vectors differ by 1.0e-01, allowed are 1e-05"):
        embedding_speed.vectors_apart(tmp_path)


def test_no_text_stands_in_the_rows_twice():
    pairs, texts = real_pairs(Sizes(pairs=8, batches=3)), sentences(Sizes(sentences=200))
    every = [text for pair in pairs for text in pair]
    assert len(pairs) == 24 and len(set(every)) == 48 and len(set(texts)) == 200
    assert pairs == real_pairs(Sizes(pairs=8, batches=3)) and max(map(len, texts)) > 200 > min(map(len, texts))
