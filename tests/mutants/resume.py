"""Planted bugs in stopping and going on: what is saved, when, under which name, and what is read again."""

from tests.mutants.mutant import Mutant

LOOP, KEPT, FILE, STATE, RUN = "minift/train/loop.py", "minift/train/kept.py", "minift/train/state_file.py", "minift/train/checkpoint.py", "minift/train/run.py"
FILES, ON_POLICY, PRECISION = "minift/files.py", "minift/recipes/on_policy.py", "minift/train/precision.py"
RESUME, TEST_KEPT, TEST_FILE, TEST_RUN, TEST_STATE = (f"tests/train/test_{name}.py" for name in ("resume", "kept", "state_file", "run", "checkpoint"))

MUTANTS = [
    Mutant("the_random_state_of_the_interruption", LOOP, "checkpoint.state_of(model, stateful, place, random)", "checkpoint.state_of(model, stateful, place)", RESUME),
    Mutant("the_random_state_of_the_runs_start", LOOP, "place.step, place.score, random = place.step + 1, None, random_state(device)",
           "place.step, place.score = place.step + 1, None", RESUME),
    Mutant("an_evaluations_random_numbers_drawn_twice", LOOP, "            random = random_state(device)\n\n", "\n", RESUME),
    Mutant("an_interrupted_evaluation_is_skipped", LOOP, "if place.evaluated < place.step and due():", "if False:", RESUME),
    Mutant("a_step_interrupted_between_two_optimizers", LOOP, "with unbroken():\n                    for optimizer in optimizers:", "if True:\n                    for optimizer in optimizers:", RESUME),
    Mutant("an_evaluation_noted_by_half", LOOP, "with unbroken():\n            log.evaluation", "if True:\n            log.evaluation", RESUME),
    Mutant("patience_run_out_and_forgotten", LOOP, "for window in () if tired() else _windows(", "for window in _windows(", RESUME),
    Mutant("bad_evaluations_count_from_zero_again", STATE, "return Place(**{field.name: state[field.name] for field in fields(Place)})",
           'return Place(**{field.name: state[field.name] for field in fields(Place) if field.name != "bad"})', RESUME),
    Mutant("a_score_of_other_weights", LOOP, "random = place.step + 1, None, random_state(device)", "random = place.step + 1, place.score, random_state(device)", RESUME),
    Mutant("a_good_checkpoint_is_not_kept", LOOP, " or kept.is_good(place.score):", ":", RESUME),
    Mutant("the_best_averages_are_the_last_ones", LOOP, '            averages.load_state_dict(state["optimizers"][-1])', "            pass", "tests/train/test_ema.py"),
    Mutant("old_checkpoints_are_deleted_first", KEPT, "        state_file.write(path, state)\n        self.scores[state[\"step\"]] = state[\"score\"]\n",
           "        self.scores[state[\"step\"]] = state[\"score\"]\n", TEST_KEPT),
    Mutant("the_oldest_are_kept", KEPT, "sorted(self.scores)[-self.keep_last :]", "sorted(self.scores)[: self.keep_last]", TEST_KEPT),
    Mutant("the_worst_are_kept", KEPT, "key=lambda step: (self.scores[step], step)", "key=lambda step: (-self.scores[step], step)", TEST_KEPT),
    Mutant("of_equal_ones_the_last", KEPT, "key=lambda step: (self.scores[step], step)", "key=lambda step: (self.scores[step], -step)", TEST_KEPT),
    Mutant("a_damaged_one_counts_as_kept", KEPT, "                self._set_aside(bad)\n", "", TEST_KEPT),
    Mutant("the_newest_by_its_name", KEPT, "for step in sorted(self.scores, reverse=True):", "for step in sorted(self.scores, key=str, reverse=True):", TEST_KEPT),
    Mutant("a_new_run_keeps_an_older_ones_files", KEPT, "        for step in list(self.scores):\n            self._delete(step)", "        pass", TEST_KEPT),
    Mutant("pickles_are_overlooked", KEPT, "if not self.scores and (old :=", "if self.scores and (old :=", TEST_KEPT),
    Mutant("half_written_files_pile_up", KEPT, "            path.unlink()\n", "            pass\n", TEST_KEPT),
    Mutant("the_checksum_is_not_looked_at", FILE, 'if metadata["crc32"] != "%08x" % found:', "if False:", TEST_FILE),
    Mutant("the_checksum_leaves_out_what_is_not_wanted", FILE, "found = zlib.crc32(file.read(min(PIECE, end - place)), found)", "file.read(min(PIECE, end - place))", TEST_FILE),
    Mutant("the_header_is_not_in_the_checksum", FILE, "found = zlib.crc32(text)\n", "found = 0\n", TEST_FILE),
    Mutant("what_stands_behind_the_end", FILE, "if size != 8 + length +", "if size < 8 + length +", TEST_FILE),
    Mutant("tuples_come_back_as_lists", FILE, 'return {"tuple": found} if isinstance(value, tuple) else found', "return found", TEST_FILE),
    Mutant("tensors_begin_anywhere", FILE, "order = sorted(tensors, key=lambda name: -tensors[name].itemsize)", "order = list(tensors)", TEST_FILE),
    Mutant("a_file_is_not_synced", FILES, "            file.flush()\n            os.fsync(file.fileno())\n", "", TEST_FILE),
    Mutant("the_gpus_random_state_is_lost", STATE, 'torch.cuda.set_rng_state(state["cuda"], device)', "pass", TEST_STATE),
    Mutant("the_given_random_state_is_ignored", STATE, "random or random_state(", "random_state(", TEST_STATE),
    Mutant("only_some_options_are_protected", RUN, "for field in dataclasses.fields(config):", 'for field in [f for f in dataclasses.fields(config) if f.name in ("model", "data", "tokenizer")]:', TEST_RUN),
    Mutant("paths_in_pairs_are_not_protected", RUN, "yield from _paths([*value.keys(), *value.values()])", "yield from _paths(list(value.values()))", TEST_RUN),
    Mutant("any_path_was_moved", RUN, " == os.path.relpath(now, places[1])", "", TEST_RUN),
    Mutant("only_the_keys_of_a_pair_are_compared", RUN, "_same(list(before.values()), list(now.values()), places) and ", "", TEST_RUN),
    Mutant("another_start_measures_again", RUN, 'precision.recall(device, before["arithmetic"])', "pass", TEST_RUN),
    Mutant("what_was_recalled_is_forgotten", PRECISION, "(_recalled.get(device_type) or fastest(device_type))", "fastest(device_type)", "tests/train/test_precision.py"),
    Mutant("a_limit_that_was_passed_is_forgotten", ON_POLICY, '                    stopped = "kl" if too_far(after) else stopped\n                while', "                while", "tests/recipes/test_grpo.py"),
]    # fmt: skip
