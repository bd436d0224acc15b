"""benchmarks/embedding_speed.py: our steps have the losses of sentence-transformers' trainer and of a bare loop on its model, every batch learned from
twice; a large batch by parts those of the whole; and every text has exactly the tokens that the page names."""

import pytest

from benchmarks import embedding_speed
from benchmarks.embedding_speed_case import QUICK, minilm, rows, write_start
from minift import tokenizer


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "of it"
    folder.mkdir()
    write_start(folder, QUICK)
    return folder


class Ended(Exception):
    pass


class Some:
    """A gate that ends a side after so many steps."""

    def __init__(self, count):
        self.count, self.losses = count, []

    def open(self):
        self.losses = []

    def tick(self, loss):
        self.losses.append(loss)
        if len(self.losses) == self.count:
            raise Ended


def taken(target, folder, count=2):
    gate = Some(count)
    with pytest.raises(Ended):
        embedding_speed.run_side(gate, target, folder, QUICK, "fp32")
    return gate.losses


@pytest.mark.parametrize("case", ["step", "real"])
def test_our_steps_have_the_losses_of_a_bare_loop_and_of_the_trainer(start, case):
    ours = taken(f"ours.learn_{case}", start, 4)
    assert ours[2] < ours[0] and ours[3] < ours[1]                              # it learns
    for peer in ("loop", "trainer"):
        assert taken(f"peers.{peer}_{case}", start, 4) == pytest.approx(ours, abs=1e-4), peer


def test_a_large_batch_by_parts_has_the_losses_of_the_whole(start):
    whole = taken("ours.learn_large", start)
    for other in ("ours.learn_cached", "peers.loop_cached"):
        assert taken(other, start) == pytest.approx(whole, abs=1e-4), other
    assert taken("ours.learn_small", start)[0] < whole[0]                       # fewer negatives: an easier question


def test_vectors_are_the_same(start):
    for side in ("ours.encode", "peers.encode", "peers.encode_best"):
        taken(side, start, 1)
    assert embedding_speed.vectors_apart(start) < 1e-5


def test_texts_have_the_tokens_that_the_page_names(start):
    tokens = tokenizer.load(minilm())
    for case in ("step", "gradcache"):
        pairs = rows(start, case)
        assert {len(tokens.encode(text)) for pair in pairs for text in pair} == {QUICK.tokens}
    assert len(rows(start, "gradcache")) == QUICK.large and len(rows(start, "step")) == QUICK.pairs * QUICK.batches
