"""AdapterFusion: worked by hand, over sets that stay frozen and stay on the model."""

import copy
import math

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.cache import KVCache
from minift.peft.bottleneck import Bottleneck, after
from minift.peft.fusion import Fusion
from minift.peft.training import penalty
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


def mixed(new=llama, kind=peft.Pfeiffer, **options):
    """A model with random sets a and b and their random fusion."""
    model = new()
    for name in ("a", "b"):
        peft.attach(model, kind(width=3, activation="tanh", **options), name=name)
        filled(model)
    peft.attach(model, peft.AdapterFusion(("a", "b")), name="both")
    for name, parameter in model.named_parameters():
        if ".both." in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def constant(C, answer) -> Bottleneck:
    """f(h) = answer, whatever h is."""
    f = Bottleneck(peft.BottleneckAdapter(width=1), after, C, nn.Linear(1, 1), "here")
    f.U.data.zero_()
    f.u.data = torch.tensor(answer)
    return f


def test_fusion_worked_by_hand():
    fusion = Fusion((constant(2, [1.0, 0.0]), constant(2, [0.0, 1.0])))
    fusion.Q.data, fusion.q.data = torch.eye(2), torch.tensor([0.0, 1.0])
    fusion.K.data, fusion.k.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([5.0, 0.0])
    fusion.V.data = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    h = torch.tensor([3.0, -2.0])
    # query (3, -1); keys K f + k = (1 + 5, 0) and (2 + 5, 1): scores 18 and 21 - 1 = 20, so p = 1 / (1 + e^2), 1 / (1 + e^-2)
    p = 1 / (1 + math.exp(2))
    torch.testing.assert_close(fusion.change(h), torch.tensor([1.0, 2 * (1 - p)]))                # V (p, 1 - p)
    double = nn.Linear(2, 2, bias=False)
    double.weight.data = 2 * torch.eye(2)
    torch.testing.assert_close(fusion(double, h / 2), h + torch.tensor([1.0, 2 * (1 - p)]))       # z = h: the form of the mixed sets


def test_a_fresh_fusion_is_near_the_mean_of_its_adapters_and_its_penalty_is_zero():
    model = llama().double()
    for name in ("a", "b"):
        peft.attach(model, peft.Pfeiffer(width=3), name=name)
        filled(model)
    peft.attach(model, peft.AdapterFusion(("a", "b")), name="both")
    fusion, h = model.blocks[0].adapters["both"], torch.randn(4, 12, dtype=torch.double)
    mean = (model.blocks[0].adapters["a"].change(h) + model.blocks[0].adapters["b"].change(h)) / 2
    torch.testing.assert_close(fusion.change(h), mean, rtol=0, atol=0.1 * mean.abs().max().item())
    assert torch.equal(fusion.V, torch.eye(12, dtype=torch.double)) and penalty(model).item() == 0


def test_the_penalty_pulls_v_to_the_identity_and_is_left_out_on_request():
    model = mixed()
    wanted = sum(0.01 * (model.blocks[n].adapters["both"].V - torch.eye(12)).square().sum() for n in range(2))
    torch.testing.assert_close(penalty(model), wanted)
    peft.attach(model, peft.AdapterFusion(("a", "b"), regularization=False), name="free")
    nn.init.normal_(model.blocks[0].adapters["free"].V)
    assert penalty(model).item() == 0


@pytest.mark.parametrize("kind", [peft.Houlsby, peft.Pfeiffer])
@pytest.mark.parametrize("new", [llama, gpt2])
def test_only_the_fusion_learns_and_the_sets_stay_usable_alone(new, kind):
    model = mixed(new, kind)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".adapters.both." in name for name in trained)
    places = {peft.Houlsby: 4, peft.Pfeiffer: 2}[kind]
    assert peft.trainable(model).trained == places * (3 * 144 + 2 * 12)
    parts = {name: p.clone() for name, p in model.named_parameters() if name not in trained}
    model(IDS).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if name in trained and not name.endswith(".k"))
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(p, parts[name]) for name, p in model.named_parameters() if name not in trained)
    both = model(IDS)
    peft.switch(model, "a")
    assert not torch.allclose(model(IDS), both)
    peft.switch(model, "both")
    assert torch.equal(model(IDS), both)


