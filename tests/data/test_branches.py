"""Answers that share a prompt: the tensors by hand, and against prompt + answer alone for every family.

Tolerance as in tests/models/test_transformer.py: 1e-5 of the largest logit."""

import random

import pytest
import torch

from minift import peft
from minift.data.branches import Tree, answers_in, apart, batches_of_trees, grow
from minift.errors import InputError
from tests.models.small import CONFIGS, model, tokens
from tests.models.test_transformer import near
from tests.models.test_virtual import opened

SHARING = [name for name in CONFIGS if name != "dynamic"]
V = next(iter(CONFIGS.values())).vocab_size


def trees(*shapes, seed=0):
    """One tree for each (prompt length, answer lengths ...)."""
    dice = random.Random(seed)
    some = lambda count: [dice.randrange(3, V) for _ in range(count)]
    return [Tree(some(prompt), [some(length) for length in answers]) for prompt, *answers in shapes]


RAGGED = trees((5, 3, 1), (1, 2, 4, 3), (7, 6), (2, 1, 1))


def predictions(decoder, batch):
    """(n, V): the logits from which each answer token is predicted."""
    hidden = decoder.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches)
    return decoder.head(hidden.flatten(0, 1)[batch.places])


def alone(decoder, tree, answer):
    logits = decoder(torch.tensor([tree.prompt + answer]))[0]
    return logits[len(tree.prompt) - 1 : -1]


def test_two_trees_in_a_row_by_hand():
    batch = grow([Tree([1, 2, 3], [[4, 5], [6]]), Tree([7], [[8], [9, 10]])], length=11)
    assert batch.token_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2]]
    assert batch.branches.tolist() == [[0, 0, 0, 1, 1, 2, 0, 1, 2, 2]]
    assert batch.places.tolist() == [2, 3, 2, 6, 6, 8]                  # both first tokens follow the prompt's last
    assert batch.tokens.tolist() == [4, 5, 6, 8, 9, 10]
    assert batch.lengths.tolist() == [2, 1, 1, 2] and batch.ends.tolist() == [4, 5, 7, 9] and batch.answer_of.tolist() == [0, 0, 1, 2, 3, 3]
    assert batch.targets == batch.trees == 2


def test_a_tree_goes_to_the_first_row_with_room_and_answers_keep_the_order_of_the_trees():
    batch = grow(RAGGED, length=13)                                     # sizes 9, 10, 13, 4: rows (9 + 4), (10), (13)
    assert batch.token_ids.shape == (3, 13) and (batch.segments == 0).sum() == 3
    assert batch.tokens.tolist() == [token for tree in RAGGED for answer in tree.answers for token in answer]
    assert torch.equal(batch.token_ids.flatten()[batch.ends], torch.tensor([answer[-1] for tree in RAGGED for answer in tree.answers]))


@pytest.mark.parametrize("length", [None, 36, 17])
@pytest.mark.parametrize("name", SHARING)
def test_every_answer_is_predicted_as_if_it_stood_alone(name, length):
    decoder = model(name)
    near(predictions(decoder, grow(RAGGED, length)), torch.cat([alone(decoder, tree, answer) for tree in RAGGED for answer in tree.answers]))


@pytest.mark.parametrize("kind", ["rows", "pairs"])
@pytest.mark.parametrize("name", SHARING)
def test_virtual_tokens_stand_before_every_tree(name, kind):
    decoder = opened(name, kind)
    near(predictions(decoder, grow(RAGGED, 36)), torch.cat([alone(decoder, tree, answer) for tree in RAGGED for answer in tree.answers]))


def test_another_answer_changes_nothing_to_the_bit():
    decoder, one = model("llama"), grow(RAGGED, 36)
    other = [RAGGED[0]._replace(answers=[[3, 3, 3], RAGGED[0].answers[1]]), *RAGGED[1:]]
    assert torch.equal(predictions(decoder, one)[3:], predictions(decoder, grow(other, 36))[3:])


def test_gradients_are_those_of_the_answers_apart():
    decoder = model("llama")
    found = []
    for batch in (grow(RAGGED, 36), grow(apart(RAGGED))):
        decoder.zero_grad()
        predictions(decoder, batch).log_softmax(-1).gather(1, batch.tokens[:, None]).sum().backward()
        found.append([p.grad.clone() for p in decoder.parameters()])
    for shared, copied in zip(*found):
        near(shared, copied)


def test_apart_keeps_the_order_of_the_answers():
    assert apart([Tree([1], [[2], [3, 4]])]) == [Tree([1], [[2]]), Tree([1], [[3, 4]])]


def test_dynamic_rotary_scaling_refuses_to_share():
    decoder, batch = model("dynamic"), grow(RAGGED)
    assert not decoder.can_branch()
    with pytest.raises(InputError, match="dynamic rotary scaling"):
        predictions(decoder, batch)


def test_branches_need_segments():
    with pytest.raises(InputError, match="pass segments too"):
        model("llama")(tokens(1, 4), branches=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("bad", [Tree([], [[1]]), Tree([1], [[]]), Tree([1], [])])
def test_an_empty_prompt_or_answer_is_refused(bad):
    with pytest.raises(InputError, match="empty prompt or answer"):
        grow([bad])


def test_a_tree_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="9 tokens, a row has room for 8"):
        grow(RAGGED[:1], length=8)


def test_an_adapter_sees_the_same_trees():
    decoder = model("llama")
    peft.attach(decoder, peft.LoRA(rank=2, alpha=4))
    near(predictions(decoder, grow(RAGGED, 36)), torch.cat([alone(decoder, tree, answer) for tree in RAGGED for answer in tree.answers]))


def test_which_answers_a_run_of_tokens_is():
    lengths = torch.tensor([2, 1, 4])
    assert [answers_in(slice(*ends), lengths) for ends in ((0, 2), (2, 3), (0, 3), (3, 7), (0, 7))] == [
        slice(0, 1), slice(1, 2), slice(0, 2), slice(2, 3), slice(0, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("bucketed", [False, True])
def test_an_epoch_holds_every_tree_once_and_another_epoch_has_as_many_batches(bucketed):
    sizes = [random.Random(7).randrange(3, 40) for _ in range(53)]
    epochs = [batches_of_trees(sizes, 100, seed, bucketed) for seed in range(5)]
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(53))
        assert len(batches) == len(epochs[0])
    assert len({str(batches) for batches in epochs}) == 5


def test_shuffled_batches_have_equal_numbers_of_trees():
    counts = [len(batch) for batch in batches_of_trees([10] * 53, 100, 0)]
    assert len(counts) == 6 and set(counts) == {8, 9}


def test_bucketed_batches_keep_within_the_tokens():
    sizes = [3, 30, 7, 8, 9, 31, 120]
    for batch in batches_of_trees(sizes, 64, 0, bucketed=True):
        assert len(batch) == 1 or max(sizes[i] for i in batch) * len(batch) <= 64
