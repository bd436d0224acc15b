"""The decoder by itself: worked by hand where a hand can, and held against itself: packed = alone, padded = not, cached = uncached.

Tolerances: two float32 runs of the same 2-block model that differ in the order of their sums agree to a few 1e-6 for logits of
size 1 to 10; 1e-5 (trap 7's) times that size is allowed. Equality to the bit is asked wherever nothing should be computed differently."""

import dataclasses
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minift.errors import InputError
from minift.models import attention
from minift.models.cache import KVCache
from minift.models.config import ModelConfig, RopeScaling
from minift.models.rope import alibi_slopes, frequencies, rotate, rotate_plainly, rotation
from minift.models.norm import OffsetRMSNorm
from minift.models.transformer import Transformer
from tests.models.small import CONFIGS, SHAPE, model, tokens

ORDINARY = [name for name in CONFIGS if name != "dynamic"]                 # its frequencies change as a text grows: cached differs


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())


# -- positions -----------------------------------------------------------------------------------------------------------------------


def test_trap36_rope_pairs_the_first_half_with_the_second_worked_by_hand():
    """D = 4, theta = 10000: frequencies 1 and 0.01. At position 2 the pair (x0, x2) turns by 2 and (x1, x3) by 0.02."""
    config = ModelConfig(**{**SHAPE, "head_dim": 4})
    cos, sin = rotation(config, torch.tensor([[2]]))
    turned = rotate(torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 1, 4), cos, sin).flatten()
    c, s, c2, s2 = math.cos(2), math.sin(2), math.cos(0.02), math.sin(0.02)
    near(turned, torch.tensor([1 * c - 5 * s, 3 * c2 - 7 * s2, 5 * c + 1 * s, 7 * c2 + 3 * s2]))


def test_numbers_beyond_the_rotated_width_pass_unchanged():
    config = ModelConfig(**SHAPE, rope_dim=2)
    x = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *rotation(config, torch.arange(4)[None]))
    assert torch.equal(turned[..., 2:], x[..., 2:]) and not torch.equal(turned[:, :, 1:, :2], x[:, :, 1:, :2])


def test_scaled_frequencies_worked_by_hand():
    at = lambda scaling, positions=1: frequencies(
        ModelConfig(**{**SHAPE, "head_dim": 4}, rope_scaling=scaling), torch.full((1, 1), positions - 1), None
    ).flatten()
    near(at(None), torch.tensor([1.0, 0.01]))
    near(at(RopeScaling("linear", 4.0)), torch.tensor([0.25, 0.0025]))
    near(at(RopeScaling("dynamic", 2.0), positions=64), torch.tensor([1.0, 0.01]))          # not longer than trained: nothing happens
    near(at(RopeScaling("dynamic", 2.0), positions=128), torch.tensor([1.0, 0.01 / 3]))     # theta (2 * 128 / 64 - 1)^(4/2), to the -1/2
    # llama3: trained on 64 tokens the frequency 1 turns 64 / 6.28 = 10.19 times (more than 4: kept), 0.01 turns 0.10 (less than 1: divided)
    near(at(RopeScaling("llama3", 8.0, 1.0, 4.0, 64)), torch.tensor([1.0, 0.01 / 8]))
    # with the high factor at 20 the first lies between: 9.186 / 19 of it is kept
    keep = (64 / (2 * math.pi) - 1) / 19
    near(at(RopeScaling("llama3", 8.0, 1.0, 20.0, 64)), torch.tensor([keep + (1 - keep) / 8, 0.01 / 8]))


