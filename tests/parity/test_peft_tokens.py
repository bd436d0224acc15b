"""New tokens' rows against Hugging Face peft's trainable tokens, both ways, and on a transformers model object. Tolerance as for LoRA."""

import peft as theirs
import pytest
import torch
import transformers

from minift import peft
from minift.models.folder import read_model
from tests.parity.test_peft_lora import CONFIGS, IDS, close
from tests.peft.small import filled


def base(folder, tied):
    torch.manual_seed(0)
    config = CONFIGS["llama"].__class__.from_dict({**CONFIGS["llama"].to_dict(), "tie_word_embeddings": tied})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_files_go_both_ways(tmp_path, tied):
    their = theirs.get_peft_model(base(tmp_path / "base", tied), theirs.TrainableTokensConfig(token_indices=[3, 5, 1], task_type="CAUSAL_LM"))
    for name, parameter in their.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    their.save_pretrained(tmp_path / "a")
    ours = read_model(tmp_path / "base")
    peft.load(ours, tmp_path / "a")
    with torch.no_grad():
        close(ours(IDS), their(IDS).logits)
        filled(ours)
        peft.save(ours, tmp_path / "b")
        back = theirs.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "b").eval()
        close(ours(IDS), back(IDS).logits)


def test_on_a_transformers_model_object(tmp_path):
    model, ours = base(tmp_path / "base", True), read_model(tmp_path / "base")
    for m in (model, ours):
        torch.manual_seed(1)
        peft.attach(m, peft.NewTokens(ids=(3, 5)))
        filled(m)
    with torch.no_grad():
        close(model(IDS).logits, ours(IDS))


@pytest.mark.parametrize("method, name", [(peft.Full(), "full"), (peft.LastLayers(1), "last"), (peft.Head(), "head")])
def test_the_baselines_train_the_same_numbers_of_a_transformers_model_object(tmp_path, method, name):
    model, ours = base(tmp_path / "base", False), read_model(tmp_path / "base")
    counts = []
    for m in (model, ours):
        peft.attach(m, method)
        counts.append(peft.trainable(m).trained)
    assert counts[0] == counts[1]
    out, wanted = model(IDS).logits, ours(IDS)
    close(out, wanted)
    out.square().sum().backward()
    wanted.square().sum().backward()
    norms = [sum(p.grad.double().square().sum() for p in m.parameters() if p.requires_grad).sqrt() for m in (model, ours)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
