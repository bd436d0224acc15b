"""NEFTune: as loud as the paper says, for each text by its own length, in training only, and gone afterwards."""

import json

import pytest
import torch
from torch import nn

from minift.data.batches import Example, pack, pad
from minift.losses.sft import next_token
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.recipes import sft
from minift.train.log import read_metrics
from minift.train.neftune import lengths, noisy


class Embedded(nn.Module):
    """A model that is nothing but its embedding of zeros: what comes out is the noise."""

    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.zeros(9, width), freeze=False)


def example(size, targets_end=None):
    end = size if targets_end is None else targets_end
    return Example([1] * size, [False, *[True] * (end - 1), *[False] * (size - end)])


def noise_of(batch, alpha=5.0, width=64):
    seen = []
    noisy(lambda model, batch: seen.append(model.embed(batch.token_ids)), alpha)(Embedded(width).train(), batch)
    return seen[0].detach()


def test_the_noise_is_uniform_between_plus_and_minus_alpha_over_the_root_of_length_times_width():
    noise = noise_of(pad([example(25)]), alpha=5.0, width=400)                     # 5 / sqrt(25 * 400) = 0.05
    assert noise.shape == (1, 25, 400) and 0.0499 < noise.abs().max() <= 0.05
    assert abs(noise.mean()) < 0.002 and noise.square().mean().sqrt().item() == pytest.approx(0.05 / 3**0.5, rel=0.02)
    assert noise.norm().item() == pytest.approx(5 / 3**0.5, rel=0.02)              # its length, whatever L and C


def test_the_length_is_that_of_the_text_up_to_its_last_target():
    assert lengths(pad([example(3), example(7), example(6, 4)]))[:, 0].tolist() == [3, 7, 4]
    packed = pack([example(5), example(3), example(4, 2)], 14)
    assert lengths(packed).tolist() == [[5] * 5 + [2] * 4 + [3] * 3 + [1] * 2]     # longest first; the unused places have no target


@pytest.mark.parametrize("batch", [pad([example(4), example(16)]), pack([example(16), example(4)], 24)])
def test_pads_and_the_other_texts_of_a_row_do_not_quieten_a_text(batch):
    noise, own = noise_of(batch, width=900), lengths(batch)
    for size in (4, 16):
        loudest = noise[own == size].abs().max().item()
        assert loudest == pytest.approx(5 / (size * 900) ** 0.5, rel=0.01)


def small(**fields):
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=9, hidden_size=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_size=24, max_positions=32, **fields))


def plain_loss(model, batch):
    return next_token(model(batch.token_ids), batch.token_ids, batch.loss_mask)


def test_no_noise_without_training_and_no_hook_afterwards():
    model, batch = small().eval(), pad([example(6)])
    loss = noisy(plain_loss, 5.0)
    assert torch.equal(loss(model, batch)[0], plain_loss(model, batch)[0])
    model.train()
    assert not torch.equal(loss(model, batch)[0], plain_loss(model, batch)[0]) and not torch.equal(loss(model, batch)[0], loss(model, batch)[0])
    assert not model.embed._forward_hooks
    with pytest.raises(ZeroDivisionError):
        noisy(lambda model, batch: 1 / 0, 5.0)(model, batch)
    assert not model.embed._forward_hooks


def test_the_gradient_is_that_of_the_noisy_point():
    model, batch = small().train(), pad([example(6)])
    torch.manual_seed(3)
    noisy(plain_loss, 5.0)(model, batch)[0].backward()
    ours = model.embed.weight.grad.clone()
    model.zero_grad()
    torch.manual_seed(3)
    noise = torch.empty(1, 6, 16).uniform_(-1, 1) * 5 / (6 * 16) ** 0.5
    embeds = model.embed(batch.token_ids) + noise
    next_token(model(embeds=embeds), batch.token_ids, batch.loss_mask)[0].backward()
    torch.testing.assert_close(ours, model.embed.weight.grad, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------- minift sft --neftune


@pytest.fixture
def tune(minift, small_model, tmp_path):
    rows = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "grey") for thing in ("sun", "cat", "tea", "sea")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(out, *options):
        return minift("sft", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / out, "--held-out", 0.3, "--samples", 0,
                      "--epochs", 9, "--max-steps", 4, "--lr", 1e-2, "--precision", "fp32", *options)    # fmt: skip

    return run


def test_sft_trains_with_noise_measures_without_and_leaves_nothing_in_the_folder(tune, tmp_path):
    for name, options in (("plain", ()), ("still", ("--neftune", 5, "--lr", 0)), ("noisy", ("--neftune", 5))):
        assert tune(name, *options)[0] == 0
    plain, still, moved = (read_metrics(tmp_path / name) for name in ("plain", "still", "noisy"))
    first = [next(line["loss"] for line in lines if "loss" in line) for lines in (plain, moved)]
    assert first[0] != first[1]
    held_out = [line["eval_loss"] for line in still if "eval_loss" in line]
    assert len(set(held_out)) == 1                                                 # the weights rest: noise would show
    files = [sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name / "adapter").rglob("*")) for name in ("plain", "noisy")]
    assert files[0] == files[1]
    configs = [json.loads((tmp_path / name / "adapter/adapter_config.json").read_text()) for name in ("plain", "noisy")]
    assert configs[0] == configs[1]


def test_trap37_a_noisy_run_goes_on_to_the_bit(tune, tmp_path):
    still = ("--neftune", 5, "--schedule", "constant", "--warmup", 0)
    tune("whole", *still)
    tune("parts", *still, "--max-steps", 2)
    tune("parts", *still, "--resume")
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in whole if "loss" in line] == [line["loss"] for line in parts if "loss" in line]
    assert (tmp_path / "whole/adapter/adapter_model.safetensors").read_bytes() == (tmp_path / "parts/adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("options, text", [(("--neftune", -1), "--neftune is -1.0: wanted 0 or more"), (("--neftune", 5, "--compile"), "--neftune cannot go with --compile")])
def test_noise_that_cannot_be_is_refused(tune, tmp_path, options, text):
    status, _, complaint = tune("run", *options)
    assert status == 2 and text in " ".join(complaint.split()) and not (tmp_path / "run").exists()


def test_the_recipe_hands_the_noise_to_the_loop(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(sft, "fit", lambda model, batches, loss, *rest: given.update(loss=loss))
    sft.tune(model := small(), [example(4)], [], sft.MethodConfig(), tmp_path, quiet=True)
    assert given["loss"] is sft.loss and model.training
    sft.tune(model, [example(4)], [], sft.MethodConfig(), tmp_path, quiet=True, neftune=5.0)
    assert given["loss"] is not sft.loss
