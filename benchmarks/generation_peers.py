"""transformers' side of benchmarks/generation.py: `generate`, greedy, with its growing cache, with a static one, and compiled.

None of them ends early: there is no end token. The compiled one compiles in the step that is not timed."""

import shutil
from pathlib import Path

from benchmarks.generation_case import CASES, Sizes, keep, prompts
from benchmarks.turns import Absent, Gate


def generate(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, name: str = "grown", **own) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / CASES[case].shape, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    given, new = prompts(sizes, case), CASES[case].new(sizes)
    options = dict(max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0, **own)
    gate.open()
    while True:
        for number, batch in enumerate(given):
            with torch.no_grad():
                tokens = model.generate(batch, attention_mask=torch.ones_like(batch), **options)
            keep(folder, case, name, number, tokens[:, sizes.prompt :].tolist())
            gate.tick(0.0)


def static(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    generate(gate, folder, sizes, case, precision, "static", cache_implementation="static", disable_compile=True)


def compiled(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise Absent("no C++ compiler, which torch.compile needs on a CPU")
    from transformers import CompileConfig

    config = CompileConfig()
    config._compile_all_devices = True                                      # it compiles on GPUs only, unless told
    generate(gate, folder, sizes, case, precision, "compiled", cache_implementation="static", compile_config=config)
