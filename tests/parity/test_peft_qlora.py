"""QLoRA against transformers + bitsandbytes + Hugging Face peft, and LoftQ's start against peft's, on a CPU.

Both bases are the same full weights in nf4 with double quantization, bit for bit (test_bitsandbytes_folder.py, which also says why the widths
are 36 and 55 and why the peer's modules are in training mode: in eval mode bitsandbytes rounds scales on some CPUs). What differs is the order of
float32 sums: products of at most 55 terms, two blocks, there and back. Tolerance: 1e-5 of the largest number for the loss, 1e-4 for gradients."""

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import loftq_utils

from minift import peft
from minift.models.folder import write_model
from minift.peft.files import tensors
from minift.peft.loftq import alternate
from minift.quant import dequantize
from minift.quant.folder import read_model
from tests.models.small import tokens
from tests.parity.test_bitsandbytes_folder import full_model, theirs
from tests.peft.small import filled

IDS = tokens(2, 9)


def pair(tmp_path, method):
    """Our quantized model with `method`, B not zero, and theirs with the file we wrote of it."""
    write_model(full_model("llama", "nf4"), tmp_path / "full")
    ours = read_model(tmp_path / "full", quantize="nf4")
    torch.manual_seed(0)
    peft.attach(ours, method)
    filled(ours)
    peft.save(ours, tmp_path / "adapter")
    peer = PeftModel.from_pretrained(theirs(tmp_path / "full", "nf4", True), tmp_path / "adapter", is_trainable=True).train()
    return ours.train(), peer


def loss_of(model) -> torch.Tensor:
    logits = model(IDS)
    logits = logits if torch.is_tensor(logits) else logits.logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def same_names(ours, peer) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, our parameter, theirs) of all that trains."""
    state = ours._peft
    mine = tensors(ours, state.sets["default"], {path: w.adapters["default"] for path, w in state.wrappers.items()})
    their = {name.replace(".default", "").replace("vector.weight", "vector"): p for name, p in peer.named_parameters() if p.requires_grad}
    assert mine.keys() == their.keys() and len(mine) >= 28
    return [(name, mine[name], their[name]) for name in mine]


def close(ours, their, share):
    torch.testing.assert_close(ours, their, rtol=0, atol=share * max(1.0, their.abs().max().item()))


METHODS = [peft.LoRA(rank=3, alpha=5), peft.LoRA(rank=2, alpha=3, rslora=True), peft.DoRA(rank=2, alpha=4)]


@pytest.mark.parametrize("method", METHODS, ids=["lora", "rslora", "dora"])
def test_loss_and_gradients_are_theirs(method, tmp_path):
    ours, peer = pair(tmp_path, method)
    losses = [loss_of(model) for model in (ours, peer)]
    close(losses[0], losses[1], 1e-5)
    for loss in losses:
        loss.backward()
    for name, mine, their in same_names(ours, peer):
        assert their.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, their.grad, rtol=0, atol=1e-4 * their.grad.abs().max().item(), msg=name)


def test_five_steps_of_adamw_stay_together(tmp_path):
    """A step of AdamW divides a gradient by its size: where that is near zero its rounding decides, hence eps 1e-3 of the gradients' size."""
    ours, peer = pair(tmp_path, METHODS[0])
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2, eps=1e-3) for m in (ours, peer)]
    losses = []
    for _ in range(5):
        now = [loss_of(model) for model in (ours, peer)]
        for loss, optimizer in zip(now, optimizers):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(now)
        close(now[0], now[1], 1e-4)
    assert losses[-1][0] < losses[0][0] - 0.05
    for name, mine, their in same_names(ours, peer):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4, msg=name)


def test_their_adapter_on_their_four_bits_answers_alike_on_ours(tmp_path):
    write_model(full_model("llama", "nf4"), tmp_path / "full")
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peer = get_peft_model(theirs(tmp_path / "full", "nf4", True), config).train()
    peer.save_pretrained(tmp_path / "adapter")
    ours = read_model(tmp_path / "full", quantize="nf4")
    peft.load(ours, tmp_path / "adapter")
    close(loss_of(ours), loss_of(peer), 1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_loftqs_start_is_theirs(steps, monkeypatch):
    """Their loftq_init computes on a GPU only; here "cuda" is sent to the CPU. Scale 1 (alpha = r): they have no other. Without double
    quantization, as they have it. A and B are the same up to the sign of each singular vector, so their product is compared: 1e-4 of its size
    after float32 SVDs, and the codes, whose rounding two such products may decide differently, in all but a few of 36 x 55."""
    W = full_model("llama", "nf4").blocks[0].mlp.down.weight.detach()
    home = lambda device: "cpu" if device == "cuda" else device

    def to(real):
        def moved(self, *arguments, **named):
            return real(self, *map(home, arguments), **{key: home(value) for key, value in named.items()})

        return moved

    for kind in (torch.Tensor, bitsandbytes.nn.Params4bit):
        monkeypatch.setattr(kind, "to", to(kind.to))
    dequantized, A, B = loftq_utils.loftq_init(W, num_bits=4, reduced_rank=6, num_iter=steps)
    monkeypatch.undo()
    q, mine_A, mine_B = alternate(W, peft.LoftQ(double_quant=False), steps, 6, 1.0)
    assert (dequantize(q) != dequantized).float().mean() < (0.005 if steps > 1 else 1e-9)
    if steps == 1:
        close(mine_B @ mine_A, B @ A, 1e-4)
    left, their_left = (W - dequantize(q) - mine_B @ mine_A).norm(), (W - dequantized - B @ A).norm()
    assert abs(left / their_left - 1) < 1e-3 and left < 0.9 * (W - dequantize(alternate(W, peft.LoftQ(double_quant=False), 0, 0, 1.0)[0])).norm()
