"""Planted bugs in the baselines: full, last layers, head, new tokens."""

from tests.mutants.mutant import Mutant

OWN, TOKENS = "minift/peft/own.py", "minift/peft/tokens.py"
TEST, TEST_TOKENS = "tests/peft/test_own.py", "tests/peft/test_tokens.py"

MUTANTS = [
    Mutant("full_trains_the_base_itself", OWN, "value.detach().to(dtype, copy=True)", "value.detach().to(dtype)", TEST),
    Mutant("full_copies_a_tied_weight_twice", OWN, "            if id(value) not in copies and keep_base:", "            if keep_base:", TEST),
    Mutant("full_copy_in_bf16", OWN, "dtype = torch.promote_types(value.dtype, torch.float32)", "dtype = value.dtype", TEST),
    Mutant("last_layers_are_the_first", OWN, "range(len(blocks) - self.n, len(blocks))", "range(self.n)", TEST),
    Mutant("last_layers_forget_the_final_norm", OWN, "siblings.index(path.rpartition(\".\")[2]) + 1 :]", "siblings.index(path.rpartition(\".\")[2]) + 2 :]", TEST),
    Mutant("last_layers_train_the_tied_head", OWN, "            del chosen[name]", "            pass", TEST),
    Mutant("head_trains_the_tied_embedding", OWN, "return own(heads, keep_base=True)", "return own(heads, keep_base=False)", TEST),
    Mutant("last_layers_none_of_them_allowed", OWN, "if not 1 <= self.n <= len(blocks):", "if not self.n <= len(blocks):", TEST),
    Mutant("no_copy_but_disabled_allowed", "minift/peft/attach.py", "    _need_base(state, \"peft.disabled\")\n", "", TEST),
    Mutant("merged_full_model_is_untied", OWN, "        return {name: value.to(getattr(base, name).dtype) for name, value in self._parameters.items()}",
           "        return {name: value.detach().clone() for name, value in self._parameters.items()}", TEST),
    Mutant("tokens_in_the_order_of_the_vocabulary", TOKENS, "return self.rows.detach()[self.place[self.place >= 0]]", "return self.rows.detach()", TEST_TOKENS),
    Mutant("tokens_forget_the_tied_head", TOKENS, "isinstance(m, nn.Linear) and m._parameters.get(\"weight\") is embed.weight", "False", TEST_TOKENS),
    Mutant("tokens_every_row_takes_a_trained_one", TOKENS, "torch.where((place >= 0)[..., None]", "torch.where((place >= -1)[..., None]", TEST_TOKENS),
    Mutant("tokens_two_tensors_for_one_pass", "minift/peft/files.py", "if not torch.equal(found[key], found[first]):", "if False:", TEST_TOKENS),
]    # fmt: skip
