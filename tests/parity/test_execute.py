"""`python -m notebooks.execute`: a lesson that fails is named, with its cell; what is stored says only what a reader sees.
Here, and not in tests/, because nbclient comes with the extra [notebooks]."""

import base64
import io
import sys

import nbformat
import pytest
from PIL import Image

from notebooks import execute


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Write a notebook of code cells into a folder of its own; returns its path."""
    monkeypatch.setattr(execute, "HERE", tmp_path)

    def write(name: str, *sources: str):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return write


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["execute", *arguments])
    return execute.main()


def test_a_failed_assertion_names_notebook_cell_and_line(lesson, monkeypatch, capsys):
    lesson("good", "print(1)")
    lesson("wrong", "x = 1", "y = 2\nassert x == y")
    assert run(monkeypatch) == 1
    out, err = capsys.readouterr()
    assert "good: passed" in out
    assert "wrong.ipynb, cell 2, line 2 (assert x == y): AssertionError" in err


def test_nothing_is_stored_unless_asked_and_nothing_that_changes_by_itself(lesson, monkeypatch):
    path = lesson("plot", "import matplotlib.pyplot as plt\n%matplotlib inline\nplt.plot([1, 2])\nplt.show()", "print('seen')")
    before = path.read_bytes()
    assert run(monkeypatch, "plot") == 0 and path.read_bytes() == before
    assert run(monkeypatch, "plot.ipynb", "--store") == 0
    first = path.read_bytes()
    assert run(monkeypatch, "plot", "--store") == 0 and path.read_bytes() == first
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].outputs[0].text == "seen\n"
    (picture,) = [o for o in notebook.cells[0].outputs if "image/png" in o.get("data", {})]
    assert list(picture.data) == ["image/png"] and not picture.metadata and not notebook.cells[0].metadata
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).mode == "P"


def test_a_lesson_writes_into_a_copy_of_its_folder(lesson, tmp_path):
    path = lesson("writes", "open('left_behind.txt', 'w').write('x')\nassert open('helper.txt').read() == 'here'")
    (tmp_path / "helper.txt").write_text("here")
    execute.execute(path)
    assert not (tmp_path / "left_behind.txt").exists()


def test_too_large_a_notebook_is_not_stored(lesson, monkeypatch, capsys):
    path = lesson("large", "print('x' * 400_000)")
    before = path.read_bytes()
    assert run(monkeypatch, "large", "--store") == 1 and path.read_bytes() == before
    assert "more than 300,000: draw fewer or smaller pictures" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known_ones(lesson, monkeypatch, capsys):
    lesson("known", "1")
    assert run(monkeypatch, "unknown") == 2
    assert "no notebook unknown" in capsys.readouterr().err


def test_lessons_in_parallel_fail_and_pass_as_one_by_one(lesson, monkeypatch, capfd):
    for name in ("one", "two", "three"):
        lesson(name, f"print('{name}')", "assert 'two' != '" + name + "'")
    assert run(monkeypatch, "--jobs", "2") == 1
    out, err = capfd.readouterr()
    assert "one: passed" in out and "three: passed" in out and "two.ipynb, cell 2, line 1" in err
    assert run(monkeypatch, "one", "three", "--jobs", "2", "--store") == 0
    assert nbformat.read(execute.HERE / "three.ipynb", as_version=4).cells[0].outputs[0].text == "three\n"
