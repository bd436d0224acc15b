import json
import platform
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minift.errors import InputError
from minift.train import precision
from minift.train import run as module
from minift.train.alone import alone
from minift.train.run import open_run, verb_of


@dataclass(frozen=True)
class Settings:
    out: Path = Path("somewhere")
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    epochs: float = 3.0
    resume: bool = False
    overwrite: bool = False
    tensorboard: bool = False


@dataclass(frozen=True)
class Inputs(Settings):
    model: str = "base"
    data: tuple[str, ...] = ("faq.jsonl",)
    tokenizer: Path | None = None


def test_a_run_folder_knows_every_setting_and_the_versions(tmp_path):
    folder = open_run(tmp_path / "a" / "run", "sft", Settings(lr=0.5))
    content = json.loads((folder / "config.json").read_text())
    assert content["verb"] == "sft" and content["settings"]["lr"] == 0.5 and content["settings"]["betas"] == [0.9, 0.99]
    assert content["settings"]["out"] == "somewhere"
    assert content["versions"] == {"python": platform.python_version(), "torch": torch.__version__}
    assert verb_of(folder) == "sft" and [file.name for file in folder.iterdir()] == ["config.json"]


def test_an_empty_folder_is_free(tmp_path):
    assert open_run(tmp_path, "sft", Settings()) == tmp_path


def test_an_earlier_run_is_kept_unless_told_and_then_gone_whole(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Settings())
    (folder / "adapter").mkdir()
    with pytest.raises(InputError, match="is in use: name another one, or pass --overwrite"):
        open_run(folder, "sft", Settings())
    assert (folder / "adapter").exists()
    open_run(folder, "pretrain", Settings(), overwrite=True)
    assert not (folder / "adapter").exists() and verb_of(folder) == "pretrain"


