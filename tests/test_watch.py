"""What the lessons draw is what the model computed."""

import copy
import math

import pytest
import torch
from torch import nn

from minift import peft, watch
from minift.data.batches import Example
from minift.data.branches import Tree
from minift.losses.sft import next_token
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer

IDS = [3, 11, 7, 7, 2]


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = dict(hidden_size=12, layers=3, heads=4, kv_heads=2, head_dim=6, mlp_size=20, max_positions=64)
    model = Transformer(ModelConfig(vocab_size=13, dropout=0.5, **shape))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)                       # fresh weights are so small that everything looks alike
    return model.train()


def test_attention_is_a_share_of_the_tokens_so_far(model):
    weights = watch.attention(model, IDS)
    assert weights.shape == (3, 4, 5, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 4, 5), rtol=0, atol=1e-6)
    assert not weights.triu(1).any()


def test_attention_stays_within_a_segment(model):
    weights = watch.attention(model, IDS, [1, 1, 2, 2, 2])
    assert not weights[:, :, 2:, :2].any() and weights[:, :, 3, 2].all()


def test_looking_leaves_the_model_as_it_was(model):
    one, two = watch.attention(model, IDS), watch.attention(model, IDS)
    assert torch.equal(one, two)                                  # without dropout, though the model is training
    assert model.training and all(block.training for block in model.blocks)
    assert not one.requires_grad and all(p.grad is None for p in model.parameters())


def test_looking_back_by_hand():
    weights = torch.tensor([[1, 0, 0], [0.3, 0.7, 0], [0.2, 0.5, 0.3]])[None, None]
    assert watch.looking_back(weights, 1).item() == pytest.approx((0.3 + 0.5) / 2)
    assert watch.looking_back(weights, 2).item() == pytest.approx(0.2)


def test_reach_by_hand():                                         # tokens look 0, 0.3 and 2 * 0.2 + 0.5 places back
    weights = torch.tensor([[1, 0, 0], [0.3, 0.7, 0], [0.2, 0.5, 0.3]])[None, None]
    assert watch.reach(weights).item() == pytest.approx((0 + 0.3 + 0.9) / 3)


def test_the_stream_starts_with_the_embedding_and_ends_in_the_logits(model):
    vectors = watch.stream(model, IDS)
    model.eval()
    assert vectors.shape == (4, 5, 12)
    assert torch.equal(vectors[0], model.embed(torch.tensor(IDS)))
    assert torch.equal(model.head(model.norm(vectors[-1])), model(torch.tensor([IDS]))[0])


def test_the_lens_ends_at_the_models_own_loss(model):
    nats = watch.lens(model, IDS)
    model.eval()
    ids = torch.tensor([IDS])
    total, _ = next_token(model(ids), ids, torch.ones(1, 5, dtype=torch.bool))
    assert nats.shape == (4, 4)
    assert nats[-1].sum().item() == pytest.approx(total.item(), rel=1e-5)


def test_the_lens_before_the_first_block_sees_only_the_embedding(model):
    model.eval()
    logs = model.head(model.norm(model.embed(torch.tensor(IDS)))).log_softmax(-1)
    assert torch.allclose(watch.lens(model, IDS)[0], -logs[range(4), IDS[1:]], rtol=1e-5, atol=1e-6)


def test_rotated_by_hand():                                       # D = 4: pairs (0, 2) and (1, 3), turned by p and by p / 100
    config = ModelConfig(vocab_size=1, hidden_size=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_size=1, max_positions=1)
    turned = watch.rotated(config, torch.tensor([1.0, 1.0, 0.0, 0.0]), [0, 7])
    wanted = [[1, 1, 0, 0], [math.cos(7), math.cos(0.07), math.sin(7), math.sin(0.07)]]
    assert torch.allclose(turned, torch.tensor(wanted), rtol=0, atol=1e-6)


def test_rotated_vectors_meet_in_their_distance_only():
    config = ModelConfig(vocab_size=1, hidden_size=10, layers=1, heads=1, kv_heads=1, head_dim=10, mlp_size=1, max_positions=1)
    q, k = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    meet = lambda p, s: watch.rotated(config, q, [p])[0] @ watch.rotated(config, k, [s])[0]
    assert meet(5, 2).item() == pytest.approx(meet(305, 302).item(), abs=1e-3)      # angles near 300 are known to 3e-5, times |q| |k| of 10
    assert abs(meet(5, 2) - meet(5, 3)) > 1e-2


def test_marks_say_of_each_piece_whether_it_counts(small_tokenizer):
    ids = small_tokenizer.encode("the end")
    marks = watch.marks(Example(ids, [False, *[True] * (len(ids) - 1)]), small_tokenizer)
    assert marks[0] == ("<s>", False)
    assert "".join(piece for piece, _ in marks[1:]) == "the end" and all(counts for _, counts in marks[1:])


def test_marks_refuse_a_mask_of_another_length(small_tokenizer):
    with pytest.raises(ValueError):
        watch.marks(Example([1, 2, 3], [False, True]), small_tokenizer)


def test_spectra_by_hand():                                       # diag(3, 4) and a rank-one matrix (3, 4)T (1, 0, 0), its length 5
    values = watch.spectra([torch.diag(torch.tensor([3.0, 4.0])), torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0, 0])), torch.tensor([[2.0]])])
    assert torch.allclose(values, torch.tensor([[4.0, 3], [5, 0], [2, 0]]), rtol=0, atol=1e-6)


def test_size_by_rank_by_hand():
    assert torch.allclose(watch.size_by_rank(torch.tensor([[4.0, 3, 0], [1, 1, 1]])), torch.tensor([[16 / 25, 1, 1], [1 / 3, 2 / 3, 1]]))


