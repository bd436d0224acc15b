"""Run by test_adapters_library.py in an environment of its own, with the `adapters` library and the transformers it needs: one job per call.

    python adapters_library.py job.json      the job: what to do, with which folders; the answers are left in files

It shares nothing with minift but files, as two programs of two people would."""

import json
import sys
from pathlib import Path

import adapters
import torch
import transformers
from safetensors.torch import load_file, save_file

KINDS = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig, "parallel": adapters.ParBnConfig, "loreft": adapters.LoReftConfig}


def model_of(job: dict):
    kind = transformers.BertModel if job["family"] == "bert" else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(job["base"]).eval()
    adapters.init(model)
    return model


def answer(model, job: dict) -> torch.Tensor:
    with torch.no_grad():
        out = model(torch.tensor(job["ids"]))
    return out.last_hidden_state if job["family"] == "bert" else out.logits


def random(model) -> None:
    """Every number of every adapter random: with a zero up-projection nothing would show."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("adapter_down", "adapter_up", "adapter_fusion_layer", "learned_source", "parametrizations")):
            torch.nn.init.normal_(parameter, std=0.3)


def write(job: dict, model) -> None:
    """Make adapters (and their fusion), save them as the library does, and the model's answer."""
    torch.manual_seed(2)
    for name in job["names"]:
        model.add_adapter(name, config=KINDS[job["kind"]](**job["options"]))
    if len(job["names"]) > 1:
        model.add_adapter_fusion(adapters.Fuse(*job["names"]))
    diagonal = {n: p.diagonal().clone() for n, p in model.named_parameters() if n.endswith("parametrizations.weight.original")}
    random(model)
    for name, parameter in model.named_parameters():
        if name in diagonal:
            parameter.data.diagonal().copy_(diagonal[name])               # signs, not weights
    for name in job["names"]:
        model.save_adapter(f"{job['folder']}/{name}", name, use_safetensors=True, with_head=job.get("with_head", False))
    if len(job["names"]) > 1:
        model.save_adapter_fusion(f"{job['folder']}/fusion", ",".join(job["names"]), use_safetensors=True)
        model.set_active_adapters(adapters.Fuse(*job["names"]))
    else:
        model.set_active_adapters(job["names"][0])
    model.eval()


def read(job: dict, model) -> None:
    """Load adapters (and their fusion) that minift wrote. The library only logs what is missing or left over, so it is looked up here."""
    for name in job["names"]:
        model.load_adapter(f"{job['folder']}/{name}", use_safetensors=True, with_head=False)
    if len(job["names"]) > 1:
        model.load_adapter_fusion(f"{job['folder']}/fusion", use_safetensors=True)
        model.set_active_adapters(adapters.Fuse(*job["names"]))
    else:
        model.set_active_adapters(job["names"][0])
    model.eval()
    inside = {key: p for key, p in model.named_parameters() if ".adapters." in key or ".adapter_fusion_layer." in key}
    for file in Path(job["folder"]).glob("*/*.safetensors"):
        for key, tensor in load_file(file).items():
            assert torch.equal(inside.pop(key), tensor), key
    assert not inside, sorted(inside)


def train(job: dict, model) -> None:
    """Read, then the gradients of sum(answer * weight), and of a fusion's regularization."""
    read(job, model)
    model.train_adapter_fusion(adapters.Fuse(*job["names"])) if len(job["names"]) > 1 else model.train_adapter(job["names"][0])
    model.eval()
    torch.manual_seed(3)
    out = model(torch.tensor(job["ids"]))
    out = out.last_hidden_state if job["family"] == "bert" else out.logits
    loss = (out * torch.randn(out.shape)).sum()
    if len(job["names"]) > 1:
        loss = loss + model.base_model.get_fusion_regularization_loss()
    loss.backward()
    save_file({n: p.grad for n, p in model.named_parameters() if p.grad is not None and "lm_head" not in n}, f"{job['folder']}/grads.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        torch.manual_seed(0)
        model = model_of(job)
        {"write": write, "read": read, "train": train}[job["do"]](job, model)
        save_file({"answer": answer(model, job).contiguous()}, f"{job['folder']}/answer.safetensors")
