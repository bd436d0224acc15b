"""Exact search: the k vectors that are most similar to a query, of any number of vectors, in memory that does not depend on it.

    score(q, v) = q · v / (|q| |v|)  (cosine)   or   q · v  (dot)            q: (C,)    v: a row of (N, C)

    for each block of vectors:  for each block of queries:  keep the k best of (the k best so far, this block's scores)

The vectors may be a memory-mapped file; a block of them is read, used and forgotten. The k best are kept as one whole number each, in
which the high half is the score and the low half the row, counted backwards: the larger number is the better score, or at
equal scores the lower row. So ties need no code, and the result is the same however the work is cut. For that, scores must not
depend on the cut either: they are summed in float64 and rounded once, to float32. (Sums in float32 differ in their last bit with the
shape of the product, and two copies of one vector would come in any order. Two float64 sums can still fall on the two sides of a rounding
edge: about one score in 10^8.) The price is time.

An index knows which model made its vectors: vectors of two models have nothing to do with each other, and no score would show it.
On disk: index.json, vectors.npy, ids.npy; no pickle. Proved in tests/test_search.py; ranks as sentence-transformers in
tests/parity/test_retrieval_sentence_transformers.py. Left out: approximate search (HNSW, IVF), GPUs, adding to an index."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from minift.errors import InputError
from minift.files import new_folder, recover, write_text

_LOW = 2**32 - 1
_LONGEST = 1e18                  # the product of two such lengths fits float32, which ends at 3.4e38
_NOTHING = np.iinfo(np.int64).min


@dataclass(frozen=True, eq=False)
class Index:
    """Raises InputError for no vectors, another dtype or shape, ids that do not rise. NaN is found when rows are read: by save and search."""

    vectors: np.ndarray
    """(N, C) float32, or float16 for half the space; may be memory-mapped. A CPU tensor is taken as well."""
    model: str
    """A name of the model that made the vectors, which changes when its weights do: a fingerprint. The caller's choice."""
    ids: np.ndarray | None = None
    """(N,) int64, rising strictly, so that the lowest row is the lowest id; None: the row numbers. Names of documents are the caller's list."""
    similarity: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        vectors = _array(self.vectors)
        if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
            raise InputError(f"vectors are {vectors.dtype} of shape {vectors.shape}: float32 or float16 of (rows, width) is wanted")
        if not vectors.size:
            raise InputError(f"vectors of shape {vectors.shape}: an empty index finds nothing, give at least one vector")
        if len(vectors) > _LOW:
            raise InputError(f"{len(vectors)} vectors: an index holds at most {_LOW}, cut it in several")
        if self.similarity not in ("cosine", "dot"):
            raise InputError(f"similarity is {self.similarity!r}: 'cosine' or 'dot' is wanted")
        if not isinstance(self.model, str) or not self.model:
            raise InputError("the index does not say which model made its vectors: give model, a fingerprint")
        object.__setattr__(self, "vectors", vectors)
        if self.ids is not None:
            object.__setattr__(self, "ids", _checked_ids(_array(self.ids), len(vectors)))

    def search(
        self, queries, k: int, model: str | None = None, block_rows: int = 4096, block_queries: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        """queries (Q, C) -> scores (Q, k) float32, best first, and ids (Q, k) int64; equal scores by the lowest id.

        model: the queries' fingerprint, which must be the index's. Memory above queries and results: a few numbers for each of
        block_rows x (C + block_queries), whatever N; blocks do not change the result.
        Raises InputError for another model or width, k > N, NaN in queries or index, and for cosine a row of zeros."""
        self._refuse_other(model)
        queries = _array(queries)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"the index has vectors of width {self.vectors.shape[1]}, but the queries have shape {queries.shape}: "
                "embed them with the model that made the index, as (queries, width)"
            )
        if not 1 <= k <= len(self.vectors):
            raise InputError(f"k is {k}, but the index has {len(self.vectors)} vectors: ask for 1 to {len(self.vectors)}")
        queries = self._ready(queries, 0, "query")                                           # (Q, C) float64
        best = np.full((len(queries), k), _NOTHING, dtype=np.int64)                          # (Q, k), in no order
        for start in range(0, len(self.vectors), block_rows):
            block = self._ready(self.vectors[start : start + block_rows], start, "vector")   # (rows, C) float64
            for first in range(0, len(queries), block_queries):
                part = slice(first, first + block_queries)
                scores = (queries[part] @ block.T).astype(np.float32)                        # (q, rows)
                both = np.concatenate([best[part], _ordered(scores, start)], axis=1)         # (q, k + rows)
                best[part] = np.partition(both, -k, axis=1)[:, -k:]
        best = np.sort(best, axis=1)[:, ::-1]
        rows = _LOW - (best & _LOW)
        return _scores(best), rows if self.ids is None else self.ids[rows]

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the folder, whole or not at all. Raises InputError if a row is bad, or the folder is in use."""
        for start in range(0, len(self.vectors), 4096):
            self._ready(self.vectors[start : start + 4096], start, "vector")
        with new_folder(folder, overwrite) as aside:
            np.save(aside / "vectors.npy", self.vectors, allow_pickle=False)
            if self.ids is not None:
                np.save(aside / "ids.npy", self.ids, allow_pickle=False)
            rows, width = self.vectors.shape
            about = dict(format=1, model=self.model, similarity=self.similarity, rows=rows, width=width,
                         dtype=str(self.vectors.dtype), ids=self.ids is not None)
            write_text(aside / "index.json", json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, model: str) -> "Index":
        """The index of a folder, its vectors memory-mapped: they stay on disk until they are searched. model: the fingerprint of the
        model that will embed the queries. Raises InputError if another one made the index, or a file is missing, damaged or cut short."""
        folder = recover(folder)
        file = folder / "index.json"
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            if about["format"] != 1:
                raise InputError(f"{file} has format {about['format']}, this minift reads 1: build the index again")
            shape, dtype = (about["rows"], about["width"]), about["dtype"]
            vectors = _read(folder / "vectors.npy", shape, dtype)
            ids = _read(folder / "ids.npy", shape[:1], "int64") if about["ids"] else None
            index = cls(vectors, about["model"], ids, about["similarity"])
        except FileNotFoundError as error:
            raise InputError(f"{folder} is not an index: {Path(error.filename).name} is missing. Name a folder that Index.save wrote") from None
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): build the index again") from None
        index._refuse_other(model)
        return index

    def _refuse_other(self, model: str | None) -> None:
        if model is not None and model != self.model:
            raise InputError(
                f"the index was made by model {self.model!r}, but the queries come from {model!r}: their vectors have nothing to do with "
                "each other. Build the index again with this model, or embed the queries with the other one"
            )

    def _ready(self, rows: np.ndarray, start: int, what: str) -> np.ndarray:
        """rows (n, C) as float64, for cosine of length 1. `start`: the number of the first one, for the error."""
        rows = rows.astype(np.float64)
        lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows))                                 # (n,); NaN or infinite if the row is
        cosine = self.similarity == "cosine"
        bad = ~np.isfinite(lengths) | ((lengths == 0) if cosine else (lengths > _LONGEST))
        if bad.any():
            row = int(bad.argmax())
            found = "is all zeros, so it has no direction and no cosine" if cosine else f"is {lengths[row]:.1g} long: float32 may not hold its products"
            found = found if np.isfinite(lengths[row]) else "has NaN or infinity"
            raise InputError(f"{what} {start + row} {found}: leave it out, or embed it again")
        if cosine:
            rows /= lengths[:, None]
        return rows


def _ordered(scores: np.ndarray, start: int) -> np.ndarray:
    """scores (q, rows) of the vectors from row `start` on -> int64 that sort as (score, then lower row).

    The bits of a positive float32 sort as whole numbers do; those of a negative one the other way round, so all but its sign are turned."""
    bits = (scores + np.float32(0)).view(np.int32)                                           # + 0 makes -0.0 the same as 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    rows = _LOW - np.arange(start, start + scores.shape[1], dtype=np.int64)                  # (rows,), lower is larger
    return (bits.astype(np.int64) << 32) | rows


def _scores(ordered: np.ndarray) -> np.ndarray:
    """The scores back from what _ordered made."""
    bits = (ordered >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()        # numpy has no bfloat16
    return np.asarray(values)


def _checked_ids(ids: np.ndarray, rows: int) -> np.ndarray:
    if ids.shape != (rows,) or ids.dtype != np.int64:
        raise InputError(f"ids are {ids.dtype} of shape {ids.shape}: int64 of ({rows},) is wanted, one for each vector")
    if not (ids[1:] > ids[:-1]).all():
        row = int((ids[1:] <= ids[:-1]).argmax()) + 1
        raise InputError(f"ids do not rise: {ids[row]} in row {row} follows {ids[row - 1]}. Sort vectors and ids by id, and give no id twice")
    return ids


def _read(file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A memory-mapped .npy of exactly this shape and dtype."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:                                                  # shorter than its own header says
        raise InputError(f"{file} is cut short or damaged ({error}): copy it again, or build the index again") from None
    if found.shape != shape or found.dtype != dtype:
        raise InputError(f"{file} holds {found.dtype} {found.shape}, but index.json says {dtype} {shape}: the files are not of one index")
    return found
