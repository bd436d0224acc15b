"""Before and after are the same tokens; worked by hand on models whose every probability is known."""

import math

import pytest
import torch
from torch import nn

from minift.data.batches import Example
from minift.errors import InputError
from minift.evaluate.forgetting import Forgetting, forgetting, text_windows
from minift.evaluate.perplexity import Perplexity, perplexity
from tests.conftest import random_model


class Always(nn.Module):
    """The same distribution behind every token."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, token_ids):                                     # (B, T) -> (B, T, V)
        return self.logits.expand(*token_ids.shape, -1)


WINDOWS = [Example([0, 1, 1, 2], [False, True, True, True]), Example([0, 2, 1, 1], [False, True, True, True])]


def test_worked_by_hand():       # 4 ones, 2 twos. before: each 1/4, so perplexity 4. after: (1/2)^4 (1/8)^2 = 2^-10, so 2^(10/6)
    before = perplexity(Always([0.25, 0.25, 0.25, 0.25]), WINDOWS)
    found = forgetting(Always([0.25, 0.5, 0.125, 0.125]), WINDOWS, before)
    assert before.perplexity == pytest.approx(4) and found.after.perplexity == pytest.approx(2 ** (10 / 6))
    assert found.ratio == pytest.approx(2 ** (10 / 6) / 4) and found.after.tokens == 6


def test_a_model_that_did_not_change_has_forgotten_nothing(small_tokenizer):
    model = random_model(small_tokenizer)
    windows = text_windows(small_tokenizer, ["The quick brown fox jumps over the lazy dog. " * 9], length=17, count=5)
    assert forgetting(model, windows, perplexity(model, windows)).ratio == 1.0
    before = perplexity(model, windows)
    with torch.no_grad():
        model.embed.weight *= 1.5
    assert forgetting(model, windows, before).ratio != 1.0


def test_the_ratio_of_perplexities():
    assert Forgetting(Perplexity(1.0, 6), Perplexity(1.0 + math.log(1.25), 6)).ratio == pytest.approx(1.25)


def test_batches_do_not_change_the_number(small_tokenizer):
    model = random_model(small_tokenizer)
    windows = text_windows(small_tokenizer, ["a b c d e f g h i j k l m n o p " * 20], length=13, count=7)
    before = perplexity(model, windows)
    assert forgetting(model, windows, before, batch_tokens=13).ratio == pytest.approx(1, abs=1e-6)


def test_windows_are_whole_begin_at_the_start_token_and_overlap_in_nothing(small_tokenizer):
    text = "Return the sum of all numbers in the list, or zero. " * 5
    ids = small_tokenizer.encode(text, add_special_tokens=False)
    windows = text_windows(small_tokenizer, [text, "short"], length=11, count=100)
    assert len(windows) == len(ids) // 10                                        # 10 text tokens behind each start token
    assert all(len(w.ids) == len(w.loss_mask) == 11 and w.ids[0] == small_tokenizer.bos_id for w in windows)
    assert all(w.loss_mask == [False] + [True] * 10 for w in windows)
    assert [token for w in windows for token in w.ids[1:]] == ids[: 10 * len(windows)]


def test_windows_come_from_all_the_text(small_tokenizer):
    documents = [f"{word} " * 40 for word in ("alpha", "beta", "gamma", "delta")]
    every = text_windows(small_tokenizer, documents, length=8, count=10_000)
    some = text_windows(small_tokenizer, documents, length=8, count=4)
    assert some == [every[i * len(every) // 4] for i in range(4)]


def test_a_last_window_that_just_fits_is_kept(small_tokenizer):
    text = "one two three four five six"
    size = len(small_tokenizer.encode(text, add_special_tokens=False))
    assert len(text_windows(small_tokenizer, [text], length=size + 1)) == 1
    with pytest.raises(InputError, match=f"none of the 1 texts has {size + 1} tokens"):
        text_windows(small_tokenizer, [text], length=size + 2)


def test_other_windows_are_refused(small_tokenizer):
    with pytest.raises(InputError, match="before, 5 tokens were scored, now 6"):
        forgetting(Always([0.5, 0.25, 0.25]), WINDOWS, Perplexity(1.0, 5))
    with pytest.raises(InputError, match="windows of 1 tokens have nothing to predict"):
        text_windows(small_tokenizer, ["a"], length=1)
