"""Planted bugs in the kernels' benchmark, their bounds, and `minift kernel`; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

INTERVALS, CLOCK, CASE, COMMAND = "benchmarks/intervals.py", "benchmarks/gpu_clock.py", "benchmarks/kernel_case.py", "benchmarks/kernels.py"
RIGHT, CHIPS, RECIPE = "benchmarks/kernel_accuracy.py", "kernels/minift_kernels/chips.py", "minift/recipes/kernel.py"
TEST = "tests/benchmarks/test_kernels.py"

MUTANTS = [
    Mutant(
        name="bench_ratio_upside_down",
        file=INTERVALS,
        old="their / our for our, their in",
        new="our / their for our, their in",
        test=TEST,
    ),
    Mutant(
        name="bench_a_wrong_kernel_gets_a_time",
        file=CASE,
        old='    if record["accuracy"]["failure"]:\n        return record\n',
        new="",
        test=TEST,
    ),
    Mutant(
        name="bench_nan_passes",
        file=RIGHT,
        old="if not error <= allowed:",
        new="if error > allowed:",
        test=TEST,
    ),
    Mutant(
        name="bench_the_reference_timed_as_the_kernel",
        file=RIGHT,
        old='    if "runs as plain torch" in said.getvalue():\n',
        new="    if False:\n",
        test=TEST,
    ),
    Mutant(
        name="bench_shared_inputs_of_a_kernel_that_changes_them",
        file=RIGHT,
        old="    given = copied(arguments) if kernel.mutates else arguments\n",
        new="    given = arguments\n",
        test=TEST,
    ),
    Mutant(
        name="bench_flush_forgotten",
        file=CLOCK,
        old="        self.flush()\n        return self.between(call)\n",
        new="        return self.between(call)\n",
        test=TEST,
    ),
    Mutant(
        name="bench_the_flush_counted_in",
        file=CLOCK,
        old="(replay - empty) / REPEATS",
        new="replay / REPEATS",
        test=TEST,
    ),
    Mutant(
        name="bench_children_of_a_hanging_kernel_live_on",
        file=COMMAND,
        old="os.killpg(process.pid, signal.SIGKILL)",
        new="process.kill()",
        test=TEST,
    ),
    Mutant(
        name="bench_status_0_whatever_failed",
        file=COMMAND,
        old="    return 0 if good else 1\n",
        new="    return 0\n",
        test=TEST,
    ),
    Mutant(
        name="bench_a_run_of_one_name_forgets_the_others",
        file=COMMAND,
        old='json.loads(file.read_text(encoding="utf-8")) if file.exists() else ',
        new="",
        test=TEST,
    ),
    Mutant(
        name="bound_by_the_smaller_time",
        file=CHIPS,
        old="max(moving, computing)",
        new="min(moving, computing)",
        test="tests/kernels/test_chips.py",
    ),
    Mutant(
        name="bound_over_the_data_sheet_only",
        file=CHIPS,
        old="(gpu.copy or gpu.bandwidth)",
        new="gpu.bandwidth",
        test="tests/kernels/test_chips.py",
    ),
    Mutant(
        name="kernel_shows_another_chips_registers",
        file=RECIPE,
        old=' and r["chip"] == gpu.chip',
        new="",
        test="tests/recipes/test_kernel.py",
    ),
    Mutant(
        name="kernel_takes_the_newest_triton_by_its_letters",
        file=RECIPE,
        old="key=lambda version: [int(part) for part in version.split(\".\") if part.isdigit()]",
        new="key=str",
        test="tests/recipes/test_kernel.py",
    ),
    Mutant(
        name="kernel_leaves_breaking_lines_to_the_terminal",
        file=RECIPE,
        old="folded(page(kernel), console.width)",
        new="page(kernel)",
        test="tests/recipes/test_kernel.py",
    ),
    Mutant(
        name="gate_counts_a_wave_as_32_threads",
        file="kernels/minift_kernels/gate.py",
        old="build.num_warps * TARGETS[chip][2]) > THREADS",
        new="build.num_warps * 32) > THREADS",
        test="tests/kernels/test_gate.py",
    ),
    Mutant(
        name="kernel_ignores_the_shape_given",
        file=RECIPE,
        old='case[key] = parse(text, type(case[key]), f"--shape {key}")',
        new='parse(text, type(case[key]), f"--shape {key}")',
        test="tests/recipes/test_kernel.py",
    ),
]
