"""Planted bugs in the methods that train vectors: IA3, VeRA, LayerNorm tuning, BitFit. Each must make the named test file fail."""

from tests.mutants.mutant import Mutant

IA3, VERA, NORM, BITFIT = (f"minift/peft/{name}.py" for name in ("ia3", "vera", "layernorm", "bitfit"))
TESTS = {file: file.replace("minift/peft/", "tests/peft/test_") for file in (IA3, VERA, NORM, BITFIT)}


def bug(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name=name, file=file, old=old, new=new, test=TESTS[file])


MUTANTS = [
    bug("ia3_scales_the_output_of_the_feedforward_too", IA3,
        "            return base((x * self.l.flatten()).to(x.dtype))", "            return base(x)"),
    bug("ia3_merge_forgets_the_bias", IA3, "if not self.on_input and base.bias is not None:", "if False:"),
    bug("ia3_merge_scales_the_bias_behind_a_scaled_input", IA3, "if not self.on_input and base.bias is not None:", "if base.bias is not None:"),
    bug("ia3_merge_forgets_that_conv1d_is_transposed", IA3, "(self.l.T if is_conv1d(base) else self.l)", "self.l"),
    bug("ia3_rounds_its_factors_to_the_dtype_of_x", IA3, "return (y * self.l.flatten()).to(y.dtype)", "return y * self.l.flatten().to(y.dtype)"),
    bug("ia3_starts_at_zero", IA3, "torch.ones((1, K)", "torch.zeros((1, K)"),
    bug("ia3_takes_the_query_instead_of_the_key", IA3, "(k|v|qkv|k_proj", "(q|v|qkv|q_proj"),
    bug("ia3_takes_berts_attention_output_for_its_feedforward", IA3, r"layer\.\d+\.output\.dense", r"output\.dense"),
    bug("ia3_writes_names_that_peft_misreads", IA3,
        "any(names[path].endswith(tuple(ends)) != part.on_input for path, part in small.items())", "False"),
    bug("vera_draws_b_before_a", VERA, ".to(device) for part in (A, B))", ".to(device) for part in (B, A))[::-1]"),
    bug("vera_draws_from_the_models_own_dice", VERA, ', device="cpu"), generator=generator)', ', device="cpu"))'),
    bug("vera_has_one_pair_per_module", VERA,
        "VeRALinear(base, shared, self", "VeRALinear(base, Projection(self.rank, N, K, 0, base.weight.device), self"),
    bug("vera_trains_its_random_matrices", VERA, 'self.register_buffer("A", A, persistent=False)', "self.A = nn.Parameter(A)"),
    bug("vera_checkpoints_carry_its_random_matrices", VERA, 'self.register_buffer("B", B, persistent=False)', 'self.register_buffer("B", B)'),
    bug("vera_forgets_d", VERA, "F.linear(low * self.d.to(low.dtype), B)", "F.linear(low, B)"),
    bug("vera_merge_forgets_b", VERA, "(self.b[:, None] * B) @", "B @"),
    bug("vera_merge_forgets_that_conv1d_is_transposed", VERA,
        "change.T if is_conv1d(base) else change", "change.T if change.shape != base.weight.shape else change"),
    bug("vera_does_not_start_at_the_base", VERA, "nn.Parameter(torch.zeros(N,", "nn.Parameter(torch.ones(N,"),
    bug("vera_matrices_as_large_as_the_first_target", VERA, "N, K = max(n for n, _ in shapes), max(k for _, k in shapes)", "N, K = shapes[0]"),
    bug("vera_always_writes_its_matrices", VERA, "        if self.save_projection:", "        if True:"),
    bug("layernorm_tuning_forgets_the_norms_on_queries_and_keys", NORM, "if is_norm(module)}", 'if is_norm(module) and "q_norm" not in path}'),
    bug("layernorm_tuning_trains_the_linears_too", NORM, "if is_norm(module)}", 'if hasattr(module, "weight")}'),
    bug("layernorm_tuning_trains_the_models_own_numbers", NORM, "keep_base=True", "keep_base=False"),
    bug("layernorm_tuning_writes_keys_of_its_own", NORM, 'f"ln_tuning_layers.{name}"', "name"),
    bug("layernorm_tuning_writes_names_that_linears_have_too", NORM, "lambda module: True", "is_norm"),
    bug("bitfit_adds_the_bias_beside_the_old_one", BITFIT, "        if base.bias is None:\n", "        if True:\n"),
    bug("bitfit_starts_at_zero", BITFIT, "nn.Parameter(old.detach().to(", "nn.Parameter(torch.zeros_like(old).to("),
    bug("bitfit_trains_in_the_bases_dtype", BITFIT, "torch.promote_types(old.dtype, torch.float32)", "old.dtype"),
    bug("bitfit_adds_biases_unasked", BITFIT, "            if self.add_missing:", "            if True:"),
    bug("bitfit_gives_the_head_a_bias", BITFIT,
        'find(model, "all-linear", is_linear, "linear")}', '{p: m for p, m in base_modules(model).items() if is_linear(m)}}'),
    bug("bitfit_forgets_the_norms", BITFIT, "    own = isinstance(", "    own = is_linear(module) and isinstance("),
    bug("bitfit_takes_a_bias_that_is_never_called", BITFIT, "return own and not isinstance(module, NonDynamicallyQuantizableLinear)", "return own"),
    bug("bitfit_adds_biases_in_silence", BITFIT, "        if added:", "        if False:"),
]
