"""Planted bugs in what all methods share: rows of a batch, what the loop is told, options by name."""

from tests.mutants.mutant import Mutant

ATTACH, WRAPPER, TRAINING = "minift/peft/attach.py", "minift/peft/wrapper.py", "minift/peft/training.py"
ROWS, HOOKS, NAMES = "tests/peft/test_rows.py", "tests/peft/test_training.py", "tests/recipes/test_methods.py"

MUTANTS = [
    Mutant("rows_in_the_order_of_the_sets", WRAPPER, "return torch.cat(list(answers.values()))[order.argsort()]", "return torch.cat(list(answers.values()))", ROWS),
    Mutant("rows_of_an_unknown_name_are_the_base", ATTACH, "    for name in set(chosen) - {None}:\n        _known(state, name)\n", "", ROWS),
    Mutant("rows_stay_after_the_block", ATTACH, "        state.rows = outer\n        _point(state)", "        state.rows = outer", ROWS),
    Mutant("penalty_of_the_last_module_only", TRAINING, "torch.stack(asked).sum()", "asked[-1]", HOOKS),
    Mutant("penalty_while_disabled", TRAINING, "for w in state.wrappers.values() if w.active is not None]", "for w in state.wrappers.values() if (w.active := state.active)]", HOOKS),
    Mutant("lr_scale_ignored", "minift/train/optim.py", "getattr(p, \"lr_scale\", 1.0)", "1.0", HOOKS),
    Mutant("loop_tells_after_the_gradients_are_gone", "minift/train/loop.py",
           "                    if after_step is not None:\n", "                    for optimizer in optimizers:\n                        optimizer.zero_grad(set_to_none=True)\n                    if after_step is not None:\n",
           "tests/train/test_loop.py"),
    Mutant("unsettled_adapter_may_be_the_best", "minift/train/loop.py", "if (counts is None or counts(place.step, steps)) and", "if True and", "tests/train/test_loop.py"),
    Mutant("adalora_settled_too_early", "minift/peft/adalora.py", "return step >= self.schedule(steps)[1]", "return step >= self.schedule(steps)[0]", HOOKS),
    Mutant("checkpoint_forgets_running_averages", "minift/train/checkpoint.py", "        buffer.copy_(saved[name])", "        pass", "tests/train/test_checkpoint.py"),
    Mutant("penalty_once_per_batch_not_per_token", "minift/recipes/sft.py", "total + asked * targets", "total + asked", NAMES),
    Mutant("before_is_measured_with_the_fresh_method_on", "minift/recipes/sft.py", "    with as_base(model, config):\n        before, said_before", "    if True:\n        before, said_before", NAMES),
    Mutant("option_of_another_method_ignored", "minift/recipes/methods.py", "            raise InputError(text)\n", "            continue\n", NAMES),
    Mutant("rslora_by_name_without_its_scale", "minift/recipes/methods.py", "dict(rslora=True)", "dict()", NAMES),
]    # fmt: skip
