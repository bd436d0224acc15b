"""Plausible bugs of the benchmarks beside other libraries: each would flatter somebody, mostly us."""

from tests.mutants.mutant import Mutant

HARNESS, TURNS, FRESH = "benchmarks/harness.py", "benchmarks/turns.py", "benchmarks/fresh.py"
REPORT, TRAINING, WRITING = "benchmarks/training_report.py", "benchmarks/training.py", "benchmarks/generation_case.py"


def mutant(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name=f"bench_{name}", file=file, old=old, new=new, test=f"tests/benchmarks/test_{test}.py")


MUTANTS = [
    mutant("losses_that_are_no_numbers_agree", HARNESS, "if not apart <= allowed:", "if apart > allowed:", "harness"),
    mutant("every_side_of_ours_is_the_first", HARNESS, "if place == 0 else", "if place >= 0 else", "harness"),
    mutant("a_ratio_of_ours_to_theirs", TURNS, "[t[kind] / o[kind] for", "[o[kind] / t[kind] for", "preference_step"),
    mutant("ratio_of_one_turn_with_the_next", TURNS, "zip(their.turns, our.turns)]", "zip(their.turns, our.turns[1:] + our.turns[:1])]", "preference_step"),
    mutant("work_not_counted", TURNS, '"wall": wall / self.work', '"wall": wall / len(self.losses)', "harness"),
    mutant("order_never_turns", TURNS, "[:: 1 if number % 2 else -1]", "[:: 1 if number < 0 else -1]", "preference_step"),
    mutant("a_page_forgets_the_commit_of_a_row", TURNS, 'other = row.get("on", on)', "other = on", "harness"),
    mutant("the_first_start_is_counted", FRESH, "            if number:\n", "            if True:\n", "fresh"),
    mutant("a_failed_start_is_a_fast_one", FRESH, 'if code := turn.pop("code"):', 'if (code := turn.pop("code")) < 0:', "fresh"),
    mutant("met_by_the_best_round", REPORT, 'if found["median"] < wanted:', 'if found["most"] < wanted:', "training"),
    mutant("memory_the_other_way_round", REPORT, "ratio <= MEMORY[name] else", "ratio >= MEMORY[name] else", "training"),
    mutant("trls_worst_mode_is_its_best", REPORT, 'min(modes, key=lambda name: row["faster"]', 'max(modes, key=lambda name: row["faster"]', "training"),
    mutant("losses_of_other_batches_compared", TRAINING, "SAME_ROWS[CASES[case].real] if name", "SAME_ROWS[0] if name", "training"),
    mutant("only_the_last_loss_compared", TRAINING, "losses[name][:3]", "losses[name][3:]", "training"),
    mutant("pads_are_tokens_learned", "benchmarks/training_ours.py", "batch.token_ids.count_nonzero().item()", "batch.token_ids.numel()", "training"),
    mutant("only_first_rows_compared", WRITING, "for number, (row, other) in enumerate(zip(rows, found[first])):", "for number, (row, other) in enumerate(zip(rows[:1], found[first])):", "generation"),
    mutant("half_the_tokens_will_do", WRITING, "if any(len(row) != new for row in rows):", "if any(len(row) > new for row in rows):", "generation"),
    mutant("int8_cost_counts_pads", "benchmarks/generation_ours.py", "[place + 1 < lengths, 0]", "[:, 0]", "generation"),
    mutant("a_profile_of_all_steps_for_one", "benchmarks/training_profile.py", "round(ms / work, 2) for part", "round(ms, 2) for part", "training_profile"),
    mutant("time_between_operations_lost", "benchmarks/training_profile.py", "max(0.0, wall - sum(found.values()))", "0.0", "training_profile"),
    mutant("a_bound_without_attention", "benchmarks/training_profile.py", '(ours["products"] + ours["attention"])', 'ours["products"]', "training_profile"),
    mutant("memory_at_the_end_for_the_most_of_it", "benchmarks/training_memory.py", "most = max(most, now)", "most = now", "training_memory"),
    mutant("memory_of_a_view_counted_again", "benchmarks/training_memory.py", "{found.untyped_storage().data_ptr(): found", "{id(found): found", "training_memory"),
    mutant("memory_of_gradients_counted_twice", "benchmarks/training_memory.py", "                    tensor.grad = None\n", "                    pass\n", "training_memory"),
]  # fmt: skip
