"""Planted bugs between the command line and the loop: recipes, run folders, logs, checkpoints."""

from tests.mutants.mutant import Mutant

CLI, FOLDER = "minift/cli.py", "minift/folder.py"
SFT, TUNING, TEST_SFT = "minift/recipes/sft.py", "minift/recipes/tuning.py", "tests/recipes/test_sft.py"
PRETRAIN, TEST_PRETRAIN = "minift/recipes/pretrain.py", "tests/recipes/test_pretrain.py"
TEST_USING = "tests/recipes/test_using.py"
LOG, RUN, CHECKPOINT = "minift/train/log.py", "minift/train/run.py", "minift/train/checkpoint.py"

MUTANTS = [
    Mutant(
        name="adaloras_schedule_is_asked_in_the_run",
        file="minift/recipes/tuning.py",
        old='    if config.method == "adalora":',
        new="    if False:",
        test="tests/recipes/test_methods.py",
    ),
    Mutant("an_interrupted_run_counts_as_done", CLI, 'getattr(result, "interrupted", False)', 'getattr(result, "stopped", False)', TEST_SFT),
    Mutant("bad_input_ends_in_status_one", CLI, "    except InputError as error:\n        print(f\"minift {verb}: {error}\", file=sys.stderr)\n        return 2",
           "    except InputError as error:\n        print(f\"minift {verb}: {error}\", file=sys.stderr)\n        return 1", "tests/test_cli.py"),
    Mutant("inherited_options_come_first", CLI, "for home in config.__mro__ for", "for home in reversed(config.__mro__) for", "tests/test_cli.py"),
    Mutant("a_swap_cut_short_is_never_finished", FOLDER, "path = recover(name)", "path = Path(name)", "tests/test_folder.py"),
    Mutant("a_tokenizer_may_be_larger_than_the_embedding", FOLDER, "    tokenizers.check_fits(tokenizer, model.config.vocab_size)\n", "", "tests/test_folder.py"),
    Mutant("held_out_rows_are_trained_on", SFT, "train_set, report = build(train_rows,", "train_set, report = build(rows,", TEST_SFT),
    Mutant("last_n_does_not_reach_the_method", "minift/recipes/methods.py", "\"last_n\": \"n\"", "\"last_n\": \"keep_base\"", TEST_SFT),
    Mutant("the_rest_is_not_frozen", "minift/peft/attach.py", "        model.requires_grad_(False)\n", "", TEST_SFT),
    Mutant("a_new_adapter_without_the_runs_seed", TUNING, "    torch.manual_seed(config.seed)\n", "", TEST_SFT),
    Mutant("options_of_another_method_are_ignored", TUNING, "(FLAGS[name] in known or v != defaults[name])", "FLAGS[name] in known", TEST_SFT),
    Mutant("a_folder_is_made_before_the_options_are_checked", SFT,
           '    choose_parameters(model, config, tokenizer)\n    refuse_too_long',
           '    open_run(config.out, "sft", config, config.overwrite, config.resume)\n    choose_parameters(model, config, tokenizer)\n    refuse_too_long', TEST_SFT),
    Mutant("an_adapter_without_its_template", TUNING, "if tokenizer.chat_template:", "if False:", TEST_SFT),
    Mutant("packed_rows_see_each_other", SFT, "model.hidden(batch.token_ids, segments=batch.segments)", "model.hidden(batch.token_ids)", TEST_SFT),
    Mutant("the_adapters_template_is_not_read", "minift/recipes/loading.py", "if template.exists():", "if False:", TEST_USING),
    Mutant("answers_do_not_end_where_the_template_ends_them", "minift/recipes/loading.py", "tokenizer.end_ids.add(end_of_turn(tokenizer))", "pass", TEST_USING),
    Mutant("a_merge_without_the_merging", "minift/recipes/merge.py", "report = peft.merge(model, config.requantize)", "report = {}", TEST_USING),
    Mutant("a_new_conversation_remembers", "minift/recipes/chat.py", "            messages = list(opening)\n            print(", "            print(", TEST_USING),
    Mutant("repeated_blocks_are_counted_once", "minift/recipes/inspect.py", "numbers = times * prod(shape)", "numbers = prod(shape)", TEST_USING),
    Mutant("new_weights_without_the_runs_seed", PRETRAIN, "    torch.manual_seed(config.seed)\n", "", TEST_PRETRAIN),
    Mutant("an_optimizer_refuses_once_the_earlier_run_is_gone", PRETRAIN, "    optimizers_of(config.optimizer, model,", "    (lambda *given: None)(config.optimizer, model,", TEST_PRETRAIN),
    Mutant("bits_and_nats_confused", PRETRAIN, " for text in valid_texts) / log(2)", " for text in valid_texts)", TEST_PRETRAIN),
    Mutant("an_interrupted_pre_training_counts_as_done", PRETRAIN, 'return self.outcome.stopped == "interrupted"', "return False", TEST_PRETRAIN),
    Mutant("samples_are_the_first_functions", "minift/recipes/docstrings.py", "found[i * len(found) // count]", "found[i]", "tests/recipes/test_quickstart.py"),
    Mutant("a_quickstart_replaces_any_run", "minift/recipes/quickstart.py", 'again = verb_of(config.out) == "quickstart"', "again = True",
           "tests/recipes/test_quickstart.py"),
    Mutant("a_running_mean_over_too_many", "minift/recipes/report.py", "values[max(0, i + 1 - width) : i + 1]) / (i", "values[max(0, i - width) : i + 1]) / (i",
           "tests/recipes/test_report.py"),
    Mutant("a_checkpoint_taken_for_a_run", RUN, 'content.get("verb") if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None',
           'content.get("verb", "?") if isinstance(content, dict) else None', "tests/train/test_run.py"),
    Mutant("a_resumed_run_may_change_its_rate", RUN, 'FREE_TO_CHANGE = {"resume",', 'FREE_TO_CHANGE = {"lr", "resume",', "tests/train/test_run.py"),
    Mutant("steps_taken_twice_are_logged_twice", LOG, 'if line["step"] <= start]', "]", "tests/train/test_log.py"),
    Mutant("steps_taken_twice_are_shown_twice", LOG, ", purge_step=start + 1)", ")", "tests/train/test_log.py"),
    Mutant("the_step_before_a_resume_is_not_shown", LOG, "purge_step=start + 1", "purge_step=start", "tests/train/test_log.py"),
    Mutant("the_time_left_counts_steps_of_the_first_start", LOG, "/ (step - self.start)", "/ step", "tests/train/test_log.py"),
    Mutant("a_checkpoint_written_in_place", "minift/files.py", 'aside = path.with_name(f".{path.name}.writing")\n    try:\n        with open', "aside = path\n    try:\n        with open", "tests/train/test_state_file.py"),
    Mutant("random_numbers_start_again", CHECKPOINT, '    torch.set_rng_state(state["cpu"])\n', "", "tests/train/test_checkpoint.py"),
    Mutant("bf16_wherever_it_is_not_slower", "minift/train/precision.py", "> 1.2 * seconds", "> 1.0 * seconds", "tests/train/test_precision.py"),
]    # fmt: skip
