"""The stored lessons: small, complete, with their outputs, ending in assertions. Running them is `make notebooks`."""

import json
import re
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_the_four_first_lessons_are_there():
    assert [path.stem for path in LESSONS[:4]] == ["00_quickstart", "01_tokens_and_masks", "02_the_transformer", "03_the_loop"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_stored_as_it_ran_and_small(path):
    assert path.stat().st_size < 300_000
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert "".join(code[-1]["outputs"][0]["text"]) == "as it should be\n"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_its_five_parts_and_ends_in_assertions(path):
    text = "\n".join(map(source, cells(path, "markdown")))
    for part in ("**The idea.**", "**The equation.**", "on paper", "**The price.**", "What wrong looks like", "**Predict before you run.**"):
        assert part in text, part
    assert f"python -m notebooks.execute {path.stem}" in text
    assert source(cells(path, "code")[-1]).count("assert ") >= 5


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_title_of_a_picture_is_a_question(path):
    code = "\n".join(map(source, cells(path, "code")))
    titles = re.findall(r'(?:set\(title=|headline\(figure, )f?"([^"]+)"', code)
    assert len(titles) >= 3 and all("?" in title for title in titles), titles


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_machines_path_is_stored(path):
    assert not re.search(r"/(?:home|root|tmp|work|Users|private)/", path.read_text(encoding="utf-8"))