def test_the_gradients_are_those_of_an_explicit_loop():
    model = mixed()
    fusion, h, seen = model.blocks[0].adapters["both"].double(), torch.randn(3, 12, dtype=torch.double), torch.randn(3, 12, dtype=torch.double)
    for part in fusion.parts:
        part.double()
    (fusion.change(h) * seen).sum().backward()
    Q, q, K, k, V = (getattr(fusion, name).detach().clone().requires_grad_() for name in "QqKkV")
    total = 0
    for t in range(3):
        answers = [part.change(h[t]) for part in fusion.parts]
        scores = torch.stack([(Q @ h[t] + q) @ (K @ a + k) for a in answers])
        weights = scores.exp() / scores.exp().sum()
        total = total + (sum(w * (V @ a) for w, a in zip(weights, answers)) * seen[t]).sum()
    total.backward()
    for name, reference in zip("QqKkV", (Q, q, K, k, V)):
        torch.testing.assert_close(getattr(fusion, name).grad, reference.grad)


def test_fusion_with_checkpointing_a_cache_bfloat16_and_in_a_copy():
    model = mixed().eval()
    whole = model(IDS)
    cache = KVCache(model.config, 2, 5, torch.float32, "cpu")
    parts = torch.cat([model(IDS[:, :3], cache=cache), model(IDS[:, 3:], cache=cache)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    twin = copy.deepcopy(model)
    peft.switch(twin, "a")
    for name, parameter in twin.named_parameters():
        if ".a." in name:
            parameter.data.zero_()
    peft.switch(twin, "both")
    assert torch.equal(model(IDS), whole) and not torch.allclose(twin(IDS), whole)         # the copy mixes its own sets
    grads = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(IDS).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    half = llama().bfloat16()
    for name in ("a", "b"):
        peft.attach(half, peft.Pfeiffer(width=3), name=name)
    peft.attach(half, peft.AdapterFusion(["a", "b"]), name="both")
    assert half(IDS).dtype == torch.bfloat16 and {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}


def test_fusion_on_a_plain_mlp():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4, 6)
    for name in ("a", "b", "c"):
        peft.attach(model, peft.Houlsby(width=2, targets=["0"]), name=name)
        filled(model)
    peft.attach(model, peft.AdapterFusion(("a", "b", "c")), name="all")
    z, fusion = model[0].base(x), filled(model)[0].adapters["all"]
    torch.testing.assert_close(model(x), model[2](torch.tanh(z + fusion.change(z))))
    assert len(fusion.parts) == 3


def test_a_mixed_set_cannot_be_removed_before_the_fusion():
    model = mixed()
    whole = model(IDS)
    with pytest.raises(InputError, match=r"'a' is mixed by \['both'\]: remove that first"):
        peft.remove(model, "a")
    assert torch.equal(model(IDS), whole)
    with pytest.raises(InputError, match="AdapterFusion cannot be merged"):
        peft.merge(model)
    peft.remove(model, "both")
    peft.remove(model, "a")
    peft.remove(model, "b")
    assert "_peft" not in model.__dict__


def test_what_cannot_be_mixed_is_refused():
    model = llama()
    with pytest.raises(InputError, match="no adapters are attached"):
        peft.attach(model, peft.AdapterFusion(("a", "b")))
    methods = dict(a=peft.Pfeiffer(), b=peft.Pfeiffer(), h=peft.Houlsby(), p=peft.Parallel(), l=peft.LoRA(rank=2), t=peft.Pfeiffer(targets=["down"]))
    for name, method in methods.items():
        peft.attach(model, method, name=name)
    for names, words in [
        (("a", "x"), r"mixes 'x', and this model has no such set; it has \['a', 'b'"),
        (("a", "h"), "sets of one kind: 'a' is Pfeiffer, 'h' is BottleneckAdapter"),
        (("p", "p2"), "'p' is Parallel"),
        (("a", "l"), "'l' is LoRA"),
        (("a", "t"), "on the same modules, and on blocks.0 there is only a"),
    ]:
        with pytest.raises(InputError, match=words):
            peft.attach(model, peft.AdapterFusion(names), name="both")
    for names in [("a",), ("a", "a"), "ab", ()]:
        with pytest.raises(InputError, match="name two or more different sets"):
            peft.AdapterFusion(names)
    assert peft.names(model) == list(methods)
