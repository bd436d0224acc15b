"""Planted bugs in adapters on quantized weights, in merging into them and in LoftQ."""

from functools import partial

from tests.mutants.mutant import Mutant

MERGING, LOFTQ, QLORA = "minift/peft/merging.py", "minift/peft/loftq.py", "tests/recipes/test_qlora.py"
bug = partial(Mutant, file="minift/peft/quantized.py", test="tests/peft/test_quantized.py")
fused = partial(Mutant, file="minift/quant/low_rank.py", test="tests/quant/test_low_rank.py")
record = partial(Mutant, file="minift/recipes/base_record.py", test="tests/recipes/test_base_record.py")
loftq = partial(Mutant, file=LOFTQ, test="tests/peft/test_loftq.py")

MUTANTS = [
    bug(name="quantized_merge_rounds_again_unasked", old="    if requantize:\n", new="    if True:\n"),
    bug(name="quantized_merge_leaves_out_the_bias", old='values.get("bias", base.bias), base.q.dtype', new='values.get("bias"), base.q.dtype'),
    bug(name="quantized_merge_in_the_wide_dtype", old='nn.Parameter(values["weight"].to(dtype), requires_grad=False)',
        new='nn.Parameter(values["weight"], requires_grad=False)'),
    bug(name="quantized_merge_rounds_with_another_block", old="quantize(weight, q.scheme, q.block_size, isinstance(q.absmax, Nested))",
        new="quantize(weight, q.scheme)"),
    bug(name="quantized_survival_against_the_merged_weight", old="(wide(rounded).weight - old).double()", new="wide(rounded).weight.double()"),
    bug(name="quantized_survival_of_the_size_without_a_root", old="return (self.recovered / self.wanted) ** 0.5 if", new="return self.recovered / self.wanted if"),
    bug(name="quantized_share_of_what_was_recovered", old="return self.product / self.wanted if", new="return self.product / self.recovered if"),
    bug(name="quantized_adapters_in_the_bases_dtype", old="dtype=torch.promote_types(base.q.dtype, torch.float32), device=base.q",
        new="dtype=base.q.dtype, device=base.q"),
    bug(name="quantized_unmerge_leaves_the_stand_in", file=MERGING, old="    swap({standing[path]: wrapper for", new="    swap({wrapper.base: wrapper for"),
    bug(name="quantized_disabled_merges_in_float_again", file="minift/peft/attach.py", old="merge(model, requantized)", new="merge(model)"),
    bug(name="quantized_weights_are_not_counted", file="minift/peft/count.py", old=" + packed\n", new="\n"),
    bug(name="quantized_full_trains_what_is_left", file="minift/peft/own.py", old="isinstance(module, QuantizedLinear):", new="False:"),
    bug(name="quantized_pissa_file_without_its_vectors", file="minift/peft/pissa.py", old="if quantized and not self.as_lora:", new="if False:"),
    loftq(name="loftq_scale_forgotten_in_the_residual", old="q = rounded(W - scale * (B @ A))", new="q = rounded(W - B @ A)"),
    loftq(name="loftq_scale_forgotten_in_the_answer", old="root = (S[:rank] / scale).sqrt()", new="root = S[:rank].sqrt()"),
    loftq(name="loftq_answers_the_weight_not_its_error", old="torch.linalg.svd(W - dequantize(q)", new="torch.linalg.svd(W"),
    loftq(name="loftq_starts_b_at_zero", old="                small[path].B.copy_(B)\n", new=""),
    loftq(name="loftq_rounds_the_targets_only", old="        for path, base in linears.items():\n            scale",
          new="        for path, base in [(p, b) for p, b in linears.items() if p in chosen]:\n            scale"),
    Mutant(name="sft_forgets_to_quantize", file="minift/recipes/tuning.py", old='None if config.method == "loftq" else config.quantize', new="None", test=QLORA),
    Mutant(name="merge_leaves_other_linears_in_four_bits", file="minift/recipes/merge.py", old="        dequantize_model(model) ", new="        pass ", test=QLORA),
    record(name="base_record_is_never_compared", file="minift/recipes/loading.py", old="    base_record.compare(folder, model, asked)\n", new=""),
    record(name="base_record_lets_loftq_through", old="if not loftq and asked is not None", new="if asked is not None"),
    record(name="base_record_takes_any_explicit_scheme", old='(asked == "none" or record["quantize"] is None)', new="True"),
    record(name="base_record_forgets_the_codes", old='("codes" not in record or record["codes"] == codes(model))', new="True"),
    record(name="base_record_compares_the_scheme_alone", old='for key in ("quantize", "block_size", "double_quant"))', new='for key in ("quantize",))'),
    fused(name="fused_product_forgets_its_scale", old="A, B, scale, base.q.block_size", new="A, B, 1.0, base.q.block_size"),
    fused(name="fused_product_forgets_the_bias", old="return y if base.bias is None else y + base.bias.to(y.dtype)", new="return y"),
    fused(name="fused_product_for_few_rows", old=" and x.numel() > FEW * x.shape[-1])", new=")"),
    fused(name="fused_product_with_digits_the_weight_has_not", old="torch.finfo(x.dtype).bits > torch.finfo(base.q.dtype).bits", new="False"),
    fused(name="fused_product_thins_nothing", file="minift/peft/lora.py", old="if not (self.dropout and self.training):  ", new="if True:  "),
]    # fmt: skip
