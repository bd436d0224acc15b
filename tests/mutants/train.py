"""Planted bugs in the loop, the optimizer, checkpoints and files."""

from tests.mutants.mutant import Mutant

LOOP, OPTIM, TEST_LOOP = "minift/train/loop.py", "minift/train/optim.py", "tests/train/test_loop.py"

MUTANTS = [
    Mutant("mean_of_means", LOOP, "(loss_sum / targets).backward()", "(loss_sum / max(1, batch.targets) / len(window)).backward()", TEST_LOOP),
    Mutant("last_window_scaled_as_a_full_one", LOOP, "targets = max(1, sum(batch.targets for batch in window))",
           "targets = max(1, sum(batch.targets for batch in window)) * config.accumulate / len(window)", TEST_LOOP),
    Mutant("last_window_dropped", LOOP, "per_epoch = math.ceil(micro_batches / config.accumulate)",
           "per_epoch = micro_batches // config.accumulate", TEST_LOOP),
    Mutant("no_zero_grad", LOOP, "                    for optimizer in optimizers:\n                        optimizer.zero_grad()\n                    lap(\"optimizer\")\n", "                    lap(\"optimizer\")\n", TEST_LOOP),
    Mutant("resume_forgets_the_optimizer", "minift/train/checkpoint.py", "        optimizer.load_state_dict(saved)", "        pass", TEST_LOOP),
    Mutant("resume_starts_the_data_again", LOOP, "_windows(epoch_batches, config.accumulate, per_epoch, place.step, steps)",
           "_windows(epoch_batches, config.accumulate, per_epoch, 0, steps - place.step)", TEST_LOOP),
    Mutant("nan_reaches_the_weights", LOOP, "if not math.isfinite(total) or not torch.isfinite(norm):", "if False:", TEST_LOOP),
    Mutant("last_weights_returned_for_the_best", LOOP, "        checkpoint.load_parameters(model, state[\"parameters\"])", "        pass", TEST_LOOP),
    Mutant("muon_takes_the_head", OPTIM, 'isinstance(m, nn.Linear) and "blocks" in name.split(".")}', 'isinstance(m, nn.Linear) and name != "head"}', "tests/train/test_optim.py"),
    Mutant("norms_and_biases_decayed", OPTIM, "weight_decay if p.ndim >= 2 else 0.0)", "weight_decay)", "tests/train/test_optim.py"),
    Mutant("decay_inside_the_gradient", OPTIM, "[AdamW(parameter_groups(model, lr, weight_decay)", "[torch.optim.Adam(parameter_groups(model, lr, weight_decay)", "tests/train/test_optim.py"),
    Mutant("warmup_starts_at_zero", OPTIM, "return (step + 1) / warmup", "return step / warmup", "tests/train/test_optim.py"),
    Mutant("loss_not_shifted", "minift/losses/sft.py", "targets, counted = token_ids[:, 1:], loss_mask[:, 1:]", "targets, counted = token_ids[:, :-1], loss_mask[:, :-1]", "tests/losses/test_sft.py"),
    Mutant("loss_mask_ignored", "minift/losses/sft.py", "labels = targets.masked_fill(~counted, -100)", "labels = targets", "tests/losses/test_sft.py"),
    Mutant("old_folder_removed_before_the_new_is_whole", "minift/files.py", "    aside.mkdir()\n", "    aside.mkdir()\n    shutil.rmtree(path, ignore_errors=True)\n", "tests/test_files.py"),
    Mutant("overwrite_not_asked_for", "minift/files.py", "if path.is_dir() and any(path.iterdir()) and not overwrite:", "if False:", "tests/test_files.py"),
    Mutant("held_out_by_row_instead_of_module", "minift/data/pydocs.py", "if wanted == split:\n                result.append", "if True:\n                result.append", "tests/data/test_pydocs.py"),
]
