"""Planted bugs between a file of preferences and its trees; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

READ, FORMATS, TREES = "minift/data/preferences.py", "minift/data/preference_formats.py", "minift/data/preference_trees.py"
EXAMPLES, PROMPTS, SHOW = "minift/data/examples.py", "minift/data/prompts.py", "minift/data/show.py"
TEST, TEST_PROMPTS = "tests/data/test_preferences.py", "tests/data/test_prompts.py"

MUTANTS = [
    Mutant(
        name="tie_kept",
        file=READ,
        old="    return a.answer.strip() == b.answer.strip()",
        new="    return a.answer == b.answer",
        test=TEST,
    ),
    Mutant(
        name="empty_answer_kept_if_the_other_is_not",
        file=READ,
        old="(chosen.answer.strip() and rejected.answer.strip())",
        new="(chosen.answer.strip() or rejected.answer.strip())",
        test=TEST,
    ),
    Mutant(
        name="pairs_split_by_answer",
        file=READ,
        old="        return self.chosen.question\n",
        new="        return self.chosen.question + self.chosen.answer\n",
        test=TEST,
    ),
    Mutant(
        name="label_inverted",
        file=FORMATS,
        old='{"true": True, "1": True, "false": False, "0": False}',
        new='{"true": False, "1": False, "false": True, "0": True}',
        test=TEST,
    ),
    Mutant(
        name="label_by_truth_of_its_text",
        file=FORMATS,
        old="    return known[text]",
        new="    return bool(value)",
        test=TEST,
    ),
    Mutant(
        name="both_answers_of_a_pair_desirable",
        file=READ,
        old="Labelled(pair.where, row, row is pair.chosen)",
        new="Labelled(pair.where, row, True)",
        test=TEST,
    ),
    Mutant(
        name="rejected_answer_first_in_the_tree",
        file=TREES,
        old="(pair, (pair.chosen, pair.rejected))",
        new="(pair, (pair.rejected, pair.chosen))",
        test=TEST,
    ),
    Mutant(
        name="ranking_worst_first",
        file=FORMATS,
        old="*_rows(_question(name, record), better, worse, place)",
        new="*_rows(_question(name, record), worse, better, place)",
        test=TEST,
    ),
    Mutant(
        name="answer_without_its_end_token",
        file=EXAMPLES,
        old="return ids[:start], ids[start:]",
        new="return ids[:start], ids[start:-1]",
        test=TEST,
    ),
    Mutant(
        name="prompt_takes_the_answers_first_token",
        file=EXAMPLES,
        old="return ids[:start], ids[start:]",
        new="return ids[: start + 1], ids[start + 1 :]",
        test=TEST,
    ),
    Mutant(
        name="prompt_reaches_into_a_word",
        file=FORMATS,
        old="    return ends[-1]\n",
        new="    return ends[-1] if marked else shared\n",
        test=TEST,
    ),
    Mutant(
        name="prompt_ends_at_the_first_assistant",
        file=FORMATS,
        old="    return ends[-1]\n",
        new="    return ends[0]\n",
        test=TEST,
    ),
    Mutant(
        name="prompt_taken_from_one_conversation_unchecked",
        file=FORMATS,
        old="    if asked != rejected[:-1]:\n",
        new="    if False:\n",
        test=TEST,
    ),
    Mutant(
        name="prompt_shortened_for_each_answer_by_its_own_length",
        file=TREES,
        old="max(map(len, tree.answers)), max_length)",
        new="min(map(len, tree.answers)), max_length)",
        test=TEST,
    ),
    Mutant(
        name="margin_of_the_wrong_sign",
        file=FORMATS,
        old='given["score_chosen"] - given["score_rejected"]',
        new='given["score_rejected"] - given["score_chosen"]',
        test=TEST,
    ),
    Mutant(
        name="ties_by_truncation_kept",
        file=TREES,
        old="if len(rows) == 2 and tree.answers[0] == tree.answers[1]:",
        new="if False:",
        test=TEST,
    ),
    Mutant(
        name="shown_preferences_count_the_prompt",
        file=SHOW,
        old="[False] * len(tree.prompt) + [True] * len(answer)",
        new="[True] * len(tree.prompt) + [True] * len(answer)",
        test="tests/data/test_show.py",
    ),
    Mutant(
        name="answer_shown_in_the_prompt",
        file=PROMPTS,
        old='"".join(turn["content"] for turn in (turns[:-1] if',
        new='"".join(turn["content"] for turn in (turns if',
        test=TEST_PROMPTS,
    ),
    Mutant(
        name="column_for_the_reward_overwritten_by_the_answer",
        file=PROMPTS,
        old='{"answer": answer, **others}',
        new='{**others, "answer": answer}',
        test=TEST_PROMPTS,
    ),
]
