"""Planted bugs in quantized weights; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

BLOCKS, LOOKUP, NESTED = "minift/quant/blocks.py", "minift/quant/lookup.py", "minift/quant/nested.py"
INT8, INT4, TENSOR, LINEAR = "minift/quant/int8.py", "minift/quant/int4.py", "minift/quant/tensor.py", "minift/quant/linear.py"
STATE, WHOLE = "minift/quant/state.py", "minift/quant/whole_numbers.py"


def mutant(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name=name, file=file, old=old, new=new, test=f"tests/quant/test_{test}.py")


MUTANTS = [
    mutant("quant_first_of_a_pair_in_the_low_half", LOOKUP, "torch.add(c[1::2], c[0::2], alpha=16", "torch.add(c[0::2], c[1::2], alpha=16", "blocks"),
    mutant("quant_pairs_the_wrong_way_round", LOOKUP, "[v.repeat_interleave(16), v.repeat(16)]", "[v.repeat(16), v.repeat_interleave(16)]", "blocks"),
    mutant("quant_last_short_block_takes_the_absmax_before", LOOKUP, "piece[whole:].mul_(a[-1])", "piece[whole:].mul_(a[-2:][0])", "blocks"),
    mutant("quant_middles_go_up", LOOKUP, "inverse[at // block_size], middles)", "inverse[at // block_size], middles, right=True)", "blocks"),
    mutant("quant_unsure_cells_trusted", LOOKUP, "    table[home + 32768] = UNSURE\n", "", "lookup"),
    mutant("quant_fixed_with_a_neighbours_absmax", LOOKUP, "inverse[at // block_size]", "inverse[at // block_size - 1]", "lookup"),
    mutant("quant_order_of_fp4_forgotten", LOOKUP, "order.to(torch.uint8)", "torch.arange(16, dtype=torch.uint8)", "blocks"),
    mutant("quant_sign_lost_in_absmax", LOOKUP, "torch.abs(w, out=u)", "u.copy_(w)", "blocks"),
    mutant("quant_rows_keep_the_empty_half", BLOCKS, "values[: min(R, N - n) * K]", "values[: len(values) // K * K]", "lookup"),
    mutant("quant_short_block_padded_with_ones", "kernels/minift_kernels/fourbit.py", "(0, -n % block_size))", "(0, -n % block_size), value=1.0)", "blocks"),
    mutant("nested_offset_forgotten", NESTED, "return values.add_(nested.offset)", "return values", "nested"),
    mutant("nested_mean_not_taken_away", NESTED, "pad(absmax - offset, ", "pad(absmax, ", "nested"),
    mutant("nested_scale_of_the_block_before", NESTED, "nested.absmax[: whole // BLOCK, ", "nested.absmax.roll(1)[: whole // BLOCK, ", "nested"),
    mutant("nested_zero_over_zero_spreads", NESTED, ".nan_to_num(nan=-1.0)", "", "nested"),
    mutant("int8_scale_per_column", INT8, "torch.amax(W.abs(), 1, out=a)", "a.copy_(W.abs().amax(0)[: len(a)] if len(a) <= K else 1)", "int8"),
    mutant("int8_128_steps", INT8, ".mul_(256 / 127)\n", ".mul_(2)\n", "int8"),
    mutant("int8_cut_off_instead_of_rounded", INT8, ".round_())", ".trunc_())", "int8"),
    mutant("int4_zero_point_off_by_one", INT4, "(-low / scale.float()).round()", "(-low / scale.float() + 1).round()", "int4"),
    mutant("int4_zero_left_out_of_the_range", INT4, "groups.amin(2).clamp(max=0)", "groups.amin(2)", "int4"),
    mutant("int4_sixteen_steps", INT4, "((high - low) / 15)", "((high - low) / 16)", "int4"),
    mutant("int4_short_group_takes_the_first_scale", INT4, ".sub_(z[:, -1:]).mul_(s[:, -1:])", ".sub_(z[:, :1]).mul_(s[:, :1])", "int4"),
    mutant("quant_infinity_let_in", TENSOR, "if not torch.isfinite(weight.detach().sum())", "if weight.detach().sum().isnan()", "tensor"),
    mutant("int8_whole_numbers_scaled_in_bfloat16", WHOLE, "ones(q.shape[0])) * q.scale", "ones(q.shape[0])) * (q.scale * 257 / 256).bfloat16()", "linear"),
    mutant("int8_a_few_rows_rounded_and_many_not", LINEAR, "isinstance(q, Int8):", "isinstance(q, Int8) and len(x) <= ALONE:", "linear"),
    mutant("int8_x_cut_off_instead_of_rounded", WHOLE, "(x / s).round_()", "(x / s)", "whole_numbers"),
    mutant("int8_one_scale_for_all_rows_of_x", WHOLE, "top = x.abs().amax(1, keepdim=True)", "top = x.abs().amax().expand(len(x), 1)", "whole_numbers"),
    mutant("int8_128_of_255_left_in_the_sum", WHOLE, "1.0, 128, q.ordered", "1.0, 127, q.ordered", "whole_numbers"),
    mutant("int8_outlying_rows_rounded_like_others", WHOLE, "if outlying.any():", "if False:", "whole_numbers"),
    mutant("int8_outlying_beside_a_mean_square_that_holds_it", WHOLE, "OUTLYING / (x.shape[1] - 1 + OUTLYING**2) ** 0.5", "OUTLYING / x.shape[1] ** 0.5", "whole_numbers"),
    mutant("int8_one_outlier_keeps_every_row_in_16_bits", WHOLE, "y[outlying[:, 0]] = by_one(x[outlying[:, 0]], q)", "y[:] = by_one(x, q)", "whole_numbers"),
    mutant("int8_a_prompt_read_by_a_kernel_for_few_rows", WHOLE, "if FAST and not prompt else", "if FAST else", "whole_numbers"),
    mutant("int8_order_kept_when_copied", INT8, 'if name != "ordered"', "", "whole_numbers"),
    mutant("int8_head_rounded_though_listened_to", LINEAR, "if listened_to(layer) or layer", "if layer", "whole_numbers"),
    mutant("int8_head_as_it_was_before_training", LINEAR, "if before != now:", "if made is None:", "whole_numbers"),
    mutant("int8_a_library_without_exact_sums_trusted", WHOLE, "return all((product == 64 * 127 * 127).all() for", "return all((product > 0).all() for", "whole_numbers"),
    mutant("int8_outlying_by_another_limit", WHOLE, "OUTLYING = 32", "OUTLYING = 40", "whole_numbers"),
    mutant("int8_all_threads_round_at_once", LINEAR, "_local = threading.local()", "_local = contextlib.nullcontext()", "linear"),
    mutant("int8_an_exact_block_ends_the_one_around_it", LINEAR, 'before, _local.rounding = getattr(_local, "rounding", None), None if', "before, _local.rounding = rounding(), None if", "linear"),
    mutant("int8_rounds_what_it_reads_in_training", LINEAR, "if (written := rounding()) and", "if (written := getattr(_local, 'rounding', None)) and", "linear"),
    mutant("frozen_backward_without_transpose", LINEAR, "weight_for(dy, ctx.q).T), None", "weight_for(dy, ctx.q)), None", "linear"),
    mutant("frozen_keeps_its_weight", LINEAR, "ctx.q = q\n        return product(x, q)", "ctx.q, W = q, weight_for(x, q)\n        ctx.save_for_backward(W)\n"
           "        return linear(x, W)", "linear"),
    mutant("linear_scales_follow_the_dtype", LINEAR, "{name: t.to(fn(t).device) for", "{name: fn(t) for", "linear"),
    mutant("maps_worked_out_while_compiling", "kernels/minift_kernels/codes.py", "return torch.tensor(VALUES[name], ",
           'return torch.tensor(_dynamic(name == "signed") if len(VALUES[name]) > 16 else VALUES[name], ', "compile"),
    mutant("linear_no_rows_to_a_kernel", LINEAR, "if 0 < len(flat) and (way", "if (way", "linear"),
    mutant("state_left_out", LINEAR, "        destination |= {prefix + name: t for name, t in state_of(self.q).items()}\n", "", "state"),
    mutant("state_of_another_shape_taken", STATE, "not torch.equal(mine, theirs.cpu())", "False", "state"),
    mutant("state_without_the_scheme", STATE, '{f"weight.{q.scheme}.{name}": t', '{f"weight.nf4.{name}": t', "state"),
    mutant("int8_scale_times_code_first", INT8, "mul_(a[:, None] / 256).mul_(256 / 127)", "mul_(a[:, None]).mul_(1 / 127)", "tensor"),
    mutant("int4_scale_may_be_infinite", INT4, "if scale.isinf().any():", "if False:", "tensor"),
    mutant("quant_infinite_when_rounded_let_out", TENSOR, "if not scale.max() <= torch.finfo(q.dtype).max and", "if False and", "tensor"),
    mutant("quant_float64_beyond_float32_let_in", TENSOR, "if weight.dtype == torch.float64 and", "if False and", "tensor"),
    mutant("linear_bias_forgotten", LINEAR, "return y if self.bias is None else y + self.bias.to(y.dtype)", "return y", "linear"),
    mutant("linear_pieces_overwrite_each_other", LINEAR, "                y[:, n : n + len(W)] = wide @ W.T\n            n += len(W)",
           "                y[:, n : n + len(W)] = wide @ W.T\n            n += len(W) - (n > 0)", "linear"),
]  # fmt: skip
