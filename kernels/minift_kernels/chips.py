"""What a GPU can do at best, and so how fast a kernel can be at best.

    bound = max(bytes / bandwidth, FLOPs / rate)             seconds, with the least bytes and FLOPs of the case (registry.Work)

The larger of the two says what the kernel waits for; FLOPs per byte (the intensity) decide which: bytes below rate / bandwidth, about 183
on an H200. This is the roofline of Williams, Waterman and Patterson (2009). bf16 matrix products set the rate, also for kernels that only
multiply and add; what these may wait for instead is `issue`, the instructions that all schedulers together can start.

Data-sheet numbers, dense (no 2:4 sparsity), SXM parts. `copy` (a large device-to-device copy, bytes read plus bytes written) and `matmul` (a
large bf16 product of random matrices) are known for the H200 only: they were given to us as measured on another H200, by no script here.
benchmarks/kernels.py measures both anew in every run, and states its percentages against its own. Every time in this package's first pages
is computed from these numbers and was not measured. Left out: caches (a case that fits in L2 may beat its bound), launches (2 to 10 us on the host),
and clocks, which sag under load.
Proved in tests/kernels/test_chips.py."""

from dataclasses import dataclass
from typing import NamedTuple

from minift_kernels.registry import Work


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    name: str
    chip: str
    """What Triton compiles for: one of registry.CHIPS."""
    bandwidth: float
    """Device memory, bytes per second."""
    bf16: float
    """Dense matrix products with float32 sums, FLOP per second."""
    units: int
    """Streaming multiprocessors (NVIDIA), compute units (AMD)."""
    lanes: int
    """Lanes for which each can start an instruction in one clock: 4 schedulers of a warp of 32 (AMD: 4 of 16, a wave of 64 takes 4 clocks)."""
    clock: float
    """Hz, boost; for the H200 1.755 GHz are an assumption, a little under it."""
    l2: int
    """Bytes of cache that all units share."""
    shared: int
    """Bytes of shared memory that one block may have."""
    copy: float | None = None
    """Bytes per second of a copy, read plus written, as it was given to us; None: not known."""
    matmul: float | None = None
    """FLOP per second of a bf16 product, as it was given to us; None: not known."""

    @property
    def issue(self) -> float:
        """Instructions of single lanes per second, at best."""
        return self.units * self.lanes * self.clock


GPUS = {
    "h200": GPU("NVIDIA H200", "sm90", 4.8e12, 989e12, 132, 128, 1.755e9, 50 << 20, 227 << 10, copy=4.3e12, matmul=788e12),
    "h100": GPU("NVIDIA H100", "sm90", 3.35e12, 989e12, 132, 128, 1.83e9, 50 << 20, 227 << 10),
    "a100": GPU("NVIDIA A100", "sm80", 2.039e12, 312e12, 108, 128, 1.41e9, 40 << 20, 163 << 10),
    "mi300x": GPU("AMD MI300X", "gfx942", 5.3e12, 1307e12, 304, 64, 2.1e9, 32 << 20, 64 << 10),
}
"""The A100 is the one with 80 GB. The MI300X's 4 MB of L2 per die are added up; its 256 MB of last-level cache stand before the memory."""


class Bound(NamedTuple):
    """The least seconds a case can take."""

    seconds: float
    by: str
    """"bytes" or "FLOPs": the one that takes longer."""
    bytes_seconds: float
    flops_seconds: float


def bound(work: Work, gpu: GPU) -> Bound:
    """Against `copy` and `matmul` where they are known, else against the data sheet."""
    moving = work.bytes / (gpu.copy or gpu.bandwidth)
    computing = work.flops / (gpu.matmul or gpu.bf16)
    return Bound(max(moving, computing), "bytes" if moving >= computing else "FLOPs", moving, computing)


def known(device_name: str) -> str | None:
    """The key in GPUS of a device as its driver names it ("NVIDIA H100 80GB HBM3"); None: not in the list."""
    words = device_name.lower().replace("-", " ").split()
    return next((key for key in GPUS if key in words), None)
