"""Compile every kernel for GPUs that are not here, and read the machine code: does it spill, does it fit, does it use what the chip has?

    python -m minift_kernels.gate [names] [--json FILE] [--markdown FILE]           exit status 1 if a kernel fails

For each `Build` in the registry and each chip (A100 sm80, H100 and H200 sm90, MI300X gfx942):
- no stack and no spill: a register that does not fit goes to memory, at the price of everything the kernel is for;
- shared memory within what one block may have: 163 kB, 227 kB, 64 kB; threads within the 1024 that it may have;
- the instructions that the build expects; where the kernel has a dot, a tensor-core instruction in any case.

Recorded beside them: registers, and instructions per weight, the number that decides whether decoding 4 bits keeps up with memory:

    slots = instructions * 32 * num_warps / weights            (64 lanes on gfx942)

where `instructions` are all of the program, seldom-taken branches too, padding left out; for a kernel with a loop (`Build.loop_weights`)
those of its largest loop. A count, no speed: an H200 issues 132 * 128 * 1.755e9 of them a second at best, and moves 4.3e12 bytes (chips.py).
A stub stands in for the driver, so that `.warmup` specialises as a launch would. Triton's own cuobjdump reads the code; no toolkit needed.
Not under TRITON_INTERPRET, which is chosen on import. Proved in tests/kernels/test_gate.py."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from minift_kernels.registry import CHIPS, Build, kernels

TARGETS = {"sm80": ("cuda", 80, 32), "sm90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
SHARED = {"sm80": 163 * 1024, "sm90": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory that one block may have."""
THREADS = 1024
"""Threads that one block may have, on every chip."""
TENSOR_CORE = {"sm80": ("HMMA", "IMMA"), "sm90": ("HGMMA", "HMMA", "IGMMA", "IMMA"), "gfx942": ("v_mfma",)}
KINDS = ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDL", "STL", "ATOM", "RED", "SHFL", "HMMA", "HGMMA", "IMMA", "QGMMA", "UTMA", "MUFU",
         "global_load", "global_store", "buffer_load", "buffer_store", "global_atomic", "ds_", "v_mfma", "scratch_")  # fmt: skip
"""Instructions worth recording one by one."""


class Stub:
    """What Triton asks of a driver when it only compiles. Each chip counts as a device of its own, since Triton caches by device."""

    def __init__(self, chip: str):
        self.device, self.target = CHIPS.index(chip), GPUTarget(*TARGETS[chip])

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cuda


def compiled(build: Build, chip: str):
    """Triton's result for one chip: .asm by stage, .metadata."""
    driver.set_active(Stub(chip))
    arguments = [build.arguments[name] for name in build.function.arg_names]
    return build.function.warmup(*arguments, grid=(1,), num_warps=build.num_warps, num_stages=build.num_stages)


def cuobjdump(flag: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout


def usage(text: str) -> dict[str, int]:
    """cuobjdump -res-usage -> registers, and bytes of stack that each thread takes (spilled registers lie there)."""
    return dict(registers=int(re.search(r"REG:(\d+)", text)[1]), spill=int(re.search(r"STACK:(\d+)", text)[1]))


def amd_usage(text: str) -> dict[str, int]:
    """The notes at the end of amdgcn text -> the same; spilled registers and bytes of scratch memory are added up."""
    note = lambda name: int(match[1]) if (match := re.search(rf"\.{name}:\s+(\d+)", text)) else 0
    spill = note("vgpr_spill_count") + note("sgpr_spill_count") + note("private_segment_fixed_size")
    return dict(registers=note("vgpr_count"), spill=spill)


def sass(text: str) -> list[tuple[int, str, int | None]]:
    """cuobjdump -sass -> (address, instruction, where it branches to), without the padding: NOPs and the branch to itself that precedes them."""
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);"
    found = [(int(at, 16), name, int(to[1], 16) if name.startswith("BRA") and (to := re.search(r"\b0x([0-9a-f]+)", rest)) else None)
             for at, name, rest in re.findall(pattern, text)]  # fmt: skip
    return [line for line in found if line[1] != "NOP" and line[2] != line[0]]


def amdgcn(text: str) -> list[str]:
    """amdgcn text -> instructions, without s_nop."""
    found = re.findall(r"^\t((?:[sv]|ds|global|buffer|flat|scratch)_\w+)", text, re.MULTILINE)
    return [name for name in found if name != "s_nop"]


def largest_loop(code: list[tuple[int, str, int | None]]) -> int:
    """Instructions between the target of a backward branch and that branch, the most of any; 0 without a loop."""
    spans = [(to, at) for at, _, to in code if to is not None and to < at]
    return max((sum(start <= at <= end for at, _, _ in code) for start, end in spans), default=0)


def has(instructions, wanted: str) -> bool:
    """Does one begin like `wanted` and hold all its dotted parts? LDG.128 is found in LDG.E.EF.128."""
    first, *rest = wanted.split(".")
    return any(name.split(".")[0].startswith(first) and set(rest) <= set(name.split(".")[1:]) for name in instructions)


