"""What the lessons draw is what the model computed."""

import math

import pytest
import torch
from torch import nn

from minift import watch
from minift.data.batches import Example
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