@pytest.mark.parametrize("content", [None, "not json", "[1]", '{"model_type": "llama"}', '{"verb": "sft"}'])
def test_a_folder_that_is_no_runs_is_never_deleted(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:                                                        # a checkpoint has a config.json too
        (tmp_path / "config.json").write_text(content)
    assert verb_of(tmp_path) is None
    with pytest.raises(InputError, match="--overwrite replaces runs only; name another folder"):
        open_run(tmp_path, "sft", Settings(), overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@dataclass(frozen=True)
class Everything(Inputs):
    rewards: dict[str, float] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    judge: str = "pep257"
    method: str = "lora"


def test_a_run_that_the_new_one_starts_from_is_not_deleted_whichever_option_names_it(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Settings())
    (folder / "model").mkdir()
    (folder / "mine.py").touch()
    inside = [
        {"model": str(folder / "model")}, {"data": (str(tmp_path), str(folder / "*.jsonl"))}, {"tokenizer": folder}, {"rewards": {str(folder / "model"): 1.0}},
        {"rewards": {f"{folder / 'mine.py'}:score": 1.0}}, {"options": {"adapters": f"elsewhere, {folder / 'model'}"}}, {"judge": f"likelihood:{folder / 'model'}"},
        {"data": (str(tmp_path / "other" / ".." / "run" / "mine.py"),)},
    ]    # fmt: skip
    for inputs in inside:
        with pytest.raises(InputError, match=rf"\(--{next(iter(inputs))}\) lies in .*, which would be emptied first: name another folder with --out"):
            open_run(folder, "sft", replace(Everything(), **inputs), overwrite=True)
        assert (folder / "model").exists()
    outside = {"out": folder, "model": str(tmp_path), "judge": "http://one:8000/v1", "method": "x" * 5000, "options": {"a": "1,2"}, "rewards": {"length:3": 1.0}}
    open_run(folder, "sft", replace(Everything(), **outside), overwrite=True)
    assert not (folder / "model").exists()


def test_a_kill_before_there_was_a_config_is_not_in_the_way(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.writing").write_text("{")
    assert open_run(tmp_path / "run", "sft", Settings()) == tmp_path / "run"


@dataclass(frozen=True)
class Measured(Settings):
    precision: str = "auto"
    device: str = "cpu"


def test_the_arithmetic_that_auto_chose_holds_for_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_recalled", {})
    monkeypatch.setattr(precision, "fastest", lambda device: "bf16")
    folder = open_run(tmp_path / "run", "sft", Measured())
    assert json.loads((folder / "config.json").read_text())["arithmetic"] == "bf16"
    monkeypatch.setattr(precision, "fastest", lambda device: "fp32")                # another process, which measures something else
    open_run(folder, "sft", Measured(resume=True), resume=True)
    assert precision.chosen("auto") == "bf16" and json.loads((folder / "config.json").read_text())["arithmetic"] == "bf16"
    assert "arithmetic" not in json.loads((open_run(tmp_path / "other", "sft", Measured(precision="fp32")) / "config.json").read_text())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="is a file, but a folder is to be written there"):
        open_run(tmp_path / "run", "sft", Settings(), overwrite=True)


def test_a_resumed_run_keeps_its_settings_but_for_how_long_it_goes(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Settings())
    (folder / "metrics.jsonl").touch()
    open_run(folder, "sft", Settings(epochs=5.0, resume=True), resume=True)
    assert (folder / "metrics.jsonl").exists()
    assert json.loads((folder / "config.json").read_text())["settings"]["epochs"] == 5.0
    with pytest.raises(InputError, match=r"keeps its settings: lr was 0.1, is 0.2, betas was \[0.9, 0.99\], is \[0.8, 0.99\]"):
        open_run(folder, "sft", Settings(lr=0.2, betas=(0.8, 0.99)), resume=True)
    with pytest.raises(InputError, match="is a run of `sft`, not of `pretrain`: name another folder"):
        open_run(folder, "pretrain", Settings(), resume=True)


@dataclass(frozen=True)
class Placed(Settings):
    out: str = "run"
    model: str = "base"
    data: tuple[str, ...] = ("one.jsonl",)
    rewards: dict = field(default_factory=dict)


def placed(root, model="answers", stage="3-ppo", **others):
    """A stage whose model, data and reward lie beside it, and another reward that is no path."""
    data, rewards = (f"{root}/one.jsonl", "pydocs"), {f"{root}/2-reward": 1.0, "pep257": 0.5}
    return Placed(**{"out": f"{root}/{stage}", "model": f"{root}/{model}", "data": data, "rewards": rewards, **others})


def test_a_run_goes_on_where_it_was_moved_to(tmp_path, monkeypatch):
    open_run(tmp_path / "a/3-ppo", "ppo", placed(tmp_path / "a"))
    for name in ("a/answers", "a/another", "a/2-reward", "deeper"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/one.jsonl").touch()
    (tmp_path / "a").rename(tmp_path / "deeper/b")
    again = lambda root, **others: open_run(f"{root}/3-ppo", "ppo", placed(root, **others), resume=True)
    folder = again(tmp_path / "deeper/b")
    assert json.loads((folder / "config.json").read_text())["settings"]["out"] == str(folder)
    monkeypatch.chdir(tmp_path / "deeper")
    again("b")                                                                      # the same folder, told from elsewhere
    for name, value in {"model": "b/another", "data": ("b/one.jsonl",), "rewards": {"b/2-reward": 0.5, "pep257": 0.5}}.items():
        with pytest.raises(InputError, match=f"keeps its settings: {name} was"):
            again("b", **{name: value})


def test_the_same_name_from_elsewhere_may_be_another_file(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    open_run(tmp_path / "run", "sft", Placed(out=str(tmp_path / "run")))
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(InputError, match=r"keeps its settings: data was \['one.jsonl'\], is \['one.jsonl'\]"):
        open_run(tmp_path / "run", "sft", Placed(out=str(tmp_path / "run")), resume=True)
    open_run(tmp_path / "run", "sft", Placed(out=str(tmp_path / "run"), data=("../here/one.jsonl",)), resume=True)


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_what_is_new(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Placed(out=str(tmp_path / "run"), model="other"))
    content = json.loads((folder / "config.json").read_text())
    del content["cwd"], content["settings"]["rewards"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"keeps its settings: rewards was {}, is {'pep257': 1.0}"):
        open_run(folder, "sft", Placed(out=str(folder), model="other", rewards={"pep257": 1.0}), resume=True)
    open_run(folder, "sft", Placed(out=str(folder), model="other"), resume=True)


def test_the_folder_itself_stays_where_it_is(tmp_path, monkeypatch):
    """A link, the folder one stands in, a mounted one: only what is in it is replaced."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for _ in range(2):
        folder = open_run(tmp_path / "run", "sft", Settings(), overwrite=True)
        (folder / "checkpoints").mkdir()
    assert (tmp_path / "run").is_symlink() and {path.name for path in (tmp_path / "disk").iterdir()} == {"config.json", "checkpoints"}
    monkeypatch.chdir(tmp_path / "disk")
    open_run(".", "sft", Settings(), overwrite=True)
    assert not (tmp_path / "disk/checkpoints").exists()


def test_links_in_an_old_run_are_taken_away_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/text").touch()
    folder = open_run(tmp_path / "run", "sft", Settings())
    (folder / "link").symlink_to(tmp_path / "mine")
    open_run(folder, "sft", Settings(), overwrite=True)
    assert (tmp_path / "mine/text").exists() and not (folder / "link").is_symlink()


def test_killed_while_it_gives_up_an_earlier_run_it_can_be_started_again(tmp_path, monkeypatch):
    folder = open_run(tmp_path / "run", "sft", Settings())
    for name in ("adapter", "checkpoints"):
        (folder / name).mkdir()
    honest, calls = shutil.rmtree, []

    def killed(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        honest(path)

    monkeypatch.setattr(module, "shutil", SimpleNamespace(rmtree=killed))
    with pytest.raises(KeyboardInterrupt):
        open_run(folder, "sft", Settings(), overwrite=True)
    monkeypatch.undo()
    open_run(folder, "sft", Settings(), overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_run_that_another_process_trains_is_neither_given_up_nor_gone_on_with(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Settings())
    before = (folder / "config.json").read_text()
    with alone(folder):
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match="another process is training in"):
                open_run(folder, "sft", Settings(epochs=9.0), **how)
    assert (folder / "config.json").read_text() == before


def test_there_must_be_something_to_resume(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no run to go on with .*: start without --resume"):
            open_run(folder, "sft", Settings(), resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_to_resume_and_to_overwrite_are_two_things(tmp_path):
    folder = open_run(tmp_path / "run", "sft", Settings())
    with pytest.raises(InputError, match="choose one of them"):
        open_run(folder, "sft", Settings(), overwrite=True, resume=True)


def test_a_missing_tensorboard_is_known_before_an_earlier_run_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    folder = open_run(tmp_path / "run", "sft", Settings())
    (folder / "adapter").mkdir()
    with pytest.raises(InputError, match="pip install tensorboard"):
        open_run(folder, "sft", Settings(tensorboard=True), overwrite=True)
    assert (folder / "adapter").exists()


@dataclass(frozen=True)
class Judged(Settings):
    judge: str = "http://one:8000/v1"
    judge_timeout: float = 60.0


def test_a_judge_that_was_mended_may_answer_elsewhere_and_take_longer(tmp_path):
    open_run(tmp_path / "run", "rlaif", Judged())
    open_run(tmp_path / "run", "rlaif", Judged(judge="https://two/v1", judge_timeout=5.0), resume=True)
    with pytest.raises(InputError, match="judge was 'https://two/v1', is 'pep257'"):
        open_run(tmp_path / "run", "rlaif", Judged(judge="pep257"), resume=True)
