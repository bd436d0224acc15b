"""The docstring corpus: what is taken, what is left out, and that nothing held out leaks into training."""

import ast
import collections
import sysconfig

import pytest

from minift.data import pydocs
from minift.data.pep257 import is_pep257
from minift.errors import InputError

PYTHON = ("python",)


def test_the_split_hangs_on_the_modules_name_alone():
    assert [pydocs.split_of(m) for m in ("asyncio.transports", "asyncio.locks", "json.decoder")] == ["test", "valid", "train"]
    counts = collections.Counter(pydocs.split_of(f"package.module{i}") for i in range(4000))
    assert 0.08 < counts["test"] / 4000 < 0.12 and 0.035 < counts["valid"] / 4000 < 0.065


def test_documents_and_pairs_hold_out_the_same_modules():
    for split in ("train", "valid", "test"):
        assert {pydocs.split_of(pair.module) for pair in pydocs.pairs(split, PYTHON)} == {split}


def test_no_held_out_docstring_or_summary_stands_word_for_word_in_training():
    trained_whole = {d.text for d in pydocs.documented(PYTHON) if pydocs.split_of(d.module) == "train"}
    held_out = {d.text for d in pydocs.documented(PYTHON) if pydocs.split_of(d.module) == "test"} - trained_whole
    assert len(held_out) > 200
    kept = "\n\n".join(pydocs.documents("test", PYTHON))
    shared = {d.text for d in pydocs.documented(PYTHON) if pydocs.split_of(d.module) == "test"} & trained_whole
    assert shared, "the rule would be idle if nothing were shared"
    assert all(text not in kept for text in shared if len(text) > 60)
    train_summaries = {pair.summary.lower() for pair in pydocs.pairs("train", PYTHON)}
    assert not train_summaries & {pair.summary.lower() for pair in pydocs.pairs("test", PYTHON)}


def test_there_are_enough_pairs_to_learn_from_and_to_judge_by():
    assert len(pydocs.pairs("train", PYTHON)) > 3000 and len(pydocs.pairs("test", PYTHON)) >= 200


def test_base_documents_never_show_a_signature_line():
    lines = [text.split("\n")[0] for text in (d.text for d in pydocs.documented(PYTHON)) if text]
    assert not [line for line in lines if pydocs.SIGNATURE_LINE.match(line.strip())]


def test_reading_python_imports_nothing(tmp_path):
    source = '"""Module."""\nraise SystemExit\nclass A(B):\n    """A class."""\n    def f(self, x=1) -> int:\n        """f(x) -> int\n\n        Return x.  More."""\n'
    file = tmp_path / "m.py"
    file.write_text(source)
    found = list(pydocs._parse("m", file))
    assert [(d.owner, d.name, d.signature, d.text) for d in found] == [
        ("", "", "", "Module."),
        ("", "A", "class A(B)", "A class."),
        ("A", "f", "def f(self, x=1) -> int", "Return x.  More."),
    ]
    assert pydocs.prompt(found[2]) == "# m, class A\ndef f(self, x=1) -> int:\n    \"\"\""


@pytest.mark.parametrize(
    "text, summary",
    [
        ("Return the sum.", "Return the sum."),
        ("Return the sum of\nall rows. Then more.", "Return the sum of all rows."),
        ("Use 3.5 or e.g. less", "Use 3.5 or e.g."),                 # a sentence ends at a full stop before a blank
        ("No full stop here", "No full stop here"),
        ("Too short", None),
        (">>> f(1) is a doctest", None),
        ("word " * 40, None),
    ],
)
def test_summary_lines(text, summary):
    assert pydocs.summary_line(text) == summary


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="no installed package is called 'no_such_package'"):
        pydocs.documents("train", ("no_such_package",))


def test_every_prompt_holds_a_signature_python_can_parse():
    for pair in pydocs.pairs("test", PYTHON)[:100]:
        ast.parse(pair.prompt + pair.summary.replace("\\", "/") + '"""')


def test_modules_come_in_a_fixed_order_and_without_tests():
    names = [name for name, _ in pydocs.module_files("python")]
    assert names == [name for name, _ in pydocs.module_files("python")] and "json.decoder" in names and "json" in names
    assert not [name for name in names if name.startswith("test.")] and sysconfig.get_path("stdlib")


@pytest.mark.parametrize("good", ["Return the sum.", "Set a flag and return it.", "Do it."])
def test_pep257_good(good):
    assert is_pep257(good)


@pytest.mark.parametrize(
    "bad", ["Returns the sum.", "The sum.", "return the sum.", "Return the sum", "Return.", "", "Return a\nsum.", "Return " + "x" * 72 + "."]
)
def test_pep257_bad(bad):
    assert not is_pep257(bad)
