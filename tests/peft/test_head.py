"""The head of a scorer trains beside every method, and is saved and read with it (trap 26)."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minift import peft, quant
from minift.errors import InputError
from minift.models.folder import write_model
from minift.models.scorer import Scorer
from minift.peft.training import after_step, penalty
from minift.recipes.methods import METHODS, method_config
from tests.models.small import model, tokens

OPTIONS = {"tokens": {"ids": "1,2"}, "bitfit": {"add_missing": "true"}, "prompt": {"length": "3"}, "p-tuning": {"length": "3"}, "prefix": {"length": "3"},
           "p-tuning-v2": {"length": "3"}}  # fmt: skip
KINDS = [name for name in METHODS if name not in ("fusion", "loftq")]                       # tested below


def trained(method: str, scheme: str | None = None, seed: int = 0) -> Scorer:
    """A scorer all of whose trained numbers have moved."""
    scorer = Scorer.on(model("llama"))
    if scheme:
        quant.quantize_model(scorer, scheme)
    torch.manual_seed(seed)
    peft.attach(scorer, method_config(method, {}, OPTIONS.get(method, {})))
    for parameter in scorer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return scorer.eval()


@pytest.mark.parametrize("method", KINDS)
def test_trap26_the_head_is_saved_with_every_method(method, tmp_path):
    scorer, ids = trained(method), tokens(2, 7)
    wanted = scorer(ids)
    peft.save(scorer, tmp_path / "adapter")
    other = Scorer.on(model("llama"), seed=5)                               # another fresh head: the saved one has to replace it
    peft.load(other, tmp_path / "adapter")
    torch.testing.assert_close(other.eval()(ids), wanted, atol=1e-6, rtol=1e-6)
    if method != "full":                                                    # it trains the base's own numbers
        with peft.disabled(other):
            assert not torch.allclose(other(ids), wanted, atol=1e-2)


def test_trap26_a_fresh_process_reads_the_same_scores(tmp_path):
    scorer, ids = trained("lora"), tokens(1, 6)
    peft.save(scorer, tmp_path / "adapter")
    write_model(Scorer.on(model("llama"), seed=9), tmp_path / "base")       # with another head than the adapter's
    program = (
        "import sys, torch; from minift import peft; from minift.models.folder import read_model\n"
        "m = read_model(sys.argv[1]); peft.load(m, sys.argv[2]); print(m(torch.tensor([eval(sys.argv[3])]))[0, -1, 0].item())"
    )
    found = subprocess.run([sys.executable, "-c", program, tmp_path / "base", tmp_path / "adapter", str(ids[0].tolist())], capture_output=True, text=True)
    assert float(found.stdout) == pytest.approx(scorer(ids)[0, -1, 0].item(), abs=1e-5), found.stderr


@pytest.mark.parametrize("method", KINDS)
def test_the_head_learns_with_every_method(method):
    scorer = Scorer.on(model("llama"))
    peft.attach(scorer, method_config(method, {}, OPTIONS.get(method, {})))
    scorer(tokens(2, 7)).sum().backward()
    heads = {name: p.grad for name, p in scorer.named_parameters() if name.startswith("score") and p.requires_grad}
    assert len(heads) == 1 and all(grad is not None and grad.any() for grad in heads.values())


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_the_head_of_a_quantized_base_is_full_and_saved(scheme, tmp_path):
    scorer, ids = trained("lora", scheme), tokens(2, 7)
    peft.save(scorer, tmp_path / "adapter")
    other = Scorer.on(model("llama"), seed=5)
    quant.quantize_model(other, scheme)
    peft.load(other, tmp_path / "adapter")
    torch.testing.assert_close(other.eval()(ids), scorer(ids), atol=1e-6, rtol=1e-6)


def test_the_file_says_it_as_peft_does(tmp_path):
    scorer = trained("lora")
    peft.save(scorer, tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["task_type"] == "SEQ_CLS" and fields["modules_to_save"] == ["score"] and "score" not in fields["target_modules"]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(stored, scorer.score.adapters["default"].weight) and not torch.equal(stored, scorer.score.base.weight)


def test_a_head_and_its_model_are_not_parted(tmp_path):
    body = model("llama")
    peft.attach(body, peft.LoRA(rank=2))
    peft.save(body, tmp_path / "without")
    peft.save(trained("lora"), tmp_path / "with")
    with pytest.raises(InputError, match="holds no score head"):
        peft.load(Scorer.on(model("llama")), tmp_path / "without")
    with pytest.raises(InputError, match="comes with a score head"):
        peft.load(model("llama"), tmp_path / "with")
    weights = tmp_path / "with" / "adapter_model.safetensors"
    save_file({key: t for key, t in load_file(weights).items() if "score" not in key}, weights)
    with pytest.raises(InputError, match="holds no score head"):
        peft.load(Scorer.on(model("llama")), tmp_path / "with")


def test_two_sets_have_a_head_each():
    scorer, ids = trained("lora"), tokens(2, 5)
    one = scorer(ids)
    peft.attach(scorer, method_config("ia3", {}, {}), "other")
    other = scorer(ids)
    assert not torch.allclose(one, other, atol=1e-3)
    with peft.rows(scorer, ["default", "other"]):
        torch.testing.assert_close(scorer(ids), torch.stack([one[0], other[1]]), atol=1e-5, rtol=1e-5)
    peft.switch(scorer, "default")
    assert torch.equal(scorer(ids), one)


def test_merged_and_taken_out_the_head_stays(tmp_path):
    scorer, ids = trained("lora"), tokens(2, 5)
    wanted = scorer(ids)
    peft.merge(scorer)
    peft.remove(scorer, "default")
    torch.testing.assert_close(scorer(ids), wanted, atol=1e-4, rtol=1e-4)
    write_model(scorer, tmp_path / "m")


def test_what_a_method_asks_of_the_loop_is_asked_of_its_own_modules():
    scorer = trained("adalora")
    assert penalty(scorer).item() > 0
    scorer(tokens(1, 4)).sum().backward()
    for step in range(1, 5):
        after_step(scorer, step, 10)


def test_a_method_on_the_head_itself_gets_no_second_one():
    scorer = Scorer.on(model("llama"))
    peft.attach(scorer, peft.LoRA(rank=1, targets=["score", "q_proj"]))
    assert not any(isinstance(module, peft.head.NewHead) for module in scorer.modules())


def test_a_fusion_mixes_the_adapters_and_has_a_head_of_its_own(tmp_path):
    scorer, ids = Scorer.on(model("llama")), tokens(2, 5)
    for name in ("one", "two"):
        peft.attach(scorer, peft.Pfeiffer(reduction_factor=4), name)
    peft.attach(scorer, peft.AdapterFusion(("one", "two")))
    scorer.score.adapters["default"].weight.data += 1.0
    for name in ("default", "one", "two"):
        peft.save(scorer, tmp_path / name, name)
    other = Scorer.on(model("llama"), seed=3)
    for name in ("one", "two", "default"):
        peft.load(other, tmp_path / name, name)
    torch.testing.assert_close(other(ids), scorer(ids), atol=1e-6, rtol=1e-6)


def test_sets_with_heads_are_not_combined():
    scorer = Scorer.on(model("llama"))
    for name in ("one", "two"):
        peft.attach(scorer, peft.LoRA(rank=2), name)
    with pytest.raises(InputError, match="has a score head of its own"):
        peft.combine(scorer, {"one": 1.0, "two": 1.0}, "both")
