"""benchmarks/preference_step.py: our steps are the losses they claim, turns are counted right, and the page says what was measured.

What takes the other libraries is in tests/parity/test_preference_step.py."""

import math
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import preference_step, turns
from benchmarks.preference_step_case import END, GROUPS, QUICK, preferences, prompts, text
from benchmarks.preference_step_ours import Words
from benchmarks.preference_step_report import line, write_page
from minift.models.config import ModelConfig
from minift.models.folder import read_model, write_model
from minift.models.scorer import Scorer
from minift.models.transformer import Transformer

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What write_start writes, without transformers."""
    folder = tmp_path_factory.mktemp("start")
    shape = dict(vocab_size=QUICK.vocab, hidden_size=QUICK.width, layers=QUICK.layers, heads=QUICK.heads, kv_heads=QUICK.heads,
                 head_dim=QUICK.width // QUICK.heads, mlp_size=QUICK.inner, max_positions=64)  # fmt: skip
    torch.manual_seed(0)
    write_model(Transformer(ModelConfig(**shape, tie_embeddings=True)), folder / "base")
    for name in ("scorer", "value"):
        write_model(Scorer(ModelConfig(**shape, tie_embeddings=True, labels=1)), folder / name)
    return folder


class Ended(Exception):
    pass


class Six:
    """A gate that ends a side after six steps: every batch twice."""

    def __init__(self):
        self.losses = []

    def open(self):
        self.losses = []

    def tick(self, loss):
        self.losses.append(loss)
        if len(self.losses) == 2 * QUICK.batches:
            raise Ended


def taken(target, folder, precision="fp32"):
    gate = Six()
    with pytest.raises(Ended):
        preference_step.run_side(gate, target, folder, QUICK, precision)
    return gate.losses


@torch.no_grad()
def test_our_first_reward_loss_is_that_of_texts_run_one_by_one(start):
    model = read_model(start / "scorer")
    score = lambda ids: model(torch.tensor([ids]))[0, -1, 0]
    leads = torch.stack([score(p + c) - score(p + r) for p, c, r in preferences(QUICK)[: QUICK.pairs]])
    with torch.enable_grad():
        losses = taken("ours.learn_reward", start)
    assert losses[0] == pytest.approx(-F.logsigmoid(leads).mean().item(), abs=1e-5)
    assert all(again < once for once, again in zip(losses[:3], losses[3:]))  # it learns


def test_our_dpo_starts_at_its_reference_and_leaves_it(start):
    losses = taken("ours.learn_dpo", start)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(again < 0.68 for again in losses[3:])                        # the policy moves, the reference does not


def test_a_reference_computed_once_gives_the_losses_of_one_run_in_every_step(start):
    assert taken("ours.learn_dpo_once", start) == pytest.approx(taken("ours.learn_dpo", start), abs=1e-5)


@pytest.mark.parametrize("case", list(GROUPS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_recipes_that_draw_answers_run(start, case, precision):
    assert all(abs(loss) < 10 for loss in taken(f"ours.learn_{case}", start, precision))


def test_rows_have_the_lengths_that_the_page_names_and_end_where_trainers_end_them():
    rows = preferences(QUICK)
    assert {(len(p), len(c), len(r)) for p, c, r in rows} == {(QUICK.prompt, QUICK.answer, QUICK.answer)} and len(rows) == QUICK.batches * QUICK.pairs
    assert all(c[-1] == r[-1] == END and END not in p + c[:-1] + r[:-1] for p, c, r in rows)
    assert len(prompts(QUICK, "rloo")) == QUICK.batches * GROUPS["rloo"][0]
    assert text([END, 7]) == "</s> w7"


def test_a_word_is_a_token_with_the_calls_that_the_loop_makes():
    ids = [0, 4, END, 511]
    assert Words().decode(ids, continues=True) == text(ids) and Words().encode(text(ids), add_special_tokens=False, continues=True) == ids


def counting(gate):
    print("something of a library's own")
    gate.open()
    for step in range(10**6):
        gate.tick(float(step))


def failing(gate):
    gate.open()
    raise ValueError("a step went wrong")


def test_a_side_takes_the_steps_of_its_turns_and_what_it_prints_goes_into_the_log(tmp_path):
    side = turns.Side(SPAWN, counting, log=tmp_path / "log")
    try:
        assert side.loaded() > 1
        side.steps(1, timed=False)
        turns.turns({"it": side}, rounds=3, steps=2)
        assert side.losses == [0, 1, 2, 3, 4, 5, 6] and len(side.turns) == 3
        assert all(turn["wall"] > 0 and turn["peak"] >= side.before for turn in side.turns)
    finally:
        side.stop()
    side = turns.Side(SPAWN, failing, log=tmp_path / "log")
    side.loaded()
    with pytest.raises(RuntimeError, match="ValueError: a step went wrong"):
        side.steps(1)
    assert "in failing" in (tmp_path / "log").read_text()


class Recorded:
    """A side that says when it was its turn."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def steps(self, count):
        self.said.append((self.name, count))


