"""Who tests the tests? Plant each bug in a copy of the tree and demand that its test file fails.

    python -m tests.mutants.run                 all planted bugs
    python -m tests.mutants.run lora rope       those whose name contains one of the words
    python -m tests.mutants.run 2/5             every fifth, beginning with the second: what CI does, another fifth with every commit

A test file must pass without the bug first: a file that fails anyway catches nothing. Exit status 1 if a bug survives."""

import importlib
import os
import re
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
    modules = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("run", "nursery", "mutant", "__init__"))
    return [mutant for name in modules for mutant in importlib.import_module(f"tests.mutants.{name}").MUTANTS]


class Tree:
    """A copy of the repository in which bugs are planted, and a process that runs its tests."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("minift", "kernels", "benchmarks", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        path = os.pathsep.join([str(folder), str(folder / "kernels")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
        command = [sys.executable, "-m", "tests.mutants.nursery", str(SECONDS)]
        self.nursery = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def passes(self, test: str) -> bool:
        """Does the test file pass in this copy?"""
        self.nursery.stdin.write(test + "\n")
        self.nursery.stdin.flush()
        status = int(self.nursery.stdout.readline())
        if status not in (0, 1, 2):                               # 2: the file cannot even be imported; others: pytest itself failed
            raise RuntimeError(f"pytest ended with {status} on {test}: run it by hand")
        return status == 0

    def close(self) -> None:
        self.nursery.stdin.close()
        self.nursery.wait()


def survives(tree: Tree, mutant: Mutant) -> bool:
    file = tree.folder / mutant.file
    original = file.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: its text occurs {original.count(mutant.old)} times in {mutant.file}, wanted once: mend the planted bug")
    file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return tree.passes(mutant.test)
    finally:
        file.write_text(original, encoding="utf-8")


def chosen(mutants: list[Mutant], words: list[str]) -> list[Mutant]:
    """Those that the command line asks for."""
    if len(words) == 1 and re.fullmatch(r"[1-9]\d*/[1-9]\d*", words[0]):
        part, parts = map(int, words[0].split("/"))
        return mutants[part - 1 :: parts]
    return [m for m in mutants if not words or any(word in m.name for word in words)]


def main(words: list[str]) -> int:
    mutants = chosen(planted(), words)
    with tempfile.TemporaryDirectory() as temporary:
        copies = [Tree(Path(temporary) / str(number) / "repository") for number in range(len(os.sched_getaffinity(0)))]   # one per worker
        trees: SimpleQueue[Tree] = SimpleQueue()
        for tree in copies:
            trees.put(tree)

        def with_tree(job, *arguments):
            tree = trees.get()
            try:
                return job(tree, *arguments)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(trees.qsize()) as pool:
            files = sorted({m.test for m in mutants})
            failing = [file for file, good in zip(files, pool.map(lambda f: with_tree(Tree.passes, f), files)) if not good]
            if failing:
                print(f"these fail without any planted bug: {', '.join(failing)}")
                return 1
            alive = []
            for mutant, survived in zip(mutants, pool.map(lambda m: with_tree(survives, m), mutants)):
                print(f"{'SURVIVED' if survived else 'caught':<9}{mutant.name}", flush=True)
                alive += [mutant.name] if survived else []
        for tree in copies:
            tree.close()
    print(f"{len(mutants) - len(alive)} passed, {len(alive)} failed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
