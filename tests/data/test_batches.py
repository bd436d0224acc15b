import random

import pytest
import torch

from minift.data.batches import Batch, Example, by_length, micro_batches, pack, pad, stream_rows, windows
from minift.errors import InputError
from minift.losses.sft import next_token
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer

V, EOS = 29, 2


def examples(*lengths, seed=0):
    """Random examples whose second half is learned; the last id is always EOS."""
    dice = random.Random(seed)
    return [Example([dice.randrange(3, V) for _ in range(T - 1)] + [EOS], [i >= max(1, T // 2) for i in range(T)]) for T in lengths]


def tiny(position):
    torch.manual_seed(1)
    shape = dict(vocab_size=V, hidden_size=24, layers=2, heads=3, kv_heads=1, head_dim=8, mlp_size=40, max_positions=64)
    model = Transformer(ModelConfig(**shape, position=position))
    for weight in model.parameters():                                   # untrained attention is nearly uniform: make it choose
        weight.data.mul_(4.0) if weight.dim() == 2 else None
    return model.double().eval()


def alone(model, example):
    return model(torch.tensor([example.ids]))[0]                        # (T, V)


POSITIONS = pytest.mark.parametrize("position", ["rope", "learned", "alibi"])


# --- padded batches ------------------------------------------------------------------------------------------------------------


def test_padding_goes_to_the_right_and_never_counts():
    batch = pad([Example([5, 6, 7], [False, True, True]), Example([8], [False])], pad_id=9)
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.loss_mask.tolist() == [[False, True, True], [False] * 3]
    assert batch.segments is None and batch.targets == 2


def test_trap03_the_last_eos_is_a_target_though_pads_have_its_id():
    batch = pad([Example([5, EOS], [False, True]), Example([5, 6, 7, EOS], [False, False, True, True])], pad_id=EOS)
    assert batch.token_ids.tolist() == [[5, EOS, EOS, EOS], [5, 6, 7, EOS]]
    assert batch.loss_mask.tolist() == [[False, True, False, False], [False, False, True, True]]


def test_a_first_token_is_no_target_even_if_an_example_says_so():
    greedy = [Example([5, 6], [True, True]), Example([7, 8, 9], [True, True, True])]
    assert pad(greedy).loss_mask.tolist() == [[False, True, False], [False, True, True]]
    assert pack(greedy, 6).loss_mask.tolist() == [[False, True, True, False, True, False]]


@POSITIONS
def test_more_padding_changes_no_loss(position):
    model, short = tiny(position), examples(5, 3)
    tight, loose = pad(short, pad_id=EOS), pad([*short, *examples(11)], pad_id=EOS)
    loose = Batch(loose.token_ids[:2], loose.loss_mask[:2])
    with torch.no_grad():
        (a, n), (b, m) = (next_token(model(x.token_ids), x.token_ids, x.loss_mask) for x in (tight, loose))
    assert n == m == 3 + 2
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)                 # float32 sums of float64 logits


# --- packed batches ------------------------------------------------------------------------------------------------------------


def test_packing_puts_every_example_whole_into_a_segment_of_its_own():
    given = examples(7, 1, 13, 5, 5, 2, 9, 13, 4)
    batch = pack(given, 16, pad_id=27)
    found = []
    for ids, learned, segments in zip(batch.token_ids, batch.loss_mask, batch.segments):
        for segment in range(1, int(segments.max()) + 1):
            places = (segments == segment).nonzero().flatten()
            assert (places.diff() == 1).all()                           # in one piece
            found.append(Example(ids[places].tolist(), learned[places].tolist()))
        assert not learned[segments == 0].any() and (ids[segments == 0] == 27).all()
    assert sorted(found) == sorted(given)
    assert batch.token_ids.shape == (4, 16)                             # 59 tokens: four rows of 16 is the least possible


def test_packing_fills_the_row_that_fits_best():
    lengths = [[int((row == s).sum()) for s in range(1, int(row.max()) + 1)] for row in pack(examples(6, 3, 4, 7), 10).segments]
    assert lengths == [[7, 3], [6, 4]]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="an example of 9 tokens does not fit into a row of 8: raise the length or truncate it"):
        pack(examples(3, 9), 8)


@POSITIONS
def test_trap07_packing_leakage(position):
    """Each document of a packed row gets the logits it gets alone: it sees no neighbour, and its positions start at 0."""
    model, documents = tiny(position), examples(6, 5, 3)
    batch = pack(documents, 17)                                         # one row: 6 + 5 + 3 and three unused places
    with torch.no_grad():
        packed = model(batch.token_ids, segments=batch.segments)[0]     # (T, V)
        start = 0
        for document in documents:                                      # longest first is the order given
            end = start + len(document.ids)
            torch.testing.assert_close(packed[start:end], alone(model, document), rtol=0, atol=1e-12)
            start = end
        assert packed.isfinite().all()                                  # trap 9: an unused place sees itself, so no NaN
        leaky = model(batch.token_ids)[0]
        assert (leaky[6:11] - alone(model, documents[1])).abs().max() > 1e-3      # without segments there is a leak to see


@POSITIONS
def test_trap07_changing_one_document_leaves_the_others_bit_for_bit(position):
    model, documents = tiny(position), examples(6, 5, 3)
    batch = pack(documents, 14)
    changed = batch.token_ids.clone()
    changed[0, 6:11] = (changed[0, 6:11] + 7) % V
    with torch.no_grad():
        before, after = (model(ids, segments=batch.segments)[0] for ids in (batch.token_ids, changed))
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[11:], after[11:])
    assert not torch.equal(before[6:11], after[6:11])


def test_trap07_the_first_token_of_a_packed_document_is_no_target():
    batch = pack([Example([3, 4, 5], [False, True, True]), Example([6, 7], [False, True])], 5)
    assert batch.token_ids.tolist() == [[3, 4, 5, 6, 7]]
    assert batch.loss_mask.tolist() == [[False, True, True, False, True]]


@POSITIONS
def test_trap08_packed_and_padded_loss_are_the_same(position):
    model, given = tiny(position), examples(7, 1, 13, 5, 5, 2, 9, 13, 4)

    def loss(batch):
        model.zero_grad()
        total, count = next_token(model(batch.token_ids, segments=batch.segments), batch.token_ids, batch.loss_mask)
        (total / count).backward()
        return total.item(), int(count), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    (packed, n, packed_grad), (padded, m, padded_grad) = loss(pack(given, 16)), loss(pad(given))
    assert n == m == sum(sum(example.loss_mask) for example in given)
    assert packed == pytest.approx(padded, rel=1e-6)                    # float32 sums in another order
    torch.testing.assert_close(packed_grad, padded_grad, rtol=0, atol=1e-6 * float(padded_grad.abs().max()))


# --- batches by length ---------------------------------------------------------------------------------------------------------


def test_an_epoch_by_length_has_every_example_once_within_the_budget():
    given = examples(*random.Random(5).choices(range(1, 60), k=200), 300)
    batches = by_length(given, tokens=256, seed=0)
    assert sorted(i for batch in batches for i in batch) == list(range(201))
    assert all(len(batch) * max(len(given[i].ids) for i in batch) <= 256 for batch in batches if batch != [200])
    assert [200] in batches                                             # longer than the budget: a batch of its own


def test_batches_by_length_waste_little_and_differ_by_seed_only():
    given = examples(*random.Random(5).choices(range(1, 60), k=400))

    def padded_tokens(batches):
        return sum(len(batch) * max(len(given[i].ids) for i in batch) for batch in batches)

    real = sum(len(example.ids) for example in given)
    batches = by_length(given, tokens=256, seed=0)
    at_random = [list(range(i, min(i + 8, 400))) for i in range(0, 400, 8)]
    assert padded_tokens(at_random) > 1.5 * real                        # the mean of 8 uniform lengths is 9/16 of their maximum
    assert padded_tokens(batches) < 1.1 * real                          # sorted: lengths in a batch differ by little
    other = by_length(given, tokens=256, seed=1)
    assert batches == by_length(given, tokens=256, seed=0) != other
    assert sorted(map(len, batches)) == sorted(map(len, other))         # the number of steps does not depend on the epoch
    longest = [max(len(given[i].ids) for i in batch) for batch in batches]
    assert longest != sorted(longest)                                   # the batches themselves are shuffled


# --- long texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T, length, stride", [(1, 4, 2), (4, 4, 2), (5, 4, 2), (11, 4, 3), (11, 4, 4), (12, 4, 4)])
def test_in_overlapping_windows_every_token_is_new_once(T, length, stride):
    found = list(windows(range(T), length, stride))
    assert [t for _, end, new in found for t in range(new, end)] == list(range(T))
    assert all(end - start <= length and start <= new for start, end, new in found)


def test_a_stream_of_documents_leaks_nothing_and_starts_no_segment_with_a_target():
    documents = [[10 + i] * T for i, T in enumerate([5, 1, 9, 4, 2])]   # the ids say which document a token is of
    batch = stream_rows(documents, length=4, seed=3)
    assert batch.token_ids.shape[1] == 4 and batch.token_ids.shape[0] in (4, 5)       # 21 tokens, up to 3 lost in front
    for ids, learned, segments in zip(batch.token_ids.tolist(), batch.loss_mask.tolist(), batch.segments.tolist()):
        assert [10 + s for s in segments] == ids
        assert learned == [False] + [a == b for a, b in zip(ids, ids[1:])]


def test_a_stream_is_cut_elsewhere_in_another_epoch_and_too_little_text_is_refused():
    documents = [list(range(3, 3 + T)) for T in (5, 9, 4, 7)]
    first, again, second = (stream_rows(documents, length=5, seed=seed).token_ids.tolist() for seed in (0, 0, 1))
    assert first == again != second
    with pytest.raises(InputError, match="the text has 25 tokens, fewer than one row of 26"):
        stream_rows(documents, length=26, seed=0)


def test_micro_batches_cover_every_row_once():
    rows = pack(examples(5, 5, 5, 5, 5), 5)
    for seed in (None, 3):
        parts = micro_batches(rows, 2, seed)
        assert [len(part.token_ids) for part in parts] == [2, 2, 1]
        for name in ("token_ids", "loss_mask", "segments"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert sorted(joined.tolist()) == sorted(getattr(rows, name).tolist())
