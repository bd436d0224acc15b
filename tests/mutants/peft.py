"""Planted bugs in the adapters; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

LORA, ATTACH, FILES, TARGETS = "minift/peft/lora.py", "minift/peft/attach.py", "minift/peft/files.py", "minift/peft/targets.py"

MUTANTS = [
    Mutant("lora_scale_forgotten", LORA, "F.linear(self.scale * low, self.B.to(x.dtype))", "F.linear(low, self.B.to(x.dtype))", "tests/peft/test_lora.py"),
    Mutant("lora_alpha_and_rank_inverted", LORA, "else alpha / rank", "else rank / alpha", "tests/peft/test_lora.py"),
    Mutant("rslora_ignored", LORA, "alpha / math.sqrt(rank) if self.rslora", "alpha / rank if self.rslora", "tests/peft/test_lora.py"),
    Mutant("lora_b_not_zero_at_start", LORA, "torch.zeros(N, rank,", "torch.ones(N, rank,", "tests/peft/test_lora.py"),
    Mutant("lora_dropout_on_the_base_too", LORA, "        y = base(x)                                                                   # (..., N)\n"
           "        if self.dropout and self.training:\n            x = F.dropout(x, self.dropout)\n",
           "        if self.dropout and self.training:\n            x = F.dropout(x, self.dropout)\n        y = base(x)\n", "tests/peft/test_lora.py"),
    Mutant("lora_in_the_bases_dtype", LORA, "dtype = torch.promote_types(weight.dtype, torch.float32) ", "dtype = weight.dtype ", "tests/peft/test_lora.py"),
    Mutant("merge_forgets_the_scale", LORA, "change = self.scale * (self.B @ self.A)", "change = self.B @ self.A", "tests/peft/test_attach.py"),
    Mutant("merge_forgets_to_transpose_the_embedding", LORA, "self.scale * (self.B @ self.A).T)", "self.scale * (self.B @ self.A).reshape(base.weight.shape))",
           "tests/peft/test_attach.py"),
    Mutant("merge_in_the_bases_dtype", LORA, "(weight.to(change.dtype) + change).to(weight.dtype)", "weight + change.to(weight.dtype)", "tests/peft/test_attach.py"),
    Mutant("disabled_leaves_the_adapter_on", ATTACH, " and not state.disabled else None", " else None", "tests/peft/test_attach.py"),
    Mutant("attach_does_not_freeze", ATTACH, "        model.requires_grad_(False)\n", "", "tests/peft/test_attach.py"),
    Mutant("switch_leaves_the_old_set_trainable", ATTACH, "module.requires_grad_(key == name)", "module.requires_grad_(True)", "tests/peft/test_attach.py"),
    Mutant("unmerge_subtracts_nothing", ATTACH, "            setattr(state.wrappers[path].base, key, parameter)\n", "            pass\n", "tests/peft/test_attach.py"),
    Mutant("merge_writes_through_a_tie", ATTACH, "            setattr(base, key, nn.Parameter(value, requires_grad=False))", "            getattr(base, key).data.copy_(value)",
           "tests/peft/test_attach.py"),
    Mutant("a_cut_tie_is_not_told_to_the_config", ATTACH, "        _say_tied(model, False)\n", "        pass\n", "tests/peft/test_attach.py"),
    Mutant("a_missing_key_is_ignored", FILES, "    if missing or extra:", "    if extra:", "tests/peft/test_files.py"),
    Mutant("a_left_over_key_is_ignored", FILES, "    if missing or extra:", "    if missing:", "tests/peft/test_files.py"),
    Mutant("an_unknown_option_is_ignored", FILES, "    if unknown:", "    if unknown and False:", "tests/peft/test_files.py"),
    Mutant("the_files_alpha_is_ignored", LORA, 'alpha=fields.pop("lora_alpha", 8)', 'alpha=fields.pop("lora_alpha", 8) and 8', "tests/peft/test_files.py"),
    Mutant("the_tensors_are_never_copied", FILES, "            parameter.copy_(found[key])", "            pass", "tests/peft/test_files.py"),
    Mutant("all_linear_takes_the_head", TARGETS, "    return path in HEADS", "    return False", "tests/peft/test_targets.py"),
    Mutant("a_suffix_need_not_start_at_a_dot", TARGETS, 'path.endswith("." + target)', "path.endswith(target)", "tests/peft/test_targets.py"),
]  # fmt: skip
