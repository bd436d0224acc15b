"""VeRA's arithmetic: worked by hand, its one pair of matrices, at the start, merged, in other dtypes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.attach import state_of
from minift.peft.vera import Projection, VeRALinear
from tests.peft.small import filled, gpt2, llama
from tests.peft.test_lora import Conv1D

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
CPU = torch.device("cpu")


def small_of(model):
    return [wrapper.adapters["default"] for wrapper in state_of(model).wrappers.values()]


def test_vera_worked_by_hand():
    base, shared = nn.Linear(2, 2, bias=False), Projection(2, N=3, K=3, seed=0, device=CPU)    # larger than this linear needs
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    shared.A.copy_(torch.tensor([[1.0, -1.0, 99.0], [2.0, 1.0, 99.0]]))
    shared.B.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0], [99.0, 99.0]]))
    vera = VeRALinear(base, shared, d_initial=0.1)
    assert vera.d.tolist() == pytest.approx([0.1, 0.1]) and vera.b.tolist() == [0.0, 0.0]
    vera.d.data, vera.b.data = torch.tensor([2.0, 3.0]), torch.tensor([10.0, 100.0])
    x = torch.tensor([[4.0, 1.0]])              # W x = (6, 16);  A x = (3, 9);  d *: (6, 27);  B: (60, 27);  b *: (600, 2700)
    assert torch.equal(vera(base, x), torch.tensor([[606.0, 2716.0]]))
    # B d A = [[1, 2], [0, 1]] [[2, -2], [6, 3]] = [[14, 4], [6, 3]], its rows times 10 and 100
    assert torch.equal(vera.merged(base)["weight"], torch.tensor([[141.0, 42.0], [603.0, 304.0]]))


def test_the_matrices_are_drawn_from_the_seed_a_first_with_kaimings_bounds():
    shared, again, other = (Projection(50, N=30, K=80, seed=seed, device=CPU) for seed in (5, 5, 6))
    assert torch.equal(shared.A, again.A) and torch.equal(shared.B, again.B) and not torch.equal(shared.A, other.A)
    generator = torch.Generator().manual_seed(5)
    for found, (rows, columns) in [(shared.A, (50, 80)), (shared.B, (30, 50))]:
        bound = (6 / columns) ** 0.5
        expected = torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)     # the bound is rounded differently
    state = torch.random.get_rng_state()
    Projection(4, N=4, K=4, seed=1, device=CPU)
    assert torch.equal(torch.random.get_rng_state(), state)                # the model's own dice are not touched


def test_the_matrices_exist_once_are_not_trained_and_not_counted():
    model = llama()
    bare = sum(p.numel() for p in model.parameters())
    peft.attach(model, peft.VeRA(rank=6))
    shared = {id(part.shared) for part in small_of(model)}
    assert len(small_of(model)) == 14 and len(shared) == 1
    pair = small_of(model)[0].shared
    assert pair.A.shape == (6, 20) and pair.B.shape == (20, 6)             # the widest input and output among the targets
    widths = sum(2 * N for N in (12, 4, 4, 12, 20, 20, 12))                # q k v out gate up down, two blocks
    assert peft.trainable(model).trained == widths + 14 * 6 and peft.trainable(model).total == bare + widths + 14 * 6
    assert [name for name, _ in model.named_buffers()].count("blocks.0.attention.q.adapters.default.shared.A") == 1
    assert sum(buffer.numel() for buffer in model.buffers()) == 2 * 6 * 20
    assert not any("shared" in name for name in model.state_dict())        # a checkpoint needs the seed only
    model.double()
    assert {part.shared.A.dtype for part in small_of(model)} == {torch.float64} and len({id(part.shared) for part in small_of(model)}) == 1


def test_a_fresh_adapter_changes_nothing_and_merging_is_undone_to_the_bit():
    for model, x in [(llama(), IDS), (gpt2(), IDS), (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(2, 6))]:
        before = model(x)
        peft.attach(model, peft.VeRA(rank=4))
        assert torch.equal(model(x), before)
        after = filled(model)(x)
        assert (after - before).abs().max() > 1e-3
        peft.merge(model)
        torch.testing.assert_close(model(x), after, rtol=0, atol=1e-6)     # two blocks of numbers below 1
        peft.unmerge(model)
        assert torch.equal(model(x), after)
        with peft.disabled(model):
            assert torch.equal(model(x), before)


def test_a_weight_stored_transposed_is_merged_transposed():
    model, x = nn.Sequential(Conv1D(5, 7), Conv1D(5, 5)), torch.randn(3, 7)     # (5, 5): a wrong transposition would fit too
    peft.attach(model, peft.VeRA(rank=3))
    assert small_of(model)[0].shared.A.shape == (3, 7) and small_of(model)[0].shared.B.shape == (5, 3)
    for part in small_of(model):
        nn.init.normal_(part.b), nn.init.normal_(part.d)
    after = model(x)
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-4)           # float32 sums of size up to 30


def test_only_d_and_b_learn_and_their_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(6, 5)).double()
    peft.attach(model, peft.VeRA(rank=3))
    base, vera = model[0].base, filled(model)[0].adapters["default"]
    x, seen = torch.randn(4, 6, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    (model(x) * seen).sum().backward()
    A, B = vera.shared.A.double(), vera.shared.B.double()
    low, back = x @ A.T, (seen * vera.b) @ B                                # (4, 3) both
    torch.testing.assert_close(vera.d.grad, (low * back).sum(0))
    torch.testing.assert_close(vera.b.grad, (seen * ((low * vera.d) @ B.T)).sum(0))
    assert base.weight.grad is None and not vera.shared.A.requires_grad and not vera.shared.B.requires_grad


def test_dropout_is_on_the_random_path_only_and_only_while_training():
    model = nn.Sequential(nn.Linear(40, 5))
    peft.attach(model, peft.VeRA(rank=4, dropout=0.5))
    base, vera, x = model[0].base, filled(model)[0].adapters["default"], torch.randn(3, 40)
    path = lambda x: vera.b * ((vera.d * (x @ vera.shared.A.T)) @ vera.shared.B.T)
    model.eval()
    torch.testing.assert_close(model(x), base(x) + path(x))
    model.train()
    torch.manual_seed(1)
    dropped = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, base(x) + path(nn.functional.dropout(x, 0.5)))


@pytest.mark.parametrize("saved", [True, False])
def test_saved_with_and_without_the_matrices_it_comes_back_the_same(saved, tmp_path):
    model = llama()
    peft.attach(model, peft.VeRA(rank=5, d_initial=0.2, dropout=0.1, targets=["q", "up"], projection_prng_key=7, save_projection=saved))
    after = filled(model.eval())(IDS)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert stored["base_model.model.model.layers.1.self_attn.q_proj.vera_lambda_b"].shape == (12,)
    assert stored["base_model.model.model.layers.1.mlp.up_proj.vera_lambda_d"].shape == (5,)
    assert ("base_model.vera_A" in stored) is ("base_model.vera_B" in stored) is saved and len(stored) == 8 + 2 * saved
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["projection_prng_key"], config["save_projection"], config["d_initial"]) == (5, 7, saved, 0.2)
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after)
    assert state_of(model).sets["default"] == peft.VeRA(
        rank=5, d_initial=0.2, dropout=0.1, targets=["q_proj", "up_proj"], projection_prng_key=7, save_projection=saved)    # fmt: skip


def test_matrices_of_a_file_win_over_its_seed(tmp_path):
    model = llama()
    peft.attach(model, peft.VeRA(rank=5, targets=["q"]))
    small_of(model)[0].shared.A.mul_(2)                                    # another torch may draw other numbers
    after = filled(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after)


@pytest.mark.parametrize("layers, C, rank, millions", [(12, 768, 1024, 0.043), (24, 1024, 256, 0.061)])
def test_roberta_has_the_papers_numbers(layers, C, rank, millions):
    with torch.device("meta"):
        model = nn.ModuleList(nn.ModuleDict({name: nn.Linear(C, C) for name in ("query", "key", "value")}) for _ in range(layers))
    peft.attach(model, peft.VeRA(rank=rank, targets=["query", "value"]))
    assert round(peft.trainable(model).trained / 1e6, 3) == millions


def test_trap34_vectors_are_float32_on_a_bf16_base_and_autocast_runs():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to(torch.bfloat16)
    peft.attach(model, peft.VeRA(rank=2))
    y = filled(model)(torch.ones(2, 6, dtype=torch.bfloat16))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert y.dtype == torch.bfloat16 and len(trained) == 4 and {p.dtype for p in trained} == {torch.float32}
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in trained)
    model = nn.Sequential(nn.Linear(6, 5))
    peft.attach(model, peft.VeRA(rank=2))
    with torch.autocast("cpu", torch.bfloat16):
        filled(model)(torch.ones(2, 6)).float().sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_trap32_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = llama()
        peft.attach(model, peft.VeRA(rank=4))
        filled(model).checkpointing = checkpointing
        model(IDS).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 28 and all(torch.equal(a, b) and a.any() for a, b in zip(*grads))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(rank=0), "rank is 0"),
        (dict(rank=2.5), "rank is 2.5"),
        (dict(d_initial=0.0), "nothing would ever learn"),
        (dict(d_initial=float("nan")), "d_initial is nan"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(projection_prng_key="a"), "it is a seed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.VeRA(**wrong)


def test_an_embedding_is_no_target():
    with pytest.raises(InputError, match="targets 'embed' matches no linear of this model"):
        peft.attach(llama(), peft.VeRA(targets=["embed"]))


def test_trap23_merging_into_an_integer_weight_is_refused():
    base = nn.Linear(4, 4)
    vera = VeRALinear(base, Projection(2, 4, 4, 0, CPU), 0.1)
    base.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)     # 4 bits, packed
    with pytest.raises(InputError, match="round the change away"):
        vera.merged(base)
