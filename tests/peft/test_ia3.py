"""IA3's arithmetic: worked by hand, at the start, merged, in other dtypes; and which modules it takes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.attach import state_of
from minift.peft.ia3 import IA3Linear
from tests.peft.small import gpt2, llama
from tests.peft.test_lora import Conv1D

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def factors(model: nn.Module) -> nn.Module:
    """Factors around one: at one, a forgotten product would pass."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0, std=0.5)
    return model


def by_hand() -> nn.Linear:
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    return base


def test_a_scaled_output_worked_by_hand():
    base, ia3 = by_hand(), IA3Linear(by_hand(), on_input=False)
    assert ia3.l.shape == (2, 1)
    ia3.l.data = torch.tensor([[2.0], [-1.0]])
    x = torch.tensor([[4.0, 1.0]])                                # W x + b = (6 + 10, 16 + 20)
    assert torch.equal(ia3(base, x), torch.tensor([[32.0, -36.0]]))
    new = ia3.merged(base)
    assert torch.equal(new["weight"], torch.tensor([[2.0, 4.0], [-3.0, -4.0]])) and torch.equal(new["bias"], torch.tensor([20.0, -20.0]))


def test_a_scaled_input_worked_by_hand():
    base, ia3 = by_hand(), IA3Linear(by_hand(), on_input=True)
    assert ia3.l.shape == (1, 2)
    ia3.l.data = torch.tensor([[2.0, -1.0]])
    x = torch.tensor([[4.0, 1.0]])                                # x * l = (8, -1)
    assert torch.equal(ia3(base, x), torch.tensor([[16.0, 40.0]]))
    new = ia3.merged(base)                                        # columns, and the bias stays
    assert torch.equal(new["weight"], torch.tensor([[2.0, -2.0], [6.0, -4.0]])) and new.keys() == {"weight"}


@pytest.mark.parametrize("on_input", [False, True])
def test_a_weight_stored_transposed_is_merged_transposed(on_input):
    model, x = nn.Sequential(Conv1D(5, 7), Conv1D(5, 5)), torch.randn(3, 7)     # (5, 5): the wrong side would fit too
    peft.attach(model, peft.IA3(targets="all-linear", feedforward=["0", "1"] if on_input else []))
    assert model[0].adapters["default"].l.shape == ((1, 7) if on_input else (5, 1))
    after = factors(model)(x)
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-4)           # float32 sums of size up to 30


def test_a_fresh_adapter_changes_nothing_and_merging_is_undone_to_the_bit():
    for model, x in [(llama(), IDS), (gpt2(), IDS), (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(2, 6))]:
        before = model(x)
        method = peft.IA3(targets="all-linear", feedforward=["2"]) if isinstance(model, nn.Sequential) else peft.IA3()
        peft.attach(model, method)
        assert torch.equal(model(x), before)
        after = factors(model)(x)
        assert (after - before).abs().max() > 1e-3
        peft.merge(model)
        torch.testing.assert_close(model(x), after, rtol=0, atol=1e-6)          # two blocks of numbers below 1
        peft.unmerge(model)
        assert torch.equal(model(x), after)
        with peft.disabled(model):
            assert torch.equal(model(x), before)


def test_the_usual_modules_are_keys_values_and_the_second_feedforward_matrix():
    for model, outputs, inside in [(llama(), ["attention.k", "attention.v"], "mlp.down"), (gpt2(), ["attention.qkv"], "mlp.down")]:
        peft.attach(model, peft.IA3())
        placed = {path: wrapper.adapters["default"].on_input for path, wrapper in state_of(model).wrappers.items()}
        assert placed == {f"blocks.{i}.{name}": name == inside for i in (0, 1) for name in [*outputs, inside]}
    bert = nn.ModuleDict({"attention": nn.ModuleDict({"self": nn.ModuleDict({n: nn.Linear(2, 2) for n in ("query", "key", "value")}),
                                                      "output": nn.ModuleDict({"dense": nn.Linear(2, 2)})}),
                          "output": nn.ModuleDict({"dense": nn.Linear(2, 2)})})    # fmt: skip
    model = nn.ModuleDict({"layer": nn.ModuleList([bert])})
    peft.attach(model, peft.IA3())
    assert set(state_of(model).wrappers) == {"layer.0.attention.self.key", "layer.0.attention.self.value", "layer.0.output.dense"}


def test_of_named_targets_the_second_feedforward_matrices_are_scaled_at_their_input():
    model = llama()
    peft.attach(model, peft.IA3(targets=["q", "down_proj"]))
    placed = {path: wrapper.adapters["default"].on_input for path, wrapper in state_of(model).wrappers.items()}
    assert placed == {f"blocks.{i}.{name}": name == "mlp.down" for i in (0, 1) for name in ("attention.q", "mlp.down")}


