import torch

from minift.peft import LoRA
from minift.peft.changes import changes


def test_norm_and_singular_values_are_those_of_the_whole_change():
    dice = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 11, generator=dice), torch.randn(7, 3, generator=dice)
    tensors = {"base_model.model.layers.0.q_proj.lora_A.weight": A, "base_model.model.layers.0.q_proj.lora_B.weight": B}
    (change,) = changes(LoRA(rank=3, alpha=6), tensors)
    whole = 2.0 * B @ A
    assert (change.module, change.rank, change.parameters) == ("layers.0.q_proj", 3, 33 + 21)
    torch.testing.assert_close(change.singular_values, torch.linalg.svdvals(whole)[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(change.norm), whole.norm(), rtol=1e-5, atol=0)


def test_rslora_and_the_pattern_set_the_scale():
    tensors = {"base_model.model.a.lora_A.weight": torch.ones(4, 1), "base_model.model.a.lora_B.weight": torch.eye(4)[:1]}
    assert changes(LoRA(rank=4, alpha=2, rslora=True), tensors)[0].norm == 1.0                      # 2 / sqrt 4
    assert changes(LoRA(rank=4, alpha=2, alpha_pattern={"a": 8}), tensors)[0].norm == 2.0           # 8 / 4
