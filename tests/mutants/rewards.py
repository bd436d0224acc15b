"""Planted bugs in where rewards and preferences come from."""

from tests.mutants.mutant import Mutant

SOURCE, RULES, FUNCTIONS, MODELS = (f"minift/rl/{name}.py" for name in ("reward_source", "builtin_rewards", "function_rewards", "model_rewards"))
REWARDS, JUDGE, ENDPOINT, VERDICTS, CANDIDATES = (f"minift/rl/{name}.py" for name in ("rewards", "judge", "endpoint", "verdicts", "candidates"))
RLAIF, RLHF = "minift/recipes/rlaif.py", "minift/recipes/rlhf.py"
TEST, JUDGES, RUNS, STAGES = "tests/rl/test_rewards.py", "tests/rl/test_judge.py", "tests/recipes/test_rlaif.py", "tests/recipes/test_rlhf.py"

MUTANTS = [
    Mutant("reward_nan_accepted", SOURCE, "not math.isfinite(value)", "math.isinf(value)", TEST),
    Mutant("reward_of_the_wrong_number_accepted", SOURCE, "len(found) != len(answers)", "len(found) < len(answers)", TEST),
    Mutant("reward_error_names_the_first_row", SOURCE, 'RewardError(f"{answer.row.where}: the reward {name} is {float', 'RewardError(f"data.jsonl, line 1: the reward {name} is {float', TEST),
    Mutant("reward_rows_without_the_last", SOURCE, '", ".join(places[:4])', '", ".join(places[:1])', TEST),
    Mutant("numeric_takes_the_first_number", RULES, "found[0 if mark else -1]", "found[0]", TEST),
    Mutant("numeric_takes_the_last_behind_the_mark", RULES, "found[0 if mark else -1]", "found[-1]", TEST),
    Mutant("numeric_forgets_the_sign", RULES, "* (-1 if negative else 1)", "", TEST),
    Mutant("numeric_subtraction_is_a_sign", RULES, r"(?<![\w).])[-+", r"[-+", TEST),
    Mutant("length_counts_the_end_token", RULES, "len(answer.ids) - answer.ended - wanted", "len(answer.ids) - wanted", TEST),
    Mutant("function_may_end_the_program", FUNCTIONS, "except (Exception, SystemExit) as error:\n            raise RewardError", "except Exception as error:\n            raise RewardError", TEST),
    Mutant("function_gets_every_column", FUNCTIONS, "if self.takes_all or name in self.takes", "", TEST),
    Mutant("reward_model_reads_no_end_token", MODELS, "continues=True), tokenizer.eos_id]", "continues=True)] or [tokenizer.eos_id]", TEST),
    Mutant("reward_model_rewards_in_the_order_of_batches", MODELS, "return [scores[number] for number in range(len(answers))]", "return list(scores.values())", TEST),
    Mutant("reward_weights_ignored", REWARDS, "sum(weight * value for", "sum(value for", TEST),
    Mutant("reward_parts_are_weighted", REWARDS, "self.parts = {source.name: ask(source, answers) for source, _ in", "self.parts = {source.name: [w * v for v in ask(source, answers)] for source, w in", TEST),
    Mutant("judge_asked_in_one_order", VERDICTS, "orders = [(pair, pair[::-1]) for", "orders = [(pair, pair) for", JUDGES),
    Mutant("judge_disagreement_kept", VERDICTS, 'return Decision("place", votes)', 'return Decision("agreed", votes, winner=0 if first == "A" else 1)', JUDGES),
    Mutant("judge_verdict_inverted", VERDICTS, 'winner=0 if first == "A" else 1)', 'winner=0 if swapped == "A" else 1)', JUDGES),
    Mutant("judge_failure_is_a_tie", VERDICTS, "if None in votes:", "if votes == (None, None):", JUDGES),
    Mutant("judge_failures_remembered", VERDICTS, "if vote is not None:\n", "if True:\n", JUDGES),
    Mutant("judge_forgets_what_was_asked", VERDICTS, "known(log) if log else {}", "{}", JUDGES),
    Mutant("judge_question_without_its_prompt", VERDICTS, "[judge.what, first.row.question, first.text, second.text]", "[judge.what, first.text, second.text]", JUDGES),
    Mutant("judge_known_by_where_it_is", VERDICTS, "[judge.what, first.row.question,", "[judge.name, first.row.question,", RUNS),
    Mutant("judge_votes_of_all_judges_are_one", VERDICTS, "[judge.what, first.row.question,", "[first.row.question,", JUDGES),
    Mutant("judge_asked_after_all", VERDICTS, "if ask and name not in votes]", "if name not in votes]", JUDGES),
    Mutant("judge_in_a_moved_folder_is_another", JUDGE, "os.path.basename(os.path.realpath(part)) if os.path.exists(part) else part", "part", RUNS),
    Mutant("judge_named_as_it_is_told", JUDGE, "os.path.basename(os.path.realpath(part))", "os.path.basename(part)", JUDGES),
    Mutant("judge_at_another_address_is_another", JUDGE, 'at {endpoint.url}", endpoint.model, endpoint, criterion', 'at {endpoint.url}", endpoint.url, endpoint, criterion', JUDGES),
    Mutant("judge_answers_swapped_in_the_question", JUDGE, "first=first.text.strip(), second=second.text.strip()", "first=second.text.strip(), second=first.text.strip()", JUDGES),
    Mutant("judge_reads_a_pad", JUDGE, "hidden[torch.arange(len(prompts)), lengths - 1]", "hidden[:, -1]", JUDGES),
    Mutant("judge_guesses_between_two_letters", JUDGE, "named.pop() if len(named) == 1", "named.pop() if named", JUDGES),
    Mutant("endpoint_never_retries", ENDPOINT, "for attempt in range(self.retries + 1):", "for attempt in range(1):", JUDGES),
    Mutant("endpoint_retries_once_more", ENDPOINT, "for attempt in range(self.retries + 1):", "for attempt in range(self.retries + 2):", JUDGES),
    Mutant("endpoint_retries_a_wrong_key", ENDPOINT, "error.code in PASSING or error.code >= 500", "True", JUDGES),
    Mutant("endpoint_failures_without_a_bound", ENDPOINT, '> self.max_failures:', '> 10**9:', JUDGES),
    Mutant("endpoint_quotes_the_key", ENDPOINT, 'said.replace(self.key, "***") if self.key else said', "said", JUDGES),
    Mutant("endpoint_follows_redirects", ENDPOINT, "build_opener(NoRedirect)", "build_opener()", JUDGES),
    Mutant("endpoint_ignores_retry_after", ENDPOINT, "fault.wait or self.wait", "self.wait", JUDGES),
    Mutant("answers_share_a_seed", CANDIDATES, "seeds[number * how.count + k]", "seeds[number * how.count]", RUNS),
    Mutant("unfinished_answers_judged", CANDIDATES, "if answer.ended and answer.text.strip()", "if answer.text.strip()", RUNS),
    Mutant("rlaif_rejected_is_chosen", RLAIF, "chosen, rejected = pair[decision.winner], pair[1 - decision.winner]", "rejected, chosen = pair[decision.winner], pair[1 - decision.winner]", RUNS),
    Mutant("rlaif_writes_what_was_dropped", RLAIF, "zip(pairs, decisions) if decision.winner is not None]", "zip(pairs, decisions)]", RUNS),
    Mutant("rlaif_asks_again_while_it_trains", RLAIF, "ask=not begun)", "ask=True)", RUNS),
    Mutant("rlaif_rewrites_what_is_trained_on", RLAIF, "(lambda file, text: None) if begun else write_text", "write_text", RUNS),
    Mutant("rlhf_rewards_on_a_base_that_was_elsewhere", RLHF, "for name in STAGES[1:]:", "for name in STAGES[2:]:", STAGES),
    Mutant("rlhf_leaves_an_adapter_on_a_base_that_was_elsewhere", RLHF, "for name in STAGES[1:]:", "for name in STAGES[1:2]:", STAGES),
    Mutant("rlhf_takes_any_base_for_its_own", RLHF, ".parts[-2:] == answers.parts[-2:]:", ".parts:", STAGES),
]  # fmt: skip
