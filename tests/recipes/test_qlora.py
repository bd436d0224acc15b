"""QLoRA from the command line: train, go on, use, measure, merge, all on a base in 4 bits."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from minift import load, peft
from minift.quant import Linear4bit, QuantizedLinear
from tests.recipes.test_methods import data  # noqa: F401  (a fixture)

PROMPT = ("--prompt", "test and", "--max-new-tokens", 6)


@pytest.fixture
def tune(minift, small_model, data, tmp_path):  # noqa: F811
    def run(*more, out="run"):
        status, said, complaint = minift(
            "sft", "--model", small_model, "--data", data, "--eval-data", data, "--out", tmp_path / out, "--lr", 1e-2, "--samples", 1,
            "--new-tokens", 3, "--precision", "fp32", *more,
        )  # fmt: skip
        return status, said, complaint, tmp_path / out

    return run


@pytest.fixture
def measured(minift, data, tmp_path):  # noqa: F811
    def run(*model) -> float:
        status, _, complaint = minift("evaluate", *model, "--data", data, "--out", tmp_path / "measured.json")
        assert status == 0, complaint
        return json.loads((tmp_path / "measured.json").read_text())["nats per token"]

    return run


def reported(said: str) -> tuple[float, float]:
    line = next(line for line in said.splitlines() if line.startswith("held-out loss"))
    return float(line.split()[2]), float(line.split()[4])


@pytest.mark.parametrize("scheme", ["nf4", "int4"])
def test_qlora_from_training_to_a_merged_checkpoint(minift, tune, measured, small_model, tmp_path, scheme):
    status, said, complaint, run = tune("--quantize", scheme, "--method", "lora", "--rank", 2, "--max-steps", 4)
    assert status == 0, complaint
    before, after = reported(said)
    base = ("--model", small_model, "--quantize", scheme)
    tuned = (*base, "--adapter", run / "adapter")
    assert measured(*base) == pytest.approx(before, abs=0.0006) and measured(*tuned) == pytest.approx(after, abs=0.0006) and after < before
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(small_model)
    assert re.search(r"lora: [\d,]+ of [\d,]+ parameters", said) and "rounded the base" not in said
    assert "computed in float32 (the steps' own are in training's precision)" in said
    full = load(small_model)[0]
    peft.attach(full, peft.LoRA(rank=2))
    assert f"of {peft.trainable(full).total:,} parameters trained" in said
    status, text, complaint = minift("generate", *tuned, *PROMPT)
    assert status == 0, complaint

    status, said, complaint = minift("merge", *tuned, "--out", tmp_path / "merged")
    assert status == 0 and "a plain llama checkpoint in float32" in said, complaint
    assert measured("--model", tmp_path / "merged") == pytest.approx(after, abs=0.0006)
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float32}
    assert minift("generate", "--model", tmp_path / "merged", *PROMPT)[1] == text

    status, said, complaint = minift("merge", *tuned, "--requantize", "--out", tmp_path / "again")
    assert status == 0 and "What rounding left of the change" in said and f"checkpoint in {scheme}, other tensors in float32" in said, complaint
    all_of_it = next(line for line in said.splitlines() if line.split()[:1] == ["all"])
    _, cosine, size, share, *_ = all_of_it.split()
    assert float(share) == pytest.approx(100 * float(cosine) * float(size), abs=0.1)          # both printed with 3 digits
    assert f"{float(share):.0f} % of the change survived (cosine x size)" in said
    assert 0 < float(cosine) < 1 and len([line for line in said.splitlines() if line.strip().startswith("blocks.")]) == 14
    assert isinstance(load(tmp_path / "again")[0].blocks[0].mlp.up, Linear4bit)
    status, said, complaint = minift("inspect", tmp_path / "again")
    assert status == 0 and scheme in said, complaint
    assert f"{sum(p.numel() for p in load(small_model)[0].parameters()):,}" in said


def test_a_resumed_qlora_run_is_the_uninterrupted_one(tune):
    common, packed = ("--rank", 2, "--eval-every", 2, "--schedule", "constant"), ("--quantize", "nf4")
    whole = tune(*packed, *common, "--max-steps", 4, out="whole")
    tune(*packed, *common, "--max-steps", 2, out="parts")
    assert "quantize was 'nf4', is None" in tune(*common, "--max-steps", 4, "--resume", out="parts")[2]
    status, _, complaint, run = tune(*packed, *common, "--max-steps", 4, "--resume", out="parts")
    assert status == 0, complaint
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole[3], run))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_methods_that_train_the_linears_are_refused_and_the_head_is_not(tune, measured):
    for method in ("full", "last"):
        status, _, complaint, run = tune("--quantize", "nf4", "--method", method, "--max-steps", 1)
        assert status == 2 and "is in nf4, and no small step can change its codes" in complaint and not run.exists()
    status, said, complaint, run = tune("--quantize", "nf4", "--method", "head", "--max-steps", 2)
    assert status == 0, complaint
    model = load(run / "model")[0]
    assert isinstance(model.blocks[0].mlp.up, Linear4bit) and not isinstance(model.head, QuantizedLinear)
    assert measured("--model", run / "model") == pytest.approx(reported(said)[1], abs=0.0006)


def test_loftq_with_quantize_rounds_to_that_and_starts_nearer(tune, measured, small_model):
    status, said, complaint, run = tune("--quantize", "int4", "--method", "loftq", "--rank", 4, "--alpha", 4, "--max-steps", 2)
    assert status == 0, complaint
    assert measured("--model", small_model, "--quantize", "int4", "--adapter", run / "adapter") == pytest.approx(reported(said)[1], abs=0.0006)
    refused = tune("--quantize", "int4", "--method", "loftq", "--options", "scheme", "nf4", "--max-steps", 2, out="other")
    assert refused[0] == 2 and "--options scheme and --quantize both say what LoftQ rounds to" in refused[2]


def test_loftq_of_several_alternations_writes_its_base_beside_the_adapter(tune, measured):
    status, said, complaint, run = tune("--method", "loftq", "--rank", 4, "--alpha", 4, "--options", "iterations", 3, "--max-steps", 2)
    assert status == 0, complaint
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run / "base")
    assert "loftq rounded the base to nf4: what is measured before is that rounded base, without the adapter, not the full model" in said
    assert isinstance(load(run / "base")[0].blocks[0].mlp.up, Linear4bit)
    assert measured("--model", run / "base", "--adapter", run / "adapter") == pytest.approx(reported(said)[1], abs=0.0006)


def test_requantize_on_a_full_base_is_refused(minift, tune, small_model, tmp_path):
    run = tune("--rank", 2, "--max-steps", 1)[3]
    status, _, complaint = minift("merge", "--model", small_model, "--adapter", run / "adapter", "--requantize", "--out", tmp_path / "merged")
    assert status == 2 and "there is nothing to round again" in complaint and not (tmp_path / "merged").exists()


def test_inspect_measures_an_adapter_on_the_base_it_was_trained_on(minift, tune, small_model):
    run = tune("--quantize", "nf4", "--method", "dora", "--rank", 2, "--max-steps", 1)[3]
    status, said, complaint = minift("inspect", run / "adapter", "--model", small_model, "--quantize", "nf4")
    assert status == 0 and "‖ΔW‖" in said, complaint
    assert "--quantize says how --model is loaded: give both" in minift("inspect", run / "adapter", "--quantize", "nf4")[2]


def test_linears_that_the_adapter_left_alone_are_written_in_full_too(minift, tune, measured, small_model, tmp_path):
    said, run = (found := tune("--quantize", "nf4", "--rank", 2, "--targets", "q_proj", "v_proj", "--max-steps", 1))[1], found[3]
    merge = ("merge", "--model", small_model, "--quantize", "nf4", "--adapter", run / "adapter")
    status, _, complaint = minift(*merge, "--dtype", "bfloat16", "--out", tmp_path / "half")
    assert status == 0 and {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}, complaint
    assert minift(*merge, "--out", tmp_path / "merged")[0] == 0
    assert not any(isinstance(module, QuantizedLinear) for module in load(tmp_path / "merged")[0].modules())
    assert measured("--model", tmp_path / "merged") == pytest.approx(reported(said)[1], abs=0.0006)
