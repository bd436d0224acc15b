"""Did the search find what it should, and near the top? Metrics of ranked lists, each cut at rank k, mean over queries.

    hit_i = the document at rank i is relevant       R = relevant documents of the query, found or not
    precision@k = hits in the first k / k            recall@k = hits in the first k / R
    MRR@k = 1 / rank of the first hit, 0 if it lies below k
    MAP@k = (sum over hits at rank i <= k of precision@i) / min(k, R)
    nDCG@k = DCG of the list / DCG of the best possible list,  DCG = sum_(i <= k) gain_i / log2(i + 1)

Gains are linear, as in trec_eval and sentence-transformers, not 2^gain - 1 (Burges et al. 2005); a set of relevant documents has
gains of 1. trec_eval divides MAP by R alone, which punishes a list of k for not holding more than k. Both choices: docs/conventions.md.
A query that has no relevant document scores 0/0: it is skipped and counted. A query that was not answered is refused, since leaving it
out would raise the mean. Proved in tests/evaluate/test_retrieval.py, equal to sentence-transformers' InformationRetrievalEvaluator in
tests/parity/test_retrieval_sentence_transformers.py. Left out: intervals over queries, judgements that are missing (bpref)."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence

from minift.errors import InputError

Gains = Mapping[Hashable, float]
"""Document -> gain of one query; a document that is not in it gains 0."""


def retrieval(
    ranked: Mapping[Hashable, Sequence[Hashable]], relevant: Mapping[Hashable, Collection[Hashable] | Gains], k: Sequence[int] = (1, 10)
) -> dict[str, float]:
    """ndcg@k, mrr@k, map@k, recall@k and precision@k for each k, the number of queries scored, and of those skipped.

    ranked: query -> documents, best first; a list shorter than k is read as if what follows were irrelevant.
    relevant: query -> the set of its relevant documents, or their gains (0: judged irrelevant).
    Raises InputError for a query with relevant documents and no list, a document twice in a list, a negative gain, k < 1, no query left."""
    if not k or min(k) < 1:
        raise InputError(f"k is {list(k)}: ranks from 1 are wanted")
    judged = {query: gains for query, given in relevant.items() if (gains := _gains(query, given))}
    missing = [query for query in judged if query not in ranked]
    if missing:
        raise InputError(f"{len(missing)} queries have relevant documents and no ranked list, {missing[0]!r} first: give an empty list if nothing was found")
    for query in judged:
        if len(set(ranked[query])) < len(ranked[query]):
            twice = next(d for d in ranked[query] if list(ranked[query]).count(d) > 1)
            raise InputError(f"the list of query {query!r} has document {twice!r} more than once: it would be counted as several hits")
    if not judged:
        raise InputError(f"none of the {len(set(ranked) | set(relevant))} queries has a relevant document: there is nothing to score")
    metrics = {"ndcg": ndcg, "mrr": reciprocal_rank, "map": average_precision, "recall": recall, "precision": precision}
    scores: dict[str, float] = {
        f"{name}@{cut}": math.fsum(metric(ranked[query], gains, cut) for query, gains in judged.items()) / len(judged)
        for name, metric in metrics.items() for cut in k
    }
    return scores | {"queries": len(judged), "skipped": len(set(ranked) | set(relevant)) - len(judged)}


def ndcg(ranking: Sequence[Hashable], gains: Gains, k: int) -> float:
    dcg = lambda found: math.fsum(gain / math.log2(i + 2) for i, gain in enumerate(found))       # i counts from 0
    best = sorted(gains.values(), reverse=True)[:k]
    return dcg(gains.get(document, 0.0) for document in ranking[:k]) / dcg(best)


def reciprocal_rank(ranking: Sequence[Hashable], gains: Gains, k: int) -> float:
    return next((1 / (i + 1) for i, document in enumerate(ranking[:k]) if document in gains), 0.0)


def average_precision(ranking: Sequence[Hashable], gains: Gains, k: int) -> float:
    hits, total = 0, 0.0
    for i, document in enumerate(ranking[:k]):
        if document in gains:
            hits += 1
            total += hits / (i + 1)
    return total / min(k, len(gains))


def recall(ranking: Sequence[Hashable], gains: Gains, k: int) -> float:
    return sum(document in gains for document in ranking[:k]) / len(gains)


def precision(ranking: Sequence[Hashable], gains: Gains, k: int) -> float:
    return sum(document in gains for document in ranking[:k]) / k             # by k even if the list is shorter


def _gains(query: Hashable, given: Collection[Hashable] | Gains) -> dict[Hashable, float]:
    """The documents that gain something."""
    gains = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
    for document, gain in gains.items():
        if not (math.isfinite(gain) and gain >= 0):
            raise InputError(f"query {query!r}: document {document!r} has gain {gain}, but gains are finite and at least 0")
    return {document: gain for document, gain in gains.items() if gain > 0}
