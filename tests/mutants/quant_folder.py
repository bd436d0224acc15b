"""Planted bugs in the folders with quantized weights: packed the wrong way round, pieces that cut a block, files that are believed too easily."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        name="quantized_gpt2_matrix_packed_as_it_lies_in_the_file",
        file="minift/quant/folder.py",
        old='parts = [(0, read(source, True, dtype, "cpu"))] if transposed',
        new='parts = [(0, read(source, False, dtype, "cpu").reshape(source.shape[::-1]))] if transposed',
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_pieces_cut_a_block",
        file="minift/quant/folder.py",
        old="even = 64 // math.gcd(64, K)",
        new="even = 1",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_piece_by_piece_with_an_offset_for_each_piece",
        file="minift/quant/folder.py",
        old="absmax=shrink(q.absmax))",
        new="absmax=shrink(q.absmax - q.absmax.mean()))",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_matrix_read_whole_before_it_is_cut",
        file="minift/quant/folder.py",
        old="    for _, rows in parts:",
        new='    for _, rows in [(0, read(source, transposed, dtype, "cpu"))]:',
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_before_the_cast",
        file="minift/quant/folder.py",
        old="            yield piece.to(dtype)",
        new="            yield piece.float()",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_bias_learns_after_loading",
        file="minift/quant/folder.py",
        old="            module.requires_grad_(False)",
        new="            pass",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_twice_without_a_word",
        file="minift/quant/folder.py",
        old="if what is not None and quantize is not None:",
        new="if False:",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_folder_skips_nothing_it_says",
        file="minift/quant/folder.py",
        old="if isinstance(module, nn.Linear) and path not in found]",
        new='if path == "head"]',
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_map_of_a_file_believed",
        file="minift/quant/layout.py",
        old="    if off.max() > 0:",
        new="    if off.max() > 1e-6:",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_absmax_counted_without_the_short_block",
        file="minift/quant/layout.py",
        old='blocks = math.ceil(N * K / state["blocksize"])',
        new='blocks = N * K // state["blocksize"]',
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_scales_may_be_nan",
        file="minift/quant/layout.py",
        old="if dtype.is_floating_point and not torch.isfinite(values).all():",
        new="if False:",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_tensors_left_over_ignored",
        file="minift/quant/layout.py",
        old="for name in parts if name not in names]",
        new="for name in ()]",
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_state_says_float32_whatever_it_is",
        file="minift/quant/layout.py",
        old='"dtype": str(q.dtype).removeprefix("torch."), "shape"',
        new='"dtype": "float64", "shape"',
        test="tests/quant/test_folder.py",
    ),
    Mutant(
        name="quantized_codes_lie_flat_in_the_file",
        file="minift/quant/layout.py",
        old="tensors = {weight: q.packed[:, None],",
        new="tensors = {weight: q.packed,",
        test="tests/quant/test_folder.py",
    ),
]
