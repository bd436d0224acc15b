"""The house keeps its order: imports point down, files hold one idea, planted bugs fit the source."""

import ast
import re
from pathlib import Path

import pytest

from tests.mutants.run import chosen, planted

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"__main__"},
    {"cli"},
    {"recipes", "watch"},
    {"rl", "classify"},
    {"train", "evaluate", "generate", "embed"},
    {"data", "losses", "peft", "folder", "sampling", "search"},
    {"quant"},
    {"models", "tokenizer"},
    {"files"},
    {"errors"},
]
"""From the top down. A room imports itself and floors below its own, never a neighbour (losses/ imports nothing of minift at all)."""

LONG = 300


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(file: Path) -> set[str]:
    """The rooms of minift that a file imports."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module == "minift" else node.module for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("minift.")}


SOURCES = sorted(path for path in (ROOT / "minift").rglob("*.py") if path != ROOT / "minift" / "__init__.py")
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(file):
    room = file.relative_to(ROOT / "minift").parts[0].removesuffix(".py")
    for other in imports(file) - {room}:
        assert floor(other) > floor(room), f"{room} imports {other}: {'a neighbour' if floor(other) == floor(room) else 'upwards'}"


def test_losses_import_nothing_of_minift_but_each_other():
    for file in (ROOT / "minift" / "losses").glob("*.py"):
        assert imports(file) <= {"losses"}


@pytest.mark.parametrize("file", KERNELS, ids=lambda path: path.name)
def test_kernels_know_nothing_of_minift(file):
    assert not re.search(r"^\s*(from|import) minift\b", file.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_hugging_face_abstraction_in_library_code():
    judges = {"transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not judges & {name.split(".")[0] for name in names}, file


@pytest.mark.parametrize("file", SOURCES + KERNELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea_and_says_which(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= LONG, f"{file.name} has {text.count(chr(10))} lines"
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{file.name} does not say what it is about"


@pytest.mark.parametrize("mutant", planted(), ids=lambda mutant: mutant.name)
def test_each_planted_bug_fits_the_source(mutant):
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new and (ROOT / mutant.test).exists()


def test_there_are_enough_planted_bugs_and_no_two_of_one_name():
    names = [mutant.name for mutant in planted()]
    assert len(names) >= 25 and len(set(names)) == len(names)


def test_the_parts_of_the_planted_bugs_are_all_of_them():
    mutants = planted()
    parts = [chosen(mutants, [f"{part}/5"]) for part in range(1, 6)]
    assert sorted(m.name for part in parts for m in part) == sorted(m.name for m in mutants) and chosen(mutants, []) == mutants
    assert {m.name for m in chosen(mutants, ["rslora_ignored"])} == {"rslora_ignored"}


def test_the_readmes_map_names_every_source_file_and_no_other():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.split("## The map of the source")[1].split("```")[1].splitlines()
    named, folders = set(), {}
    for line in lines:
        depth, words = (len(line) - len(line.lstrip())) // 2, line.split()
        folders = {d: folder for d, folder in folders.items() if d < depth}
        if words and words[0].endswith("/"):
            folders[depth] = words[0]
            words = words[1:]
        for word in words:
            if not word.endswith(".py"):
                break
            named.add("".join(folders[d] for d in sorted(folders)) + word)
    assert named == {str(path.relative_to(ROOT)) for path in SOURCES + KERNELS if path.name != "__init__.py"}


def test_the_tests_that_the_conventions_name_exist():
    page = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    for name in re.findall(r"tests/[a-z_0-9/]+\.py", page):
        assert (ROOT / name).exists(), name