@pytest.mark.parametrize("D, dtype", [(6, torch.float32), (10, torch.float32), (6, torch.bfloat16)], ids=["all", "part", "bf16"])
def test_the_fast_rotation_is_the_formula_in_value_and_gradient(D, dtype):
    """Two products and a sum each, so two roundings of numbers up to 4; bfloat16 rounds once more, at the end."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, D, generator=draw).to(dtype).transpose(1, 2).requires_grad_()          # as attention has it: (B, H, T, D), not contiguous
    angles, dy = torch.randn(2, 1, 5, 3, generator=draw), torch.randn(2, 3, 5, D, generator=draw).to(dtype)
    results = [function(x, angles.cos(), angles.sin()) for function in (rotate, rotate_plainly)]
    gradients = [torch.autograd.grad(y, x, dy)[0] for y in results]
    for ours, formula in (results, gradients):
        torch.testing.assert_close(ours, formula, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=1e-6)


def test_trap35_rotation_is_exact_at_position_15000_in_a_bfloat16_model():
    """bfloat16 has 8 bits: it cannot hold 15000, nor an angle near it. The model keeps no buffer that .to() could round."""
    half = model("llama3").to(torch.bfloat16)
    assert list(half.buffers()) == []
    positions = torch.tensor([[257, 15000]])
    cos, sin = rotation(half.config, positions)
    assert cos.dtype == sin.dtype == torch.float32
    exact = positions[:, :, None].double() * frequencies(half.config, positions, None).double()
    eps = torch.finfo(torch.bfloat16).eps
    assert (cos[:, 0] - exact.cos()).abs().max() < eps and (sin[:, 0] - exact.sin()).abs().max() < eps
    x = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    turned = rotate(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert (turned[0, 0, :, :2].double() - (exact.cos() - exact.sin())[0]).abs().max() < 2 * eps


def test_rope_sees_only_the_distance():
    decoder, ids = model("llama"), tokens(2, 9)
    near(decoder(ids, positions=torch.arange(9).expand(2, 9) + 40), decoder(ids))


def test_alibi_slopes_worked_by_hand():
    assert alibi_slopes(8, "cpu").tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(4, "cpu").tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert alibi_slopes(3, "cpu").tolist() == [2.0**-4, 2.0**-8, 2.0**-2]                    # two heads' slopes, then every other of four's
    near(alibi_slopes(6, "cpu"), torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]))      # of eight: the first and third


def test_alibi_lowers_a_score_by_slope_times_distance():
    seen = {}
    decoder = model("bloom")
    for weight in (decoder.blocks[0].attention.qkv.weight, decoder.blocks[0].attention.qkv.bias):
        weight.data.zero_()                                                                 # all scores equal: only the bias is left
    decoder(tokens(1, 4), capture=seen)
    got = seen["blocks.0.attention.weights"][0, 2, 3]                                       # head 2 of 3 has slope 1/4
    near(got, torch.tensor([-0.75, -0.5, -0.25, 0.0]).softmax(0))


def test_learned_positions_end_where_they_end_but_packed_rows_may_be_longer():
    decoder = Transformer(dataclasses.replace(CONFIGS["gpt2"], max_positions=5)).eval()
    with pytest.raises(InputError, match="5 learned positions, the text has 6 tokens"):
        decoder(tokens(1, 6))
    assert decoder(tokens(1, 9), segments=torch.tensor([[0] * 4 + [1] * 5])).shape == (1, 9, 31)


# -- who sees whom -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_never_sees_a_later_one(name):
    decoder, ids = model(name), tokens(1, 7)
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 31
    before, after = decoder(ids), decoder(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_a_window_of_4_shows_the_token_itself_and_three_before():
    seen = {}
    model("mistral")(tokens(1, 9), capture=seen)
    expected = torch.tensor([[0 <= q - k < 4 for k in range(9)] for q in range(9)])
    for layer in range(2):
        weights = seen[f"blocks.{layer}.attention.weights"]
        assert torch.equal(weights[0] > 0, expected.expand(6, 9, 9))


def test_each_block_has_its_own_window():
    seen = {}
    model("qwen2")(tokens(1, 9), capture=seen)                                              # block 0 full, block 1 the last five
    assert (seen["blocks.0.attention.weights"][0, :, 8] > 0).all()
    assert torch.equal(seen["blocks.1.attention.weights"][0, 0, 8] > 0, torch.tensor([False] * 4 + [True] * 5))


@pytest.mark.parametrize("name", CONFIGS)
def test_trap07_packed_documents_equal_the_same_documents_alone(name):
    """Three documents of 6, 1 and 9 tokens in one row (9 is longer than dynamic's trained 8: its length is its own)."""
    decoder, ids = model(name), tokens(1, 16)
    segments = torch.tensor([[0] * 6 + [1] + [2] * 9])
    packed = decoder(ids, segments=segments)
    for start, end in ((0, 6), (6, 7), (7, 16)):
        near(packed[:, start:end], decoder(ids[:, start:end]))


@pytest.mark.parametrize("name", CONFIGS)
def test_trap07_changing_one_packed_document_leaves_the_others_to_the_bit(name):
    decoder, ids = model(name), tokens(1, 16)
    segments = torch.tensor([[0] * 6 + [1] + [2] * 9])
    changed = ids.clone()
    changed[0, :6] = (ids[0, :6] + 3) % 31
    before, after = decoder(ids, segments=segments), decoder(changed, segments=segments)
    assert torch.equal(before[:, 6:], after[:, 6:]) and not torch.allclose(before[:, :6], after[:, :6], atol=1e-3)


BACKENDS = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("backends", [[SDPBackend.MATH], BACKENDS], ids=["math", "fused"])
def test_trap09_left_padding_is_finite_and_equals_the_unpadded_run(name, backends):
    """Row 0 has 5 pads on the left. Forward and backward are finite, and the loss's gradient is that of the two rows alone."""
    decoder, ids = model(name), tokens(2, 12)
    segments = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])
    with sdpa_kernel(backends):
        logits = decoder(ids, segments=segments)
        (logits[0, 5:].square().sum() + logits[1].square().sum()).backward()
    padded = {path: parameter.grad for path, parameter in decoder.named_parameters()}
    assert logits.isfinite().all() and all(gradient.isfinite().all() for gradient in padded.values())

    decoder.zero_grad()
    alone, whole = decoder(ids[:1, 5:]), decoder(ids[1:])
    near(logits[:1, 5:], alone)
    near(logits[1:], whole)
    (alone.square().sum() + whole.square().sum()).backward()
    for path, parameter in decoder.named_parameters():
        assert (padded[path] - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max() + 1e-6, path


def test_trap09_a_row_of_pads_only_is_finite():
    logits = model("llama")(tokens(2, 6), segments=torch.tensor([[0] * 6, [1] * 6]))
    assert logits.isfinite().all()


# -- the parts -----------------------------------------------------------------------------------------------------------------------


def test_a_norm_with_an_offset_worked_by_hand():
    norm = OffsetRMSNorm(2, eps=0.0, offset=1.0)
    norm.weight.data = torch.tensor([0.5, -1.0])
    near(norm(torch.tensor([3.0, 4.0])), torch.tensor([1.5 * 3 / 12.5**0.5, 0.0]))          # mean square 12.5; 1 + w = 1.5 and 0
    assert torch.equal(OffsetRMSNorm(2, eps=0.0, offset=1.0).weight, torch.zeros(2))        # a new one multiplies by 1


def test_query_heads_share_their_group_s_key_head():
    """6 query heads, 2 key/value heads: heads 0-2 read the first, heads 3-5 the second."""
    layer = model("mistral").blocks[0].attention
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(3))
    q, k, v = layer.project(x)
    full = torch.nn.functional.scaled_dot_product_attention(q, k[:, [0, 0, 0, 1, 1, 1]], v[:, [0, 0, 0, 1, 1, 1]], is_causal=True)
    near(layer(x, attention.Context(torch.arange(5)[None])), layer.out(full.transpose(1, 2).reshape(1, 5, 24)))


