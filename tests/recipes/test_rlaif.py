"""minift rlaif: answers drawn and kept, judged in both orders, written as preferences, and trained on; resumed without asking twice."""

import json

import pytest

from minift import load
from minift.data.examples import prompt_ids
from minift.data.preferences import read_pairs
from minift.data.prompts import docstring_prompts
from minift.data.sources import Row
from minift.errors import InputError, RunError
from minift.generate import generate
from minift.recipes import reward, rlaif
from minift.recipes.rlaif import Config, Result, make_judge, preference, run
from minift.rl.candidates import Asked, Drawing, draw, pairs_of
from minift.rl.judge import EndpointJudge, LikelihoodJudge, VerdictJudge
from minift.rl.reward_source import Answered
from minift.rl.verdicts import Decision
from minift.sampling import Sampling, row_seeds
from tests.rl.test_judge import Server, send, status

STOP = ("e",)
"""Random weights do not end their answers, but every few tokens they write an e."""


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": f"The {word} is", "completion": " not looked at"} for word in ("tea", "rain", "work", "salt", "time", "wood", "name", "file", "list", "line")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def config(small_model, prompts, tmp_path):
    """Fields -> a Config of a short run whose judge is a rule."""
    base = dict(data=(str(prompts),), model=str(small_model), out=tmp_path / "run", judge="length:3", stop=STOP, new_tokens=40, answers=3)
    return lambda **options: Config(**{**base, **options})


