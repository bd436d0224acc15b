"""The door for virtual tokens, for every family: what stands in front of a text acts as if it had been read.

The judge is the base model itself: rows that are the embeddings of real tokens, and keys and values that those tokens leave in a cache,
must give what the model says after reading those tokens. Tolerance as in test_transformer.py: 1e-5 of the largest logit."""

import dataclasses

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.generate import generate_ids, position_limit
from minift.models.cache import KVCache
from minift.models.transformer import Transformer
from minift.models.virtual import NoVirtual, Virtual
from tests.models.small import CONFIGS, model, randomised, tokens
from tests.models.test_transformer import near

V = 3
ORDINARY = [name for name in CONFIGS if name != "dynamic"]                 # its frequencies change as a text grows: cached differs
KINDS = ["rows", "pairs"]


class Rows(nn.Module):
    """Learned embeddings (V, C)."""

    def __init__(self, table):
        super().__init__()
        self.table, self.calls = nn.Parameter(table), 0

    def forward(self):
        self.calls += 1
        return Virtual(embeds=self.table)


class Pairs(nn.Module):
    """Learned keys and values (layers, 2, kv heads, V, D)."""

    def __init__(self, table):
        super().__init__()
        self.table, self.calls = nn.Parameter(table), 0

    def forward(self):
        self.calls += 1
        return Virtual(keys_values=[(k, v) for k, v in self.table])


def opened(name: str, kind: str, **choices) -> Transformer:
    """A model with V virtual tokens of random numbers."""
    decoder = randomised(Transformer(dataclasses.replace(CONFIGS[name], **choices))) if choices else model(name)
    config, dice = decoder.config, torch.Generator().manual_seed(7)
    shape = (V, config.hidden_size) if kind == "rows" else (config.layers, 2, config.kv_heads, V, config.head_dim)
    decoder.virtual = (Rows if kind == "rows" else Pairs)(torch.randn(shape, generator=dice))
    return decoder


def test_a_new_model_has_no_virtual_tokens_and_its_door_no_numbers():
    decoder = model("llama")
    assert isinstance(decoder.virtual, NoVirtual) and decoder.virtual() is None
    assert decoder.virtual_count() == 0 and not any("virtual" in name for name in decoder.state_dict())
    cache = decoder.new_cache(2, 5)
    assert cache.capacity == 5 and cache.virtual == 0 and cache.lengths.tolist() == [0, 0]


# -- as if it had been read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_are_real_embeddings_act_as_the_words_themselves(name):
    """Gemma's scale is inside: the rows stand beside scaled embeddings (8 tokens: what "dynamic" was trained on)."""
    decoder, ids = model(name), tokens(2, V + 5)
    ids[:, :V] = ids[0, :V]
    expected, seen = decoder(ids)[:, V:], {}
    decoder.virtual = Rows(decoder.embed(ids[0, :V]).detach() * decoder.config.embed_scale)
    near(decoder(ids[:, V:], capture=seen), expected)
    assert seen["embed"].shape == (2, V + 5, 24) and decoder.virtual.calls == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_that_real_words_leave_in_a_cache_act_as_the_words_themselves(name):
    decoder, ids = model(name), tokens(2, V + 5)
    ids[:, :V] = ids[0, :V]
    expected, cache, seen = decoder(ids)[:, V:], KVCache(decoder.config, 1, V), {}
    with torch.no_grad():
        decoder(ids[:1, :V], cache=cache)
    decoder.virtual = Pairs(torch.stack([cache.keys[:, 0], cache.values[:, 0]], dim=1))
    near(decoder(ids[:, V:], capture=seen), expected)
    assert seen["blocks.0.attention.weights"].shape == (2, decoder.config.heads, 5, V + 5) and decoder.virtual.calls == 1


def test_a_prefix_worked_by_hand():
    """All scores are 0, so attention is a mean. Prefix values 6 and 3, a token's own value 0: 9/3, then 9/4."""
    config = dataclasses.replace(CONFIGS["llama"], hidden_size=1, layers=1, heads=1, kv_heads=1, head_dim=2, mlp_size=1)
    decoder, seen = Transformer(config), {}
    for weight in (decoder.blocks[0].attention.q.weight, decoder.blocks[0].attention.v.weight):
        weight.data.zero_()
    decoder.blocks[0].attention.out.weight.data = torch.tensor([[1.0, 0.0]])
    decoder.virtual = Pairs(torch.tensor([[[[[5.0, 0], [-2, 1]]], [[[6.0, 0], [3, 0]]]]]))        # (1, 2, 1, 2, 2)
    decoder(tokens(1, 2), capture=seen)
    near(seen["blocks.0.attention"].flatten(), torch.tensor([9 / 3, 9 / 4]))


