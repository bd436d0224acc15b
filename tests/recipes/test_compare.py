"""The measured table, in small: a random model, a few steps and rows, real processes; its arithmetic worked by hand."""

import csv
import io
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minift import folder as folders
from minift.data.batches import Batch
from minift.data.examples import build
from minift.data.pydocs import Pair
from minift.errors import InputError
from minift.evaluate.perplexity import perplexity
from minift.quant import QuantizedLinear
from minift.recipes import compare, compare_row
from minift.recipes.compare import QUICK, Config, by_default, prepare, run, with_quick
from minift.recipes.compare_findings import findings, machine, report
from minift.recipes.compare_plots import draw_costs, draw_quality
from minift.recipes.compare_row import Watch, memory, slowdown, train, work
from minift.recipes.compare_table import COSTS, QUALITIES, cost_rows, csv_table, markdown, quality_rows, rank_correlation, ranks, short_table, size
from minift.recipes.compare_task import Measured, Quality, Task, read_row
from minift.recipes.methods import METHODS

SOME = dict(steps=3, batch_tokens=256, rates=(0.5, 2.0), judged=4, new_tokens=4, windows=2, rounds=1, precision="fp32", valid=5)
FAILING = """
import sys
from minift.errors import InputError
from minift.quant import QuantizedLinear
from minift.recipes import compare_row, sft
choose = sft.choose_parameters
def choose_parameters(model, config, tokenizer=None):
    if config.method == "last":
        raise InputError("a failure made up\\nwith a second line")
    choose(model, config, tokenizer)
sft.choose_parameters = choose_parameters
compare_row.main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def own(small_model, tmp_path_factory) -> dict:
    """Options for questions and answers of one's own."""
    folder, dice = tmp_path_factory.mktemp("own"), random.Random(0)
    words = "alpha beta gamma delta list name value index file path".split()
    rows = [{"prompt": f"Where is {dice.choice(words)} {i}?", "completion": f" In the {dice.choice(words)} {i % 7}."} for i in range(70)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "prose.txt").write_text(" ".join(dice.choice(words) for _ in range(900)))
    return dict(model=str(small_model), data=(str(folder / "rows.jsonl"),), text=(str(folder / "prose.txt"),))


@pytest.fixture(scope="module")
def task(own) -> Task:
    return prepare(Config(**own, **SOME, seeds=2), say=lambda text: None)