def test_the_order_is_reversed_from_round_to_round_and_goes_on_reversing():
    said = []
    sides = {name: Recorded(name, said) for name in "abc"}
    turns.turns(sides, rounds=1, steps=2)
    turns.turns(sides, rounds=2, steps=2, start=1)
    assert "".join(name for name, _ in said) == "cbaabccba" and {count for _, count in said} == {2}


def test_a_ratio_is_of_one_round():
    their, our = (SimpleNamespace(turns=[{"wall": wall} for wall in walls]) for walls in ([6.0, 9.0, 30.0], [2.0, 1.0, 6.0]))
    assert turns.faster(their, our, "wall") == {"median": 5.0, "least": 3.0, "most": 9.0}


def test_a_side_costs_what_its_middle_turn_costs():
    side = SimpleNamespace(before=100.0, turns=[{"wall": w, "cpu": c, "peak": p} for w, c, p in [(0.5, 0.9, 300), (0.1, 0.25, 310), (0.2, 0.2, 320.4)]])
    side.seconds = lambda: turns.Side.seconds(side)
    assert turns.Side.summary(side) == {"ms": 200, "cpu_s": 0.25, "peak_mib": 320, "added_mib": 220}


def test_losses_that_differ_stop_the_row():
    assert preference_step.agreed({"a": [0.5, 0.7], "b": [0.5, 0.75]}, 0.1) == pytest.approx(0.05)
    with pytest.raises(RuntimeError, match="differ"):
        preference_step.agreed({"a": [0.5, 0.7], "b": [0.5, 0.75]}, 0.01)
    with pytest.raises(RuntimeError, match="differ"):
        preference_step.agreed({"a": [float("nan")], "b": [0.5]}, 0.01)


ROW = {
    "rounds": 3, "apart": 2e-6,
    "sides": {"trl": {"ms": 4000, "cpu_s": 7.5, "peak_mib": 5000, "added_mib": 4500}, "minift": {"ms": 1000, "cpu_s": 2.0, "peak_mib": 1500, "added_mib": 1100}},
    "faster": {"trl": {"wall": {"median": 4.0, "least": 3.9, "most": 4.2}, "cpu": {"median": 3.75, "least": 3.7, "most": 3.8}}},
}  # fmt: skip


def test_a_line_of_the_page():
    assert line("dpo fp32", ROW) == (
        "| dpo | fp32 | trl | 4,000 | 1,000 | **4.00** (3.90 to 4.20) | 3.2 / 4 | 3.75 (3.70 to 3.80) | 5,000 / 1,500 | 0.30 | 2e-06 |"
    )


def test_the_table_is_put_between_the_pages_marks_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- table -->\nold\n<!-- end of table -->\n\nWhat it means.\n")
    values = {"rows": {"dpo fp32": ROW}, "machine": {"cpu": "C", "threads": 2, "torch": "T", "transformers": "F", "trl": "L", "python": "P", "commit": "abc"}}
    for _ in range(2):
        write_page(page, values)
    written = page.read_text()
    assert written.startswith("# Speed\n\n<!-- table -->\n| step |") and written.endswith("<!-- end of table -->\n\nWhat it means.\n")
    assert line("dpo fp32", ROW) in written and "old" not in written and written.count("| dpo |") == 1