def test_joined_and_grouped_rows_worked_by_hand():
    """Row n of the joined linear gives n: H = 4 query heads, 2 key/value heads, D = 1."""
    rows = {}
    for layout in ("joined", "grouped"):
        shape = dict(vocab_size=3, hidden_size=1, layers=1, heads=4, kv_heads=2, head_dim=1, mlp_size=1, max_positions=4)
        layer = attention.Attention(ModelConfig(**shape, qkv=layout), 0)
        layer.qkv.weight.data = torch.arange(8.0)[:, None]
        rows[layout] = [part.flatten().tolist() for part in layer.project(torch.ones(1, 1, 1))]
    assert rows["joined"] == [[0, 1, 2, 3], [4, 5], [6, 7]]                                 # all Q, all K, all V
    assert rows["grouped"] == [[0, 1, 4, 5], [2, 6], [3, 7]]                                # Q Q K V, Q Q K V


def test_parallel_blocks_read_the_same_stream():
    block, seen = model("falcon_40b").blocks[0], {}
    x = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(3))
    out = block(x, attention.Context(torch.arange(3)[None], capture=seen))
    near(out, x + seen["blocks.0.attention"] + block.mlp(block.norm2(x)))


def test_ready_made_embeddings_are_another_door():
    for name in ("gemma", "gpt2", "bloom"):
        decoder, ids = model(name), tokens(2, 7)
        assert torch.equal(decoder(embeds=decoder.embed(ids)), decoder(ids))


