"""Planted bugs in the products with a 4-bit weight; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

GEMV, GEMM, LARGE = (f"kernels/minift_kernels/{name}.py" for name in ("gemv", "gemm", "gemm_large"))
OF_GEMV, OF_GEMM = "tests/kernels/test_gemv.py", "tests/kernels/test_gemm.py"

MUTANTS = [
    Mutant(name="gemv_first_two_nibbles_swapped", file=GEMV, test=OF_GEMV,
           old="    s = value(table, w, 4) * x0[:, None]                                          # byte 0: high nibble, then low\n"
               "        s += value(table, w, 0) * x1",
           new="    s = value(table, w, 0) * x0[:, None]                                          # byte 0: high nibble, then low\n"
               "        s += value(table, w, 4) * x1"),
    Mutant(name="gemv_last_two_nibbles_swapped", file=GEMV, test=OF_GEMV,
           old="value(table, w, 28) * x6[:, None]\n        s += value(table, w, 24)", 
           new="value(table, w, 24) * x6[:, None]\n        s += value(table, w, 28)"),
    Mutant(name="gemv_absmax_counted_from_the_rows_beginning", file=GEMV, test=OF_GEMV,
           old="offset, flat // (BLOCK_SIZE // 8), there",
           new="offset, rows[:, None] * row_words // (BLOCK_SIZE // 8) + word[None, :] // (BLOCK_SIZE // 8), there"),
    Mutant(name="gemv_mask_missing_at_the_last_rows", file=GEMV, test="tests/kernels/test_registry.py",
           old="mask=(rows < N)[None, :])", new="mask=(rows < N + 8)[None, :])"),
    Mutant(name="gemv_one_absmax_for_rows_that_blocks_do_not_fit", file=GEMV, test=OF_GEMV,
           old="if K % lane or block_size % lane or", new="if K % lane or"),
    Mutant(name="gemv_last_part_of_k_dropped", file=GEMV, test=OF_GEMV,
           old="    steps = triton.cdiv(steps, parts)\n", new="    steps = steps // parts\n"),
    Mutant(name="gemm_last_part_not_added", file=GEMM, test=OF_GEMM,
           old="for _ in range(PARTS):", new="for _ in range(PARTS - 1):"),
    Mutant(name="gemm_even_and_odd_columns_swapped", file=GEMM, test=OF_GEMM,
           old="even, odd = tl.split(", new="odd, even = tl.split("),
    Mutant(name="gemm_low_nibble_first", file=GEMM, test=OF_GEMM,
           old="    return high.to(dtype), low.to(dtype)", new="    return low.to(dtype), high.to(dtype)"),
    Mutant(name="gemm_blocks_start_with_every_row", file=GEMM, test=OF_GEMM,
           old="(start + group) * 2 // BLOCK_SIZE,", new="start * 2 // BLOCK_SIZE + group * 2 // BLOCK_SIZE,"),
    Mutant(name="gemm_one_absmax_for_more_weights_than_a_block_has", file=GEMM, test=OF_GEMM,
           old='SPAN=math.gcd(K, block_size, 2 * config["BYTES"])', new='SPAN=math.gcd(K, 2 * config["BYTES"])'),
    Mutant(name="gemm_mask_missing_at_the_last_rows_of_w", file=GEMM, test="tests/kernels/test_registry.py",
           old="y.to(out.dtype.element_ty), mask=(m < M)[None, :] & (rows < N)[:, None])",
           new="y.to(out.dtype.element_ty), mask=(m < M)[None, :])"),
    Mutant(name="gemm_nested_offset_forgotten", file=GEMM, test=OF_GEMM,
           old="a = load_absmax(absmax, nested_absmax, nested_map, offset, (start",
           new="a = load_absmax(absmax, nested_absmax, nested_map, nested_map + 127, (start"),
    Mutant(name="products_refuse_no_rows", file="kernels/minift_kernels/gemm.py", test=OF_GEMM,
           old="    if not len(x):\n        return x.new_empty(0, N)\n", new=""),
    Mutant(name="weight_sizes_of_nested_absmax_not_asked", file="kernels/minift_kernels/weight.py", test="tests/kernels/test_weight.py",
           old="    if nested:\n", new="    if False:\n"),
    Mutant(name="weight_blocks_rounded_down", file="kernels/minift_kernels/weight.py", test="tests/kernels/test_weight.py",
           old="blocks = -(-n // block_size)", new="blocks = n // block_size"),
    Mutant(name="dequantize_asks_no_sizes", file="kernels/minift_kernels/dequantize.py", test="tests/kernels/test_weight.py",
           old='    check_weight("dequantize", (n,), packed, absmax, code_map, block_size, nested_absmax, nested_map, offset)\n', new=""),
    Mutant(name="gemm_large_last_group_of_tiles_as_high_as_the_others", file=LARGE, test="tests/kernels/test_registry.py",
           old="tl.minimum(tiles_m - group * GROUP, GROUP)", new="GROUP"),
    Mutant(name="gemm_large_even_columns_twice", file=LARGE, test=OF_GEMM,
           old="tl.dot(odd, low.T,", new="tl.dot(even, low.T,"),
]  # fmt: skip
