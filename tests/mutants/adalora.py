"""Planted bugs in AdaLoRA; each must make its test file fail."""

from tests.mutants.mutant import Mutant


def bug(name: str, old: str, new: str) -> Mutant:
    return Mutant(name=f"adalora_{name}", file="minift/peft/adalora.py", old=old, new=new, test="tests/peft/test_adalora.py")


MUTANTS = [
    bug("scale_forgets_the_rank", "scale = self.alpha / (self.init_r + 1e-5)", "scale = self.alpha / (self.target_r + 1e-5)"),
    bug("merge_forgets_e", "(self.P @ (self.E * self.Q))", "(self.P @ self.Q)"),
    bug("merge_forgets_that_conv1d_is_transposed",
        "change.T if is_conv1d(base) else change", "change.T if change.shape != base.weight.shape else change"),
    bug("e_not_zero_at_start", "nn.Parameter(torch.zeros(r, 1,", "nn.Parameter(torch.ones(r, 1,"),
    bug("keeps_the_least_important", "score > border", "score <= border"),
    bug("border_one_too_low", ".kthvalue(off)", ".kthvalue(off - 1)"),
    bug("budget_falls_with_the_square", "** 3 + end)", "** 2 + end)"),
    bug("budget_counts_from_step_zero", "(step - tinit) / (last - tinit)", "step / last"),
    bug("chooses_at_every_step", "tinit < step < last and step % self.deltaT == 0:", "tinit < step < last:"),
    bug("last_choice_skipped", "        if step == last or tinit", "        if tinit"),
    bug("triplets_come_back_after_the_last_choice", "        if step >= last or tinit < step and", "        if tinit < step <= last and"),
    bug("importance_without_uncertainty",
        'getattr(self, f"sensitivity_{name}") * getattr(self, f"uncertainty_{name}")', 'getattr(self, f"sensitivity_{name}")'),
    bug("importance_sums_instead_of_means", "(Q.mean(1) + P.mean(0))", "(Q.sum(1) + P.sum(0))"),
    bug("sensitivity_forgets_the_sign", "(p * p.grad).abs()", "p * p.grad"),
    bug("uncertainty_with_beta1", "beta2 * uncertainty", "beta1 * uncertainty"),
    bug("penalty_per_module_instead_of_mean", "self.orth_reg_weight / (2 * len(linears))", "self.orth_reg_weight / 2"),
    bug("penalty_of_the_wrong_side", "(self.P.T @ self.P - one)", "(self.P[: len(one)] @ self.P[: len(one)].T - one)"),
    bug("penalty_in_bf16", "enabled=False)", "enabled=True, dtype=torch.bfloat16)"),
    bug("averages_not_in_checkpoints",
        'torch.zeros_like(p))\n            self.register_buffer(f"uncertainty',
        'torch.zeros_like(p), persistent=False)\n            self.register_buffer(f"uncertainty'),
    bug("file_drops_what_came_back", "return self.on | (self.E[:, 0] != 0)", "return self.on"),
    bug("pattern_of_a_loaded_file_is_lost", "        there[there.clone()] = self.alive().cpu()", "        there = self.alive().cpu()"),
    bug("too_few_steps_pass", "if tinit >= steps - tfinal:", "if False:"),
    bug("shares_are_read_as_steps", "int(value) if value >= 1 else round(value * steps)", "int(value)"),
    bug("rank_zero_forgotten",
        "        if not len(self.E):                                                     # a file", "        if False:  # a file"),
]
