"""One training step with a PEFT method: minift beside Hugging Face's LlamaForCausalLM with peft, in a plain loop.

    python -m benchmarks.peft_step [--methods lora dora ia3 prefix] [--shapes 15m 110m] [--precision fp32 bf16] [--rounds 3] [--missing]
    python -m benchmarks.peft_step --attach          attach, save and load on a model of 1.1 billion parameters
    python -m benchmarks.peft_step --report          only the page and the picture, from the stored numbers

Both sides read the same base folder and the same adapter folder (written once by peft, every trained number moved off its start, so
that every product counts), see the same batches of 8 x 256 random tokens, and take the same step: loss, backward, clip to norm 1,
fused AdamW. Each side is a process of its own; they take turns (benchmarks/turns.py).
The losses of the first two steps are compared first; if they differ by more than AGREE, no speed is printed or stored for that row.
The first step is not timed. A row is stored as soon as it is measured; --missing goes on where a run was stopped.

Beside the peak memory of the process stands what training adds to the loaded model.
Writes benchmarks/results/peft_step.json, docs/peft_speed.png and the table in docs/peft_speed.md."""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import RESULTS
from benchmarks.turns import QUIET, Gate, Side, add, between_marks, faster, memory, read, turns

SHAPES = {"15m": (288, 6, 6, 768), "110m": (768, 12, 12, 2048)}
"""hidden size, layers, heads, MLP width: LLaMA's form, embedding and head tied."""
VOCABULARY, ROWS, LENGTH, SEED = 32_000, 8, 256, 0
METHODS = ("lora", "dora", "ia3", "prefix")
PACKAGES = ("transformers", "peft")
AGREE = {"fp32": 1e-4, "bf16": 2e-2}
"""How far the two losses may lie apart, in nats: float32 rounds in another order; bf16 keeps 8 bits, and 2^-8 of a loss of 10 is 4e-2."""
STEPS = {"15m": 2, "110m": 1}
"""Timed steps per turn."""
DOCS, FILE = RESULTS.parents[1] / "docs", RESULTS / "peft_step.json"
SKELETON = dict(vocab_size=32_000, hidden_size=2048, layers=22, heads=32, kv_heads=4, mlp_size=5632)
"""1.1 billion parameters: the shape of TinyLlama."""


# Both sides


def batches(count: int = 8):
    import torch

    return torch.randint(8, VOCABULARY, (count, ROWS, LENGTH), generator=torch.Generator().manual_seed(SEED))


def step_of(model, loss, precision: str):
    """() -> the mean loss of the next batch, after one optimizer step on it."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    data, place = batches(), 0

    def step() -> float:
        nonlocal place
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            mean = loss(data[place % len(data)])
        mean.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        place += 1
        return mean.item()

    return step


def theirs(folder: Path, method: str, precision: str):
    import torch
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="sdpa")
    config = PeftConfig.from_pretrained(folder / method)
    config.inference_mode = False
    model = get_peft_model(base, config).train()
    set_peft_model_state_dict(model, load_peft_weights(folder / method))
    return step_of(model, lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss, precision)


def ours(folder: Path, method: str, precision: str):
    import torch

    from minift import peft
    from minift.data.batches import Batch
    from minift.models.folder import read_model
    from minift.recipes.sft import loss

    model = read_model(folder / "base").train()
    peft.load(model, folder / method)

    def mean_loss(ids):
        total, count = loss(model, Batch(ids, torch.ones_like(ids, dtype=torch.bool)))
        return total / count

    return step_of(model, mean_loss, precision)


SIDES = {"peft": theirs, "minift": ours}


def run_side(gate: Gate, side: str, folder: Path, method: str, precision: str) -> None:
    """A side's process."""
    step = SIDES[side](folder, method, precision)
    gate.open()
    while True:
        gate.tick(step())


def write_start(folder: Path, shape: str, methods: list[str]) -> None:
    """The base model and an adapter per method, as transformers and peft write them."""
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, inner = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=inner, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )  # fmt: skip
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = dict(r=8, lora_alpha=16, target_modules=linears, task_type="CAUSAL_LM")
    configs = {
        "lora": peft.LoraConfig(**lora),
        "dora": peft.LoraConfig(**lora, use_dora=True),
        "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    }
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for method in methods:
        model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), configs[method])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        model.save_pretrained(folder / method)


