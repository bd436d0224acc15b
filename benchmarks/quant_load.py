"""How much memory does it take to quantize a checkpoint of 1 GB while it is read?

    python -m benchmarks.quant_load                          # writes 1 GB of random weights to a temporary folder

Each load is a program of its own. Its peak (VmHWM: resident memory at its highest, as the kernel counts it) before the load, when everything is
imported and each scheme has quantized one small matrix, is the baseline; the rise of the peak over it is compared with
    the loaded model + one slice of the file (32 MB of what stays full; 8 MB and the work on 2^18 numbers of what is quantized)
and with reading the full model first and quantizing it then. GPT-2's matrices lie transposed in the file: there one whole matrix is added."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from benchmarks.measure import store
from safetensors.torch import save_file

from minift.models.config import ModelConfig
from minift.models.families import to_hf
from minift.models.folder import skeleton, wanted_tensors

LOAD = """
import json, re, sys, time, torch
from minift.quant import quantize, quantize_model
from minift.quant.folder import read_model
from minift.quant.linear import QuantizedLinear
from minift.quant.tensor import tensors
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
folder, dtype, scheme, how = sys.argv[1:]
for each in ("nf4", "fp4", "int8", "int4"):
    quantize(torch.ones(64, 64), each)
before, start = peak(), time.perf_counter()
if how == "streamed":
    model = read_model(folder, getattr(torch, dtype), quantize=scheme)
else:
    model = read_model(folder, getattr(torch, dtype))
    if scheme != "none":
        quantize_model(model, scheme)
seconds = time.perf_counter() - start
size = sum(p.nbytes for p in model.parameters())
size += sum(t.nbytes for m in model.modules() if isinstance(m, QuantizedLinear) for t in tensors(m.q).values())
print(json.dumps({"baseline": before, "rise": peak() - before, "model": size, "seconds": seconds}))
"""

SHAPE = dict(vocab_size=12_000, hidden_size=2048, layers=4, heads=16, kv_heads=16, head_dim=128, max_positions=1024)
LLAMA = ModelConfig(**SHAPE, mlp_size=5632, tie_embeddings=False)
GPT2 = ModelConfig(
    **SHAPE, mlp_size=8192, family="gpt2", norm="layernorm", gated=False, qkv_bias=True, attention_out_bias=True, mlp_bias=True,
    activation="gelu_tanh", position="learned", qkv="joined",
)  # fmt: skip


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, config, stored in (("llama", LLAMA, "float32"), ("llama", LLAMA, "bfloat16"), ("gpt2", GPT2, "float32")):
            folder = Path(temporary) / f"{name}-{stored}"
            size, largest = write(config, folder, stored)
            cases = [("nf4", "streamed")]
            if (name, stored) == ("llama", "float32"):
                cases = [("none", "full"), *cases, ("fp4", "streamed"), ("int8", "streamed"), ("int4", "streamed"), ("nf4", "full")]
            for scheme, how in cases:
                row = {"model": name, "stored": stored, "file_MB": mb(size), "largest_linear_MB": mb(largest), "scheme": scheme, "how": how}
                command = [sys.executable, "-c", LOAD, str(folder), stored, scheme, how]
                found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
                row |= {"baseline_MB": mb(found["baseline"]), "rise_MB": mb(found["rise"]), "loaded_MB": mb(found["model"])}
                row |= {"over_MB": mb(found["rise"] - found["model"]), "seconds": round(found["seconds"], 1)}
                rows.append(row)
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            (folder / "model.safetensors").unlink()
    store("quant_load", {"rows": rows})


def mb(size: int) -> float:
    return round(size / 1e6, 1)


def write(config: ModelConfig, folder: Path, dtype: str) -> tuple[int, int]:
    """A checkpoint of random weights; (its bytes, those of its largest linear but the head)."""
    folder.mkdir()
    dice, plan = torch.Generator().manual_seed(0), skeleton(config)
    wanted = wanted_tensors(config, plan)
    tensors = {want.name: (0.02 * torch.randn(want.shape, generator=dice)).to(getattr(torch, dtype)) for want in wanted.values()}
    (folder / "config.json").write_text(json.dumps(to_hf(config, dtype)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    linears = [tensors[want.name].nbytes for ours, want in wanted.items() if ours.startswith("blocks")]
    return (folder / "model.safetensors").stat().st_size, max(linears)


if __name__ == "__main__":
    main()
