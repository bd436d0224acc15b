"""Exact search: by hand, against sorting everything, with ties, in bounded memory, and through a folder."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from minift.errors import InputError
from minift.search import Index

COMPASS = np.array([[2, 0], [0, 1], [-3, 0], [1, 1]], dtype=np.float32)       # east, north, west, north-east; of several lengths


def some(rows: int, width: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(dtype)


def test_cosine_worked_by_hand():
    scores, ids = Index(COMPASS, "m").search([[5.0, 0.0], [0.0, 0.1]], k=3)
    assert ids.tolist() == [[0, 3, 1], [1, 3, 0]] and ids.dtype == np.int64 and scores.dtype == np.float32
    assert scores == pytest.approx(np.array([[1, 0.5**0.5, 0], [1, 0.5**0.5, 0]]))


def test_dot_worked_by_hand():                     # -5 x -3 = 15; 0; -5; -10
    scores, ids = Index(COMPASS, "m", similarity="dot").search([[-5.0, 0.0]], k=4)
    assert ids.tolist() == [[2, 1, 3, 0]] and scores.tolist() == [[15, 0, -5, -10]]


def test_ids_are_the_callers():
    scores, ids = Index(COMPASS, "m", ids=np.array([-7, 3, 40, 2**40])).search([[1.0, 1.0]], k=2)
    assert ids.tolist() == [[2**40, -7]]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block_rows, block_queries", [(1, 1), (7, 3), (64, 11), (4096, 256)])
def test_equal_to_sorting_everything_however_the_work_is_cut(similarity, block_rows, block_queries):
    vectors, queries = some(101, 13), some(11, 13, seed=1)
    whole = vectors.astype(np.float64), queries.astype(np.float64)
    if similarity == "cosine":
        whole = tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in whole)
    everything = (whole[1] @ whole[0].T).astype(np.float32)                   # (11, 101)
    for k in (1, 20, 101):
        scores, ids = Index(vectors, "m", similarity=similarity).search(queries, k, block_rows=block_rows, block_queries=block_queries)
        order = np.argsort(-everything, axis=1, kind="stable")[:, :k]
        assert (ids == order).all() and (scores == np.take_along_axis(everything, order, 1)).all()      # to the bit


@pytest.mark.parametrize("block_rows", [1, 3, 4, 100])
def test_equal_scores_come_by_the_lowest_id_from_any_block(block_rows):
    copies = np.concatenate([COMPASS] * 5)                                    # east is in rows 0, 4, 8, 12, 16
    ids = np.arange(20) * 10 - 50
    found = Index(copies, "m", ids).search([[1.0, 0.0], [0.0, 3.0]], k=7, block_rows=block_rows)[1]
    assert found.tolist() == [[-50, -10, 30, 70, 110, -20, 20], [-40, 0, 40, 80, 120, -20, 20]]


def test_copies_of_one_vector_have_one_score_wherever_they_stand():           # in float32 their last bits differ
    vectors = np.tile(some(1, 384), (1000, 1))
    scores, ids = Index(vectors, "m", similarity="dot").search(some(9, 384, seed=1), k=30, block_rows=77)
    assert (ids == np.arange(30)).all() and (scores == scores[:, :1]).all()


def test_zero_and_minus_zero_are_one_score():
    vectors = np.array([[-0.0, 1], [0.0, 1], [0.0, -1], [-1, 0]], dtype=np.float32)
    scores, ids = Index(vectors, "m", similarity="dot").search([[1.0, 0.0], [1.0, -0.0]], k=4)
    assert ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]] and not np.signbit(scores[:, :3]).any() and (scores[:, 3] == -1).all()
    tiny = np.array([[-1e-30], [1e-30], [0]], dtype=np.float32)               # -1e-60 is -0.0 in float32
    assert Index(tiny, "m", similarity="dot").search(tiny[1:2], k=3)[1].tolist() == [[0, 1, 2]]


def test_scores_below_zero_are_in_order_too():
    vectors = -np.array([[1e-30], [3.0], [2.0], [1e17]], dtype=np.float32)
    scores, ids = Index(vectors, "m", similarity="dot").search([[1.0]], k=4)
    assert ids.tolist() == [[0, 2, 1, 3]] and scores[0].tolist() == vectors[[0, 2, 1, 3], 0].tolist()


def test_float16_halves_the_space_and_finds_the_same():
    vectors = some(50, 16)
    whole, half = Index(vectors, "m"), Index(vectors.astype(np.float16), "m")
    assert half.vectors.nbytes * 2 == whole.vectors.nbytes
    (scores, ids), (rough, found) = whole.search(vectors[:9], k=1), half.search(vectors[:9], k=1)
    assert (ids == found).all() and ids[:, 0].tolist() == list(range(9)) and np.abs(scores - rough).max() < 2**-11


def test_tensors_are_taken_bfloat16_queries_too():
    scores, ids = Index(torch.tensor(COMPASS), "m", ids=torch.arange(4)).search(torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16), k=1)
    assert ids.tolist() == [[3]] and scores.item() == pytest.approx(1)


def test_no_queries_find_nothing():
    scores, ids = Index(COMPASS, "m").search(np.zeros((0, 2)), k=3)
    assert scores.shape == ids.shape == (0, 3)


def peak(index: Index, queries: np.ndarray, k: int, **blocks) -> tuple[int, np.ndarray, np.ndarray]:
    """Most bytes that numpy held at once while searching, above what it held before (pages of a mapped file are the system's cache and
    not among them, copies of them are), and what was found."""
    tracemalloc.start()
    try:
        found = index.search(queries, k, **blocks)
        return tracemalloc.get_traced_memory()[1], *found
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_vectors():
    queries, blocks = some(40, 24, seed=1), dict(block_rows=128, block_queries=16)
    few, many = (peak(Index(some(rows, 24), "m"), queries, 5, **blocks)[0] for rows in (256, 256 * 64))
    one_score_for_each = 40 * 256 * 64 * 4
    assert many < 1.05 * few + 4096 and many < one_score_for_each / 8


def test_a_million_mapped_vectors_are_searched_in_64_megabytes(tmp_path):
    rows, width = 1_000_000, 384                                              # 768 MB, of which the disk holds a few pages: the rest are holes
    mapped = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float16, (rows, width))
    mapped[[5, 400_000, 999_999], [0, 0, 1]] = [1.0, 3.0, 2.0]
    mapped.flush()
    del mapped
    about = dict(format=1, model="m", similarity="dot", rows=rows, width=width, dtype="float16", ids=False)
    (tmp_path / "index.json").write_text(json.dumps(about))
    used, scores, ids = peak(Index.load(tmp_path, "m"), np.eye(2, width, dtype=np.float32), k=3)
    assert used < 64 * 2**20
    assert ids.tolist() == [[400_000, 5, 0], [999_999, 0, 1]] and scores.tolist() == [[3, 1, 0], [2, 0, 0]]


def test_a_folder_gives_back_the_index_and_leaves_the_vectors_on_disk(tmp_path):
    index = Index(some(30, 5, dtype=np.float16), "base@1f", ids=np.arange(30) * 3, similarity="dot")
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index", "base@1f")
    assert isinstance(again.vectors.base, np.memmap) or isinstance(again.vectors, np.memmap)
    assert again.vectors.dtype == np.float16 and again.similarity == "dot" and again.model == "base@1f"
    queries = some(4, 5, seed=1)
    for ours, theirs in zip(index.search(queries, 7), again.search(queries, 7)):
        assert (ours == theirs).all()
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["ids.npy", "index.json", "vectors.npy"]
    with pytest.raises(InputError, match="in use"):
        index.save(tmp_path / "index")
    again.save(tmp_path / "index", overwrite=True)                            # over the very files it is mapped from
    assert (Index.load(tmp_path / "index", "base@1f").search(queries, 7)[1] == index.search(queries, 7)[1]).all()


def test_an_index_of_another_model_or_width_is_refused(tmp_path):
    Index(COMPASS, "base@1f").save(tmp_path / "index")
    text = "made by model 'base@1f', but the queries come from 'base@2a'.*Build the index again"
    with pytest.raises(InputError, match=text):
        Index.load(tmp_path / "index", "base@2a")
    with pytest.raises(InputError, match=text):
        Index(COMPASS, "base@1f").search(COMPASS, 1, model="base@2a")
    assert Index(COMPASS, "base@1f").search(COMPASS, 1, model="base@1f")[1].ravel().tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"vectors of width 2, but the queries have shape \(1, 3\)"):
        Index(COMPASS, "m").search([[1.0, 2.0, 3.0]], 1)
    with pytest.raises(InputError, match=r"width 2, but the queries have shape \(2,\)"):
        Index(COMPASS, "m").search([1.0, 2.0], 1)


@pytest.mark.parametrize("build, text", [
    (lambda: Index(np.zeros((0, 3), np.float32), "m"), r"shape \(0, 3\): an empty index finds nothing"),
    (lambda: Index(COMPASS.astype(np.float64), "m"), "vectors are float64"),
    (lambda: Index(COMPASS[0], "m"), r"float32 of shape \(2,\)"),
    (lambda: Index(COMPASS, ""), "does not say which model"),
    (lambda: Index(COMPASS, "m", similarity="euclid"), "similarity is 'euclid'"),
    (lambda: Index(COMPASS, "m", np.arange(3)), r"shape \(3,\): int64 of \(4,\)"),
    (lambda: Index(COMPASS, "m", np.arange(4.0)), "ids are float64"),
    (lambda: Index(COMPASS, "m", np.array([1, 2, 2, 3])), "ids do not rise: 2 in row 2 follows 2"),
    (lambda: Index(COMPASS, "m").search(COMPASS, 5), "k is 5, but the index has 4 vectors: ask for 1 to 4"),
    (lambda: Index(COMPASS, "m").search(COMPASS, 0), "k is 0"),
    (lambda: Index(COMPASS, "m").search([[1.0, np.nan]], 1), "query 0 has NaN or infinity"),
    (lambda: Index(COMPASS, "m").search([[1.0, 1], [0, 0]], 1), "query 1 is all zeros"),
    (lambda: Index(COMPASS * np.float32(1e20), "m", similarity="dot").search(COMPASS, 1), "vector 0 is 2e.20 long: float32 may not hold"),
])
def test_what_cannot_be_searched_is_refused(build, text):
    with pytest.raises(InputError, match=text):
        build()


@pytest.mark.parametrize("bad, text", [(np.nan, "vector 5 has NaN or infinity"), (np.inf, "vector 5 has NaN"), (0, "vector 5 is all zeros")])
def test_a_bad_row_is_named_by_search_and_by_save(bad, text, tmp_path):
    vectors = some(9, 4)
    vectors[5] = bad
    with pytest.raises(InputError, match=text):
        Index(vectors, "m").search(some(1, 4), 1, block_rows=2)
    with pytest.raises(InputError, match=text):
        Index(vectors, "m").save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_zeros_have_a_dot_product():
    assert Index(np.zeros((2, 3), np.float32), "m", similarity="dot").search(np.zeros((1, 3)), 2)[1].tolist() == [[0, 1]]


def cut(path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("damage, text", [
    (lambda folder: cut(folder / "vectors.npy", -1), "vectors.npy is cut short or damaged"),
    (lambda folder: cut(folder / "vectors.npy", 60), "vectors.npy is cut short or damaged"),
    (lambda folder: cut(folder / "vectors.npy", 0), "vectors.npy is cut short or damaged"),
    (lambda folder: cut(folder / "ids.npy", -8), "ids.npy is cut short or damaged"),
    (lambda folder: cut(folder / "index.json", 30), "index.json is damaged"),
    (lambda folder: (folder / "index.json").write_text("{}"), "index.json is damaged .KeyError: 'format'"),
    (lambda folder: (folder / "index.json").write_text("[]"), "index.json is damaged"),
    (lambda folder: (folder / "index.json").write_text('{"format": 2}'), "format 2, this minift reads 1"),
    (lambda folder: (folder / "index.json").unlink(), "is not an index: index.json is missing"),
    (lambda folder: (folder / "vectors.npy").unlink(), "is not an index: vectors.npy is missing"),
    (lambda folder: np.save(folder / "vectors.npy", COMPASS[:3]), r"holds float32 \(3, 2\), but index.json says float32 \(4, 2\)"),
    (lambda folder: np.save(folder / "vectors.npy", np.array([{}, 1]), allow_pickle=True), "vectors.npy is cut short or damaged"),
])
def test_a_damaged_folder_is_refused(damage, text, tmp_path):
    Index(COMPASS, "m", ids=np.arange(4)).save(tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(InputError, match=text):
        Index.load(tmp_path / "index", "m")