@pytest.fixture(scope="module")
def finished(own, tmp_path_factory):
    """Three methods in processes of their own; one of them fails."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "row.py").write_text(FAILING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "ROW", [sys.executable, str(folder / "row.py")])
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(compare.__file__).parents[2]))
        return run(Config(out=folder / "run", methods=("full", "last", "lora"), **own, **SOME, seeds=2), quiet=True)


# one row


def test_the_best_rate_on_validation_rows_wins_and_its_run_is_the_first_seed(task, monkeypatch):
    runs, real = [], compare_row.train

    def noted(task, method, rate, seed, *sides):
        found = real(task, method, rate, seed, *sides)
        found.loss = abs(rate - 0.004)                                             # made up, so that the middle one is best
        runs.append((rate, seed))
        return found

    monkeypatch.setattr(compare_row, "train", noted)
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], lr=0.004))
    row = work(replace(task, rates=(0.25, 1.0, 4.0), seeds=3, steps=2), "lora")
    assert runs == [(0.001, 0), (0.004, 0), (0.016, 0), (0.004, 1), (0.004, 2)]
    assert row.rate == 0.004 and row.search == pytest.approx({"0.001": 0.003, "0.004": 0.0, "0.016": 0.012}) and len(row.qualities) == 3


def test_a_rate_that_diverges_is_the_worst_and_all_of_them_are_an_error(task, monkeypatch):
    real = compare_row.fit

    def fit(model, batches, loss, config, *rest, **named):
        if config.lr > 0.003:
            raise FloatingPointError("the loss is nan")
        return real(model, batches, loss, config, *rest, **named)

    monkeypatch.setattr(compare_row, "fit", fit)
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], lr=0.004))
    row = work(replace(task, rates=(1.0, 0.25), seeds=1, steps=2), "lora")
    assert row.rate == 0.001 and row.search["0.004"] == math.inf and math.isfinite(row.search["0.001"])
    assert Measured.of(json.loads(json.dumps({**row.__dict__, "qualities": [q.__dict__ for q in row.qualities]}))) == row    # inf in a file, too
    with pytest.raises(FloatingPointError, match="not finite at any of the rates 0.004, 0.04"):
        work(replace(task, rates=(1.0, 10.0), seeds=1, steps=2), "lora")


def test_all_methods_see_the_same_tokens_in_the_same_order(task, monkeypatch):
    seen = {}
    tokenizer = folders.load(task.model)[1]
    train_set, valid_set = (build(rows, tokenizer, max_length=task.max_length)[0] for rows in (task.train, task.valid))
    real = compare_row.sft.loss
    for method in ("full", "lora", "head"):
        batches = seen.setdefault(method, [])
        monkeypatch.setattr(compare_row.sft, "loss", lambda model, batch: (batches.append(batch.token_ids), real(model, batch))[1])
        watch = train(task, method, 1e-3, 1, tokenizer, train_set, valid_set).watch
        assert watch.tokens == [int((batch.segments > 0).sum()) for batch in packed(task, train_set)]
    assert all(torch.equal(a, b) for method in ("lora", "head") for a, b in zip(seen["full"], seen[method], strict=True))


def packed(task, train_set):
    config = compare_row.sft.MethodConfig(lr=1e-3, seed=1, batch_tokens=task.batch_tokens)
    return compare_row.sft.batches(train_set, config)(0)[: task.steps]


def test_the_rate_is_chosen_on_validation_rows_and_the_peak_read_before_any_evaluation(task, monkeypatch):
    seen, real, reads = [], compare_row.sft.evaluate, [0]

    def evaluate(model, examples, config):
        reads[0] += 1_000_000
        seen.append(examples)
        return real(model, examples, config)

    def rising():
        reads[0] += 1
        return 1, reads[0]

    monkeypatch.setattr(compare_row.sft, "evaluate", evaluate)
    monkeypatch.setattr(compare_row, "memory", rising)
    row = work(replace(task, seeds=1), "head")
    assert seen == [build(task.valid, folders.load(task.model)[1], max_length=task.max_length)[0]] * 2
    assert row.peak_bytes == 1 + task.steps and row.training_bytes == row.peak_bytes - 1      # one reading of the loaded model, one at each pass


def test_a_method_that_cannot_be_merged_says_why(task):
    row = work(replace(task, seeds=1, rates=(1.0,), steps=2), "prefix")
    assert not row.mergeable and "merge" in row.unmergeable and not row.whole


def test_a_method_may_need_an_option_that_is_not_its_default(task):
    assert work(replace(task, seeds=1, rates=(1.0,), steps=2), "bitfit").trained > 0       # this model has no biases of its own
    assert "bitfit with add_missing true" in report(task, {"bitfit": made()}, [], 1) and "add_missing" not in report(task, {"lora": made()}, [], 1)


def test_quality_before_and_after_is_on_the_same_rows_and_windows(task):
    model, tokenizer = folders.load(task.model)
    judged_set = build(task.judged, tokenizer, max_length=task.max_length)[0]
    assert compare_row.judge(task, model, tokenizer, judged_set) == task.before    # the base model, measured as a method is
    assert math.log(task.before.perplexity) == pytest.approx(perplexity(model, task.windows).nats_per_token)


def test_the_rows_of_the_three_sides_are_different_and_survive_the_file(task, tmp_path):
    sides = [{row.question for row in side} for side in (task.train, task.valid, task.judged)]
    assert all(sides) and sum(map(len, sides)) == len(set.union(*sides)) and not task.docstrings
    assert (len(task.valid), len(task.judged), len(task.windows)) == (5, 4, 2)
    task.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == task


def test_by_default_the_task_is_docstrings_of_held_out_modules(small_model, monkeypatch):
    made = lambda split, packages: [Pair(split, f'# {split}\ndef f{i}():\n    """', f"Return {i}.") for i in range(20)]
    monkeypatch.setattr(compare, "pairs", made)
    monkeypatch.setattr(compare, "documents", lambda split, packages: [f"{split} and more words of prose. " * 60])
    task = prepare(Config(model=str(small_model), train=10, valid=5, judged=3, windows=1, new_tokens=3, precision="fp32"), lambda text: None)
    assert [len(side) for side in (task.train, task.valid, task.judged)] == [10, 5, 3] and task.docstrings
    assert {row.where for row in task.train} == {"train"} and {row.where for row in task.judged} == {"test"}
    assert task.before.pep257 is not None and "test and more" in folders.load(small_model)[1].decode(task.windows[0].ids)