def test_the_gradient_of_rows_is_that_of_embeddings_in_front():
    decoder, ids = opened("gpt2", "rows"), tokens(2, 6)
    weigh = torch.randn(2, 6, 31, generator=torch.Generator().manual_seed(5))
    (decoder(ids) * weigh).sum().backward()
    rows = decoder.virtual.table.detach().clone().requires_grad_()
    decoder_rows, decoder.virtual = decoder.virtual, NoVirtual()
    front = torch.cat([rows.expand(2, V, 24), decoder.embed(ids)], dim=1)
    (decoder(embeds=front)[:, V:] * weigh).sum().backward()
    near(decoder_rows.table.grad, rows.grad)


# -- packing and padding -------------------------------------------------------------------------------------------------------------

CASES = [(name, kind) for name in CONFIGS for kind in KINDS if (name, kind) != ("dynamic", "rows")]


@pytest.mark.parametrize("name, kind", CASES)
def test_trap07_packed_texts_equal_the_same_texts_alone_behind_the_same_virtual_tokens(name, kind):
    decoder, ids = opened(name, kind), tokens(1, 16)
    segments = torch.tensor([[0] * 6 + [1] + [2] * 9])
    packed = decoder(ids, segments=segments)
    for start, end in ((0, 6), (6, 7), (7, 16)):
        near(packed[:, start:end], decoder(ids[:, start:end]))


