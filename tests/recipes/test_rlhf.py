"""Three stages in one command: they follow each other, go on where they were cut short, and their report says what each brought."""

import json
import shutil

import pytest

from minift.data.prompts import docstring_prompts
from minift.recipes import on_policy_start, ppo, reward, rlaif, rlhf, sft
from minift.rl import builtin_rewards
from minift.train.log import read_metrics

SMALL = ["--sft-steps", 2, "--reward-epochs", 1, "--ppo-steps", 2, "--ppo-prompts", 3, "--rank", 2, "--new-tokens", 5]


@pytest.fixture
def files(tmp_path):
    """Answers, preferences and prompts of one's own."""
    rows = [(f"Say {word}.", f"{word}!", f"not {word}") for word in [f"{a}{b}" for a in ("one", "two", "six", "ten", "red", "blue") for b in ("", "-a", "-b", "-c", "-d")]]
    for name, lines in (
        ("answers", [{"prompt": q, "completion": good} for q, good, _ in rows]),
        ("pairs", [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in rows]),
        ("prompts", [{"prompt": q} for q, *_ in rows]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def go(minift, files, small_model):
    own = ["--data", files / "answers.jsonl", "--preferences", files / "pairs.jsonl", "--prompts", files / "prompts.jsonl", "--model", small_model]
    return lambda *more, out="run": minift("rlhf", *own, *SMALL, "--out", files / out, *more)


def test_each_stage_starts_from_the_one_before_and_the_report_names_what_it_brought(go, files):
    status, said, complaints = go()
    assert status == 0, complaints
    run, report = files / "run", (files / "run" / "report.md").read_text()
    numbers = json.loads((run / "stages.json").read_text())
    assert list(numbers) == ["1-sft", "2-reward", "3-ppo"] and "held-out pairs ranked right" in report and "nats from 1-sft" in report
    for stage in ("2-reward", "3-ppo"):
        settings = json.loads((run / stage / "config.json").read_text())["settings"]
        assert settings["model"] == str(run / "1-sft" / "merged")
    assert list(json.loads((run / "3-ppo" / "config.json").read_text())["settings"]["rewards"]) == [str(run / "2-reward")]
    assert (run / "3-ppo" / "rewards.png").exists() and "PEP 257" not in "".join(map(str, numbers["3-ppo"]))


def cut_short(monkeypatch, recipe):
    """Interrupt the recipe as if by Ctrl-C: the reward model's training at its first batch, the others' at their second."""
    home, name = {sft: (sft, "loss"), reward: (reward.RewardLoss, "__call__"), ppo: (ppo.Actor, "learn")}[recipe]
    honest, calls = getattr(home, name), []

    def cut(*given, **more):
        calls.append(1)
        if len(calls) == (1 if recipe is reward else 2):
            raise KeyboardInterrupt
        return honest(*given, **more)

    monkeypatch.setattr(home, name, cut)


@pytest.mark.parametrize("recipe, stage", [(sft, "1-sft"), (reward, "2-reward"), (ppo, "3-ppo")])
def test_a_run_cut_short_goes_on_with_the_stage_it_was_in_and_ends_where_a_whole_one_ends(go, files, monkeypatch, recipe, stage):
    go(out="whole")
    cut_short(monkeypatch, recipe)
    status, said, _ = go()
    assert status == 1 and f"interrupted in {stage}" in said
    monkeypatch.undo()
    status, said, complaints = go("--resume")
    assert status == 0, complaints
    assert said.count("done before") == rlhf.STAGES.index(stage)
    whole, pieced = (json.loads((files / run / "stages.json").read_text()) for run in ("whole", "run"))
    assert whole == pieced
    assert [line["step"] for line in read_metrics(files / "run" / "3-ppo") if "reward" in line] == [1, 2]


@pytest.mark.parametrize("recipe", [reward, ppo])
def test_a_run_that_was_moved_ends_with_the_same_bits_and_its_adapters_name_its_own_base(go, files, monkeypatch, small_model, recipe):
    go(out="whole")
    cut_short(monkeypatch, recipe)
    assert go()[0] == 1
    monkeypatch.undo()
    (files / "run").rename(files / "moved")
    shutil.copytree(small_model, files / "run/1-sft/merged")                # another run's, where this one was
    status, _, complaints = go("--resume", out="moved")
    assert status == 0, complaints
    for name in ("stages.json", *(f"{stage}/adapter/adapter_model.safetensors" for stage in rlhf.STAGES)):
        assert (files / "moved" / name).read_bytes() == (files / "whole" / name).read_bytes(), name
    (files / "moved").rename(files / "again")
    status, said, _ = go("--resume", out="again")
    assert status == 0 and said.count("done before") == 3 and f"--model {files / 'again/1-sft/merged'}" in (files / "again/report.md").read_text()
    for stage in ("2-reward", "3-ppo"):
        named = json.loads((files / "again" / stage / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(files / "again/1-sft/merged")


def test_an_adapter_on_a_base_from_outside_the_run_keeps_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/models/other"}')
    rlhf.name_base(tmp_path, tmp_path / "1-sft/merged")
    assert (tmp_path / "adapter_config.json").read_text() == '{"base_model_name_or_path": "/models/other"}'


def test_quick_leaves_alone_what_was_asked_for(tmp_path):
    quick = rlhf.quickened(rlhf.Config(out=tmp_path, quick=True, sft_steps=7))
    assert (quick.sft_steps, quick.drawn, quick.ppo_steps, quick.ppo_prompts, quick.judged) == (7, 500, 10, 64, 100)


def test_own_answers_need_own_preferences(minift, files, small_model):
    status, _, complaints = minift("rlhf", "--data", files / "answers.jsonl", "--model", small_model, "--out", files / "run")
    assert status == 2 and "needs --preferences too" in complaints and not (files / "run").exists()


def test_the_docstring_task_needs_no_file_and_is_judged_by_its_true_rule(minift, tmp_path, small_model, monkeypatch):
    """On a hundred functions, with a rule that a model of random weights keeps half the time: an even number of characters."""
    few = lambda found: lambda split, packages=(): found(split, ("matplotlib",))[:120]
    monkeypatch.setattr(rlhf, "pairs", few(rlhf.pairs))
    for place in (rlhf, rlaif, on_policy_start):
        monkeypatch.setattr(place, "docstring_prompts", few(docstring_prompts))
    for place in (rlhf, builtin_rewards):
        monkeypatch.setattr(place, "is_pep257", lambda text: len(text) % 2 == 0)
    small = [*SMALL[:-2], "--new-tokens", 60, "--drawn", 120, "--judged", 20, "--temperature", 1.0, "--model", small_model]
    status, said, complaints = minift("rlhf", *small, "--out", tmp_path / "run")
    assert status == 0, complaints
    numbers = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert 0 < numbers["1-sft"]["PEP 257 summaries"] < 1 and 0 < numbers["3-ppo"]["PEP 257 summaries"] < 1
    assert "PEP 257 summaries: 20 functions" in (tmp_path / "run" / "report.md").read_text()
    assert json.loads((tmp_path / "run" / "3-ppo" / "config.json").read_text())["settings"]["rewards"] == {str(tmp_path / "run" / "2-reward"): 1.0, "pep257": 0.0}