def test_pads_are_no_tokens_and_the_first_steps_no_time(monkeypatch):
    monkeypatch.setattr(compare_row.sft, "loss", lambda model, batch: "the loss")
    watch, ids = Watch(resident=0), torch.zeros(2, 5, dtype=torch.int64)
    assert watch(None, Batch(ids, ids > 0, torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]]))) == "the loss"
    watch(None, Batch(ids, ids > 0))
    assert watch.tokens == [7, 10] and len(watch.times) == 2 and watch.peak > 0
    assert Watch(0, times=[0.0, 9.0, 12.0, 13.0, 15.0, 18.0]).seconds() == [2.0, 3.0]      # the first three, 9, 3 and 1, are warm-up
    assert Watch(0, times=[0.0, 9.0, 12.0]).seconds() == [9.0, 3.0]                        # a short run has nothing but warm-up


def test_the_slowdown_is_the_median_of_ratios_measured_in_turns(monkeypatch):
    clock, turns, base, model = [0.0], [], "base", "model"
    needed = {"base": iter([50, 2, 4, 1]), "model": iter([70, 3, 4, 4])}           # the first of each is warm-up; ratios 1.5, 1, 4

    def generate_ids(one, prompts, **named):
        turns.append(one)
        clock[0] += next(needed[one])

    monkeypatch.setattr(compare_row, "generate_ids", generate_ids)
    monkeypatch.setattr(compare_row.time, "perf_counter", lambda: clock[0])
    assert slowdown(base, model, [[1]], rounds=3) == 1.5
    assert turns == ["base", "model", "model", "base", "base", "model", "model", "base"]


def test_memory_is_measured_and_a_peak_is_not_taken_back():
    before = memory()
    big = torch.ones(40_000_000)
    held = memory()
    del big
    after = memory()
    assert held[1] - before[0] >= 150e6 and after[1] >= held[1] - 1e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="without /proc the parent's size cannot be told from the child's")
def test_the_peak_of_a_row_is_its_own_and_not_its_parents():
    big = torch.ones(250_000_000)                                                  # 1 GB: more than the child will ever need
    code = "from minift.recipes.compare_row import memory; print(memory()[1])"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 50e6 < peak < 900e6 and memory()[1] > 1e9 and len(big)


# the table


QUALITY = Quality(4.0, 0.1, 0.5, 20.0)
TASK = Task("base", "fp32", 40, 1024, 2, (0.25, 1.0, 4.0), 8, 64, 1, True, (), (), (), (), 1, QUALITY)


def made(trained=1000, **fields) -> Measured:
    """A row of round numbers."""
    plain = dict(
        trained=trained, total=100_000, file_bytes=4 * trained, gradient_bytes=4 * trained, optimizer_bytes=8 * trained, peak_bytes=500_000_000,
        training_bytes=100_000_000, ms_per_step=100.0, tokens_per_s=10_000.0, slowdown=1.25, whole=False, unmergeable=None, rate=1e-3,
        search={"0.00025": 3.6, "0.001": 3.5, "0.004": 3.7}, qualities=(Quality(3.0, 0.2, 0.8, 22.0), Quality(3.5, 0.4, 1.0, 23.0)), seconds=9.0,
    )  # fmt: skip
    return Measured(**{**plain, **fields})


