"""The command line: every verb explains itself, every mistake is answered with what was found, where, and the way out, and status 2."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minift as package
from minift.cli import VERBS, own_first
from minift.recipes import sft
from minift.train import state_file
from minift.train.kept import Checkpoints
from tests.conftest import random_model

ROOT = Path(__file__).parents[1]
PAIRS = "".join(json.dumps({"prompt": f"{word} is", "completion": " good."}) + "\n" for word in ("tea", "rain", "work", "salt", "time", "wood"))


@pytest.fixture
def model(small_model, tmp_path):
    """A copy of the small model, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in small_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def tune(minift, tmp_path):
    """`minift sft` in its shortest form, into tmp_path / "run"."""

    def run(model, data, *options):
        return minift("sft", "--model", model, "--data", data, "--out", tmp_path / "run", "--held-out", 0.4, "--max-steps", 1,
                      "--samples", 0, "--precision", "fp32", *options)    # fmt: skip

    return run


def words(text):
    """The text without line breaks and the frame that tyro draws around it."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# ---------------------------------------------------------------------------------------------------------------- help and arguments


def test_help_lists_every_verb(minift):
    for flag in ("--help", "-h"):
        status, said, _ = minift(flag)
        assert status == 0 and all(f"\n  {verb:<13} {text}\n" in said for verb, text in VERBS.items())
    status, said, _ = minift()
    assert status == 2 and "usage: minift VERB" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_every_one_of_its_options(minift, verb):
    config = importlib.import_module(f"minift.recipes.{verb.replace('-', '_')}").Config
    status, said, _ = minift(verb, "--help")
    assert status == 0 and f"usage: minift {verb} " in said and words(config.__doc__) in words(said)
    assert "{None}" not in said and "--no-" not in said
    texts = {name: text for home in reversed(config.__mro__[:-1]) for name, text in field_texts(home).items()}
    for field in dataclasses.fields(config):
        assert texts[field.name], f"{verb}: the field {field.name} has no text"
        assert " ".join(texts[field.name].split()) in words(said), f"{verb} --help does not show the text of {field.name}"


def field_texts(config):
    """field -> the docstring under it, "" if there is none, of the fields that this class itself defines."""
    [found] = [node for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)]
    text = lambda node: node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    following = zip(found.body, [*found.body[1:], None])
    return {node.target.id: text(below) for node, below in following if isinstance(node, ast.AnnAssign)}


def test_a_verbs_own_options_come_first(minift):
    said = minift("sft", "--help")[1]
    places = [said.index(option) for option in ("--data ", "--out ", "--method ", "--rank ", "--epochs ", "--seed ")]
    assert places == sorted(places)


def test_own_fields_come_before_inherited_ones_and_none_is_lost():
    @dataclasses.dataclass(kw_only=True)
    class Shared:
        a: int = 1
        b: int = 2

    @dataclasses.dataclass(kw_only=True)
    class Own(Shared):
        c: int = 3
        b: int = 4

    assert [field.name for field in dataclasses.fields(own_first(Own))] == ["c", "b", "a"]
    assert Own(a=7) == Own(a=7, b=4, c=3) and [field.name for field in dataclasses.fields(Shared)] == ["a", "b"]


def test_an_unknown_verb_shows_the_known_ones(minift):
    status, said, complaint = minift("fine-tune")
    assert (status, said) == (2, "") and "there is no verb 'fine-tune'" in complaint and "sft" in complaint


@pytest.mark.parametrize("arguments, text", [
    (["sft", "--learning-rate", "1"], "--learning-rate"),
    (["sft", "--data", "x.jsonl"], "--out PATH"),
    (["sft", "--data", "x", "--out", "y", "--lr", "fast"], "could not convert string to float: 'fast'"),
    (["sft", "--data", "x", "--out", "y", "--method", "qlora"], "'qlora'"),
    (["generate", "--temperature"], "--temperature"),
    (["inspect"], "FOLDER"),
    (["pretrain", "--out", "y", "--dtype", "int8"], "'int8'"),
])    # fmt: skip
def test_options_that_are_unknown_missing_or_malformed(minift, arguments, text):
    status, said, complaint = minift(*arguments)
    assert (status, said) == (2, "") and text in words(complaint)


def test_the_version_is_the_packages(minift):
    assert minift("--version")[1] == f"minift {package.__version__}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == package.__version__


def python(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120, **options)


def test_python_m_minift_is_minift(tmp_path):
    done = python("-m", "minift", "inspect", tmp_path / "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"minift inspect: no such folder: {tmp_path / 'nowhere'}") and "Traceback" not in done.stderr


def test_importing_minift_is_instant_and_so_is_the_help():
    code = "import sys, minift, minift.cli; minift.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


# ---------------------------------------------------------------------------------------------------------------- models


def test_no_such_folder(tune, pairs, tmp_path):
    status, _, complaint = tune(tmp_path / "nowhere", pairs)
    assert status == 2 and f"no such folder: {tmp_path / 'nowhere'} (bundled models: " in complaint


def test_a_folder_that_is_no_checkpoint(tune, model, pairs):
    (model / "config.json").unlink()
    status, _, complaint = tune(model, pairs)
    assert status == 2 and f"{model} is not a checkpoint: it has no config.json (found: model.safetensors" in complaint


def test_pickled_weights_are_refused_and_never_opened(tune, model, pairs, tmp_path):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "pwned") + b"'\ntR.")
    status, _, complaint = tune(model, pairs)
    assert status == 2 and "holds pickled weights only (pytorch_model.bin)" in complaint and "save_pretrained" in complaint
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [7, 500, -1])
def test_truncated_weights(tune, model, pairs, keep):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:keep])
    status, _, complaint = tune(model, pairs)
    assert status == 2 and f"{model / 'model.safetensors'} is cut short or damaged" in complaint and "download or copy it again" in complaint


def test_a_tampered_header(tune, model, pairs):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(b"\xff" * 8 + whole[8:])
    status, _, complaint = tune(model, pairs)
    assert status == 2 and f"{model / 'model.safetensors'} is cut short or damaged" in complaint


@pytest.mark.parametrize("change, text", [
    (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
    (lambda t: t.update(extra=torch.ones(2)), "left over: extra"),
    (lambda t: t.update({"model.norm.weight": torch.ones(5)}), "wrong shape: model.norm.weight is (5,), wanted (32,)"),
])    # fmt: skip
def test_tensors_that_do_not_fit_are_named(tune, model, pairs, change, text):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")
    status, _, complaint = tune(model, pairs)
    assert status == 2 and str(model) in complaint and text in complaint


def test_an_unknown_model_type_lists_the_known(tune, model, pairs):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    status, _, complaint = tune(model, pairs)
    assert status == 2 and str(model / "config.json") in complaint and "'mamba'" in complaint
    assert all(family in complaint for family in ("gpt2", "llama", "mistral", "qwen3", "falcon", "bloom", "gpt_neox", "gemma"))


def test_a_folder_without_a_tokenizer(tune, model, pairs):
    (model / "tokenizer.model").unlink()
    status, _, complaint = tune(model, pairs)
    assert status == 2 and f"no tokenizer in {model}: looked for tokenizer.json, tokenizer.model" in complaint


def test_a_tokenizer_larger_than_the_embedding(tune, model, pairs):
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "additional_special_tokens": ["<|new|>"]}))
    status, _, complaint = tune(model, pairs)
    assert status == 2 and "the tokenizer has 401 tokens but the model's embedding has 400 rows (no row for '<|new|>'" in complaint


def test_a_run_folder_is_not_a_model(tune, model, pairs, tmp_path):
    tune(model, pairs)
    status, _, complaint = tune(tmp_path / "run", pairs, "--overwrite")
    assert status == 2 and f"{tmp_path / 'run'} is the folder of a run, not a model: name its subfolder 'model'" in complaint
    assert (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("template, text", [
    ("{{ messages.__class__.__mro__ }}", "tries to reach into Python"),
    ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "tries to reach into Python"),
    ("{% for message in messages %}{{ message.content }", "the chat template is not valid jinja2"),
    ("{% for message in messages %}{{ message.content }}{% endfor %}", "no end-of-turn token"),
])    # fmt: skip
def test_templates_that_call_python_are_malformed_or_never_end(tune, model, tmp_path, template, text):
    (model / "chat_template.jinja").write_text(template)
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(9)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = tune(model, tmp_path / "chats.jsonl")
    assert status == 2 and text in complaint and not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name, content, text", [
    ("empty.jsonl", b"", "{file} is empty"),
    ("blank.jsonl", b" \n\n", "{file} is empty"),
    ("broken.jsonl", b'{"prompt": "a", "completion": " b"}\n{"prompt": \n', "{file}, line 2: malformed JSON"),
    ("list.jsonl", b"[1, 2]\n", "{file}, line 1: a list; wanted an object with named fields"),
    ("fields.jsonl", b'{"question": "a", "answer": "b"}\n', "{file}, line 1: no known format has these fields: question, answer. Wanted those of one"),
    ("less.jsonl", b'{"prompt": "a", "completion": " b"}\n{"prompt": "a"}\n', "{file}, line 2: no field 'completion'"),
    ("ragged.csv", b"prompt,completion\na,b,c\n", "{file}, line 2"),
    ("nul.jsonl", b'{"prompt": "a\0", "completion": " b"}\n', "{file}, line 1: holds a NUL byte"),
    ("latin.txt", "caf\xe9".encode("latin-1"), "{file}, line 1: not UTF-8: byte 0xe9 at offset 3"),
    ("mute.jsonl", PAIRS.replace(" good.", " ").encode(), "has an answer to learn ({file}, line"),
    ("data.parquet", b"PAR1", "cannot tell what kind of file this is from its ending '.parquet'; known: .jsonl"),
    ("pairs.jsonl", PAIRS.splitlines()[0].encode(), "1 rows (1 different) cannot be split"),
    ("prefs.jsonl", b'{"prompt": "a", "completion": " b", "rejected": " c"}\n', "this is data for preference learning (field rejected)"),
])    # fmt: skip
def test_data_that_cannot_be_learned_from_names_the_file_and_the_row(tune, small_model, tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    status, _, complaint = tune(small_model, tmp_path / name)
    assert status == 2 and text.format(file=tmp_path / name) in complaint, complaint
    assert not (tmp_path / "run").exists()


def test_data_shows_a_file_of_preferences_as_pairs_or_as_labelled_answers(minift, small_model, tmp_path):
    (tmp_path / "prefs.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c", "margin": 2}\n{"prompt": "a", "chosen": "d", "rejected": "d"}\n')
    status, said, _ = minift("data", tmp_path / "prefs.jsonl", "--model", small_model)
    assert status == 0 and "line 1, chosen (margin 2): a prompt of 2 tokens" in said and "line 1, rejected:" in said
    assert "1 pairs to train on" in said and f"1 pairs are ties, the chosen answer being the rejected one, and are left out: {tmp_path / 'prefs.jsonl'}, line 2" in said
    (tmp_path / "kto.jsonl").write_text('{"q": "a", "completion": " b", "label": false}\n')
    status, said, _ = minift("data", tmp_path / "kto.jsonl", "--model", small_model, "--columns", "prompt", "q")
    assert status == 0 and "line 1, undesirable: a prompt of 2 tokens" in said and "1 rows (1 labelled prompt/completion)" in said
    assert "of preferences the answers count, so leave it out" in minift("data", tmp_path / "prefs.jsonl", "--model", small_model, "--learn", "all")[2]


def test_a_missing_file_and_a_glob_without_matches(tune, small_model, tmp_path):
    assert f"no such file: {tmp_path / 'no.jsonl'}" in tune(small_model, tmp_path / "no.jsonl")[2]
    assert f"no file matches {tmp_path / '*.jsonl'}" in tune(small_model, tmp_path / "*.jsonl")[2]
    assert f"{tmp_path} is a folder: name a file in it" in tune(small_model, tmp_path)[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, content", [
    ("mark.jsonl", b"\xef\xbb\xbf" + PAIRS.encode()),
    ("windows.jsonl", PAIRS.replace("\n", "\r\n").encode()),
    ("emoji.jsonl", PAIRS.replace("good", "👩‍👩‍👧 日本語").encode()),
    ("windows.csv", b"\xef\xbb\xbfprompt,completion\r\n" + b"".join(b"q%d, a\r\n" % n for n in range(8))),
])    # fmt: skip
def test_byte_order_marks_windows_line_ends_and_emoji_are_fine(tune, small_model, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert tune(small_model, tmp_path / name)[0] == 0


def test_rows_of_which_nothing_is_left_to_learn(tune, small_model, tmp_path):
    turns = [{"role": "user", "content": "x " * 60}, {"role": "assistant", "content": "one"}, {"role": "user", "content": "two"}]
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps({"messages": [*turns[:2], {"role": "user", "content": f"{n}"}]}) + "\n" for n in range(9)))
    status, _, complaint = tune(small_model, tmp_path / "asks.jsonl")
    assert status == 2 and "has an answer to learn" in complaint and f"{tmp_path / 'asks.jsonl'}, line" in complaint


def test_when_every_row_is_cut_it_is_said(tune, small_model, pairs):
    status, said, _ = tune(small_model, pairs, "--max-length", 4)
    train = said.split(" examples to train on")[0]
    assert status == 0 and f"{train} training examples were cut to --max-length, {train} of them in the answer" in said


def test_learned_positions_bound_the_examples(tune, small_tokenizer, tmp_path, pairs):
    package.save(random_model(small_tokenizer, family="gpt2", norm="layernorm", position="learned", qkv="joined", gated=False, kv_heads=4,
                              activation="gelu_tanh", qkv_bias=True, attention_out_bias=True, mlp_bias=True, mlp_size=128, max_positions=12),
                 small_tokenizer, tmp_path / "gpt2")    # fmt: skip
    rows = [{"prompt": f"{n} and " * 5, "completion": " more of it " * 4} for n in range(8)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = tune(tmp_path / "gpt2", tmp_path / "long.jsonl")
    assert status == 2 and "this model has 12 learned positions: pass --max-length 12" in complaint and not (tmp_path / "run").exists()
    assert tune(tmp_path / "gpt2", tmp_path / "long.jsonl", "--max-length", 12, "--samples", 3)[0] == 0


# ---------------------------------------------------------------------------------------------------------------- folders, disks and kills


def test_a_checkpoint_is_never_taken_for_an_earlier_run(tune, model, pairs, minift, tmp_path):
    (tmp_path / "run").mkdir()
    for file in model.iterdir():
        (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    status, _, complaint = tune(model, pairs, "--overwrite")
    assert status == 2 and "has content but no config.json of a run: --overwrite replaces runs only" in complaint
    assert {file.name for file in (tmp_path / "run").iterdir()} == {file.name for file in model.iterdir()}


def test_an_output_that_is_a_file(tune, small_model, pairs, tmp_path):
    (tmp_path / "run").write_text("mine")
    status, _, complaint = tune(small_model, pairs, "--overwrite")
    assert status == 2 and "is a file, but a folder is to be written there" in complaint and (tmp_path / "run").read_text() == "mine"


def test_an_old_run_survives_a_new_one_that_is_refused(tune, small_model, pairs, tmp_path):
    tune(small_model, pairs)
    before = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    for options in (["--targets", "nothing"], ["--rank", 0], ["--model", tmp_path / "nowhere"], ["--device", "tpu"]):
        assert tune(small_model, pairs, "--overwrite", *options)[0] == 2
        assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == before


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tune, small_model, pairs, tmp_path, monkeypatch):
    sync = os.fsync

    def full(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        if ".step-3.safetensors.writing" in name:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    status, _, complaint = tune(small_model, pairs, "--max-steps", 5, "--epochs", 9, "--save-every", 1)
    assert status == 1 and "step-3.safetensors cannot be written ([Errno 28] No space left on device): is the disk full?" in complaint
    assert Checkpoints(tmp_path / "run").newest()["step"] == 2
    monkeypatch.setattr(os, "fsync", sync)
    assert tune(small_model, pairs, "--max-steps", 5, "--epochs", 9, "--save-every", 1, "--resume")[0] == 0


LIMITED = """
import resource, sys
from minift.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_a_real_limit_on_file_size_is_told_and_leaves_nothing_half_written(small_model, tmp_path, minift, tune, pairs):
    tune(small_model, pairs)
    done = python("-c", LIMITED, 50_000, "merge", "--model", small_model, "--adapter", tmp_path / "run/adapter", "--out", tmp_path / "merged")
    assert done.returncode == 1 and "model.safetensors cannot be written" in done.stderr and "is the disk full?" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_kill_while_a_checkpoint_is_written_keeps_the_one_before(tune, small_model, pairs, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    bytes_of, calls = state_file._bytes, []

    def killed(tensor):
        calls.append(1)
        if (tmp_path / "run/checkpoints/.step-3.safetensors.writing").exists():      # some tensors of it are there
            raise Killed
        return bytes_of(tensor)

    monkeypatch.setattr(state_file, "_bytes", killed)
    monkeypatch.setattr(sft, "evaluate", lambda *_: 1 / (1 + len(calls)))          # better every time
    with pytest.raises(Killed):
        tune(small_model, pairs, "--max-steps", 4, "--epochs", 9, "--save-every", 1)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run").newest()["step"] == 2
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2 * 3
    assert tune(small_model, pairs, "--max-steps", 4, "--epochs", 9, "--save-every", 1, "--resume")[0] == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4]                                       # a loss and an evaluation each, none twice


def test_a_swap_cut_between_its_two_renames_is_finished_by_the_next_reader(minift, model):
    os.replace(model, model.with_name(f".{model.name}.old"))
    assert minift("inspect", model)[0] == 0 and model.is_dir()


def test_ctrl_c_outside_a_training_is_one_line(minift, small_model, monkeypatch):
    monkeypatch.setattr("minift.recipes.generate.stream", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, complaint = minift("generate", "--model", small_model, "--prompt", "a")
    assert (status, complaint) == (1, "minift generate: interrupted\n")
