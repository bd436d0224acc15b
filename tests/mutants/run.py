"""Who tests the tests? Plant each bug in a copy of the tree and demand that its test file fails.

    python -m tests.mutants.run                 all planted bugs
    python -m tests.mutants.run lora rope       those whose name contains one of the words

A test file must pass without the bug first: a file that fails anyway catches nothing. Exit status 1 if a bug survives."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
SECONDS = 300


def planted() -> list[Mutant]:
    """The MUTANTS of every module in this folder."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("run", "mutant", "__init__"))
    return [mutant for name in modules for mutant in importlib.import_module(f"tests.mutants.{name}").MUTANTS]


def passes(tree: Path, test: str) -> bool:
    """Does the test file pass in this copy of the tree?"""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode not in (0, 1, 2):                          # 2: the file cannot even be imported; others: pytest itself failed
        raise RuntimeError(f"pytest ended with {done.returncode} on {test}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def survives(tree: Path, mutant: Mutant) -> bool:
    file = tree / mutant.file
    original = file.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: its text occurs {original.count(mutant.old)} times in {mutant.file}, wanted once: mend the planted bug")
    file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return passes(tree, mutant.test)
    finally:
        file.write_text(original, encoding="utf-8")


def main(words: list[str]) -> int:
    mutants = [m for m in planted() if not words or any(word in m.name for word in words)]
    with tempfile.TemporaryDirectory() as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(len(os.sched_getaffinity(0))):        # one copy of the tree per worker
            tree = Path(temporary) / str(number) / "repository"
            for name in ("minift", "tests"):
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            trees.put(tree)

        def with_tree(job, *arguments):
            tree = trees.get()
            try:
                return job(tree, *arguments)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(trees.qsize()) as pool:
            files = sorted({m.test for m in mutants})
            failing = [file for file, good in zip(files, pool.map(lambda f: with_tree(passes, f), files)) if not good]
            if failing:
                print(f"these fail without any planted bug: {', '.join(failing)}")
                return 1
            alive = []
            for mutant, survived in zip(mutants, pool.map(lambda m: with_tree(survives, m), mutants)):
                print(f"{'SURVIVED' if survived else 'caught':<9}{mutant.name}", flush=True)
                alive += [mutant.name] if survived else []
    print(f"{len(mutants) - len(alive)} passed, {len(alive)} failed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