FULL = dict(trained=100_000, whole=True, slowdown=0.98, training_bytes=400_000_000, ms_per_step=150.0)


def test_the_table_worked_by_hand():
    rows = {"one": made(), "two": made(**FULL), "three": "no such thing", "four": made(unmergeable="it depends on the input")}
    assert cost_rows(rows) == [
        ["one", "1,000", "1 %", "4 kB", "12 kB", "500 MB", "100 MB", "100", "10,000", "1.25x", "yes: 1x"],
        ["two", "100,000", "100 %", "400 kB", "1.2 MB", "500 MB", "400 MB", "150", "10,000", "0.98x", "is a checkpoint"],
        ["three", "failed", *["–"] * 9],
        ["four", "1,000", "1 %", "4 kB", "12 kB", "500 MB", "100 MB", "100", "10,000", "1.25x", "no"],
    ]
    base, one, *_ = quality_rows(TASK, rows)
    assert base == ["base, untrained", "–", "4.000", "0.100", "50 %", "20.0", "1"]
    # mean of 3 and 3.5; sd = sqrt(2 x 0.25^2 / 1) = 0.354; (22 + 23) / 2 / 20 = 1.125
    assert one == ["one", "0.001", "3.250 ± 0.354", "0.300 ± 0.141", "90 % ± 14", "22.5 ± 0.7", "1.125"]
    header, short = short_table(TASK, rows)
    assert short[1] == ["one", "1,000", "100 MB", "100", "3.250 ± 0.354", "90 %", "1.125"] and {len(line) for line in short} == {len(header)}
    assert all(len(line) == len(COSTS) for line in cost_rows(rows)) and all(len(line) == len(QUALITIES) for line in quality_rows(TASK, rows))


def test_one_seed_has_no_spread_and_own_data_no_pep257():
    task = replace(TASK, seeds=1, docstrings=False, before=replace(QUALITY, pep257=None))
    row = made(qualities=(Quality(3.0, 0.2, None, 22.0),))
    assert quality_rows(task, {"one": row})[1] == ["one", "0.001", "3.000", "0.200", "–", "22.0", "1.100"]
    (line,) = csv.DictReader(io.StringIO(csv_table(task, {"one": row})))
    assert (line["loss_spread"], line["pep257_after"], line["loss_after"]) == ("", "", "3.0")


def test_the_csv_holds_raw_numbers_and_what_failed():
    one, bad = csv.DictReader(io.StringIO(csv_table(TASK, {"one": made(), "bad": "too, large"})))
    assert {name: float(one[name]) for name in ("trained", "total", "share", "file_bytes", "loss_before", "loss_after", "forgetting")} == {
        "trained": 1000, "total": 100_000, "share": 0.01, "file_bytes": 4000, "loss_before": 4, "loss_after": 3.25, "forgetting": 1.125}    # fmt: skip
    assert float(one["loss_spread"]) == pytest.approx(0.353553, abs=1e-6) and (one["error"], bad["error"], bad["trained"]) == ("", "too, large", "")
    assert csv_table(TASK, {"bad": "no"}) == "method,error\nbad,no\n"
    assert "Failed:\n\n- **bad**: no" in markdown(TASK, {"bad": "no"})


def test_sizes_for_people():
    assert [size(n) for n in (12, 999, 1000, 1234, 12_345_678, 999_600_000, 2.5e9)] == ["12 B", "999 B", "1 kB", "1.23 kB", "12.3 MB", "1,000 MB", "2.5 GB"]


def test_rank_correlation_worked_by_hand():
    assert ranks([30, 10, 20, 20]) == [4, 1, 2.5, 2.5]
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == 1 and rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)      # 1 - 6 x 4 / (4 x 15)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0


