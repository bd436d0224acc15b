"""The page on preference losses is what its script writes, and what it says in words is what its tables say."""

from pathlib import Path

import pytest
from benchmarks.preference_losses import LOSSES, PAIRS, measure, page

PAGE = Path(__file__).parents[2] / "docs" / "preference_losses.md"
FOUND = {loss.name: {pair.name: measure(loss, pair) for pair in PAIRS} for loss in LOSSES}


def up(name, situation):
    """How hard the loss pushes the chosen answer's log p up."""
    return -FOUND[name][situation][1]


def down(name, situation):
    return FOUND[name][situation][2]


def test_the_page_is_what_the_script_writes():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_losses_of_the_lead_do_not_see_both_answers_fall_and_apo_zero_does():
    for name in ("dpo", "cdpo", "robust", "hinge"):
        assert FOUND[name]["apart"] == pytest.approx(FOUND[name]["both fell"])
    assert FOUND["apo-zero"]["both fell"][0] > FOUND["apo-zero"]["apart"][0]
    assert up("apo-zero", "both fell") == pytest.approx(up("apo-zero", "apart")) and down("apo-zero", "both fell") < down("apo-zero", "apart")


def test_kto_without_a_kl_is_apo_zero():
    for pair in PAIRS:
        assert FOUND["kto"][pair.name] == pytest.approx(FOUND["apo-zero"][pair.name])


def test_who_lets_go_of_a_pair_that_is_over_fit():
    assert 0 < up("dpo", "over-fit") < 1e-3 and up("hinge", "over-fit") == up("hinge", "apart") == 0
    assert up("cdpo", "over-fit") < 0 and up("ipo", "over-fit") < 0
    assert up("robust", "over-fit") > 0.01 and FOUND["robust"]["over-fit"][0] < 0
    assert down("apo-zero", "over-fit") < 1e-3 < 1e-2 < up("apo-zero", "over-fit")


def test_who_pushes_a_wrong_label():
    for name in ("dpo", "cdpo", "robust"):
        assert up(name, "backwards") == max(up(name, pair.name) for pair in PAIRS)
    assert up("robust", "backwards") > up("dpo", "backwards") > up("cdpo", "backwards")
    assert up("hinge", "backwards") == up("hinge", "start") and up("apo-zero", "backwards") < up("apo-zero", "start")


def test_apo_down_leaves_the_chosen_answer_alone_at_the_start_and_then_lets_it_fall():
    assert up("apo-down", "start") == pytest.approx(0) and up("apo-down", "apart") < 0


def test_length_is_seen_by_cpo_alone_and_means_share_their_push():
    for name, found in FOUND.items():
        assert (abs(found["start"][0] - found["start, long"][0]) > 0.1) == (name == "cpo"), name
    for name in ("ipo", "simpo", "orpo"):
        assert up(name, "start, long") == pytest.approx(up(name, "start") / 4)


def test_orpo_is_mostly_imitation():
    assert 0.9 < 0.1 / up("orpo", "start") < 1


def test_ipo_pulls_hardest_until_its_target_is_near():
    pull = lambda name, situation: max(abs(value) for value in FOUND[name][situation][1:])
    for pair in PAIRS:
        others = max(pull(name, pair.name) for name in FOUND if name != "ipo")
        assert (pull("ipo", pair.name) > 3 * others) == (pair.name != "over-fit")
