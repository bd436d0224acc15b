"""Bugs in telling where time, arithmetic and memory go."""

from tests.mutants.mutant import Mutant

PROFILE, FLOPS, KINDS = (f"minift/train/{name}.py" for name in ("profile", "flops", "memory_kinds"))
PAGE, LOOP = "minift/recipes/profile_report.py", "minift/train/loop.py"
TEST, TEST_KINDS, TEST_PAGE = "tests/train/test_profile.py", "tests/train/test_memory_kinds.py", "tests/recipes/test_profile.py"

MUTANTS = [
    Mutant("profile_times_the_warm_up", PROFILE, "begin = first + min(WARM, left - 2 - timed)", "begin = first", TEST),
    Mutant("profile_divides_by_no_steps", PROFILE, "1000 * seconds / steps for part", "1000 * seconds for part", TEST),
    Mutant("forward_ends_with_the_loss", PROFILE, "        if self.in_forward:\n            self.lap(\"forward\")", "        pass", TEST),
    Mutant("profile_stays_on_the_model", PROFILE, "            hook.remove()", "            pass", TEST),
    Mutant("a_stopped_profile_counts_on", PROFILE, "        finally:\n            profile.close()", "        finally:\n            pass", TEST),
    Mutant("backward_takes_the_optimizers_time", LOOP, '                    lap("backward")\n', "", TEST),
    Mutant("attention_backward_counts_once", FLOPS, "return 2 * sdpa_flop_count(query, key, value)", "return sdpa_flop_count(query, key, value)", TEST),
    Mutant("the_heads_gradient_is_not_counted", FLOPS, "    aten.addmm_: addmm, ", "    aten.cumsum_: addmm, ", TEST),
    Mutant("gradients_are_activations", PROFILE, "self.alive.forget(p.grad) if self.alive is not None else None", "None", TEST_KINDS),
    Mutant("freed_memory_stays_counted", KINDS, "    def _freed(self, size: int) -> None:\n        self.now -= size", "    def _freed(self, size: int) -> None:\n        pass", TEST_KINDS),
    Mutant("weights_are_activations", KINDS, "            self.seen[tensor.untyped_storage()] = None", "            pass", TEST_KINDS),
    Mutant("masks_are_free", KINDS, "(s * T if read.masked else 0)", "0", TEST_KINDS),
    Mutant("checkpointing_saves_nothing", KINDS, "(stream if checkpointing else one)", "one", TEST_KINDS),
    Mutant("frozen_blocks_keep_theirs", KINDS, "learn.index(True) if True in learn else len(learn)", "0", TEST_KINDS),
    Mutant("galore_remembers_both_sides", KINDS, "(min(p.shape) + 2 * max(p.shape))", "(2 * min(p.shape) + 2 * max(p.shape))", TEST_KINDS),
    Mutant("sgd_always_remembers", KINDS, '    if isinstance(optimizer, torch.optim.SGD) and not group["momentum"]:\n        return 0\n', "", TEST_KINDS),
    Mutant("averages_are_not_foretold", KINDS, ' for p in group["params"]) + size_of(averages),', ' for p in group["params"]),', TEST_KINDS),
    Mutant("averages_weigh_nothing", PROFILE, "size_of([*state_tensors(self.optimizers), *self.averages])", "size_of(state_tensors(self.optimizers))", TEST_KINDS),
    Mutant("utilisation_of_other_lengths", PAGE, 'flop = found["flop"] * (found["tokens"] / tokens if tokens else 1.0)', 'flop = found["flop"]', TEST_PAGE),
    Mutant("recomputed_passes_called_mfu", PAGE, '"HFU" if found["checkpointing"] else "MFU"', '"MFU"', TEST_PAGE),
]  # fmt: skip
