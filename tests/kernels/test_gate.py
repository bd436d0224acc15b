"""The compile gate reads machine code rightly, and catches what it is there to catch. Its own run over all kernels is `make gate`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minift_kernels import gate
from minift_kernels.registry import Build

SASS = """
	code for sm_90a
        /*0000*/                   LDC R1, c[0x0][0x28] ;                        /* 0x00000a00ff017b82 */
                                                                                 /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR12][R2.64] ;    /* 0x00000000000b7919 */
        /*0020*/                   FMUL R15, R15, R8.reuse ;                     /* 0x0000840000047ab9 */
        /*0030*/                   NOP ;                                         /* 0x0000000000007918 */
        /*0040*/               @P1 BRA 0x10 ;                                    /* 0x0000000000007918 */
        /*0050*/               @P2 EXIT ;                                        /* 0x0000000000007918 */
        /*0060*/                   STG.E.128 desc[UR12][R2.64], R8 ;             /* 0x0000000000007918 */
        /*0070*/                   EXIT ;                                        /* 0x0000000000007918 */
        /*0080*/              @UP0 RET.REL.NODEC R2 0x0 ;                        /* 0x0000000000007918 */
        /*0090*/                   BRA 0x90;                                     /* 0x0000000000007918 */
        /*00a0*/                   NOP;                                          /* 0x0000000000007918 */
"""
USAGE = " Function k:\n  REG:48 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
AMD = """
k:                                      ; @k
.LBB0_0:
	s_load_dwordx2 s[0:1], s[0:1], 0x0
	s_nop 0
	buffer_load_dwordx4 v[10:13], v40, s[24:27], 0 offen
	v_mfma_f32_16x16x16_bf16 a[0:3], v[2:3], v[4:5], 0
	s_endpgm
.LBB0_4:
	ds_read_b32 v1, v2
	.section	.rodata
    .private_segment_fixed_size: 8
    .sgpr_spill_count: 1
    .vgpr_count:     35
    .vgpr_spill_count: 2
"""
SPILLS = """
import torch, triton, triton.language as tl
from minift_kernels import gate
from minift_kernels.registry import Build