def test_of_rank_holds_the_share_that_size_by_rank_says():
    change = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    shares = watch.size_by_rank(watch.spectra([change]))[0]
    ranks = (1, 2, 5)
    for rank, near in zip(ranks, watch.of_rank(change, ranks), strict=True):
        assert torch.linalg.matrix_rank(near) == rank
        assert (near.square().sum() / change.square().sum()).item() == pytest.approx(shares[rank - 1].item(), rel=1e-5)
    assert torch.allclose(near, change, rtol=0, atol=1e-5)


def test_agreement_by_hand():
    e = torch.eye(4)
    one = 3 * torch.outer(e[0], e[0]) + 2 * torch.outer(e[1], e[1])        # writes to 0, then 1; reads 0, then 1
    other = 5 * torch.outer(e[0], e[2]) + 1 * torch.outer(e[2], e[0])      # writes to 0, then 2; reads 2, then 0
    assert torch.allclose(watch.agreement(one, other, 2), torch.tensor([[1, 0.5], [0, 0.5]]), atol=1e-6)
    assert torch.allclose(watch.agreement(one, -7 * one, 2), torch.ones(2, 2), atol=1e-6)      # a space has neither sign nor size


def test_agreement_is_of_columns_when_the_directions_are_no_axes():     # the same four, in another order: 0 of 1, 2 of 2, 2 of 3, 4 of 4
    U = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).Q
    met = watch.agreement(U @ torch.diag(torch.tensor([5.0, 4, 3, 2])), U @ torch.diag(torch.tensor([4.0, 5, 2, 3])), 4)
    assert torch.allclose(met, torch.tensor([0, 1, 2 / 3, 1]).expand(2, 4), rtol=0, atol=1e-5)


def test_agreement_by_chance_is_k_over_n_and_k_over_k_of_the_matrix():
    dice = torch.Generator().manual_seed(0)
    met = torch.stack([watch.agreement(torch.randn(10, 30, generator=dice), torch.randn(10, 30, generator=dice), 5) for _ in range(200)]).mean(0)
    assert torch.allclose(met[0], torch.arange(1, 6) / 10, atol=0.03) and torch.allclose(met[1], torch.arange(1, 6) / 30, atol=0.02)


def test_survived_by_hand():                                      # wanted (3, 4), (0): went along it half way, and 6 aside
    share, cosine = watch.survived([torch.tensor([3.0, 4.0]), torch.tensor([0.0])], [torch.tensor([1.5, 2.0]), torch.tensor([6.0])])
    assert share == pytest.approx(0.5) and cosine == pytest.approx(2.5 / 6.5)
    assert watch.survived([torch.ones(2)], [torch.zeros(2)]) == (0.0, 0.0)


@pytest.mark.parametrize("method", [peft.Prefix(length=3, projection=False), peft.Prompt(length=3, init="random")], ids=["prefix", "prompt"])
def test_to_virtual_is_what_the_tokens_leave_for_the_text(model, method):
    peft.attach(model, method)
    weights = watch.attention(model, IDS)
    share = watch.to_virtual(weights, 3)
    assert share.shape == (3, 4, 5) and weights.shape[-1] == 8 and share.min() > 0
    assert torch.allclose(share, 1 - weights[..., -5:, 3:].sum(-1), rtol=0, atol=1e-6)
    assert (share[..., 0] + weights[..., -5, 3] - 1).abs().max() < 1e-6               # the first token sees itself and the virtual ones


def test_nearest_goes_by_the_angle_not_by_the_length():
    table = torch.tensor([[1.0, 0], [100, 100], [0, 2], [-1, 0]])
    cosines, ids = watch.nearest(torch.tensor([[5.0, 1.0]]), table, 3)
    assert ids.tolist() == [[0, 1, 2]]
    assert torch.allclose(cosines, torch.tensor([[5, 6 / 2**0.5, 1]]) / 26**0.5)


def test_kept_bytes_by_hand():                                    # of x W, x is kept for W's gradient, and of sigmoid its result; W is the model's
    x, layer = torch.randn(5, 3), nn.Linear(3, 7)
    assert watch.kept_bytes(layer, lambda: layer(x).sigmoid().sum()) == 4 * (5 * 3 + 5 * 7)
    assert watch.kept_bytes(layer.requires_grad_(False), lambda: layer(x).sigmoid().sum()) == 0
    x.requires_grad_(True)                                        # now W is kept, for x's gradient; but it is there anyway
    assert watch.kept_bytes(layer, lambda: layer(x).sigmoid().sum()) == 4 * 5 * 7
    layer.weight.requires_grad_(True)
    assert watch.kept_bytes(layer, lambda: layer(x) + layer(x)) == 4 * 5 * 3          # x twice, in one place


@pytest.mark.parametrize("at_once", [1, 16])
def test_distance_is_the_exact_kl_of_each_answers_tokens_and_of_no_others(model, at_once):
    other = copy.deepcopy(model.eval())
    with torch.no_grad():
        other.embed.weight.add_(0.3 * torch.randn(other.embed.weight.shape, generator=torch.Generator().manual_seed(1)))
    trees = [Tree([3, 11], [[7, 2, 5], [4]]), Tree([1, 9, 6], [[8, 2]])]
    wanted = []
    for tree in trees:
        for answer in tree.answers:
            ids = torch.tensor([[*tree.prompt, *answer]])
            logs, logs_other = ((m(ids)[0, len(tree.prompt) - 1 : -1] / 0.8).log_softmax(-1) for m in (model, other))       # where the answer is predicted
            wanted.append((logs.exp() * (logs - logs_other)).sum().item())
    assert watch.distance(model, other, trees, 0.8, at_once).tolist() == pytest.approx(wanted, rel=1e-4)
    assert min(wanted) > 0 and watch.distance(model, model, trees, 0.8).abs().max() < 1e-6
