"""The benchmark of the kernels without a GPU: its statistics, its judgement, its patience, its page. Every time in here is made up."""

import json
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_clock, kernel_case, kernels_cpu, kernels_report
from benchmarks import kernels as command
from benchmarks.gpu_clock import MB, GpuClock, flush_bytes, per_call
from benchmarks.intervals import faster, quantile, spread
from benchmarks.kernel_accuracy import accuracy, tensors
from benchmarks.kernel_case import measure_case, measure_kernel
from minift_kernels.registry import Kernel, Work, kernels

# ---------------------------------------------------------------------------------------------------------------- statistics


def test_quantiles_worked_by_hand():
    assert quantile([3, 1, 2], 0.25) == 1.5 and quantile([1, 2, 3, 10], 0.5) == 2.5 and quantile([7], 0.8) == 7 and quantile([1, 2], 1) == 2


def test_a_spread_is_in_microseconds():
    assert spread([5e-6, 1e-6, 3e-6, 2e-6, 4e-6, 6e-6]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}


def test_a_ratio_pairs_the_times_of_a_round():
    slow_half = [1.0] * 10 + [3.0] * 10                                    # the machine slowed down: both sides did
    assert faster(slow_half, [2 * t for t in slow_half]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert faster([2.0] * 20, [1.0] * 20)["median"] == 0.5                 # above 1 ours is the faster


def test_the_interval_holds_the_median_and_narrows_with_rounds():
    noisy = [1.0, 1.2, 0.9, 1.4, 1.1]
    few, many = faster([1.0] * 5, noisy), faster([1.0] * 100, noisy * 20)
    assert few["low"] < few["median"] < few["high"] and few["median"] == many["median"] == 1.1
    assert many["high"] - many["low"] < few["high"] - few["low"] and few["low"] >= 0.9 and few["high"] <= 1.4


def test_rounds_of_another_number_are_refused():
    with pytest.raises(ValueError, match="3 and 2 rounds: a ratio pairs the times of one round"):
        faster([1, 1, 1], [1, 1])


# ---------------------------------------------------------------------------------------------------------------- the clock


def test_a_flush_is_256_mb_or_four_caches():
    assert flush_bytes(50 * MB) == 256 * MB and flush_bytes(40 * MB) == 256 * MB and flush_bytes(256 * MB) == 1024 * MB


class Still(GpuClock):
    """The clock's decisions on a machine without a GPU: every call costs the microseconds it is told, a flush 100."""

    def __init__(self, costs, uncapturable=()):
        self.now, self.costs, self.uncapturable, self.log = 0.0, costs, uncapturable, []

    def flush(self):
        self.now += 100e-6
        self.log.append("flush")

    def system(self, name):
        def call():
            self.now += 1e-6 * self.costs[name]
            self.log.append(name)

        return call

    def between(self, call):
        start = self.now
        call()
        return self.now - start

    def captured(self, call):
        if any(call == self.systems[name] for name in self.uncapturable):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return SimpleNamespace(replay=lambda: [(self.flush(), call()) for _ in range(gpu_clock.REPEATS)])

    def time(self, rounds=3):
        self.systems = {name: self.system(name) for name in self.costs}
        return self.turns(self.systems, rounds)


@pytest.fixture
def still(monkeypatch):
    for name in ("synchronize", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return Still


def test_long_calls_are_timed_by_events_each_after_a_flush_and_in_turns(still):
    clock = still({"a": 60, "b": 80})
    seconds, notes = clock.time()
    assert seconds == {"a": pytest.approx([60e-6] * 3), "b": pytest.approx([80e-6] * 3)} and notes == {}
    timed = clock.log[clock.log.index("flush") :]
    assert timed[::2] == ["flush"] * 8 and timed[1::2] == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_a_short_call_puts_its_whole_case_into_graphs_and_the_flush_is_taken_off(still):
    seconds, notes = still({"a": 7, "b": 600}).time()
    assert seconds == {"a": pytest.approx([7e-6] * 3), "b": pytest.approx([600e-6] * 3)} and notes == {}


def test_what_cannot_be_captured_or_is_long_is_timed_by_events_and_says_so(still):
    seconds, notes = still({"a": 7, "b": 20, "c": 1500}, uncapturable=("b",)).time()
    assert {name: times[0] for name, times in seconds.items()} == pytest.approx({"a": 7e-6, "b": 20e-6, "c": 1500e-6})
    assert notes == {"b": "no graph, so the host counts: operation not permitted when stream is capturing", "c": "longer than 1 ms: not in a graph"}


def test_the_time_of_a_call_is_a_twentieth_of_the_difference_and_never_nothing():
    assert per_call(2140e-6, 2000e-6) == pytest.approx(7e-6) and per_call(1999e-6, 2000e-6) == 1e-7


# ---------------------------------------------------------------------------------------------------------------- right first


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


class FalseClock:
    """Made-up seconds per call: 10 us for minift, 30 us for others, 1 % slower every round."""

    device = "cpu"

    def turns(self, systems, rounds):
        return {name: [(10e-6 if name == "minift" else 30e-6) * 1.01**r for r in range(rounds)] for name in systems}, {"torch eager": "a note"}

    def memory(self, call):
        call()
        return 1024


def toy(op=lambda x: x * 2, **changed):
    """y = 2 x, n numbers: 8 n bytes, n FLOPs."""
    make = lambda device, seed, n: {"x": torch.randn(n, generator=torch.Generator(device).manual_seed(seed))}
    plain = dict(name="toy", op=op, reference=lambda x: x * 2, make=make, tests={"t": dict(n=3)}, benches={"five": dict(n=5), "six": dict(n=6)},
                 work=lambda n: Work(8 * n, n), builds=list, exact=True)  # fmt: skip
    return Kernel(**{**plain, **changed})


def measured(kernel, compile=False, ceilings=None, n=5):
    return measure_case(kernel, dict(n=n), FalseClock(), 20, {"copy": 4e6, "matmul": 1e6} if ceilings is None else ceilings, compile)


def test_a_right_kernel_has_a_bound_times_ratios_and_memory():
    record = measured(toy(peers={"twice": lambda x: lambda: x + x, "absent": lambda x: None}))
    assert record["accuracy"] == {"error": 0.0, "allowed": 0.0, "failure": ""}
    assert (record["bytes"], record["flops"], record["bound_us"], record["bound_by"]) == (40, 5, 10.0, "bytes")     # 40 / 4e6 s > 5 / 1e6 s
    ours, eager = record["providers"]["minift"], record["providers"]["torch eager"]
    assert ours["us"]["median"] == pytest.approx(10 * 1.01**9.5, rel=1e-3) and ours["roofline"] == pytest.approx(1 / 1.01**9.5, rel=1e-3)
    assert "ours_faster" not in ours and eager["ours_faster"] == {"median": 3.0, "low": 3.0, "high": 3.0} and eager["note"] == "a note"
    assert record["providers"]["twice"]["peak_bytes"] == 1024
    assert record["missing"] == {"absent": "cannot run here", "torch.compile": "left out: no time left to compile"}


def test_flops_bound_where_they_take_longer():
    record = measured(toy(), ceilings={"copy": 4e9, "matmul": 1e6})
    assert record["bound_by"] == "FLOPs" and record["bound_us"] == 5.0


def test_without_ceilings_there_is_no_percentage():
    record = measured(toy(), ceilings={})
    assert "bound_us" not in record and "roofline" not in record["providers"]["minift"]


def test_torch_compile_is_one_of_the_providers():
    assert set(measured(toy(), compile=True)["providers"]) == {"minift", "torch eager", "torch.compile"}
    own = toy(peers={"torch.compile": lambda x: None})                     # a kernel that brings its own keeps it
    assert measured(own, compile=True)["missing"] == {"torch.compile": "cannot run here"}


def unwritten(x):
    out = torch.empty_like(x)
    out[:-1] = x[:-1] * 2
    return out


@pytest.mark.parametrize("op, exact, said", [
    (lambda x: x * 2.001, True, "5 of 5 values differ, and none may"),
    (lambda x: torch.cat([x[:4] * 2, x[4:]]), True, "1 of 5 values differ"),
    (lambda x: x * 2.001, False, r"error 0\.\d+, allowed \d"),
    (lambda x: x * float("nan"), False, "error nan, allowed"),
    (unwritten, True, "1 of 5 values differ"),
    (lambda x: (x * 2).double(), True, r"gives \[\(\(5,\), torch.float64\)\], wanted \[\(\(5,\), torch.float32\)\]"),
    (lambda x: x[:3] * 2, True, r"gives \[\(\(3,\), torch.float32\)\], wanted"),
    (lambda x: (print("minift_kernels: toy runs as plain torch: why", file=sys.stderr), x * 2)[1], True, "not the kernel: minift_kernels: toy"),
])  # fmt: skip
def test_what_is_not_right_gets_no_time(op, exact, said):
    record = measured(toy(op, exact=exact))
    assert re.search(said, record["accuracy"]["failure"]) and "providers" not in record and "bound_us" not in record


def test_an_inexact_kernel_may_err_twice_as_much_as_the_reference_in_its_own_dtype():
    reference = lambda x: (x.double() * 2).to(x.dtype) if x.dtype == torch.float64 else (x.half() * 2).float()       # errs like float16
    assert not accuracy(toy(lambda x: (x.half() * 2).float(), reference=reference, exact=False), dict(x=torch.tensor([1.0001])))["failure"]
    wrong = accuracy(toy(lambda x: (x.bfloat16() * 2).float(), reference=reference, exact=False), dict(x=torch.tensor([1.001])))
    assert wrong["failure"].startswith("error") and wrong["error"] > wrong["allowed"]


def test_a_kernel_that_changes_its_inputs_is_checked_by_them_and_each_provider_has_its_own():
    right, wrong = (lambda x: x.mul_(2), lambda x: x.mul_(3))
    nothing = lambda f: lambda x: (f(x), ())[1]
    kernel = toy(nothing(right), reference=nothing(right), mutates=("x",))
    record = measured(kernel)
    assert not record["accuracy"]["failure"] and set(record["providers"]) == {"minift", "torch eager"}
    assert measured(toy(nothing(wrong), reference=nothing(right), mutates=("x",)))["accuracy"]["failure"] == "5 of 5 values differ, and none may"


def test_a_peer_that_fails_is_named_with_its_reason():
    def broken(x):
        raise ImportError("no module named bitsandbytes\nand more")

    fails_when_called = lambda x: lambda: 1 / 0
    record = measured(toy(peers={"bitsandbytes": broken, "other": fails_when_called}))
    assert record["missing"]["bitsandbytes"] == "ImportError: no module named bitsandbytes"
    assert record["missing"]["other"] == "ZeroDivisionError: division by zero" and set(record["providers"]) == {"minift", "torch eager"}


@pytest.mark.parametrize("name", kernels())
def test_every_kernel_of_the_registry_goes_through(name):
    """In Triton's interpreter, on its smallest case that is not bfloat16 there: right, timed, and each peer runs or says why not."""
    kernel = kernels()[name]
    served = lambda case: torch.bfloat16 not in {t.dtype for t in tensors(list(kernel.make(device="cpu", seed=0, **case).values()))}
    case = min((c for c in kernel.tests.values() if served(c)), key=lambda case: kernel.work(**case).bytes)
    record = measure_case(kernel, case, FalseClock(), 20, {"copy": 4e12, "matmul": 8e14}, compile=True)
    assert not record["accuracy"]["failure"], record["accuracy"]
    assert {"minift", "torch eager"} <= set(record["providers"]) and set(kernel.peers) <= {*record["providers"], *record["missing"]}
    assert json.loads(json.dumps(record)) == record


def test_cases_are_said_one_by_one_and_those_without_time_are_left_out():
    said, ticks = [], iter([0.0, 0.0, 50.0, 50.0])                         # the first case took 50 of 90 seconds
    measure_kernel(toy(), FalseClock(), 20, 90.0, {}, said.append, now=lambda: next(ticks))
    assert [line["case"] for line in said] == ["five", "six"] and "providers" in said[0]
    assert said[1]["skipped"] == "left out: 50 of 90 seconds were gone"


def test_a_case_that_crashes_leaves_the_others():
    def op(x):
        if len(x) == 5:
            raise MemoryError("too large")
        return x * 2

    said = []
    measure_kernel(toy(op), FalseClock(), 20, 900.0, {}, said.append)
    assert said[0] == {"case": "five", "crashed": "MemoryError: too large"} and "providers" in said[1]


def test_a_kernels_process_writes_card_ceilings_and_cases_line_by_line(tmp_path, monkeypatch):
    class WithCeilings(FalseClock):
        ceilings = staticmethod(lambda rounds: {"copy": 4e6, "matmul": 1e6})

    monkeypatch.setattr(gpu_clock, "GpuClock", WithCeilings)
    monkeypatch.setattr(gpu_clock, "card", lambda: {"name": "A made-up GPU"})
    monkeypatch.setattr(kernel_case, "kernels", lambda: {"toy": toy()})
    file = tmp_path / "lines"
    kernel_case.main(["toy", "--seconds", "60", "--rounds", "20", "--to", str(file)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["card", "ceilings", "case", "case", "card_after"]
    record = command.kernel_record(lines, "", ["five", "six"])
    assert record["state"] == "measured" and record["cases"]["five"]["providers"]["minift"]["roofline"] > 0.9


# ---------------------------------------------------------------------------------------------------------------- patience


def python(code):
    return [sys.executable, "-c", code]


def test_a_process_that_hangs_is_killed_with_its_children_and_its_lines_are_kept(tmp_path):
    file, mark = tmp_path / "lines", tmp_path / "mark"
    child = f"import time; time.sleep(1.7); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time\nopen({str(file)!r}, 'a').write('{{\"case\": \"a\"}}\\n{{\"case\": \"b')\n"
    code += f"subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)"
    start = time.monotonic()
    lines, trouble = command.supervised(python(code), 0.7, file)
    assert lines == [{"case": "a"}] and trouble == "not finished after 1 seconds, and killed" and time.monotonic() - start < 5
    time.sleep(max(0.0, 2.6 - (time.monotonic() - start)))
    assert not mark.exists()


def test_a_process_that_fails_is_told_by_its_last_line(tmp_path):
    lines, trouble = command.supervised(python("import sys; print('a\\nno memory', file=sys.stderr); sys.exit(3)"), 20.0, tmp_path / "lines")
    assert (lines, trouble) == ([], "ended with status 3: no memory")
    assert command.supervised(python("pass"), 20.0, tmp_path / "lines") == ([], "")


def test_time_is_shared_by_what_is_expected_and_what_is_left_over_passes_on():
    assert command.share(100.0, [1.0, 3.0]) == 25.0 and command.share(90.0, [3.0]) == 90.0 and command.share(-1.0, [1.0]) == 0.0
    few, many = (command.expected_seconds(toy(benches={str(i): dict(n=5) for i in range(count)}), 20) for count in (1, 4))
    assert few == pytest.approx(15 + 8 + 20 * 200 * 20e-6) and many == pytest.approx(15 + 4 * (8 + 20 * 200 * 20e-6))


RIGHT = {"case": "five", "bytes": 40, "flops": 5, "accuracy": {"error": 0.0, "allowed": 0.0, "failure": ""}, "bound_us": 9.0, "bound_by": "bytes",
         "missing": {"bitsandbytes": "cannot run here"}, "rounds": 20,
         "providers": {"minift": {"us": {"median": 10.0, "p20": 9.5, "p80": 10.5}, "peak_bytes": 2**21, "roofline": 0.9},
                       "torch eager": {"us": {"median": 30.0, "p20": 29.0, "p80": 31.0}, "peak_bytes": 2**20, "roofline": 0.3, "note": "no graph",
                                       "ours_faster": {"median": 3.0, "low": 2.9, "high": 3.1}}}}  # fmt: skip
WRONG = {"case": "six", "bytes": 48, "flops": 6, "accuracy": {"failure": "1 of 6 values differ, and none may"}}
START = [{"card": {"name": "A made-up GPU"}}, {"ceilings": {"copy": 4e12, "matmul": 8e14}}]
"""What a kernel's process would write. Made up for these tests: no machine has given these numbers."""


@pytest.fixture
def toys(monkeypatch):
    """The registry holds two toy kernels."""
    both = {"toy": toy(), "boy": toy(name="boy")}
    monkeypatch.setattr(command, "kernels", lambda: both)
    return both


def writes(lines, then="pass"):
    """A command that writes these lines and does `then`."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return lambda name, seconds, to: python(f"open({str(to)!r}, 'a').write({text!r})\n{then}")


def test_what_is_measured_is_stored_and_a_later_run_of_one_name_keeps_the_others(toys, tmp_path, capsys):
    file = tmp_path / "results" / "kernels-toy.json"
    good = [*START, RIGHT, {**RIGHT, "case": "six"}]
    assert command.measure(["toy", "boy"], 20, 100.0, file, "A made-up GPU", writes(good))
    said = capsys.readouterr().out
    assert "toy: measured" in said and "minift: 10.0 (9.5 to 10.5) us, 90 % of the roofline" in said
    assert "minift is 3.00x (2.90 to 3.10) as fast" in said
    assert not command.measure(["boy"], 20, 100.0, file, "A made-up GPU", writes([*START, RIGHT, WRONG]))
    stored = json.loads(file.read_text())["kernels"]
    assert stored["toy"]["state"] == "measured" and stored["toy"]["ceilings"]["copy"] == 4e12 and stored["toy"]["torch"] == torch.__version__
    assert stored["boy"]["state"] == "failed" and stored["boy"]["troubles"] == ["six: 1 of 6 values differ, and none may"]
    said = capsys.readouterr().out
    assert "FAILED six: 1 of 6 values differ" in said and "six: WRONG" in said and said.count(" us") == 2, "no time for what is wrong"


def test_a_kernel_that_hangs_costs_its_share_and_the_next_has_its_turn(toys, tmp_path):
    file, hang = tmp_path / "k.json", writes([*START, RIGHT], "import time; time.sleep(60)")
    go = lambda name, seconds, to: (hang if name == "toy" else writes([*START, RIGHT, {**RIGHT, "case": "six"}]))(name, seconds, to)
    start = time.monotonic()
    assert not command.measure(["toy", "boy"], 20, command.RESERVE + 4.0, file, "A made-up GPU", go)
    stored = json.loads(file.read_text())["kernels"]
    assert stored["toy"]["troubles"] == ["not finished after 2 seconds, and killed", "six: not measured"] and "five" in stored["toy"]["cases"]
    assert stored["boy"]["state"] == "measured" and time.monotonic() - start < 6


def test_a_kernel_for_which_no_time_is_left_is_not_begun(toys, tmp_path):
    assert not command.measure(["toy"], 20, command.RESERVE, tmp_path / "k.json", "A made-up GPU", writes([RIGHT]))
    assert json.loads((tmp_path / "k.json").read_text())["kernels"]["toy"]["troubles"][0].endswith("seconds were left for it")


@pytest.mark.parametrize("last, status", [({**RIGHT, "case": "six"}, 0), (WRONG, 1), ({"case": "six", "skipped": "left out"}, 1)])
def test_the_exit_status_is_1_where_a_kernel_failed(toys, tmp_path, monkeypatch, last, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A made-up GPU")
    monkeypatch.setattr(command, "INTERPRETED", False)
    monkeypatch.setattr(command, "case_command", lambda rounds: writes([*START, RIGHT, last]))
    assert command.main(["toy", "--json", str(tmp_path / "k.json")]) == status


@pytest.mark.parametrize("words, said", [
    (["toi"], "there is no kernel 'toi'; near names: toy. There are toy, boy"), (["--rounds", "5"], "--rounds 5: an interval from fewer than 20"),
    (["--seconds", "-1"], "--seconds -1: wanted more than 30"), (["--seconds", "30"], "--seconds 30: wanted more than 30"),
    (["--seconds", "nan"], "--seconds nan: wanted"), (["--seconds", "inf"], "--seconds inf: wanted"),
])  # fmt: skip
def test_wrong_words_are_refused(toys, capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- no GPU


def test_without_a_gpu_it_says_what_it_cannot_do_and_runs_cpu_rows(toys, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels_cpu, "rows", lambda rounds: iter([f"CPU rows, not the kernels: {rounds}"]))
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU here: toy, boy are not timed, nor are a copy and cuBLAS") and "CPU rows, not the kernels: 20" in said
    assert "roofline" not in said
    assert command.main(["boy"]) == 0 and "No GPU here: boy is not timed, nor are" in capsys.readouterr().out


def test_cpu_rows_compare_before_they_time(monkeypatch):
    monkeypatch.setattr(kernels_cpu, "find_spec", lambda name: True)
    same, other = (lambda: torch.ones(3)), (lambda: torch.zeros(3))
    monkeypatch.setattr(kernels_cpu, "pairs", lambda weight: {"good": (same, same), "bad": (same, other)})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    title, good, bad, *others, more = kernels_cpu.rows(3, sides=(8, 9))
    assert ", 1 thread, torch" in title and len(others) == 6 and others[2].startswith("  9 x 9 good float32: ") and "docs/quant_cpu.md" in more
    assert title.startswith("CPU rows, not the kernels: ") and "minift (CPU)" in good and "as fast" in good
    assert bad == "  8 x 8 bad float32: WRONG, the two differ; no time"


def test_cpu_rows_without_bitsandbytes_say_so(monkeypatch):
    monkeypatch.setattr(kernels_cpu, "find_spec", lambda name: None)
    assert "bitsandbytes is not installed" in list(kernels_cpu.rows(3, sides=(8,)))[1]


# ---------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def result(tmp_path):
    """A stored file, made up."""
    file = tmp_path / "kernels-made-up.json"
    record = command.kernel_record([*START, RIGHT, WRONG], "", ["five", "six"])
    file.write_text(json.dumps({"gpu": "A made-up GPU", "kernels": {"toy": record}}))
    return file


def test_the_page_shows_what_was_right_and_names_what_was_not(result, tmp_path):
    text = kernels_report.write_page([result], tmp_path).read_text()
    assert "| toy | five | 9.0 (bytes) | minift | 10.0 (9.5 to 10.5) | 90 % |  | 2.0 | equal to the bit |" in text
    assert "|  |  |  | torch eager | 30.0 (29.0 to 31.0) | 30 % | 3.00x (2.90 to 3.10) | 1.0 | no graph |" in text
    assert "**toy failed**: six: 1 of 6 values differ, and none may." in text and "| six |" not in text
    assert "copy 4.00 TB/s, bf16 product 800 TFLOP/s; A made-up GPU, clocks and power not read" in text
    assert "Not run: bitsandbytes (cannot run here)" in text
    assert "![roofline](kernels-made-up.png)" in text and (tmp_path / "kernels-made-up.png").stat().st_size > 10_000


def test_the_page_can_be_made_again_and_keeps_what_stands_around_the_table(result, tmp_path):
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{kernels_report.START}\nold numbers\n{kernels_report.END}\nafter\n")
    once = kernels_report.write_page([result], tmp_path).read_text()
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old numbers" not in once and "A made-up GPU" in once
    assert kernels_report.write_page([result], tmp_path).read_text() == once


def test_a_page_without_results_says_so(tmp_path):
    assert "No GPU has been measured yet" in kernels_report.write_page([], tmp_path).read_text()


def test_dots_stand_at_their_intensity_and_rate(result):
    dots = list(kernels_report.points(json.loads(result.read_text())))
    assert dots == [("minift", "toy, five", 0.125, pytest.approx(5e5)), ("torch eager", "toy, five", 0.125, pytest.approx(5 / 30e-6))]


def test_a_failed_accuracy_check_is_told_in_words():
    assert kernels_report.right({"error": 1e-3, "allowed": 4e-3, "failure": ""}) == "error 1.0e-03 of 4.0e-03 allowed"
    assert kernels_report.right({"failure": "error nan"}) == "WRONG: error nan"