@pytest.mark.parametrize("name, kind", CASES)
def test_trap07_changing_one_packed_text_leaves_the_others_to_the_bit(name, kind):
    decoder, ids = opened(name, kind), tokens(1, 12)
    segments, changed = torch.tensor([[-1] * 5 + [4] * 7]), ids.clone()                   # -1 is a number like any other
    changed[0, :5] = (ids[0, :5] + 3) % 31
    before, after = decoder(ids, segments=segments), decoder(changed, segments=segments)
    assert torch.equal(before[:, 5:], after[:, 5:]) and not torch.allclose(before[:, :5], after[:, :5], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama3", "mistral", "gpt2", "bloom"])
def test_trap09_pads_left_and_right_change_neither_logits_nor_gradients(name, kind):
    decoder, ids = opened(name, kind), tokens(2, 9)
    padded = decoder(ids, segments=torch.tensor([[0] * 2 + [1] * 7, [1] * 6 + [0] * 3]))
    assert padded.isfinite().all()
    (padded[0, 2:].square().sum() + padded[1, :6].square().sum()).backward()
    gradient, decoder.virtual.table.grad = decoder.virtual.table.grad, None
    alone = decoder(ids[:1, 2:]), decoder(ids[1:, :6])
    near(padded[:1, 2:], alone[0])
    near(padded[1:, :6], alone[1])
    sum(logits.square().sum() for logits in alone).backward()
    near(gradient / gradient.abs().max(), decoder.virtual.table.grad / gradient.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_counts_virtual_tokens_as_tokens_in_every_packed_text(kind):
    """Window 4 and V = 3: a text's first token sees all three, its fourth sees none."""
    seen = {}
    opened("mistral", kind)(tokens(1, 9), segments=torch.tensor([[0] * 4 + [1] * 5]), capture=seen)
    looks = seen["blocks.0.attention.weights"][0, 0, -9:, :V] > 0
    assert looks.long().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]] + [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_alibi_counts_the_distance_to_virtual_tokens_from_each_packed_text(kind):
    """Scores all equal: head 2 of 3 has slope 1/4, and the second text's first token stands 3, 2, 1, 0 behind what it sees."""
    decoder, seen = opened("bloom", kind), {}
    for weight in (decoder.blocks[0].attention.qkv.weight, decoder.blocks[0].attention.qkv.bias):
        weight.data.zero_()
    decoder(tokens(1, 4), segments=torch.tensor([[0, 0, 1, 1]]), capture=seen)
    got = seen["blocks.0.attention.weights"][0, 2, -2]                                      # keys: V virtual, two of the first text, two
    near(got, torch.tensor([-0.75, -0.5, -0.25, float("-inf"), float("-inf"), 0.0, float("-inf")]).softmax(0))


@pytest.mark.parametrize("kind", KINDS)
def test_learned_positions_must_hold_the_virtual_tokens_and_the_text(kind):
    decoder = opened("gpt2", kind, max_positions=8)
    assert decoder(tokens(1, 5)).shape == (1, 5, 31)
    with pytest.raises(InputError, match="8 learned positions, the text has 6 tokens and 3 virtual ones before them: shorten it"):
        decoder(tokens(1, 6))
    assert decoder(tokens(1, 9), segments=torch.tensor([[0] * 4 + [1] * 5])).shape == (1, 9, 31)


def test_dynamic_scaling_refuses_rows_that_texts_of_different_length_would_share():
    decoder = opened("dynamic", "rows")                                                     # trained on 8 positions
    short = decoder(tokens(1, 9), segments=torch.tensor([[0] * 5 + [1] * 4]))
    near(short[:, :5], decoder(tokens(1, 9)[:, :5]))
    with pytest.raises(InputError, match="packed or padded texts of more than 8 tokens"):
        decoder(tokens(1, 9), segments=torch.tensor([[0] * 6 + [1] * 3]))


# -- what a block is told ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_can_tell_each_tokens_place_in_its_own_text(kind):
    decoder, told = opened("llama", kind), []
    decoder.blocks[1].register_forward_pre_hook(lambda block, inputs: told.append(inputs[1]))
    decoder(tokens(1, 5), segments=torch.tensor([[0, 0, 0, 1, 1]]))
    assert (told[-1].positions - told[-1].virtual)[0, -5:].tolist() == [0, 1, 2, 0, 1]
    cache = decoder.new_cache(1, 5)
    decoder(tokens(1, 4), cache=cache)
    decoder(tokens(1, 1), cache=cache)
    assert (told[-1].positions - told[-1].virtual).tolist() == [[4]] and told[-1].prefix is None


# -- generation ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ORDINARY)
def test_cached_equals_uncached_for_ragged_rows(name, kind):
    decoder, texts, lengths = opened(name, kind), tokens(2, 12), [5, 2]
    cache = decoder.new_cache(2, 12)
    assert cache.capacity == V + 12 and cache.lengths.tolist() == [V, V]
    prompts = texts[:, :5].clone()
    prompts[1, 2:] = 0                                                                      # pads
    logits = decoder(prompts, cache=cache)
    got = [[logits[row, :length]] for row, length in enumerate(lengths)]
    cache.lengths = V + torch.tensor(lengths)
    for step in range(4):
        new = torch.stack([texts[row, length + step] for row, length in enumerate(lengths)])[:, None]
        logits = decoder(new, cache=cache)
        for row in range(2):
            got[row].append(logits[row])
    for row, length in enumerate(lengths):
        near(torch.cat(got[row]), decoder(texts[row : row + 1, : length + 4])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_gets_the_virtual_tokens_once_whoever_made_it(kind):
    decoder, ids = opened("llama", kind), tokens(1, 6)
    cache = KVCache(decoder.config, batch=1, capacity=V + 6)
    expected, decoder.virtual.calls = decoder(ids), 0
    near(decoder(ids[:, :4], cache=cache), expected[:, :4])
    near(decoder(ids[:, 4:], cache=cache), expected[:, 4:])
    assert decoder.virtual.calls == 1 and cache.lengths.tolist() == [V + 6]
    cache.lengths = torch.zeros(1, dtype=torch.int64)                                       # a new text in an old cache
    near(decoder(ids, cache=cache), expected)
    decoder.virtual, cache.lengths = NoVirtual(), torch.zeros(1, dtype=torch.int64)
    decoder(ids, cache=cache)
    assert cache.virtual == 0 and cache.lengths.tolist() == [6]
    with pytest.raises(InputError, match="room for 2 tokens a row, 3 are wanted"):
        opened("llama", kind)(ids, cache=KVCache(decoder.config, 1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma", "gpt2", "bloom"])
def test_trap10_greedy_text_is_that_of_the_uncached_model_in_every_batch(name, kind):
    decoder, prompts = opened(name, kind), [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    alone = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(7):
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
        alone.append(ids[len(prompt) :])
    assert generate_ids(decoder, prompts, max_new_tokens=7, eos_ids=()) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_generation_stops_where_learned_positions_behind_the_virtual_tokens_end(kind):
    decoder = opened("gpt2", kind, max_positions=9)
    assert position_limit(decoder) == 6
    assert [len(new) for new in generate_ids(decoder, [[1, 2], [1, 2, 3, 4]], max_new_tokens=20, eos_ids=())] == [5, 3]
    with pytest.raises(InputError, match="has 7 tokens, but this model has 9 learned positions, room for 6 behind virtual tokens"):
        generate_ids(decoder, [[1] * 7])


# -- training ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_trap33_gradients_are_the_same_with_and_without_checkpointing(name, kind):
    decoder, ids, gradients = opened(name, kind).requires_grad_(False), tokens(2, 7), []
    decoder.virtual.requires_grad_(True)
    for decoder.checkpointing in (False, True):
        decoder.virtual.table.grad, decoder.virtual.calls = None, 0
        decoder(ids, segments=torch.tensor([[0] * 4 + [1] * 3] * 2)).square().sum().backward()
        gradients.append(decoder.virtual.table.grad)
        assert decoder.virtual.calls == 1
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_model_and_autocast_run_behind_float32_virtual_tokens(kind):
    decoder, ids = opened("llama3", kind), tokens(1, 6)
    exact, scale = decoder(ids), decoder(ids).abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = decoder(ids)
    assert (rounded.float() - exact).abs().max() < 0.1 * scale
    table = decoder.virtual.table
    decoder.to(torch.bfloat16).virtual.table = table
    table.data = table.data.float()
    logits = decoder(ids)
    assert logits.dtype == torch.bfloat16 and (logits.float() - exact).abs().max() < 0.1 * scale
    logits.float().square().sum().backward()
    assert table.grad.dtype == torch.float32
    assert decoder(ids, cache=decoder.new_cache(1, 6)).dtype == torch.bfloat16