@triton.jit
def greedy(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(x + place)
    tl.store(out + place, value / tl.sum(value))                     # each thread holds BLOCK / 32 values and has 255 registers

import json
for BLOCK in (16384, 1024):
    build = Build("greedy", greedy, dict(x=torch.float32, out=torch.float32, BLOCK=BLOCK), num_warps=1, expect={"sm90": ("HGMMA",)})
    print(json.dumps(gate.inspect("greedy", build, "sm90")))
"""


def test_sass_is_read_without_padding_and_with_what_stands_after_the_exit():
    assert gate.sass(SASS) == [
        (0x00, "LDC", None), (0x10, "LDG.E.128.CONSTANT", None), (0x20, "FMUL", None), (0x40, "BRA", 0x10), (0x50, "EXIT", None),
        (0x60, "STG.E.128", None), (0x70, "EXIT", None), (0x80, "RET.REL.NODEC", None),
    ]  # fmt: skip


def test_a_loop_is_what_lies_between_a_backward_branch_and_its_target():
    assert gate.largest_loop(gate.sass(SASS)) == 3                       # LDG, FMUL, BRA; the branch to itself and the NOP do not count
    assert gate.largest_loop(gate.sass(SASS.replace("BRA 0x10 ", "BRA 0x70 "))) == 0


def test_registers_and_spills_are_read():
    assert gate.usage(USAGE) == dict(registers=48, spill=16)
    assert gate.amd_usage(AMD) == dict(registers=35, spill=2 + 1 + 8)


def test_amd_code_after_the_end_of_the_program_counts():
    assert gate.amdgcn(AMD) == ["s_load_dwordx2", "buffer_load_dwordx4", "v_mfma_f32_16x16x16_bf16", "s_endpgm", "ds_read_b32"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("LDG.128", True), ("LDG.E.128", True), ("LDG.64", False), ("STG.128", True), ("HGMMA", True), ("HMMA", False), ("v_mfma", True)],
)
def test_an_instruction_is_found_by_its_beginning_and_its_parts(wanted, found):
    assert gate.has(["LDG.E.EF.128.CONSTANT", "STG.E.128", "LDS.64", "HGMMA.64x128x16.F32.BF16", "v_mfma_f32_16x16x16_bf16"], wanted) == found


def record(**changed):
    return dict(spill=0, shared=1000, kinds={"LDG.E.128": 1}) | changed


def test_bounds_are_held():
    build = Build("b", None, {}, expect={"sm90": ("LDG.128",)})
    assert gate.failures(record(), build, "sm90", dot=False) == []
    assert gate.failures(record(spill=8), build, "sm90", dot=False) == ["8 bytes of stack or spilled registers, wanted none"]
    assert gate.failures(record(shared=227 * 1024), build, "sm90", dot=False) == []
    assert gate.failures(record(shared=227 * 1024 + 1), build, "sm90", dot=False) == ["232449 bytes of shared memory, sm90 has 232448"]
    assert gate.failures(record(shared=164 * 1024), build, "sm80", dot=False) == ["167936 bytes of shared memory, sm80 has 166912"]
    assert gate.failures(record(shared=65537), build, "gfx942", dot=False) == ["65537 bytes of shared memory, gfx942 has 65536"]
    assert gate.failures(record(kinds={"LDG.E": 4}), build, "sm90", dot=False) == ["no LDG.128"]
    assert gate.failures(record(), build, "sm90", dot=True) == ["a dot without HGMMA or HMMA or IGMMA or IMMA"]
    assert gate.failures(record(kinds={"v_mfma_f32_16x16x16_bf16": 8}), build, "gfx942", dot=True) == []


def test_a_block_of_more_than_1024_threads_is_caught():                   # a wave of gfx942 has 64 lanes, a warp 32
    wide = lambda warps, chip: gate.failures(record(), Build("b", None, {}, num_warps=warps), chip, dot=False)
    assert wide(32, "sm90") == wide(32, "sm80") == wide(16, "gfx942") == []
    assert wide(32, "gfx942") == ["32 warps of 64 are 2048 threads, a block may have 1024"]
    assert wide(64, "sm90") == ["64 warps of 32 are 2048 threads, a block may have 1024"]


@pytest.fixture(scope="module")
def compiles(tmp_path_factory):
    """A process in which Triton compiles: this one interprets."""
    folder = tmp_path_factory.mktemp("gate")

    def run(*command) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": str(Path(gate.__file__).parents[1]), "TRITON_CACHE_DIR": str(folder / "cache")}
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment)

    run.folder = folder
    return run


def test_a_spilling_kernel_is_caught(compiles):
    (compiles.folder / "spills.py").write_text(SPILLS)
    done = compiles("spills.py")
    assert done.returncode == 0, done.stderr
    greedy, modest = map(json.loads, done.stdout.splitlines())
    assert greedy["spill"] > 0 and greedy["failures"] == [f"{greedy['spill']} bytes of stack or spilled registers, wanted none", "no HGMMA"]
    assert modest["spill"] == 0 and modest["failures"] == ["no HGMMA"]


def test_the_gate_passes_dequantize_keeps_its_record_and_makes_a_page(compiles):
    file, page = compiles.folder / "record.json", compiles.folder / "page.md"
    old = [dict(kernel="dequantize", build="gone", chip="sm90", triton=gate.triton.__version__), dict(kernel="no such kernel", triton="1"),
           dict(kernel="dequantize", build="b", chip="sm90", triton="3.5.0", warps=1, registers=9, shared=0, instructions=77, loop=0, kinds={},
                failures=["too slow"])]  # fmt: skip
    file.write_text(json.dumps(old))
    done = compiles("-m", "minift_kernels.gate", "dequantize", "--json", file, "--markdown", page)
    assert done.returncode == 0 and " 0 failed" in done.stdout, done.stdout + done.stderr
    records = json.loads(file.read_text())
    assert {r["build"] for r in records if r["triton"] == "3.5.0"} == {"b"} and not any(r["build"] == "gone" for r in records)
    ours = [r for r in records if r["triton"] == gate.triton.__version__]
    assert {r["chip"] for r in ours} == {"sm80", "sm90", "gfx942"} and all(r["spill"] == 0 and not r["failures"] for r in ours)
    assert all(r["slots"] <= 9 for r in ours if r["chip"] == "sm90"), "decoding a weight must take less time than its bytes: 17 slots; it took 8.6"
    assert "**too slow**" in page.read_text() and "counts of" in page.read_text()


def test_the_gate_refuses_the_interpreter_and_unknown_kernels(monkeypatch):
    with pytest.raises(SystemExit, match="TRITON_INTERPRET=1 is set, and the gate compiles: run it without"):
        gate.main(["dequantize"])
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit, match=r"no kernel is called dequantise; there are .*dequantize"):
        gate.main(["dequantise"])
