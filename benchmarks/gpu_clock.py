"""Time on a GPU: systems take turns, the cache is emptied before each, and short ones run from a graph.

Each round runs every system once, in an order that reverses from round to round (benchmarks/measure.py).
Before every timed call 256 MB are written and then read: the weights of the call before would otherwise still lie in the cache (50 MB on
an H200) and seem to arrive faster than memory can send them. Reading leaves the cache clean; only written, its lines would have to be
carried to memory during the timed call.
From 50 us on two events stand around the call. The flush before it takes longer than the host needs to queue the call, so launches are
hidden where they can be. If one system of a case is shorter, all of it run from CUDA graphs: one graph holds 20 times (flush, call), another
20 times the flush, and a twentieth of the difference is the call's time, with the gap to its neighbour (about 1 us) and without the host.
Where capture fails, or a call takes more than a millisecond, events are used and the result says so.
Clocks and power are read and never set. Nothing here runs without a GPU; what calls it is tested with a false clock.
Proved, as far as that goes, in tests/benchmarks/test_kernels.py."""

import subprocess
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.measure import in_turn

MB = 1 << 20
GRAPH_BELOW, GRAPH_UP_TO, REPEATS, WARM = 50e-6, 1e-3, 20, 3
"""Seconds; how often a graph repeats its call; calls before anything is timed."""
COPY_BYTES, MATMUL_SIDE = 1 << 30, 8192
SMI = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,utilization.gpu"
System = Callable[[], object]


def flush_bytes(cache: int) -> int:
    """How much to write so that nothing of `cache` bytes survives: 256 MB, or four caches if that is more."""
    return max(256 * MB, 4 * cache)


class GpuClock:
    """Times calls on the current GPU."""

    device = "cuda"

    def __init__(self):
        properties = torch.cuda.get_device_properties("cuda")
        cache = max(properties.L2_cache_size, 256 * MB if torch.version.hip else 0)            # AMD's last-level cache is not reported
        self.words = torch.zeros(flush_bytes(cache) // 4, dtype=torch.int32, device="cuda")
        self.seen = torch.zeros((), dtype=torch.int32, device="cuda")

    def flush(self) -> None:
        self.words.fill_(1)
        torch.amax(self.words, dim=0, out=self.seen)

    def between(self, call: System) -> float:
        """Seconds between two events around the call."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def flushed(self, call: System) -> float:
        self.flush()
        return self.between(call)

    def captured(self, call: System) -> torch.cuda.CUDAGraph:
        """A graph of 20 times (flush, call). Warmed up on a side stream: what a first call allocates or compiles must not be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                self.flush()
                call()
        return graph

    def turns(self, systems: dict[str, System], rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Seconds of every system, one per round; and how it was timed, if otherwise than the case's others."""
        guess = {}
        for name, call in systems.items():
            for _ in range(WARM):
                call()
            torch.cuda.synchronize()
            guess[name] = min(self.between(call) for _ in range(WARM))
        if min(guess.values()) >= GRAPH_BELOW:
            return in_turn({name: lambda call=call: self.flushed(call) for name, call in systems.items()}, rounds), {}
        stream, graphs, notes = torch.cuda.current_stream(), {"": self.captured(lambda: None)}, {}
        for name, call in systems.items():
            if guess[name] > GRAPH_UP_TO:
                notes[name] = "longer than 1 ms: not in a graph"
                continue
            try:
                graphs[name] = self.captured(call)
            except Exception as error:                                     # whatever a peer does that a graph cannot hold
                torch.cuda.set_stream(stream)                              # a capture that fails does not go back to it
                torch.cuda.synchronize()
                notes[name] = f"no graph, so the host counts: {str(error).splitlines()[0][:100]}"
        timers: dict[str, Callable[[], float]] = {name: lambda g=graph: self.between(g.replay) for name, graph in graphs.items()}
        timers |= {name: lambda call=systems[name]: self.flushed(call) for name in notes}
        seconds = in_turn(timers, rounds)
        empty = median(seconds.pop(""))
        return {name: times if name in notes else [per_call(t, empty) for t in times] for name, times in seconds.items()}, notes

    def memory(self, call: System) -> int:
        """Bytes that a call takes at most beyond what was there, as torch's allocator counts."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def ceilings(self, rounds: int) -> dict[str, float]:
        """Bytes per second of a copy (read plus written) and FLOP per second of a bf16 product, on random numbers: zeros run faster."""
        source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device="cuda").bfloat16() for _ in range(2))
        product = torch.empty_like(a)
        seconds, _ = self.turns({"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=product)}, rounds)
        return {"copy": 2 * COPY_BYTES / median(seconds["copy"]), "matmul": 2 * MATMUL_SIDE**3 / median(seconds["matmul"])}


def per_call(replay: float, empty: float) -> float:
    """Seconds of one call, from a replay of (flush, call) and one of the flush alone; at least 0.1 us, which nothing undercuts."""
    return max((replay - empty) / REPEATS, 1e-7)


def card() -> dict[str, str]:
    """Name, driver, clocks (MHz), power (W) and temperature as nvidia-smi reads them now; without nvidia-smi, the name only."""
    properties = torch.cuda.get_device_properties("cuda")
    command = ["nvidia-smi", f"--id=GPU-{getattr(properties, 'uuid', '0')}", f"--query-gpu={SMI}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return dict(zip(SMI.split(","), (part.strip() for part in said.split(","))))
    except (OSError, subprocess.SubprocessError):
        return {"name": torch.cuda.get_device_name()}