def test_t0_3b_has_the_540_thousand_numbers_of_the_paper():
    """T5 of width 2048 and inner width 5120: 24 blocks each way, the decoder with keys and values of the encoder's output too."""
    with torch.device("meta"):
        attend = lambda: nn.ModuleDict({n: nn.Linear(2048, 2048, bias=False) for n in "qkvo"})
        feed = lambda: nn.ModuleDict({"wi_0": nn.Linear(2048, 5120), "wi_1": nn.Linear(2048, 5120), "wo": nn.Linear(5120, 2048)})
        encoder = nn.ModuleList(nn.ModuleList([attend(), feed()]) for _ in range(24))
        decoder = nn.ModuleList(nn.ModuleList([attend(), attend(), feed()]) for _ in range(24))
        model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    peft.attach(model, peft.IA3())
    assert peft.trainable(model).trained == 24 * (2 * 2048 + 5120) + 24 * (4 * 2048 + 5120) == 540_672


def test_only_l_learns_and_its_gradient_is_that_of_the_equation():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    peft.attach(model, peft.IA3(targets="all-linear", feedforward=["1"]))
    first, second = factors(model)[0], model[1]
    x, seen = torch.randn(3, 6, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)
    (model(x) * seen).sum().backward()
    l, m = first.adapters["default"].l, second.adapters["default"].l
    plain = x @ first.weight.T + first.bias                                # (3, 5), before its factors
    back = seen @ second.weight                                            # d loss / d (second's scaled input)
    torch.testing.assert_close(m.grad, (back * plain * l.T).sum(0)[None])
    torch.testing.assert_close(l.grad, (back * m * plain).sum(0)[:, None])
    assert all(p.grad is None for p in (first.weight, first.bias, second.weight))


@pytest.mark.parametrize("model", [llama, gpt2])
def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model = model()
    before = model(IDS)
    peft.attach(model, peft.IA3())
    after = factors(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before)
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after)


def test_the_files_are_the_documented_ones(tmp_path):
    model = llama()
    peft.attach(model, peft.IA3())
    peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "IA3" and config["target_modules"] == ["down_proj", "k_proj", "v_proj"]
    assert config["feedforward_modules"] == ["down_proj"] and config["fan_in_fan_out"] is False
    shapes = {key: tuple(tensor.shape) for key, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    assert len(shapes) == 6
    assert shapes["base_model.model.model.layers.1.self_attn.k_proj.ia3_l"] == (4, 1)
    assert shapes["base_model.model.model.layers.1.mlp.down_proj.ia3_l"] == (1, 20)


def test_a_short_name_that_peft_would_misread_is_not_written():
    """peft would take feedforward "v" for every path that ends in the letter v."""
    model = nn.ModuleDict({"v": nn.Linear(3, 3), "kv": nn.Linear(3, 3)})
    method = peft.IA3(targets=["v", "kv"], feedforward=["v"])
    assert method.to_file(model, method.build(model))["target_modules"] == ["kv", "v"]
    deep = nn.ModuleDict({"a": nn.ModuleDict({"v": nn.Linear(3, 3), "kv": nn.Linear(3, 3)})})
    fields = method.to_file(deep, method.build(deep))
    assert fields["feedforward_modules"] == ["a.v"] and fields["target_modules"] == ["a.kv", "a.v"]


def test_trap34_factors_are_float32_and_small_ones_are_not_lost_on_a_bf16_base():
    model = nn.Sequential(nn.Linear(4, 400)).to(torch.bfloat16)
    peft.attach(model, peft.IA3(targets="all-linear", feedforward=[]))
    x = torch.randn(5, 4).bfloat16()
    before, ia3 = model(x), model[0].adapters["default"]
    assert ia3.l.dtype == torch.float32
    ia3.l.data.fill_(1.003)                                                # in bf16 that is 1; here 0.3 % of the numbers' last places move
    after = model(x)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (before.float() * 1.003).bfloat16()) and not torch.equal(after, before)
    after.float().sum().backward()
    assert ia3.l.grad.dtype == torch.float32
    peft.merge(model)
    assert model[0].weight.dtype == model[0].bias.dtype == torch.bfloat16


def test_trap32_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = llama()
        peft.attach(model, peft.IA3())
        factors(model).checkpointing = checkpointing
        model(IDS).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 6 and all(torch.equal(a, b) and a.any() for a, b in zip(*grads))


def test_bad_input_is_refused_in_plain_words():
    with pytest.raises(InputError, match="no linear with a usual name for keys, values or a second feed-forward matrix: name the targets"):
        peft.attach(nn.Sequential(nn.Linear(2, 2)), peft.IA3())
    with pytest.raises(InputError, match="feedforward names blocks.0.mlp.up, which is not among the targets"):
        peft.attach(llama(), peft.IA3(targets=["k", "v"], feedforward=["up"]))
    with pytest.raises(InputError, match="targets 'embed' matches no linear of this model"):
        peft.attach(llama(), peft.IA3(targets=["embed"]))
    with pytest.raises(InputError, match="feedforward_modules is 3"):
        peft.IA3.from_file({"target_modules": ["k"], "feedforward_modules": 3})


def test_trap23_merging_into_an_integer_weight_is_refused():
    base = nn.Linear(4, 4)
    ia3 = IA3Linear(base, on_input=False)
    base.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)     # 4 bits, packed
    with pytest.raises(InputError, match="round the change away"):
        ia3.merged(base)
