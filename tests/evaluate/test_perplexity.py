"""Loss per token: nothing about how texts are batched, padded or cut into windows may show in it."""

import math

import pytest
import torch
from torch import nn

from minift.data.batches import Example
from minift.errors import InputError
from minift.evaluate.perplexity import Perplexity, perplexity, scored_bytes, text_bits_per_byte
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer

CONFIG = ModelConfig(vocab_size=259, hidden_size=24, layers=2, heads=3, kv_heads=1, head_dim=8, mlp_size=40, max_positions=64)


class Bytes:
    """A tokenizer whose tokens are UTF-8 bytes; 256 is BOS, 257 EOS."""

    vocab_size, bos_id, eos_id = 259, 256, 257

    def encode(self, text, add_special_tokens=True, continues=False):
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, ids, skip_special_tokens=True):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    with torch.no_grad():                                                     # a fresh model finds all tokens alike: make it opinionated
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def some_examples(count=8):
    """Lengths 3, 5, ... and a prompt of 2 tokens in each: very uneven, so every kind of averaging gives its own number."""
    dice = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 256, (3 + 2 * i,), generator=dice).tolist() for i in range(count)]
    return [Example(ids, [i >= 2 for i in range(len(ids))]) for ids in rows]


def by_hand(model, examples):
    """The definition, one text and one token at a time: (sum of nats, targets)."""
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for ids, mask, _ in examples:
            log_p = model(torch.tensor([ids])).log_softmax(-1)[0]             # (T, V)
            for t in range(1, len(ids)):
                if mask[t]:
                    nats, tokens = nats - log_p[t - 1, ids[t]].item(), tokens + 1
    return nats, tokens


class Counting(nn.Module):
    """A model that notes the shape of each batch it is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shapes = model, []

    def forward(self, token_ids):
        self.shapes.append(tuple(token_ids.shape))
        return self.model(token_ids)


def test_trap44_the_same_loss_for_batches_of_1_3_and_8(model):
    nats, tokens = by_hand(model, some_examples())
    batches = {}
    for batch_tokens in (1, 45, 1000):                                        # longest example: 17 tokens
        counting = Counting(model)
        result = perplexity(counting, some_examples(), batch_tokens=batch_tokens)
        batches[batch_tokens] = sorted(rows for rows, _ in counting.shapes)
        assert result.tokens == tokens == 64                                  # 1 + 3 + ... + 15
        assert result.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)
    assert batches[1] == [1] * 8 and batches[1000] == [8] and max(batches[45]) >= 3


def test_trap44_it_is_a_mean_over_tokens_not_over_batches_or_texts(model):
    with torch.no_grad():                                                     # the short text ends as expected, the long one does not
        expected, unexpected = (pick(model(torch.tensor([[3, 1]]))[0, -1]).item() for pick in (torch.argmax, torch.argmin))
    short, long = Example([3, 1, expected], [False, False, True]), Example([3, 1, unexpected] + [7] * 9, [False, False] + [True] * 10)
    alone = [perplexity(model, [e]) for e in (short, long)]
    together = perplexity(model, [short, long]).nats_per_token
    weighted = sum(a.nats_per_token * a.tokens for a in alone) / sum(a.tokens for a in alone)
    assert together == pytest.approx(weighted, rel=1e-5)
    assert abs(together - sum(a.nats_per_token for a in alone) / 2) > 0.1     # what a mean of means would give is another number


def test_perplexity_and_bits_per_byte_worked_by_hand():
    result = Perplexity(nats_per_token=math.log(8), tokens=10, bytes=15)      # 3 bits a token, 30 bits over 15 bytes
    assert result.perplexity == pytest.approx(8) and result.bits_per_byte == pytest.approx(2)
    assert Perplexity(1.0, 10).bits_per_byte is None
    assert Perplexity(1000.0, 10).perplexity == math.inf


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(model):
    nn.init.zeros_(model.norm.weight)                                         # all logits are 0
    assert perplexity(model, some_examples()).perplexity == pytest.approx(259, rel=1e-5)


def test_the_mode_comes_back_and_no_graph_is_kept(model):
    for training in (True, False):
        model.train(training)
        perplexity(model, some_examples())
        assert model.training is training and model.blocks[1].training is training
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off_during_evaluation():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**CONFIG.__dict__, "dropout": 0.5})).train()
    assert perplexity(model, some_examples()) == perplexity(model, some_examples())


def test_the_mode_comes_back_after_an_error(model):
    model.train()
    with pytest.raises(IndexError):
        perplexity(model, [Example([1, 9999], [False, True])])
    assert model.training


def test_nothing_to_score_is_an_error(model):
    with pytest.raises(InputError, match="none of the 1 examples has a token that counts"):
        perplexity(model, [Example([1, 2, 3], [False] * 3)])


def test_scored_bytes_counts_each_run_of_targets_and_no_prompt():
    ids = list("aé".encode()) + list("bcd".encode()) + [257]                 # a, 2 bytes of é, b, c, d, EOS
    assert scored_bytes(Bytes(), [Example(ids, [False, True, True, False, True, True, True])]) == 4     # é, c, d; EOS has no text
    assert scored_bytes(Bytes(), [Example(ids, [False] * 7)]) == 0
    assert scored_bytes(Bytes(), [Example(ids, [False] * 3 + [True, False, False, False])]) == 1


@pytest.mark.parametrize("stride", [1, 3, 9])
def test_windows_score_each_token_once_after_enough_context(model, stride):
    document, context = "The quick brown fox jumps over it.", 10              # 34 bytes, BOS makes 35 tokens
    ids = [256, *document.encode()]
    nats = 0.0
    for t in range(1, len(ids)):                                              # token t is scored in the first window that holds it
        number = max(0, -(-(t + 1 - context) // stride))
        start = number * stride
        assert t - start >= min(t, context - stride)
        with torch.no_grad():
            nats -= model(torch.tensor([ids[start : t + 1]])).log_softmax(-1)[0, -2, ids[t]].item()
    result = text_bits_per_byte(model, Bytes(), [document], context, stride)
    assert (result.tokens, result.bytes) == (34, 34)
    assert result.nats_per_token == pytest.approx(nats / 34, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / 34 / math.log(2), rel=1e-5)


def test_documents_do_not_see_each_other_and_empty_ones_cost_nothing(model):
    one, two = (text_bits_per_byte(model, Bytes(), [d], 16, 8) for d in ("first text", "the second, é"))
    both = text_bits_per_byte(model, Bytes(), ["first text", "", "the second, é"], 16, 8)
    assert (both.tokens, both.bytes) == (one.tokens + two.tokens, one.bytes + two.bytes) == (24, 24)
    assert both.nats_per_token * 24 == pytest.approx(one.nats_per_token * one.tokens + two.nats_per_token * two.tokens, rel=1e-5)


def test_without_a_start_token_the_first_token_and_its_bytes_are_left_out(model):
    bare = Bytes()
    bare.bos_id = bare.eos_id = None
    result = text_bits_per_byte(model, bare, ["abc"], 16, 8)
    assert (result.tokens, result.bytes) == (2, 2)


@pytest.mark.parametrize("stride", [0, 16, 17])
def test_a_stride_that_leaves_a_token_without_context_is_refused(model, stride):
    with pytest.raises(InputError, match=f"stride is {stride} and context 16"):
        text_bits_per_byte(model, Bytes(), ["abc"], 16, stride)