def inspect(kernel: str, build: Build, chip: str) -> dict:
    """One line of the record."""
    result, loop = compiled(build, chip), 0
    if TARGETS[chip][0] == "cuda":
        read, code = usage(cuobjdump("-res-usage", result.asm["cubin"])), sass(cuobjdump("-sass", result.asm["cubin"]))
        names, loop = [name for _, name, _ in code], largest_loop(code)
    else:
        read, names = amd_usage(result.asm["amdgcn"]), amdgcn(result.asm["amdgcn"])
    record = dict(kernel=kernel, build=build.name, chip=chip, triton=triton.__version__, warps=build.num_warps, stages=build.num_stages,
                  **read, shared=result.metadata.shared, instructions=len(names), loop=loop, weights=build.weights)  # fmt: skip
    counted, decoded = (loop, build.loop_weights) if build.loop_weights else (len(names), build.weights)
    if decoded and counted:
        record["slots"] = round(counted * TARGETS[chip][2] * build.num_warps / decoded, 1)
    record["kinds"] = dict(sorted(Counter(name for name in names if name.startswith(KINDS)).items()))
    record["failures"] = failures(record, build, chip, "tt.dot" in result.asm["ttir"])
    return record


def failures(record: dict, build: Build, chip: str, dot: bool) -> list[str]:
    """What is wrong with a record, in words."""
    wrong = []
    if record["spill"]:
        wrong.append(f"{record['spill']} bytes of stack or spilled registers, wanted none")
    if record["shared"] > SHARED[chip]:
        wrong.append(f"{record['shared']} bytes of shared memory, {chip} has {SHARED[chip]}")
    if (threads := build.num_warps * TARGETS[chip][2]) > THREADS:
        wrong.append(f"{build.num_warps} warps of {TARGETS[chip][2]} are {threads} threads, a block may have {THREADS}")
    wrong += [f"no {name}" for name in build.expect.get(chip, ()) if not has(record["kinds"], name)]
    if dot and not record["spill"] and not any(has(record["kinds"], name) for name in TENSOR_CORE[chip]):
        wrong.append(f"a dot without {' or '.join(TENSOR_CORE[chip])}")
    return wrong


def table(records: list[dict]) -> str:
    """Markdown, one line per build and chip."""
    lines = ["| kernel | build | chip | triton | warps | registers | shared bytes | instructions | per weight | memory and tensor cores |",
             "| --- | --- | --- | --- | --: | --: | --: | --: | --: | --- |"]  # fmt: skip
    for r in records:
        kinds = ", ".join(f"{count} {name}" for name, count in r["kinds"].items() if not name.startswith(("MUFU", "SHFL")))
        code = f"{r['loop']} in the loop of {r['instructions']}" if r["loop"] else r["instructions"]
        verdict = f" **{'; '.join(r['failures'])}**" if r["failures"] else ""
        lines.append(f"| {r['kernel']} | {r['build']} | {r['chip']} | {r['triton']} | {r['warps']} | {r['registers']} | {r['shared']} | {code} "
                     f"| {r.get('slots', '')} | {kinds}{verdict} |")  # fmt: skip
    return "\n".join(lines) + "\n"


PAGE = """# What the compiler makes of the kernels

Made by `make gate` (minift_kernels.gate) from benchmarks/results/kernel_gate.json. Compiled for GPUs that were not at hand: these are counts of
what the machine code holds, no measured speed. No build may use stack or spill a register.

"Per weight" is the number of instruction slots that decoding one 4-bit weight takes, everything included: instructions times threads over the
weights of one program, or of one turn of its loop. For 14336 x 4096 weights an H200 (132 SMs, 128 lanes, 1.755 GHz assumed) needs 2.0 us per
slot, while the 2.56 bytes a weight of a dequantization take 35 us at 4.3 TB/s
(a copy, given to us as measured on another H200, by no script here): beyond 17 slots the instructions take longer than the bytes.
Plain look-ups, counted before in the same way: a tree of selects 25.9, a load from a table in L1 10.5, tl.gather from registers 9.8.

"""


def merged(file: Path, fresh: list[dict]) -> list[dict]:
    """The file's records with these put in place of those of the same kernel and Triton; those of kernels that are gone are dropped."""
    told = {(r["kernel"], r["triton"]) for r in fresh}
    old = [r for r in (json.loads(file.read_text(encoding="utf-8")) if file.exists() else [])]
    kept = [r for r in old if (r["kernel"], r["triton"]) not in told and r["kernel"] in kernels()]
    order = lambda r: (r["kernel"], r["build"], CHIPS.index(r["chip"]), r["triton"])
    return sorted(kept + fresh, key=order)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minift_kernels.gate", description="Compile the kernels for absent GPUs, read the code.")
    parser.add_argument("names", nargs="*", help="kernels (default: all)")
    parser.add_argument("--json", type=Path, help="keep the record in this file, beside what other versions of Triton left there")
    parser.add_argument("--markdown", type=Path, help="write the whole record as a page")
    chosen = parser.parse_args(words)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set, and the gate compiles: run it without")
    if unknown := set(chosen.names) - set(kernels()):
        raise SystemExit(f"no kernel is called {', '.join(sorted(unknown))}; there are {', '.join(kernels())}")
    records = [inspect(name, build, chip)
               for name, kernel in kernels().items() if not chosen.names or name in chosen.names
               for build in kernel.builds() for chip in build.chips]  # fmt: skip
    print(table(records))
    if chosen.json:
        everything = merged(chosen.json, records)
        chosen.json.write_text("[\n" + ",\n".join(json.dumps(r) for r in everything) + "\n]\n", encoding="utf-8")
        if chosen.markdown:
            chosen.markdown.write_text(PAGE + table(everything), encoding="utf-8")
    failing = [r for r in records if r["failures"]]
    for r in failing:
        print(f"FAILED {r['kernel']} ({r['build']}) on {r['chip']}: {'; '.join(r['failures'])}", file=sys.stderr)
    print(f"triton {triton.__version__}: {len(records) - len(failing)} passed, {len(failing)} failed")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