@pytest.fixture
def serve(monkeypatch):
    """Faults -> a server that prefers the longer answer, once it is done with them."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(*faults):
        def longer(handler):
            asked = server.requests[-1][2]["messages"][0]["content"]
            first, second = asked.split("Answer A:\n")[1].split("\n\nWhich answer")[0].split("\n\nAnswer B:\n")
            send(handler, 200, json.dumps({"choices": [{"message": {"content": "A" if (len(first), first) > (len(second), second) else "B"}}]}))

        server = Server(*faults, longer)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def answer(text, ended=True):
    return Answered("P", text, Row("prompt/completion", "p, line 1", prompt="P"), {}, [1], ended)


# ---------------------------------------------------------------------------------------------------------------- answers


def test_answers_are_what_generate_draws_with_each_ones_own_seed(small_model, tmp_path):
    model, tokenizer = load(small_model)
    asked = [Asked(Row("prompt/completion", f"line {n}", prompt=text), {"n": n}) for n, text in enumerate(["The object", "A name", "It"])]
    found = draw(model, tokenizer, asked, Drawing(2, Sampling(0.9, top_p=0.95), 8, STOP, seed=5), tmp_path / "a.jsonl")
    seeds = row_seeds(5, 6)
    for number, (row, fields) in enumerate(asked):
        for k in range(2):
            [text] = generate(model, tokenizer, [prompt_ids(row, tokenizer)], 8, 0.9, top_p=0.95, stop=STOP, seed=[seeds[2 * number + k]])
            got = found[number][k]
            assert (got.text, got.prompt, got.row, got.fields) == (text, row.prompt, row, fields) and 1 <= len(got.ids) <= 8
            assert got.ended == (len(got.ids) < 8 or "e" in tokenizer.decode(got.ids))


def test_a_run_cut_short_draws_only_the_missing_answers_and_the_same(small_model, tmp_path, monkeypatch):
    model, tokenizer = load(small_model)
    asked = [Asked(Row("prompt/completion", f"line {n}", prompt=f"The {n}"), {}) for n in range(5)]
    how = Drawing(2, Sampling(1.0), 6, STOP)
    whole = draw(model, tokenizer, asked, how, tmp_path / "a.jsonl")
    monkeypatch.setattr("minift.rl.candidates.PROMPTS", 2)
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes()[: (tmp_path / "a.jsonl").read_bytes().index(b"\n") + 9])
    assert draw(model, tokenizer, asked, how, tmp_path / "b.jsonl") == whole
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert draw(None, tokenizer, [], how, tmp_path / "b.jsonl") == []


def test_unfinished_equal_and_empty_answers_are_not_judged():
    a, b, c = answer("a"), answer(" b"), answer("c")
    assert pairs_of([a, b, answer("cut", ended=False), answer(" "), answer("b"), c]) == [(a, b), (a, c), (b, c)]
    assert pairs_of([a, b, c], most=2) == [(a, b), (a, c)] and pairs_of([a, answer(" a ")]) == []


@pytest.mark.parametrize("options, text", [({"answers": 1}, "at least 2"), ({"temperature": 0.0}, "at temperature 0")])
def test_answers_that_cannot_differ_are_refused_before_the_run(config, options, text):
    with pytest.raises(InputError, match=text):
        run(config(**options))
    assert not config().out.exists()


# ---------------------------------------------------------------------------------------------------------------- the run


def test_a_rule_as_the_judge_is_always_right_by_itself(config, capsys):
    found = run(config(check="length:3", limit=9))
    folder = found.preferences.parent
    assert isinstance(found, Result) and found.trained is None and not found.interrupted
    answers, rows = lines(folder / "answers.jsonl"), lines(found.preferences)
    assert len(answers) == 9 and all(len(some) == 3 for some in answers) and len(rows) == found.tally.agreed > 0
    reward = {a["text"]: -abs(len(a["ids"]) - a["ended"] - 3) for some in answers for a in some}
    for row in rows:
        assert row["prompt"].startswith("The ") and reward[row["chosen"]] >= reward[row["rejected"]] and row["judge"] == "length:3" and sorted(row["votes"]) == ["A", "B"]
    assert found.tally.place == found.tally.failed == 0 and found.tally.pairs == found.tally.agreed + found.tally.tie
    report = (folder / "report.md").read_text()
    assert f"| agreed: kept | {found.tally.agreed} |" in report and f"| by length:3: the judge is right | {found.tally.agreed} |" in report
    assert "| by length:3: the judge is wrong | 0 |" in report and "| position bias (half: no opinion) | 0.0% |" in report
    assert any(line.split() == ["agreed:", "kept", str(found.tally.agreed)] for line in capsys.readouterr().out.splitlines())


def test_the_check_counts_where_the_judge_is_wrong(config, tmp_path):
    (tmp_path / "mine.py").write_text("def longest(completions):\n    return [len(c) for c in completions]\ndef shortest(completions):\n    return [-len(c) for c in completions]")
    found = run(config(judge=f"{tmp_path}/mine.py:longest", check=f"{tmp_path}/mine.py:shortest"), quiet=True)
    report = (found.preferences.parent / "report.md").read_text()
    assert f"shortest: the judge is wrong | {found.tally.agreed} |" in report and "shortest: the judge is right | 0 |" in report


def test_a_local_model_judges(config, small_model):
    found = None
    try:
        found = run(config(judge=f"likelihood:{small_model}"), quiet=True)
    except RunError as error:                                               # random weights may well prefer one place throughout
        assert "pairs has a winner" in str(error)
    report = (config().out / "report.md").read_text()
    assert "| no vote to be had: dropped | 0 |" in report and (found is None or found.tally.pairs > 0)


def test_an_endpoint_judges_a_whole_run_and_its_faults_are_in_the_report(config, serve):
    server = serve("nonsense", status(503))
    found = run(config(judge=server.url, judge_model="tiny", judge_workers=1, judge_retries=2, pairs=1), quiet=True)
    assert found.tally.pairs == found.tally.agreed == len(lines(found.preferences)) > 3 and len(server.requests) == 2 * found.tally.pairs + 2
    assert all(len(row["chosen"].strip()) >= len(row["rejected"].strip()) and row["judge"] == f"tiny at {server.url}" for row in lines(found.preferences))
    report = (found.preferences.parent / "report.md").read_text()
    assert "| faults: HTTP 503 | 1 |" in report and "| faults: nonsense | 1 |" in report


def test_a_reward_that_fails_stops_with_status_1_and_a_resumed_run_goes_on_from_there(minift, config, tmp_path, monkeypatch, prompts, small_model):
    (tmp_path / "mine.py").write_text("import os\ndef f(completions):\n    if not os.path.exists('" + str(tmp_path / "mended") + "'):\n        raise OSError('no')\n"
                                      "    return [len(c) for c in completions]")    # fmt: skip
    arguments = ["rlaif", "--data", prompts, "--model", small_model, "--out", tmp_path / "run", "--judge", f"{tmp_path}/mine.py:f", "--stop", "e", "--new-tokens", 40]
    ended, _, complaint = minift(*arguments)
    assert ended == 1 and "mine.py:f failed on" in complaint and "OSError: no (mine.py, line 4)" in complaint
    drawn = (tmp_path / "run/answers.jsonl").read_bytes()
    (tmp_path / "mended").touch()
    monkeypatch.setattr("minift.rl.candidates.generate_ids", lambda *_, **__: pytest.fail("drawn again"))
    assert minift(*arguments, "--resume")[0] == 0 and (tmp_path / "run/answers.jsonl").read_bytes() == drawn
    votes = (tmp_path / "run/votes.jsonl").read_bytes()
    monkeypatch.setattr("minift.rl.judge.RuleJudge.__call__", lambda *_: pytest.fail("asked again"))
    first = (tmp_path / "run/preferences.jsonl").read_bytes()
    assert minift(*arguments, "--resume")[0] == 0 and (tmp_path / "run/votes.jsonl").read_bytes() == votes
    assert (tmp_path / "run/preferences.jsonl").read_bytes() == first


def test_a_server_that_moved_is_asked_nothing_again(config, serve):
    first, second = serve(), serve()
    how = dict(judge_model="tiny", judge_workers=1, pairs=1)
    before = run(config(judge=first.url, **how), quiet=True)
    assert run(config(judge=second.url, **how, resume=True), quiet=True) == before
    assert len(first.requests) == 2 * before.tally.pairs and not second.requests
    assert {row["judge"] for row in lines(before.preferences)} == {f"tiny at {second.url}"}


def test_a_judge_that_was_moved_together_with_the_run_is_asked_nothing_again(config, tmp_path, monkeypatch):
    def judged(root, **options):
        return run(config(out=root / "run", judge=f"{root}/mine.py:f", **options), quiet=True)

    (tmp_path / "one").mkdir()
    (tmp_path / "one/mine.py").write_text("def f(completions):\n    return [len(c) for c in completions]")
    before = judged(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("minift.rl.judge.RuleJudge.__call__", lambda *_: pytest.fail("asked again"))
    assert judged(tmp_path / "two", resume=True).tally == before.tally


def test_nothing_to_judge_and_nothing_agreed_are_said_with_the_way_out(config):
    with pytest.raises(RunError, match="there is no pair to judge: 30 of 30 answers were cut off"):
        run(config(stop=(), new_tokens=1), quiet=True)
    with pytest.raises(RunError, match="none of .* pairs has a winner by the judge regex:never found .0 the same place in both orders, .* ties, 0 without a vote"):
        run(config(judge="regex:never found", overwrite=True), quiet=True)


def test_a_chats_preferences_are_lists_of_messages():
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "reference"})
    row = Row("alpaca", "x", messages=turns, input="there")
    pair = (Answered("", "One", row), Answered("", "Two", row))
    assert preference(pair, Decision("agreed", ("B", "A"), 1), "j") == {
        "prompt": [{"role": "user", "content": "Hi\n\nthere"}], "chosen": [{"role": "assistant", "content": "Two"}],
        "rejected": [{"role": "assistant", "content": "One"}], "judge": "j", "votes": ("B", "A"),
    }    # fmt: skip
    assert turns[0]["content"] == "Hi"


def test_what_is_written_is_read_back_as_the_same_pairs_texts_and_chats(tmp_path):
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    for number, row in enumerate([Row("messages", "x", messages=turns), Row("prompt/completion", "x", prompt="The object")]):
        pair = (Answered("", " One", row), Answered("", " Two\u2028!", row))
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(preference(pair, Decision("agreed", ("B", "A"), 1), "j"), ensure_ascii=False) + "\n", encoding="utf-8")
        [read], found = read_pairs(file)
        assert (read.chosen.answer, read.rejected.answer, read.question) == (" Two\u2028!", " One", row.question)
        assert not found.ties and not found.without_answer


# ---------------------------------------------------------------------------------------------------------------- what follows


def test_dpo_reads_what_was_written_and_its_options_come_along(config):
    found = run(config(then="dpo", beta=0.3, max_steps=2, held_out=0.4, precision="fp32", loss="ipo", seed=3), quiet=True)
    folder = found.preferences.parent
    settings = json.loads((folder / "dpo/config.json").read_text())["settings"]
    assert (settings["beta"], settings["max_steps"], settings["loss"], settings["seed"]) == (0.3, 2, "ipo", 3) and settings["data"] == [str(found.preferences)]
    assert (folder / "dpo/adapter").is_dir() and found.trained.written == folder / "dpo/adapter"


def test_a_reward_model_is_trained_on_what_was_written(config):
    found = run(config(then="reward", max_steps=2, held_out=0.4, precision="fp32"), quiet=True)
    assert (found.preferences.parent / "reward/config.json").exists() and found.trained is not None


def test_a_resumed_run_resumes_what_follows(config):
    options = dict(then="dpo", max_steps=2, held_out=0.4, precision="fp32")
    first = run(config(**options), quiet=True)
    again = run(config(**options, resume=True), quiet=True)
    assert again.tally == first.tally and again.trained.outcome.steps == first.trained.outcome.steps == 2


class Doubting:
    """A judge of lengths that has no vote on the first question, as long as it is in doubt."""

    name, what, doubts, asked = "by length, here", "by length", True, 0

    def __call__(self, pairs):
        for number, shown in enumerate(pairs):
            first, second = ((len(answer.text), answer.text) for answer in shown)
            self.asked += 1
            yield number, None if self.doubts and number == 0 else "A" if first > second else "B"


def test_what_is_being_trained_on_stays_as_it_is_and_no_question_is_asked(config, tmp_path, monkeypatch):
    judge, honest, batches = Doubting(), reward.RewardLoss.__call__, []
    monkeypatch.setattr(rlaif, "make_judge", lambda config: judge)
    options = dict(then="reward", max_steps=4, epochs=9.0, batch_tokens=100, held_out=0.4, precision="fp32")
    whole = run(config(out=tmp_path / "whole", **options), quiet=True)

    def cut(self, *given):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return honest(self, *given)

    monkeypatch.setattr(reward.RewardLoss, "__call__", cut)
    first = run(config(**options), quiet=True)
    assert first.interrupted and first.tally == whole.tally and first.tally.failed == 1
    files = [tmp_path / "run" / name for name in ("preferences.jsonl", "report.md", "votes.jsonl")]
    before, asked = [file.read_bytes() for file in files], judge.asked
    judge.doubts, judge.name = False, "by length, elsewhere"
    again = run(config(**options, resume=True), quiet=True)
    assert not again.interrupted and judge.asked == asked and again.tally == first.tally and [file.read_bytes() for file in files] == before
    weights = [(tmp_path / name / "reward/adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


def test_options_that_what_follows_does_not_have_are_refused(config):
    with pytest.raises(InputError, match="--beta is no option of reward"):
        run(config(then="reward", beta=0.3))
    assert not config().out.exists()


# ---------------------------------------------------------------------------------------------------------------- options


def test_every_kind_of_judge_is_made(config, small_model):
    assert isinstance(make_judge(config(judge=f"likelihood:{small_model}")), LikelihoodJudge)
    assert isinstance(make_judge(config(judge=f"verdict:{small_model}", criterion="Be brief.")), VerdictJudge)
    remote = make_judge(config(judge="http://127.0.0.1:9/v1", judge_model="tiny", judge_retries=1, judge_failures=3, judge_workers=2, judge_timeout=5.0))
    assert isinstance(remote, EndpointJudge) and remote.name == "tiny at http://127.0.0.1:9/v1"
    assert (remote.endpoint.retries, remote.endpoint.max_failures, remote.endpoint.workers, remote.endpoint.timeout) == (1, 3, 2, 5.0)


@pytest.mark.parametrize("options, text", [
    ({"judge": "http://127.0.0.1:9/v1"}, "wants --judge-model too"), ({"judge_retries": 2}, "--judge-retries is for endpoints"), ({"judge": "gpt"}, "no reward 'gpt'.*A judge may also be likelihood:MODEL"),
    ({"criterion": "Be brief."}, "--criterion is told to models"), ({"lr": 1e-3}, "--lr is for training, and nothing is trained"), ({"beta": 0.2}, "--beta is for training"),
    ({"check": "nothing"}, "no reward 'nothing'"), ({"limit": 0}, "leaves no prompt"),
])    # fmt: skip
def test_options_without_effect_and_judges_that_do_not_exist_are_refused_before_the_run(config, options, text):
    with pytest.raises(InputError, match=text):
        run(config(**options))
    assert not config().out.exists()


def test_pydocs_are_the_signatures_of_training_modules(config, monkeypatch):
    monkeypatch.setattr(rlaif, "docstring_prompts", lambda split: docstring_prompts(split, ("python",)) if split == "train" else pytest.fail(split))
    asked = rlaif._asked(config(data=("pydocs",), limit=3))
    assert len(asked) == 3 and all(row.prompt.endswith('"""') and fields["answer"] == row.answer for row, fields in asked)