# the pictures and the text


def test_no_label_covers_another_in_a_crowd(tmp_path):
    dice = random.Random(1)
    rows = {}
    for i in range(24):
        loss = 3.5 + 0.02 * dice.random() + (0.3 if i > 19 else 0)
        rows[f"method-{i}"] = made(trained=int(10 ** (3 + 0.7 * dice.random() + i % 3)), qualities=(Quality(loss, 0, 0, 21.0), Quality(loss + 0.01, 0, 0, 21.0)))
    boxes = draw_quality(tmp_path / "quality.png", TASK, rows)
    assert len(boxes) == 24 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 9.6 * 130 and box.y1 <= 6 * 130 for box in boxes)
    draw_costs(tmp_path / "costs.png", TASK, rows)
    assert (tmp_path / "costs.png").stat().st_size > 10_000


def test_findings_follow_the_numbers():
    tiny = made(trained=10, training_bytes=300_000_000, unmergeable="no", slowdown=1.4, ms_per_step=160.0)
    rows = {"full": made(**FULL), "lora": made(), "tiny": tiny}
    text = "\n".join(findings(TASK, rows))
    assert "Fewest trained parameters is not least memory.** tiny trains the fewest, 10, and needs 300 MB above the loaded model; lora trains 100 times" in text
    assert "memory is 0.50 (1: the same order)" in text                            # ranks 3 2 1 against 3 1 2
    assert "are 0 % of full fine-tuning's" in text and "save 99.5 % of them, and still take 50 % of full's" in text    # medians of 25 and 75 %
    assert "not a faster step.** Over 2 % longer per step than full fine-tuning: 1 of 2 (tiny). The fastest, lora, takes 0.67" in text
    assert "what can be merged takes 1.25 times" in text and "What cannot be merged keeps its 1.40: tiny 1.40." in text and "came out at 0.98." in text
    assert "frozen base forgets all the same.** Perplexity on prose rises by over 1 % with 2 of 2 adapters" in text


def test_findings_turn_with_the_numbers():
    same = (Quality(3.0, 0.2, 0.8, 20.0), Quality(3.0, 0.2, 0.8, 20.0))
    rows = {"full": made(**FULL, qualities=(Quality(2.0, 0, 0, 30.0),) * 2), "lora": made(qualities=same, rate=0.004, search={"0.001": 4.0, "0.004": 3.0})}
    text = "\n".join(findings(TASK, rows))
    assert "**Fewest trained is least memory, here.** lora" in text
    assert "**Every method steps faster than full fine-tuning, or as fast.**" in text
    assert "**With these frozen bases nothing was forgotten.**" in text and "none is above that" in text
    assert "**More trained parameters is better.** The rank correlation of trained parameters and quality is 1.00" in text
    assert "best held-out loss is full's, 2.000" in text and "No other lies within one standard deviation of it." in text
    assert "the largest rate was best for 1 (lora)" in text


def test_findings_need_only_what_is_there():
    assert findings(TASK, {}) == []
    assert "full fine-tuning" not in "\n".join(findings(TASK, {"lora": made()}))
    assert "One seed tells nothing of chance" in "\n".join(findings(replace(TASK, seeds=1), {"lora": made()}))


def test_methods_within_the_spread_are_not_ordered():
    at = lambda a, b: made(qualities=(Quality(a, 0, 0, 20.0), Quality(b, 0, 0, 20.0)))
    rows = {"best": at(3.0, 3.2), "close": at(3.1, 3.3), "far": at(3.9, 3.9)}      # apart 0.1 and 0.8; spreads 0.14, 0.14, 0
    assert "Within one standard deviation of it: close. 2 seeds do not order those" in "\n".join(findings(TASK, rows))


def test_the_report_names_the_machine_and_what_was_left_out(task):
    text = report(task, {"lora": made()}, ["tokens"], 90)
    assert machine() in text and f"torch {torch.__version__}" in text and "an option of their own: tokens." in text and "1.5 minutes for this call" in text


