"""Real text with nothing to download: the Python documentation on every machine that can run minift.

Sources are read as text and parsed with `ast`; nothing is imported or run. From them come
  documents   prose (the language reference) and the docstrings of each module in source order, without any signature
  pairs       signature -> summary line, for fine-tuning
The base model sees only documents, so how a signature relates to its summary is what fine-tuning has to teach.

The split is by module, never by row, and the same for documents and pairs: a module whose name hashes into the test tenth is
held out of everything. What a held-out module shares word for word with a training module is dropped from the held-out side.
Proved in tests/data/test_pydocs.py. Left out: docstrings of functions written in C (they have no source to parse)."""

import ast
import functools
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from minift.errors import InputError

Split = Literal["train", "valid", "test"]

BASE_PACKAGES = ("python", "numpy", "torch", "matplotlib", "networkx")
"""What the bundled base model was trained on: minift's dependencies and theirs, so all of them are here."""

SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "idlelib", "lib2to3", "site-packages", "_vendor", "vendored", "pydoc_data"}
SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*\)\s*(->.*)?$")


@dataclass(frozen=True)
class Documented:
    """One docstring and where it stood."""

    module: str
    """Dotted name, e.g. "asyncio.events"."""
    owner: str
    """The class it is a method of, or ""."""
    name: str
    """Function or class name; "" for the module's own docstring."""
    signature: str
    """The `def` or `class` line without its colon; "" for a module."""
    text: str
    """The docstring, dedented; a signature that opens it is removed."""


class Pair(NamedTuple):
    module: str
    prompt: str
    """Where the function lives and its signature, ready to be continued by the summary."""
    summary: str


def split_of(module: str) -> Split:
    """Ten in a hundred modules are held out ("test"), five are for choosing settings ("valid"); decided by the name alone."""
    hundredth = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 100
    return "test" if hundredth < 10 else "valid" if hundredth < 15 else "train"


def module_files(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of every source file of a package, in a fixed order; "python" is the standard library."""
    if package == "python":
        root, prefix = Path(sysconfig.get_path("stdlib")), ""
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"no installed package is called {package!r}: install it, or leave it out of the packages")
        root, prefix = Path(spec.submodule_search_locations[0]), package + "."
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith("test_") for part in parts):
            name = prefix + ".".join(parts)
            yield name.removesuffix(".__init__"), path


@functools.lru_cache(maxsize=None)
def documented(packages: Sequence[str]) -> tuple[Documented, ...]:
    """Every docstring of these packages (a tuple of names). Files that this Python cannot parse are passed over: they are templates."""
    return tuple(found for package in packages for module, path in module_files(package) for found in _parse(module, path))


def _parse(module: str, path: Path) -> Iterator[Documented]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    yield from _walk(module, "", tree)


def _walk(module: str, owner: str, node: ast.AST) -> Iterator[Documented]:
    text = ast.get_docstring(node)
    if text:
        while SIGNATURE_LINE.match(text.partition("\n")[0].strip()):            # old docstrings open with one or several
            text = text.partition("\n")[2].strip()
        yield Documented(module, owner, getattr(node, "name", ""), _signature(node), text)
    inside = node.name if isinstance(node, ast.ClassDef) else ""
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _walk(module, inside, child)


def _signature(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){returns}"
    return ""


def prose() -> list[str]:
    """The language reference, one text per topic, without the reST line under its title."""
    from pydoc_data.topics import topics

    return [re.sub(r"\n\*{3,}\n", "\n", text).strip() for _, text in sorted(topics.items())]


def documents(split: Split, packages: Sequence[str] = BASE_PACKAGES) -> list[str]:
    """One text per module of the split: its docstrings in source order, blank lines between. Training also gets the prose.

    A docstring seen before is not repeated; on the held-out sides, "before" includes all training modules."""
    seen: set[str] = set()
    texts: dict[str, list[str]] = {}
    for wanted in dict.fromkeys(["train", split]):
        for found in documented(tuple(packages)):
            if split_of(found.module) == wanted and found.text and found.text not in seen:
                seen.add(found.text)
                if wanted == split:
                    texts.setdefault(found.module, []).append(found.text)
    return (prose() if split == "train" else []) + ["\n\n".join(parts) for parts in texts.values()]


def summary_line(text: str) -> str | None:
    """The first sentence of a docstring as one line, or None if there is none worth learning (fewer than 3 words, over 120 characters)."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"\.(?=\s|$)", paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    if len(sentence.split()) < 3 or len(sentence) > 120 or sentence.startswith((":", ">>>", "@", "-", "*", "..")):
        return None
    return sentence


def pairs(split: Split, packages: Sequence[str] = ("python",)) -> list[Pair]:
    """Signature -> summary of every documented function and method of the split's modules.

    Held-out summaries and prompts that a training module has word for word are left out, and so are repeats."""
    seen: set[str] = set()
    result: list[Pair] = []
    for wanted in dict.fromkeys(["train", split]):
        for found in documented(tuple(packages)):
            summary = summary_line(found.text) if found.signature.startswith("def ") else None
            if summary is None or split_of(found.module) != wanted or summary.lower() in seen or len(found.signature) > 300:
                continue
            seen.add(summary.lower())
            if wanted == split:
                result.append(Pair(found.module, prompt(found), summary))
    return result


def prompt(found: Documented) -> str:
    '''How a function is shown to the model: as source code whose docstring has just been opened.

    # asyncio.events, class AbstractEventLoop
    def call_later(self, delay, callback, *args, context=None):
        """
    '''
    place = f"{found.module}, class {found.owner}" if found.owner else found.module
    return f'# {place}\n{found.signature}:\n    """'
