"""LoReFT: worked by hand, orthonormal after every step, at the first positions of every text however it comes."""

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.models.attention import Context
from minift.models.cache import KVCache
from minift.peft.files import read
from minift.peft.reft import Edit, orthonormal, reflections
from minift.sampling import Sampling
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [2, 6, 5, 3, 5, 8, 9]])


def hand() -> Edit:
    """C = 2, r = 1, X = (., 1): v = (1, 1), tau = 1, so H = I - v vT and R = (0, -1). W = (1, 0), b = 10."""
    edit = Edit(2, 1, 2, 0.0, nn.Linear(1, 1), "here")
    edit.X.data, edit.W.data, edit.b.data = torch.tensor([[7.0], [1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([10.0])
    return edit


def test_loreft_worked_by_hand():
    assert torch.equal(hand().R(), torch.tensor([[0.0, -1.0]]))                 # the diagonal of X, 7, means nothing
    h = torch.tensor([[[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
    # W h + b - R h = 3 + 10 + 4 = 17 and 5 + 10 + 6 = 21, times R = (0, -1): 4 - 17 and 6 - 21; the third position is left alone
    assert torch.equal(hand()(nn.Identity(), h), torch.tensor([[[3.0, -13.0], [5.0, -15.0], [7.0, 8.0]]]))


def test_inside_the_subspace_the_edit_decides_and_outside_nothing_changes():
    edit, h = Edit(9, 3, 2, 0.0, nn.Linear(1, 1).double(), "here"), torch.randn(1, 2, 9, dtype=torch.double)
    R, y = edit.R(), edit(nn.Identity(), h)
    torch.testing.assert_close(y @ R.T, h @ edit.W.T + edit.b)                  # R y = W h + b
    outside = torch.eye(9) - R.T @ R
    torch.testing.assert_close(y @ outside, h @ outside)


@pytest.mark.parametrize("C, r", [(7, 3), (5, 5), (6, 1), (1, 1)])
def test_rows_are_orthonormal_for_any_numbers_and_any_rows_can_be_had(C, r):
    for X in (torch.randn(C, r, dtype=torch.double), torch.zeros(C, r, dtype=torch.double), 1e4 * torch.randn(C, r, dtype=torch.double)):
        R = orthonormal(X)
        torch.testing.assert_close(R @ R.T, torch.eye(r, dtype=torch.double))
    Q = torch.linalg.qr(torch.randn(C, r, dtype=torch.double)).Q
    X, signs = reflections(Q)
    torch.testing.assert_close(orthonormal(X).T * signs, Q)


def test_rows_stay_orthonormal_while_they_learn():
    model = llama()
    peft.attach(model, peft.LoReFT(rank=3, prefix=4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = model.blocks[1].adapters["default"].R().detach()
    for _ in range(5):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()
    R = model.blocks[1].adapters["default"].R()
    torch.testing.assert_close(R @ R.T, torch.eye(3), rtol=0, atol=1e-5)
    assert (R - before).abs().max() > 0.01


def test_the_start_is_the_one_of_the_paper_and_not_the_base():
    edit = Edit(64, 8, 2, 0.0, nn.Linear(1, 1), "here")
    assert 0.95 / 8 < edit.W.abs().max() <= 1 / 8 and edit.b.abs().max() <= 1 / 8                 # nn.Linear's: uniform on +-1/sqrt(64)
    projections = [R.T @ R for R in (Edit(6, 2, 2, 0.0, nn.Linear(1, 1), "here").R().detach() for _ in range(400))]
    # a uniform subspace: I / 3 on average; an entry varies by at most 0.25, its mean of 400 by 0.0125, and 36 of them stay within 4 of that
    torch.testing.assert_close(torch.stack(projections).mean(0), torch.eye(6) / 3, rtol=0, atol=0.05)
    model = llama()
    before = model(IDS)
    peft.attach(model, peft.LoReFT())
    assert not torch.allclose(model(IDS), before)


def edited(new=llama, **options):
    model = new()
    peft.attach(model, peft.LoReFT(**{**dict(rank=2, prefix=3), **options}))
    return filled(model).eval()


def test_the_first_positions_of_every_block_are_edited_and_no_other():
    model = edited()
    seen = {}
    model.blocks[0].base.register_forward_hook(lambda _, inputs, out: seen.update(z=out, context=inputs[1]))
    model.blocks[1].base.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    model(IDS)
    edit, z = model.blocks[0].adapters["default"], seen["z"]
    R = edit.R()
    torch.testing.assert_close(seen["x"][:, :3], z[:, :3] + (z[:, :3] @ edit.W.T + edit.b - z[:, :3] @ R.T) @ R)
    assert torch.equal(seen["x"][:, 3:], z[:, 3:]) and (seen["x"][:, :3] - z[:, :3]).abs().max() > 0.1


@pytest.mark.parametrize("new", [llama, gpt2])
def test_decoding_with_a_cache_edits_what_the_whole_text_edits(new):
    model = edited(new)
    whole = model(IDS)
    for cuts in ([1] * 7, [2, 5], [3, 4], [5, 1, 1]):                          # inside, at and behind the prefix
        cache, parts, start = KVCache(model.config, 2, 7, torch.float32, "cpu"), [], 0
        for size in cuts:
            parts.append(model(IDS[:, start : start + size], cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_generation_of_ragged_prompts_is_that_of_each_alone():
    model = edited()
    prompts = [[3, 1], [4, 1, 5, 9, 2], [6]]
    greedy = dict(sampling=Sampling(temperature=0.0), max_new_tokens=6)
    together = generate_ids(model, prompts, **greedy)
    assert together == [generate_ids(model, [prompt], **greedy)[0] for prompt in prompts]


def test_packed_texts_are_each_edited_at_their_own_first_positions():
    model = edited()
    alone = torch.cat([model(IDS[:1, :4]), model(IDS[1:, :2]), model(IDS[1:, 2:])], dim=1)
    row = torch.cat([IDS[:1, :4], IDS[1:]], dim=1)
    packed = model(row, segments=torch.tensor([[0] * 4 + [1] * 2 + [2] * 5]))
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_virtual_tokens_are_not_counted():
    edit, h = hand(), torch.randn(1, 5, 2)
    context = Context(positions=torch.arange(5)[None], virtual=2)
    y = edit(lambda h, context: h, h, context)
    assert torch.equal(y[:, :2], h[:, :2]) and torch.equal(y[:, 4:], h[:, 4:])
    assert torch.equal(y[:, 2:4], edit(nn.Identity(), h[:, 2:4]))


def test_blocks_of_others_are_read_by_position_ids_or_by_counting_and_a_bare_cache_is_refused():
    edit, h = hand(), torch.randn(2, 4, 2)
    block = lambda h, **_: (h, "weights")
    y, weights = edit(block, h)
    assert torch.equal(y[:, 2:], h[:, 2:]) and torch.equal(y[:, :2], edit(nn.Identity(), h[:, :2])) and weights == "weights"
    y, _ = edit(block, h, position_ids=torch.tensor([[1, 2, 3, 4]]), past_key_values="cache")
    assert torch.equal(y[:, 1:], h[:, 1:]) and torch.equal(y[:, :1], edit(nn.Identity(), h[:, :1]))
    with pytest.raises(InputError, match="a KV cache but no position_ids"):
        edit(block, h, past_key_values="cache")


def test_chosen_layers_only_and_their_count():
    model = edited(layers=[1])
    assert not hasattr(model.blocks[0], "adapters") and peft.trainable(model).trained == 2 * 12 + 2 + 12 * 2
    with pytest.raises(InputError, match=r"layers names \[2, -1\], and this model has blocks 0 to 1"):
        peft.attach(llama(), peft.LoReFT(layers=(0, 2, -1)))


def test_the_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(4, 6)).double()
    peft.attach(model, peft.LoReFT(rank=2, prefix=2, targets=["0"]))
    edit, x, seen = model[0].adapters["default"], torch.randn(3, 4, 4, dtype=torch.double), torch.randn(3, 4, 6, dtype=torch.double)
    (model(x) * seen).sum().backward()
    h, W, b, X = model[0].base(x).detach(), *(p.detach().clone().requires_grad_() for p in (edit.W, edit.b, edit.X))
    columns = torch.eye(6, 2, dtype=torch.double)
    for i in (1, 0):                                                            # H_0 H_1 applied to the first two unit vectors
        v = torch.cat([torch.zeros(i, dtype=torch.double), torch.ones(1, dtype=torch.double), X[i + 1 :, i]])
        columns = columns - 2 / (v @ v) * v[:, None] @ (v @ columns)[None]
    y = h[:, :2] + (h[:, :2] @ W.T + b - h[:, :2] @ columns) @ columns.T
    (y * seen[:, :2]).sum().backward()
    for ours, reference in [(edit.W, W), (edit.b, b), (edit.X, X)]:
        torch.testing.assert_close(ours.grad, reference.grad)
    assert (edit.X.grad.triu() == 0).all() and model[0].base.weight.grad is None


def test_dropout_is_on_the_edited_positions_only_and_only_while_training():
    model = nn.Sequential(nn.Linear(4, 6))
    peft.attach(model, peft.LoReFT(rank=2, prefix=2, dropout=0.5, targets=["0"]))
    x = torch.randn(3, 4, 4)
    calm = filled(model).eval()(x)
    dropped = model.train()(x)
    assert torch.equal(dropped[:, 2:], calm[:, 2:])
    kept = dropped[:, :2] != 0
    torch.testing.assert_close(dropped[:, :2][kept], 2 * calm[:, :2][kept])
    assert 0 < kept.float().mean() < 1


def test_trap32_gradients_are_equal_with_checkpointing():
    model = edited(gpt2).train()
    grads = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(IDS).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 6 and all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*grads))


def test_trap34_half_precision_bases_and_autocast():
    model = llama().bfloat16()
    peft.attach(model, peft.LoReFT(rank=2))
    y = model(IDS)
    y.float().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert y.dtype == torch.bfloat16 and {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
    model = edited()
    exact = model(IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(IDS)
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=2**-5 * exact.abs().max().item())


def test_each_row_is_edited_at_its_own_positions():
    model = edited()
    peft.attach(model, peft.LoReFT(rank=3, prefix=1), name="other")
    filled(model)
    ids = IDS[[0, 1, 0]]
    segments = torch.tensor([[0] * 7, [0] * 2 + [1] * 5, [0] * 4 + [1] * 3])
    alone = {}
    for name in ("default", "other"):
        peft.switch(model, name)
        alone[name] = model(ids, segments=segments)
    with peft.rows(model, ["other", "default", None]):
        together = model(ids, segments=segments)
    with peft.disabled(model):
        base = model(ids, segments=segments)
    torch.testing.assert_close(together, torch.stack([alone["other"][0], alone["default"][1], base[2]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("new", [llama, gpt2])
def test_a_set_comes_back_from_its_folder_bit_for_bit(new, tmp_path):
    model = edited(new, layers=(1,))
    peft.save(model, tmp_path / "a")
    torch.manual_seed(0)
    again = new().eval()
    again.load_state_dict({k.replace(".base.", "."): v for k, v in model.state_dict().items() if ".adapters." not in k})
    peft.load(again, tmp_path / "a", name="b")
    assert torch.equal(again(IDS), model(IDS))
    method, tensors = read(tmp_path / "a")
    assert method == peft.LoReFT(rank=2, prefix=3, layers=(1,))
    layer = {llama: "model.layers.1", gpt2: "transformer.h.1"}[new]
    assert sorted(tensors) == [f"base_model.model.{layer}.{end}" for end in ("reft_W", "reft_X", "reft_b")]


def test_merging_is_refused_and_so_is_what_makes_no_sense():
    model = edited()
    with pytest.raises(InputError, match="LoReFT cannot be merged: it edits the first positions only"):
        peft.merge(model)
    for wrong, words in [
        (dict(rank=0), "rank is 0"), (dict(prefix=0), "prefix is 0"), (dict(dropout=1), "dropout is 1"),
        (dict(layers="last"), "layers is 'last'"), (dict(layers=()), r"layers is \(\)"), (dict(layers=(1.5,)), "layers is"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            peft.LoReFT(**wrong)
    with pytest.raises(InputError, match="rank is 13, but model.layers.0 gives 12 numbers"):
        peft.attach(llama(), peft.LoReFT(rank=13))
    flat = nn.Sequential(nn.Linear(4, 6))
    peft.attach(flat, peft.LoReFT(rank=2, targets=["0"]))
    with pytest.raises(InputError, match=r"\(B, T, C\), but 0 gives \(3, 6\)"):
        flat(torch.randn(3, 4))
