"""Planted bugs in what measures the methods; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

FORGETTING, TEST_FORGETTING = "minift/evaluate/forgetting.py", "tests/evaluate/test_forgetting.py"
COMPARE, ROW, TABLE = "minift/recipes/compare.py", "minift/recipes/compare_row.py", "minift/recipes/compare_table.py"
PLOTS, FINDINGS = "minift/recipes/compare_plots.py", "minift/recipes/compare_findings.py"
TEST = "tests/recipes/test_compare.py"

MUTANTS = [
    Mutant("forgetting_upside_down", FORGETTING, "self.after.nats_per_token - self.before.nats_per_token",
           "self.before.nats_per_token - self.after.nats_per_token", TEST_FORGETTING),
    Mutant("forgetting_on_other_windows", FORGETTING, "if after.tokens != before.tokens:", "if False:", TEST_FORGETTING),
    Mutant("forgetting_windows_overlap", FORGETTING, "len(ids) - room + 1, room)", "len(ids) - room + 1, room // 2)", TEST_FORGETTING),
    Mutant("forgetting_loses_the_window_that_just_fits", FORGETTING, "len(ids) - room + 1, room)", "len(ids) - room, room)", TEST_FORGETTING),
    Mutant("forgetting_on_the_first_documents_only", FORGETTING, "found[i * len(found) // count]", "found[i]", TEST_FORGETTING),
    Mutant("compare_reads_its_parents_peak", ROW, 'Path("/proc/self/status")', 'Path("/proc/none")', TEST),
    Mutant("compare_peak_of_the_evaluation_too", ROW, "        peak_bytes=watches[0].peak,", "        peak_bytes=memory()[1],", TEST),
    Mutant("compare_training_memory_with_the_model", ROW, "watches[0].peak - watches[0].resident", "watches[0].peak", TEST),
    Mutant("compare_takes_the_worst_rate", ROW, "run.loss < best.loss", "run.loss > best.loss", TEST),
    Mutant("compare_chooses_the_rate_on_the_judged_rows", ROW, "(tokenizer, train_set, valid_set), {}", "(tokenizer, train_set, judged_set), {}", TEST),
    Mutant("compare_repeats_one_seed", ROW, "best.config.lr, seed, *sides", "best.config.lr, 0, *sides", TEST),
    Mutant("compare_counts_pads", ROW, "int((batch.segments > 0).sum())", "batch.token_ids.numel()", TEST),
    Mutant("compare_times_the_warm_up", ROW, "return between[WARM_UP:] or between", "return between", TEST),
    Mutant("compare_slowdown_upside_down", ROW, "taken[id(model)] / taken[id(base)]", "taken[id(base)] / taken[id(model)]", TEST),
    Mutant("compare_base_always_first", ROW, "if number % 2 else (model, base)", "if True else (model, base)", TEST),
    Mutant("compare_counts_step_counters", ROW, "isinstance(value, torch.Tensor) and value.ndim)", "isinstance(value, torch.Tensor))", TEST),
    Mutant("compare_shows_all_of_an_error", ROW, '(str(error) or "no message").splitlines()[0]', "str(error)", TEST),
    Mutant("compare_a_diverged_rate_ends_the_row", ROW, "        except FloatingPointError: ", "        except ZeroDivisionError: ", TEST),
    Mutant("compare_resumes_nothing", COMPARE, "return config.resume and isinstance(", "return False and isinstance(", TEST),
    Mutant("compare_resumes_failed_rows_as_done", COMPARE, 'isinstance(read_row(folder / "rows" / f"{name}.json"), Measured)',
           'read_row(folder / "rows" / f"{name}.json") is not None', TEST),
    Mutant("compare_resumes_with_the_model_as_it_was_told", COMPARE, "task = replace(task, model=str(config.model))", "task = replace(task)", TEST),
    Mutant("compare_quick_overrides_what_was_given", COMPARE, " if getattr(config, name) == defaults[name]}", "}", TEST),
    Mutant("compare_judges_the_rows_it_learns_from", COMPARE, "train, valid = split_rows(rest,", "train, valid = split_rows(rows,", TEST),
    Mutant("compare_success_without_a_row", COMPARE, "return not any(isinstance(row, Measured)", "return not any(True", TEST),
    Mutant("compare_table_forgetting_upside_down", TABLE, 'row.mean("perplexity") / task.before.perplexity', 'task.before.perplexity / row.mean("perplexity")', TEST),
    Mutant("compare_ties_take_the_first_rank", TABLE, "(1 + sum(other == value for other in values)) / 2", "1", TEST),
    Mutant("compare_optimizer_without_gradients", TABLE, "size(row.gradient_bytes + row.optimizer_bytes)", "size(row.optimizer_bytes)", TEST),
    Mutant("compare_labels_on_top_of_each_other", PLOTS, "        taken.append(box)\n", "", TEST),
    Mutant("compare_always_finds_the_same", FINDINGS, "if few == least:", "if False:", TEST),
    Mutant("compare_orders_what_chance_orders", FINDINGS, "<= (off[name] ** 2 + off[best] ** 2) ** 0.5]", "<= 0]", TEST),
]    # fmt: skip