def time_attach(pipe, side: str, folder: Path) -> None:
    """A side's process: a model of SKELETON whose memory is asked for and never touched; seconds to attach, save and load LoRA rank 8
    on all linears but the head. Loading makes a second set on the same model. Imports and the skeleton are not timed."""
    import torch

    S = SKELETON
    seconds, start = {}, 0.0

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = now - start, now

    if side == "minift":
        from minift import peft
        from minift.models.config import ModelConfig
        from minift.models.transformer import Transformer

        with torch.device("meta"):
            model = Transformer(ModelConfig(**S, head_dim=S["hidden_size"] // S["heads"], max_positions=2048, tie_embeddings=False))
        model.to_empty(device="cpu")
        start = time.perf_counter()
        peft.attach(model, peft.LoRA(rank=8, alpha=16))
        lap("attach")
        peft.save(model, folder / "ours")
        lap("save")
        peft.load(model, folder / "ours", name="again")
        lap("load")
    else:
        import peft
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=S["vocab_size"], hidden_size=S["hidden_size"], num_hidden_layers=S["layers"], num_attention_heads=S["heads"],
            num_key_value_heads=S["kv_heads"], intermediate_size=S["mlp_size"], tie_word_embeddings=False,
        )  # fmt: skip
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.to_empty(device="cpu")
        start = time.perf_counter()
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        lap("attach")
        model.save_pretrained(folder / "theirs")
        lap("save")
        model.load_adapter(folder / "theirs", adapter_name="again")
        lap("load")
    total, trained = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds["all"] = sum(seconds.values())
    pipe.send({**{k: round(v, 3) for k, v in seconds.items()}, "parameters": total, "trained": trained, "peak_mib": round(memory("VmHWM"))})


# The one who asks


def compare(spawn, folder: Path, shape: str, method: str, precision: str, rounds: int) -> dict:
    """One row: the two sides' medians and the medians of the ratios within a round. RuntimeError if a side fails or they disagree."""
    sides = {name: Side(spawn, run_side, name, folder, method, precision) for name in SIDES}
    try:
        for side in sides.values():
            side.loaded()
        for side in sides.values():
            side.steps(1, timed=False)
        turns(sides, 1, STEPS[shape])
        first = {name: side.losses[:2] for name, side in sides.items()}
        apart = max(abs(a - b) for a, b in zip(*first.values()))
        if not apart <= AGREE[precision]:
            raise RuntimeError(f"the losses differ by {apart:.1e}, allowed are {AGREE[precision]:.0e}: {first}")
        turns(sides, rounds - 1, STEPS[shape], start=1)
        row: dict = {"losses": first, "apart": apart, "rounds": rounds}
        for name, side in sides.items():
            row[name] = {"tokens_per_s": round(ROWS * LENGTH / side.seconds()), **side.summary()}
        for kind in ("wall", "cpu"):
            row[f"faster_{kind}"] = faster(sides["peft"], sides["minift"], kind)
        return row
    finally:
        for side in sides.values():
            side.stop()


def compare_attach(spawn) -> dict:
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for side in SIDES:
            ours, other = spawn.Pipe()
            process = spawn.Process(target=time_attach, args=(other, side, Path(temporary)))
            process.start()
            other.close()
            results[side] = ours.recv()
            process.join()
    return results


def line(key: str, row: dict) -> str:
    shape, precision, method = key.split()
    our, their, faster, cpu = row["minift"], row["peft"], row["faster_wall"], row["faster_cpu"]
    return (
        f"| {shape} | {precision} | {method} | {their['tokens_per_s']:,} | {our['tokens_per_s']:,} | **{faster['median']:.2f}** ({faster['least']:.2f} to "
        f"{faster['most']:.2f}) | {cpu['median']:.2f} ({cpu['least']:.2f} to {cpu['most']:.2f}) | {their['peak_mib']:,} / {our['peak_mib']:,} | "
        f"{their['added_mib']:,} / {our['added_mib']:,} | {row['apart']:.0e} |"
    )


def report() -> None:
    """The table of docs/peft_speed.md, between its two marks, and the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values = read(FILE)
    rows, page = values["rows"], DOCS / "peft_speed.md"
    order = [f"{s} {p} {m}" for p in AGREE for s in SHAPES for m in METHODS if f"{s} {p} {m}" in rows]
    on = values["machine"]
    table = [
        "| shape | dtype | method | peft, tokens/s | minift, tokens/s | faster, wall clock | faster, CPU seconds | peak MiB | of it added by training | losses apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(line(key, rows[key]) for key in order),
        "",
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, transformers {on['transformers']}, peft {on['peft']}, Python {on['python']}, commit {on['commit']}.",
    ]
    if "attach" in values:
        our, their = values["attach"]["minift"], values["attach"]["peft"]
        table += ["", f"LoRA rank 8 on {our['parameters']:,} parameters ({our['trained']:,} trained), seconds:", "",
                  "| | attach | save | load | all three | peak MiB |", "|---|---|---|---|---|---|"]  # fmt: skip
        for name, part in (("peft", their), ("minift", our)):
            table.append(f"| {name} | {part['attach']:.2f} | {part['save']:.2f} | {part['load']:.2f} | {part['all']:.2f} | {part['peak_mib']:,} |")
    between_marks(page, table)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    labels = [" ".join([key.split()[2], key.split()[0], *([] if "fp32" in key else ["bf16"])]) for key in order]
    faster = [rows[key]["faster_wall"] for key in order]
    spread = [[f["median"] - f["least"] for f in faster], [f["most"] - f["median"] for f in faster]]
    left.barh(labels, [f["median"] for f in faster], xerr=spread, color="#2f5f8f", ecolor="#555555", height=0.6)
    left.axvline(1, color="#555555", linewidth=1)
    left.set(title="minift's training step, times as fast as peft's", xlabel="ratio of tokens per second (median, range over rounds)")
    places = range(len(order))
    right.barh([p - 0.2 for p in places], [rows[key]["peft"]["peak_mib"] for key in order], color="#9db8d2", height=0.38, label="transformers + peft")
    right.barh([p + 0.2 for p in places], [rows[key]["minift"]["peak_mib"] for key in order], color="#2f5f8f", height=0.38, label="minift")
    right.set(title="Peak memory of the process", xlabel="MiB", yticks=list(places), yticklabels=labels)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "peft_speed.png", dpi=120)
    plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options.add_argument("--precision", nargs="+", choices=list(AGREE), default=["fp32"])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--missing", action="store_true", help="only the rows that are not stored yet")
    options.add_argument("--attach", action="store_true", help="only attach, save and load")
    options.add_argument("--report", action="store_true", help="only the page and the picture")
    chosen = options.parse_args()
    os.environ.update(QUIET)
    spawn = multiprocessing.get_context("spawn")
    if chosen.attach:
        add(FILE, {"attach": compare_attach(spawn)}, PACKAGES)
        print(json.dumps(read(FILE)["attach"], indent=2))
    elif not chosen.report:
        failed = False
        for shape in chosen.shapes:
            wanted = [(p, m) for p in chosen.precision for m in chosen.methods if not (chosen.missing and f"{shape} {p} {m}" in read(FILE)["rows"])]
            if wanted:
                failed |= not measure(spawn, shape, wanted, chosen.rounds)
        if failed:
            sys.exit("some rows could not be measured; see above")
    report()


def measure(spawn, shape: str, wanted: list[tuple[str, str]], rounds: int) -> bool:
    """Measure and store the rows of one shape; False if one failed."""
    whole = True
    with tempfile.TemporaryDirectory() as temporary:
        writer = spawn.Process(target=write_start, args=(Path(temporary), shape, sorted({method for _, method in wanted})))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the models to compare could not be written")
        for precision, method in wanted:
            key = f"{shape} {precision} {method}"
            try:
                row = compare(spawn, Path(temporary), shape, method, precision, rounds)
            except RuntimeError as error:
                print(f"{key}: {error}", flush=True)
                whole = False
                continue
            add(FILE, {"rows": {key: row}}, PACKAGES)
            print(line(key, row), flush=True)
    return whole


if __name__ == "__main__":
    main()