# the options


def test_quick_changes_what_was_left_alone():
    quick = with_quick(Config(quick=True, steps=77))
    assert quick.steps == 77 and all(getattr(quick, name) == value for name, value in QUICK.items() if name != "steps")
    assert with_quick(Config()) == Config()


def test_by_default_all_methods_run_that_can_without_an_option():
    assert "tokens" not in by_default() and {"full", "last", "head", "lora"} <= set(by_default())
    assert set(by_default()) - set(by_default("nf4")) == {"full", "last"}


@pytest.mark.parametrize("method", ["lora", "loftq", "head"])
def test_on_a_quantized_base_every_row_keeps_its_linears_so(own, method):
    task = prepare(Config(**own, **SOME, seeds=1, quantize="int4"), say=lambda text: None)
    tokenizer = folders.load(task.model)[1]
    train_set, valid_set = (build(rows, tokenizer, max_length=task.max_length)[0] for rows in (task.train, task.valid))
    run = train(task, method, 1e-3, 0, tokenizer, train_set, valid_set)
    found = {module.q.scheme for module in run.model.modules() if isinstance(module, QuantizedLinear)}
    assert found == {"int4"} and run.counts.total > sum(p.numel() for p in run.model.parameters())
    plain = prepare(Config(**own, **SOME, seeds=1), say=lambda text: None)
    assert task.before.loss != plain.before.loss and (task.quantize, plain.quantize) == ("int4", None)


