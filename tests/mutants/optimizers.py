"""Planted bugs in optimizers, schedules, noise on embeddings, averages of weights and the search for a rate."""

from tests.mutants.mutant import Mutant

OPTIM, LION, ADAFACTOR, GALORE, EACH = (f"minift/train/{name}.py" for name in ("optim", "lion", "adafactor", "galore", "per_weight"))
NEFTUNE, EMA, FINDER, LOOP = (f"minift/train/{name}.py" for name in ("neftune", "ema", "lr_finder", "loop"))
FIND = "minift/recipes/find_lr.py"
TEST, PARITY, SCHEDULES = "tests/train/test_optimizers.py", "tests/parity/test_optimizers.py", "tests/train/test_optim.py"
TEST_NOISE, TEST_EMA, TEST_FINDER = "tests/train/test_neftune.py", "tests/train/test_ema.py", "tests/train/test_lr_finder.py"

MUTANTS = [
    Mutant("lion_steps_by_the_average_it_keeps", LION, "torch.sign(beta1 * m + (1 - beta1) * g)", "torch.sign(beta2 * m + (1 - beta2) * g)", TEST),
    Mutant("lion_remembers_before_it_steps", LION, "        w.add_(torch.sign(", "        m.mul_(beta2).add_(g, alpha=1 - beta2)\n        w.add_(torch.sign(", TEST),
    Mutant("adafactor_forgets_the_mean_of_the_rows", ADAFACTOR, "share = row / row.mean(-1, keepdim=True)", "share = row", TEST),
    Mutant("adafactor_is_not_clipped", ADAFACTOR, "(rms / group[\"clip\"]).clamp(min=1.0)", "1.0", TEST),
    Mutant("adafactor_stretches_short_steps", ADAFACTOR, ".clamp(min=1.0)", "", TEST),
    Mutant("adafactor_decays_as_adam", ADAFACTOR, 'state["step"] ** -group["decay"]', '1 - group["decay"]', TEST),
    Mutant("adafactor_divides_by_zero", ADAFACTOR, "g.square() + TINY", "g.square()", TEST),
    Mutant("adafactor_factors_no_matrix", ADAFACTOR, "if w.ndim < 2:\n            return", "if w.ndim < 9:\n            return", TEST),
    Mutant("galore_looks_for_directions_once", GALORE, '(state["step"] - 1) % group["every"] == 0', 'state["step"] == 1', TEST),
    Mutant("galore_looks_a_step_late", GALORE, '(state["step"] - 1) % group["every"] == 0', 'state["step"] == 1 or state["step"] % group["every"] == 0', TEST),
    Mutant("galore_projects_tall_matrices_from_the_wide_side", GALORE, "if g.shape[0] > g.shape[1]:", "if False:", TEST),
    Mutant("galore_scale_ignored", GALORE, 'alpha=-group["lr"] * group["scale"]', 'alpha=-group["lr"]', TEST),
    Mutant("galore_takes_the_last_directions", GALORE, '.U[:, : group["rank"]]', '.U[:, -group["rank"] :]', TEST),
    Mutant("galore_rotates_at_full_rank", GALORE, "min(w.shape) > rank", "min(w.shape) >= rank", TEST),
    Mutant("states_rounded_to_the_weights_dtype_on_resume", EACH, "        for p, _, saved in pairs:\n", "        for p, _, saved in []:\n", TEST),
    Mutant("every_weight_decayed_twice", EACH, 'w.mul_(1 - group["lr"] * group["weight_decay"])', 'w.mul_((1 - group["lr"] * group["weight_decay"]) ** 2)', TEST),
    Mutant("half_weights_never_written_back", EACH, "                if w is not p:\n                    p.copy_(w)\n", "", PARITY),
    Mutant("sgd_decays_in_the_gradient", OPTIM, 'group["decay"] = group.pop("weight_decay")', 'group["decay"] = 0.0', TEST),
    Mutant("sgd_without_momentum", OPTIM, "momentum=betas[0]", "momentum=0.0", TEST),
    Mutant("vectors_left_out_beside_galore", OPTIM, "    return [low, *_beside(rest, lr, weight_decay, betas)]", "    return [low]", TEST),
    Mutant("the_last_step_is_wasted", OPTIM, "max(0, step - start) / max(1, steps - start)", "max(0, step - start) / max(1, steps - 1 - start)", SCHEDULES),
    Mutant("wsd_falls_from_the_warm_up", OPTIM, 'if schedule == "wsd" else warmup', 'if schedule == "wds" else warmup', SCHEDULES),
    Mutant("noise_by_the_padded_row", NEFTUNE, "torch.where(batch.loss_mask, place, -1)", "place", TEST_NOISE),
    Mutant("noise_by_the_packed_row", NEFTUNE, "torch.zeros_like(place) if batch.segments is None else batch.segments", "torch.zeros_like(place)", TEST_NOISE),
    Mutant("noise_on_one_side", NEFTUNE, ".uniform_(-1, 1)", ".uniform_(0, 1)", TEST_NOISE),
    Mutant("noise_forgets_the_width", NEFTUNE, "alpha / (length * embedded.shape[-1])", "alpha / length", TEST_NOISE),
    Mutant("noise_stays_on_the_model", NEFTUNE, "            hook.remove()", "            pass", TEST_NOISE),
    Mutant("noise_when_measuring", NEFTUNE, "if not model.training:", "if False:", TEST_NOISE),
    Mutant("the_start_counts_in_the_average", EMA, "(1 - self.decay) / (1 - self.decay**self.step)", "1 - self.decay", TEST_EMA),
    Mutant("the_averages_stay_in_the_model", EMA, "                p.copy_(self.kept[name])", "                pass", TEST_EMA),
    Mutant("averages_start_anew_on_resume", EMA, "            average.copy_(saved[name])", "            pass", TEST_EMA),
    Mutant("averages_are_not_measured", LOOP, "measured = averages.applied if averages else", "measured = contextlib.nullcontext if averages else", TEST_EMA),
    Mutant("averages_are_not_the_result", LOOP, "        averages.into_model()\n", "        pass\n", TEST_EMA),
    Mutant("a_step_cut_short_draws_anew", LOOP, "checkpoint.state_of(model, stateful, place, random,", "checkpoint.state_of(model, stateful, place, None,", "tests/train/test_loop.py"),
    Mutant("averages_not_in_the_checkpoint", LOOP, "[*optimizers, averages] if averages else optimizers", "optimizers", TEST_EMA),
    Mutant("sweep_keeps_its_weights", FINDER, "        checkpoint.load_parameters(model, parameters)\n", "", TEST_FINDER),
    Mutant("sweep_never_stops", FINDER, "if smooth[-1] > BURST * min(smooth):", "if False:", TEST_FINDER),
    Mutant("sweep_smooths_without_correction", FINDER, "average / (1 - beta**i)", "average", TEST_FINDER),
    Mutant("sweep_at_one_rate", FINDER, "set_learning_rate(optimizers, rate)", "set_learning_rate(optimizers, rates[0])", TEST_FINDER),
    Mutant("sweep_suggests_the_lowest_point", FINDER, "return self.rates[self.lowest] / 10 if", "return self.rates[self.lowest] if", TEST_FINDER),
    Mutant("sweep_moves_the_random_numbers", FINDER, "        torch.set_rng_state(random_state)\n", "", TEST_FINDER),
    Mutant("find_lr_takes_a_rate", FIND, 'WITHOUT_EFFECT = ("lr", ', "WITHOUT_EFFECT = (", "tests/recipes/test_find_lr.py"),
]  # fmt: skip
