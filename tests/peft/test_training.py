"""What a method asks of the loop reaches it."""

import torch
from torch import nn

from minift import peft
from minift.peft.attach import state_of
from minift.peft.training import after_step, penalty, settled
from minift.train.optim import parameter_groups, set_learning_rate


class Asking(nn.Module):
    file_names = {"w": "w"}

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0]))
        self.w.lr_scale = 4.0

    def forward(self, base, x):
        return base(x)

    def penalty(self):
        return (self.w**2).sum()


class Method:
    peft_type = "ASKING"

    def __init__(self):
        self.told = []

    def build(self, model):
        return {"0": Asking(), "1": Asking()}

    def to_file(self, model, small):
        return {}

    def after_step(self, small, step, steps):
        self.told.append((len(small), step, steps, small[0].w.grad is not None))


def test_a_model_without_adapters_asks_nothing():
    model = nn.Sequential(nn.Linear(2, 2))
    after_step(model, 1, 5)
    assert penalty(model) is None


def test_penalties_of_the_active_set_add_up_and_reach_its_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    peft.attach(model, Method())
    total = penalty(model)                                   # 2^2 + 2^2
    assert total.item() == 8.0
    total.backward()
    assert model[0].adapters["default"].w.grad.item() == 4.0
    with peft.disabled(model):
        assert penalty(model) is None


def test_a_method_is_told_of_each_step_while_gradients_are_there():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    peft.attach(model, Method())
    penalty(model).backward()
    after_step(model, 3, 9)
    assert state_of(model).sets["default"].told == [(2, 3, 9, True)]


def test_a_parameter_may_learn_faster_than_the_rest():
    model = nn.Linear(2, 2)
    model.weight.lr_scale = 16.0
    groups = parameter_groups(model, lr=0.5, weight_decay=0.1)
    assert {g["peak_lr"]: (len(g["params"]), g["weight_decay"]) for g in groups} == {0.5: (1, 0.0), 8.0: (1, 0.1)}
    set_learning_rate([type("O", (), {"param_groups": groups})], 0.5)
    assert sorted(g["lr"] for g in groups) == [0.25, 4.0]


def test_an_adalora_is_settled_from_its_final_choice_on_and_other_methods_always():
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7))
    assert settled(model, 1, 10)
    peft.attach(model, peft.AdaLoRA(init_r=3, target_r=2, tinit=1, tfinal=4), "ada")
    assert [settled(model, step, 10) for step in (1, 5, 6, 10)] == [False, False, True, True]
    peft.attach(model, peft.LoRA(rank=2), "lora")
    assert settled(model, 1, 10)
