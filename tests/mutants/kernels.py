"""Planted bugs in the kernels' common ground, dequantization and quantization; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

DEQUANTIZE, QUANTIZE = "kernels/minift_kernels/dequantize.py", "kernels/minift_kernels/quantize.py"
CODES, GATE, RUNTIME = "kernels/minift_kernels/codes.py", "kernels/minift_kernels/gate.py", "kernels/minift_kernels/runtime.py"
FOURBIT = "kernels/minift_kernels/fourbit.py"
TEST = {FOURBIT: "tests/kernels/test_registry.py", DEQUANTIZE: "tests/kernels/test_registry.py",
        QUANTIZE: "tests/kernels/test_registry.py", CODES: "tests/kernels/test_codes.py",
        GATE: "tests/kernels/test_gate.py", RUNTIME: "tests/kernels/test_runtime.py"}  # fmt: skip


def bug(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name=f"kernels_{name}", file=file, old=old, new=new, test=TEST[file])


MUTANTS = [
    bug("nibble_order", DEQUANTIZE, "4 * (eight ^ 1)[None, :]", "4 * eight[None, :]"),
    bug("absmax_off_by_a_block", DEQUANTIZE, "(first + word) // (BLOCK_SIZE // 8)", "(first + word + 1) // (BLOCK_SIZE // 8)"),
    bug("absmax_forgets_which_program", DEQUANTIZE, "(first + word) // (BLOCK_SIZE // 8)", "word // (BLOCK_SIZE // 8)"),
    bug("offset_forgotten", DEQUANTIZE, "* scale + tl.load(offset)", "* scale"),
    bug("nested_block_wrong", DEQUANTIZE, "nested_absmax + block // 256", "nested_absmax + block // 128"),
    bug("mask_missing_at_the_store", DEQUANTIZE, "mask=(place < left) | EVEN)", "mask=there[:, None] | EVEN)"),
    bug("mask_missing_at_the_load", DEQUANTIZE, "mask=2 * byte < left, other=0)", "mask=2 * byte < left + 8, other=0)"),
    bug("even_when_it_is_not", DEQUANTIZE, "EVEN=n % (8 * words) == 0", "EVEN=n % 8 == 3"),
    bug("double_quantization_by_the_wrong_half", FOURBIT, "nested_map[absmax.long()] * nested", "nested_map[255 - absmax.long()] * nested"),
    bug("quantize_nibble_order", QUANTIZE, "(high << 4 | low).to(tl.uint8)", "(low << 4 | high).to(tl.uint8)"),
    bug("quantize_middle_rounds_up", QUANTIZE, "x > tl.gather(", "x >= tl.gather("),
    bug("quantize_absmax_without_abs", QUANTIZE, "tl.max(tl.abs(w), axis=1)", "tl.max(w, axis=1)"),
    bug("quantize_order_forgotten", QUANTIZE, "code = tl.gather(tl.load(order + tl.arange(0, 16)), lower, 0)", "code = lower"),
    bug("quantize_absmax_written_past_the_end", QUANTIZE, "mask=(block * BLOCK_SIZE < left) | EVEN)", "mask=block >= 0)"),
    bug("quantize_short_block_multiplied", QUANTIZE, "short = (block + 1) * BLOCK_SIZE > left", "short = block < 0"),
    bug("nf4_entry_wrong", CODES, "0.33791524171829224", "0.33791424171829224"),
    bug("fp4_entry_wrong", CODES, " 0.5, 0.1666666716337204, 0.25", " 0.5, 0.25, 0.1666666716337204"),
    bug("dynamic_map_by_edges", CODES, "(edges[:-1] + edges[1:]) / 2.0", "edges[1:]"),
    bug("gate_overlooks_spills", GATE, '    if record["spill"]:\n', '    if record["spill"] > 1e6:\n'),
    bug("gate_stops_at_the_first_exit", GATE,
        'if line[1] != "NOP" and line[2] != line[0]]', 'if line[1] != "NOP" and line[2] != line[0] and line[0] < 0x58]'),
    bug("gate_keeps_old_records", GATE, '(r["kernel"], r["triton"]) not in told and', ""),
    bug("devices_may_differ", RUNTIME, "if len(places) > 1:", "if len(places) > 2:"),
    bug("bfloat16_is_interpreted", RUNTIME, "if INTERPRETED and torch.bfloat16 in floats:", "if False:"),
    bug("said_every_time", RUNTIME, "        _said.add(text)\n", ""),
]
