"""Planted bugs in RMSNorm, the QLoRA linear and AdamW in 8 bits."""

from tests.mutants.mutant import Mutant

KERNELS = "kernels/minift_kernels/"
NORM, QLORA, ADAM, AVERAGES, OPTIMIZER = f"{KERNELS}rmsnorm.py", f"{KERNELS}qlora.py", f"{KERNELS}adamw8bit.py", f"{KERNELS}averages.py", "minift/train/adamw8bit.py"
TEST_NORM, TEST_QLORA, TEST_ADAM = "tests/kernels/test_rmsnorm.py", "tests/kernels/test_qlora.py", "tests/kernels/test_adamw8bit.py"
TEST_OPTIMIZER, REGISTRY = "tests/train/test_adamw8bit.py", "tests/kernels/test_registry.py"

MUTANTS = [
    Mutant("rmsnorm_eps_outside_the_root", NORM, "1 / tl.sqrt(tl.sum(value * value, axis=0) / C + eps)", "1 / (tl.sqrt(tl.sum(value * value, axis=0) / C) + eps)", TEST_NORM),
    Mutant("rmsnorm_mean_over_the_block_not_the_row", NORM, "tl.sum(g * h, axis=0) / C", "tl.sum(g * h, axis=0) / BLOCK", REGISTRY),
    Mutant("rmsnorm_mask_missing_on_the_store", NORM, "tl.store(y + row * C + column, value * scale * gain, mask=there)", "tl.store(y + row * C + column, value * scale * gain)", REGISTRY),
    Mutant("rmsnorm_only_the_last_row_of_a_program_in_dw", NORM, "sums += slope * h", "sums = slope * h", TEST_NORM),
    Mutant("rmsnorm_partial_sums_dropped", NORM, "partial.sum(0).to(w.dtype)", "partial[0].to(w.dtype)", TEST_NORM),
    Mutant("rmsnorm_gain_forgotten_in_dx", NORM, "g = slope * tl.load(w + column, mask=there, other=0.0).to(tl.float32)", "g = slope", REGISTRY),
    Mutant("qlora_scale_forgotten_in_dlow", QLORA, "dlow = scale * (dy @ B.to(x.dtype))", "dlow = dy @ B.to(x.dtype)", TEST_QLORA),
    Mutant("qlora_scale_forgotten_in_dB", QLORA, "(scale * (dy.T @ low)).to(B.dtype)", "(dy.T @ low).to(B.dtype)", TEST_QLORA),
    Mutant("qlora_scale_forgotten_where_folded", QLORA, "W[:, K : K + r], W[:, K + r :] = scale * B, 0", "W[:, K : K + r], W[:, K + r :] = B, 0", TEST_QLORA),
    Mutant("qlora_padding_not_zeroed", QLORA, "both[:, :K], both[:, K : K + r], both[:, K + r :] = left, right, 0", "both[:, :K], both[:, K : K + r] = left, right", REGISTRY),
    Mutant("qlora_absmax_by_row_instead_of_flat", QLORA, "word // (BLOCK_SIZE // 8), there, NESTED)", "word % (K // 8) // (BLOCK_SIZE // 8), there, NESTED)", TEST_QLORA),
    Mutant("qlora_stride_ignored", QLORA, "word // (K // 8) * stride", "word // (K // 8) * K", TEST_QLORA),
    Mutant("qlora_mask_missing", QLORA, "values * a[:, None], mask=there[:, None])", "values * a[:, None])", REGISTRY),
    Mutant("adam8_decay_inside_the_gradient", ADAM, "p * keep + minus_step", "p + minus_step", REGISTRY),
    Mutant("adam8_correction_of_v_forgotten", ADAM, "tl.sqrt(v) * unbias + eps", "tl.sqrt(v) + eps", REGISTRY),
    Mutant("adam8_eps_inside_the_root", ADAM, "tl.sqrt(v) * unbias + eps", "tl.sqrt(v + eps) * unbias", REGISTRY),
    Mutant("adam8_unsigned_map_for_m", ADAM, "maps = dynamic_map(True, device), dynamic_map(False, device)", "maps = dynamic_map(False, device), dynamic_map(False, device)", REGISTRY),
    Mutant("adam8_absmax_of_the_next_block", ADAM, "m_absmax, v_absmax = pointer(addresses, tensor, 3, tl.float32) + block,", "m_absmax, v_absmax = pointer(addresses, tensor, 3, tl.float32) + block + 1,", REGISTRY),
    Mutant("adam8_what_lies_past_the_end_in_the_absmax", ADAM, "m = tl.where(there, tl.fma(g, rest1, m * beta1), 0.0)", "m = tl.fma(g, rest1, m * beta1)", REGISTRY),
    Mutant("adam8_absmax_stored_without_mask", ADAM, "tl.store(v_absmax, v_largest, mask=real)", "tl.store(v_absmax, v_largest)", REGISTRY),
    Mutant("adam8_first_block_counted_in_programs", ADAM, "before[owner.long()]) * ROWS", "before[owner.long()])", TEST_ADAM),
    Mutant("adam8_negative_codes_one_off", ADAM, "tl.maximum(126 - below, 0)", "tl.maximum(127 - below, 0)", TEST_ADAM),
    Mutant("averages_correction_of_v_forgotten", AVERAGES, "(1 - beta2**step) ** 0.5", "1.0", TEST_OPTIMIZER),
    Mutant("averages_v_takes_the_signed_map", AVERAGES, "(square, v_codes, v_largest, False)", "(square, v_codes, v_largest, True)", TEST_OPTIMIZER),
    Mutant("averages_a_tie_takes_the_upper_code", AVERAGES, "boundaries(signed, x.device).to(x.dtype))", "boundaries(signed, x.device).to(x.dtype), right=True)", TEST_OPTIMIZER),
    Mutant("optimizer_state_cast_on_load", OPTIMIZER, "for name, value in saved.items()}", "for name, value in self.state[p].items()}", TEST_OPTIMIZER),
    Mutant("optimizer_small_decay_in_the_gradient", OPTIMIZER, ".mul_(1 - lr * weight_decay)", "", TEST_OPTIMIZER),
    Mutant("optimizer_small_eps_not_corrected", OPTIMIZER, "eps * correction", "eps", TEST_OPTIMIZER),
    Mutant("loop_takes_plain_adamw", "minift/train/optim.py", '"adamw8bit": adamw8bit', '"adamw8bit": adamw', TEST_OPTIMIZER),
]
