"""litgpt's and torchtune's sides of benchmarks/training.py: their models, their chunked losses, in the bare loop, as their recipes put them together.

Both want other versions of what stands in .venv, so each lives in a folder of its own beside it (`make peers`); without it a side is left out and the row says so.
They read the folders that all sides read, under their own names:

    litgpt      q, k and v of one block lie in one matrix, and so do the A and the B of their LoRA
    torchtune   rotates neighbouring numbers of q and k, where transformers rotates halves: rows of W (of LoRA's B) change places"""

import sys
from pathlib import Path

from benchmarks.bare_loop import bare_loop
from benchmarks.training_case import ALPHA, CASES, LINEARS, RANK, RATE, Sizes, adapter, base, exact_rows
from benchmarks.turns import Absent, Gate

CHUNK = 128
"""litgpt's: positions whose logits are made at once, lm_head_chunk_size of its recipes."""


def library(name: str) -> None:
    """Make the library in .venv/NAME importable."""
    folder = Path(sys.prefix) / name
    if not (folder / name).is_dir():
        raise Absent(f"no {name} in .venv/{name}: `make peers` installs it there")
    sys.path.insert(0, str(folder))


def litgpt(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    library("litgpt")
    shape, lora = sizes.shapes[CASES[case].shape], CASES[case].method == "lora"
    try:
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy

        if lora:
            from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    except Exception as error:
        raise Absent(f"litgpt cannot be imported: {type(error).__name__}: {error}") from error
    places = dict(lora_r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, lora_query=True, lora_key=True, lora_value=True, lora_projection=True, lora_mlp=True)
    net = GPT(Config(
        n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads, vocab_size=shape.vocab, padded_vocab_size=shape.vocab, block_size=1024, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=shape.inner, rotary_percentage=1.0, parallel_residual=False,
        **(places if lora else {}),
    ))  # fmt: skip
    (net.lm_head.linear if lora else net.lm_head).weight = net.transformer.wte.weight
    fill(net, litgpt_names(*stored(folder, case, lora), shape.layers))
    if lora:
        mark_only_lora_as_trainable(net)

    def loss(ids):
        logits = net(ids, lm_head_chunk_size=CHUNK)
        logits[-1] = logits[-1][..., :-1, :]                                # shifted, as in its recipes
        return chunked_cross_entropy(logits, ids[..., 1:])

    bare_loop(gate, net.train(), loss, exact_rows(sizes, case), precision, RATE)


def torchtune(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    library("torchtune")
    try:
        from torchtune.models.llama2 import llama2, lora_llama2
        from torchtune.modules.loss import CEWithChunkedOutputLoss
        from torchtune.modules.peft import get_adapter_params, set_trainable_params
    except Exception as error:
        raise Absent(f"torchtune cannot be imported: {type(error).__name__}: {error}") from error
    import torch

    shape, lora = sizes.shapes[CASES[case].shape], CASES[case].method == "lora"
    form = dict(vocab_size=shape.vocab, num_layers=shape.layers, num_heads=shape.heads, num_kv_heads=shape.heads, embed_dim=shape.width,
                intermediate_dim=shape.inner, max_seq_len=1024)  # fmt: skip
    if lora:
        net = lora_llama2(["q_proj", "k_proj", "v_proj", "output_proj"], True, lora_rank=RANK, lora_alpha=ALPHA, **form)
    else:
        net = llama2(**form)
    net.output.weight = net.tok_embeddings.weight                           # llama2 does not tie them
    fill(net, torchtune_names(*stored(folder, case, lora), shape.heads))
    if lora:
        set_trainable_params(net, get_adapter_params(net))
    fused = CEWithChunkedOutputLoss()
    net.set_num_output_chunks(fused.num_output_chunks)

    def loss(ids):
        return fused(net(ids), torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], 1))

    bare_loop(gate, net.train(), loss, exact_rows(sizes, case), precision, RATE)


def stored(folder: Path, case: str, lora: bool) -> tuple[dict, dict]:
    """(transformers' tensors, peft's), their names shortened to model.layers.0.self_attn.q_proj.weight, and ... q_proj.A or B."""
    from safetensors.torch import load_file

    small = load_file(adapter(folder, case) / "adapter_model.safetensors") if lora else {}
    short = lambda name: name.removeprefix("base_model.model.").replace("lora_", "").removesuffix(".weight")
    return load_file(base(folder, case) / "model.safetensors"), {short(name): tensor for name, tensor in small.items()}


def fill(net, tensors: dict) -> None:
    """Every tensor finds its place, and every parameter its tensor; the tied head is filled with the embedding."""
    import torch

    places = dict(net.named_parameters(remove_duplicate=False))
    filled = {id(places[name]) for name in tensors}                         # KeyError: no such place
    empty = [name for name, parameter in places.items() if id(parameter) not in filled]
    if empty:
        raise RuntimeError(f"nothing for {', '.join(empty[:3])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)


def litgpt_names(weights: dict, small: dict, layers: int) -> dict:
    import torch

    found = {"transformer.wte.weight": weights["model.embed_tokens.weight"], "transformer.ln_f.weight": weights["model.norm.weight"]}
    linear = ".linear.weight" if small else ".weight"
    places = {"self_attn.o_proj": "attn.proj", "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj"}
    for i in range(layers):
        there, here = f"model.layers.{i}", f"transformer.h.{i}"
        found |= {f"{here}.norm_1.weight": weights[f"{there}.input_layernorm.weight"], f"{here}.norm_2.weight": weights[f"{there}.post_attention_layernorm.weight"]}
        together = [f"{there}.self_attn.{name}_proj" for name in "qkv"]
        found[f"{here}.attn.qkv{linear}"] = torch.cat([weights[f"{name}.weight"] for name in together])
        found |= {f"{here}.{own}{linear}": weights[f"{there}.{name}.weight"] for name, own in places.items()}
        for part in "AB" if small else "":
            found[f"{here}.attn.qkv.lora_{part}"] = torch.cat([small[f"{name}.{part}"] for name in together])
            found |= {f"{here}.{own}.lora_{part}": small[f"{there}.{name}.{part}"] for name, own in places.items()}
    return found


def torchtune_names(weights: dict, small: dict, heads: int) -> dict:
    from torchtune.models.convert_weights import hf_to_tune

    width = weights["model.norm.weight"].numel()
    found = hf_to_tune(weights, num_heads=heads, num_kv_heads=heads, dim=width)
    places = dict(zip(LINEARS, ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj", "mlp.w1", "mlp.w3", "mlp.w2")))
    for name, tensor in small.items():
        _, _, layer, _, linear, part = name.split(".")
        if part == "B" and linear in ("q_proj", "k_proj"):
            tensor = tensor.view(heads, 2, width // heads // 2, RANK).transpose(1, 2).reshape(width, RANK)
        found[f"layers.{layer}.{places[linear]}.lora_{part.lower()}.weight"] = tensor
    return found