def test_gemma_multiplies_its_embedding_by_the_root_of_its_width():
    decoder, ids, seen = model("gemma"), tokens(1, 4), {}
    decoder(ids, capture=seen)
    near(seen["embed"], decoder.embed(ids) * 24**0.5)


def test_dropout_acts_in_training_only():
    decoder, ids = Transformer(dataclasses.replace(CONFIGS["llama"], dropout=0.5)), tokens(1, 9)
    assert not torch.equal(decoder.train()(ids), decoder(ids))
    assert torch.equal(decoder.eval()(ids), decoder(ids))


def test_a_new_model_starts_small_and_joins_the_stream_smaller():
    torch.manual_seed(0)
    decoder = Transformer(dataclasses.replace(CONFIGS["llama"], hidden_size=128, mlp_size=256, layers=8))
    block = decoder.blocks[3]
    assert abs(block.mlp.up.weight.std() - 0.02) < 0.001                                    # 32768 draws: 0.0001 is one deviation
    assert abs(block.mlp.down.weight.std() - 0.02 / 4) < 0.0003                             # sqrt(2 * 8) = 4
    assert abs(decoder.embed.weight.std() - 0.02) < 0.002


# -- what a lesson asks for ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_attention_is_what_the_model_used(name):
    decoder, ids, seen = model(name), tokens(2, 10), {}
    assert torch.equal(decoder(ids, capture=seen), decoder(ids))
    config = decoder.config
    assert set(seen) == {"embed"} | {f"blocks.{n}.{part}" for n in (0, 1) for part in ("attention.weights", "attention", "hidden")}
    weights = seen["blocks.1.attention.weights"]
    assert weights.shape == (2, config.heads, 10, 10)
    near(weights.sum(-1), torch.ones(2, config.heads, 10))
    block = decoder.blocks[1]
    _, _, v = block.attention.project(block.norm1(seen["blocks.0.hidden"]))
    mixed = weights @ v.repeat_interleave(config.heads // config.kv_heads, dim=1)            # (B, H, T, D)
    near(seen["blocks.1.attention"], block.attention.out(mixed.transpose(1, 2).reshape(2, 10, -1)))
    near(decoder.head(decoder.norm(seen["blocks.1.hidden"])), decoder(ids))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dynamic"])      # its angles change as a text grows
def test_captured_attention_behind_a_cache_is_the_last_row_of_the_whole(name):
    decoder, ids, whole, behind = model(name), tokens(2, 10), {}, {}
    decoder(ids, capture=whole)
    cache = decoder.new_cache(2, 10)
    decoder(ids[:, :9], cache=cache)
    decoder(ids[:, 9:], cache=cache, capture=behind)
    for block in ("blocks.0", "blocks.1"):
        near(behind[f"{block}.attention.weights"], whole[f"{block}.attention.weights"][:, :, 9:])


def test_the_normal_path_never_writes_the_weights_down(monkeypatch):
    def never(*arguments):
        raise AssertionError("computed without being asked")

    monkeypatch.setattr(attention, "explicit_weights", never)
    model("llama")(tokens(1, 5))


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom"])
def test_trap32_checkpointing_changes_no_gradient(name):
    """With dropout on: the recomputed forward must draw the same numbers. The embedding is frozen, as under an adapter."""
    gradients = []
    for checkpointing in (False, True):
        decoder = model(name).train()
        decoder.config = dataclasses.replace(decoder.config, dropout=0.2)
        for block in decoder.blocks:
            block.dropout = 0.2
        decoder.embed.requires_grad_(False)
        decoder.checkpointing = checkpointing
        torch.manual_seed(5)
        decoder(tokens(2, 9), segments=torch.tensor([[0] * 4 + [1] * 5] * 2)).square().mean().backward()
        gradients.append({path: parameter.grad for path, parameter in decoder.named_parameters() if parameter.requires_grad})
    for path, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 and torch.equal(gradient, gradients[1][path]), path


# -- the cache -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDINARY)
def test_cached_logits_equal_uncached_in_steps_of_any_size(name):
    decoder, ids = model(name), tokens(2, 14)
    cache = KVCache(decoder.config, batch=2, capacity=20)
    steps = [decoder(ids[:, start:end], cache=cache) for start, end in ((0, 6), (6, 7), (7, 8), (8, 13), (13, 14))]
    near(torch.cat(steps, dim=1), decoder(ids))
    assert cache.lengths.tolist() == [14, 14]


@pytest.mark.parametrize("name", ORDINARY)
def test_trap10_ragged_rows_in_a_cache_equal_each_row_alone(name):
    """Prompts of 3, 8 and 5 tokens, padded on the right, then six tokens more: each row's pads are overwritten one by one."""
    decoder, lengths = model(name), [3, 8, 5]
    texts = [tokens(1, length + 6, seed=row) for row, length in enumerate(lengths)]
    prompts = torch.full((3, 8), 30)
    for row, length in enumerate(lengths):
        prompts[row, :length] = texts[row][0, :length]
    cache = KVCache(decoder.config, batch=3, capacity=14)
    logits = decoder(prompts, cache=cache)
    cache.lengths = torch.tensor(lengths)
    got = [[logits[row, :length]] for row, length in enumerate(lengths)]
    for step in range(6):
        new = torch.cat([text[:, length + step] for text, length in zip(texts, lengths)])[:, None]
        logits = decoder(new, cache=cache)
        for row in range(3):
            got[row].append(logits[row])
    for row in range(3):
        near(torch.cat(got[row]), decoder(texts[row])[0])


def test_rows_can_leave_a_cache():
    decoder, ids = model("llama3"), tokens(3, 9)
    cache = KVCache(decoder.config, batch=3, capacity=9)
    decoder(ids[:, :8], cache=cache)
    cache.keep_rows(torch.tensor([2, 0]))
    near(decoder(ids[[2, 0], 8:], cache=cache), decoder(ids[[2, 0]])[:, 8:])


def test_a_full_cache_and_a_cache_with_segments_are_refused():
    decoder = model("llama")
    cache = KVCache(decoder.config, batch=1, capacity=4)
    with pytest.raises(InputError, match="room for 4 tokens a row, 5 are wanted"):
        decoder(tokens(1, 5), cache=cache)
    with pytest.raises(InputError, match="segments or a cache, not both"):
        decoder(tokens(1, 3), cache=cache, segments=torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("keys, wide", [(attention.SHORT // 8, True), (attention.SHORT // 8 + 1, False)])
def test_attention_over_few_keys_is_float32_inside_of_autocast_with_gradients_and_without(keys, wide):
    part = model("llama").blocks[0].attention
    q, k, v = (torch.randn(1, heads, keys, 8, generator=torch.Generator().manual_seed(heads)).bfloat16().requires_grad_() for heads in (4, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        said = part.mix(q, k, v, None)
        with torch.no_grad():
            assert torch.equal(part.mix(q, k, v, None), said)
    assert said.dtype == torch.bfloat16
    plain = lambda *parts: torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    exact = plain(q.float(), k.float(), v.float())
    assert torch.equal(said, exact.bfloat16()) == wide and torch.equal(said, plain(q, k, v)) != wide
    assert torch.equal(part.mix(q, k, v, None), plain(q, k, v))        # a model that is bfloat16 itself