@pytest.mark.parametrize(
    "options, complaint",
    [
        (dict(methods=("lorra",)), "--methods lorra: there is no such method; near names: .*lora"),
        (dict(steps=1), "--steps is 1: a step's time is measured from one to the next, wanted 2 or more"),
        (dict(seeds=0), "--seeds is 0: wanted 1 or more"),
        (dict(rates=()), "--rates are \\(\\): wanted different numbers above 0"),
        (dict(rates=(1.0, 1.0)), "wanted different numbers above 0"),
        (dict(rates=(0.0,)), "wanted different numbers above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, complaint):
    with pytest.raises(InputError, match=complaint):
        Config(**options)


def test_bad_input_is_refused_before_a_folder_is_made(own, tmp_path):
    (tmp_path / "texts.txt").write_text("Only a text.")
    for change, complaint in [
        (dict(data=(str(tmp_path / "texts.txt"),)), "plain texts: compare judges answers"),
        (dict(text=(str(tmp_path / "none.txt"),)), "none.txt: no such file"),
        (dict(model=str(tmp_path / "none")), "no such folder"),
    ]:
        with pytest.raises(InputError, match=complaint):
            run(Config(out=tmp_path / "run", **{**own, **change}), quiet=True)
    assert not (tmp_path / "run").exists()


# whole comparisons


def test_a_failing_row_leaves_the_others_and_says_why(finished):
    assert isinstance(finished.rows["full"], Measured) and isinstance(finished.rows["lora"], Measured) and not finished.interrupted
    assert finished.rows["last"] == "a failure made up"
    assert (finished.folder / "rows/last.log").read_text().rstrip().endswith("with a second line")
    assert not (finished.folder / "rows/lora.log").exists()
    text = (finished.folder / "report.md").read_text()
    assert "| last | failed |" in text and "- **last**: a failure made up" in text and "# 2 fine-tuning methods, measured" in text


def test_a_comparison_leaves_its_table_pictures_report_and_rows(finished):
    for name in ("table.md", "table.csv", "report.md", "quality.png", "costs.png", "config.json", "task.json", "rows/full.json", "rows/lora.json"):
        assert (finished.folder / name).stat().st_size > 0, name
    assert (finished.folder / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert [line["method"] for line in csv.DictReader(open(finished.folder / "table.csv"))] == ["full", "lora", "last"]


def test_what_a_row_counts_is_what_the_method_is(finished, small_model):
    full, lora = finished.rows["full"], finished.rows["lora"]
    model, _ = folders.load(small_model)
    assert full.trained == full.total == sum(p.numel() for p in model.parameters())
    numbers = 8 * 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)              # rank, layers, in + out of q o, k v, gate up down
    assert (lora.trained, lora.total) == (numbers, full.total + numbers)
    for row in (full, lora):
        assert (row.gradient_bytes, row.optimizer_bytes) == (4 * row.trained, 8 * row.trained)         # AdamW keeps two averages
        assert 4 * row.trained < row.file_bytes < 4 * row.trained + 10_000
        assert 0 < row.training_bytes < row.peak_bytes and row.ms_per_step > 0 and row.tokens_per_s > 0
    assert full.whole and full.mergeable and not lora.whole and lora.mergeable


def test_every_method_gets_an_equal_search_and_as_many_seeds(finished):
    for name in ("full", "lora"):
        row = finished.rows[name]
        assert [float(rate) for rate in row.search] == pytest.approx([0.5 * METHODS[name].lr, 2 * METHODS[name].lr], rel=1e-5)
        assert f"{row.rate:g}" == min(row.search, key=row.search.get) and len(row.qualities) == 2
        assert row.qualities[0] != row.qualities[1]                                # another seed, another order


def test_a_resumed_comparison_measures_only_what_is_missing(finished, own, monkeypatch):
    measured = []

    def measure(folder, method):
        measured.append(method)
        return "not again"

    monkeypatch.setattr(compare, "measure", measure)
    same = dict(out=finished.folder, resume=True, **own, **SOME)
    before = (finished.folder / "rows/lora.json").read_text()
    result = run(Config(methods=("lora", "last", "head"), **same, seeds=2), quiet=True)
    assert measured == ["last", "head"]                                            # the failed one and the new one
    assert (finished.folder / "rows/lora.json").read_text() == before and isinstance(result.rows["full"], Measured)
    with pytest.raises(InputError, match="a resumed run keeps its settings: seeds was 2, is 3"):
        run(Config(**same, seeds=3), quiet=True)


def test_a_resumed_comparison_takes_the_model_as_it_is_told_now(own, tmp_path, monkeypatch):
    """Told from one folder, cut short before its first row, and gone on with from another folder."""
    shutil.copytree(own["model"], tmp_path / "models/m")
    (tmp_path / "elsewhere").mkdir()
    measured = []

    def measure(folder, method):
        measured.append(method)
        if len(measured) == 1:
            raise KeyboardInterrupt
        compare_row.main([str(folder), method])
        return read_row(folder / "rows" / f"{method}.json")

    monkeypatch.setattr(compare, "measure", measure)
    told = lambda root, **more: run(Config(**{**own, "model": f"{root}models/m"}, **SOME, seeds=1, methods=("head",), out=Path(f"{root}runs/c"), **more), quiet=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        told("")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert isinstance(told("../", resume=True).rows["head"], Measured) and measured == ["head", "head"]
    assert Task.read(tmp_path / "runs/c/task.json").model == "../models/m"


def test_nothing_measured_is_a_failure(own, tmp_path, monkeypatch, minift):
    monkeypatch.setattr(compare, "ROW", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    status, said, _ = minift("compare", "--out", tmp_path / "run", "--methods", "head", "--model", own["model"], "--data", *own["data"],
                             "--text", *own["text"], "--windows", 2, "--judged", 2, "--new-tokens", 2, "--precision", "fp32")    # fmt: skip
    assert status == 1 and "FAILED: its process was killed by signal 9; signal 9 often means that memory ran out" in said
    monkeypatch.setattr(compare, "ROW", [sys.executable, "-c", "raise SystemExit(3)"])
    assert compare.measure(tmp_path / "run", "head") == "its process ended with status 3 and no result: see head.log"
    assert read_row(tmp_path / "run/rows/head.json") == "its process ended with status 3 and no result: see head.log"
