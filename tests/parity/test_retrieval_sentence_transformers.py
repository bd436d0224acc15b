"""Search and retrieval metrics against sentence-transformers' evaluators, on vectors that are given (no model is run).

Its evaluators take a model and ask it for vectors; here the question is answered from a table."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim, dot_score

from minift.evaluate.retrieval import retrieval
from minift.evaluate.similarity import sts
from minift.search import Index

CUTS = [1, 3, 10]


class FromTable(InformationRetrievalEvaluator):
    def embed_inputs(self, model, texts, **unused):
        return torch.stack([model[text] for text in texts])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("similarity, their_score", [("cosine", cos_sim), ("dot", dot_score)])
def test_every_metric_at_every_cut(seed, similarity, their_score):
    dice = np.random.default_rng(seed)
    small = lambda rows: torch.tensor(dice.integers(-2, 3, (rows, 6)) + np.eye(6)[0] * 0.5, dtype=torch.float32)
    queries, documents = small(17), small(40)                                 # few values: many scores are equal, none is 0/0
    documents[30:] = documents[:10]
    name = lambda i: f"{i:03d}"                                               # theirs breaks ties by name: the same order as by number
    relevant = {f"q{i}": {name(d) for d in dice.choice(40, int(dice.integers(0, 6)), replace=False)} for i in range(17)}
    table = {f"q{i}": queries[i] for i in range(17)} | {name(d): documents[d] for d in range(40)}
    judge = FromTable(
        queries={q: q for q in relevant}, corpus={name(d): name(d) for d in range(40)}, relevant_docs=relevant, corpus_chunk_size=7,
        mrr_at_k=CUTS, ndcg_at_k=CUTS, accuracy_at_k=CUTS, precision_recall_at_k=CUTS, map_at_k=CUTS,
        # float64: theirs in float32 gives two copies of one document scores that differ in the last bit
        score_functions={"ours": lambda a, b: their_score(a.double(), b.double()).float()}, write_csv=False,
    )
    theirs = judge.compute_all_metrics(table)["ours"]
    _, found = Index(documents.numpy(), "a table", similarity=similarity).search(queries, k=10)
    ours = retrieval({f"q{i}": [name(d) for d in row] for i, row in enumerate(found)}, relevant, CUTS)
    for metric in ("ndcg", "mrr", "map", "recall", "precision"):
        for cut in CUTS:
            assert ours[f"{metric}@{cut}"] == pytest.approx(theirs[f"{metric}@k"][cut], abs=1e-12), (metric, cut)
    assert ours["queries"] == len(judge.queries) and ours["skipped"] == 17 - len(judge.queries)


def test_sts():
    dice = np.random.default_rng(0)
    a, b, gold = dice.normal(size=(50, 8)), dice.normal(size=(50, 8)), dice.integers(0, 6, 50)

    class FromRows(EmbeddingSimilarityEvaluator):
        def embed_inputs(self, model, texts, **unused):
            return np.stack([model[text] for text in texts])

    judge = FromRows([f"a{i}" for i in range(50)], [f"b{i}" for i in range(50)], gold.tolist(), main_similarity="cosine", write_csv=False)
    judge.store_metrics_in_model_card_data = lambda *unused: None
    judge.similarity_fn_names = ["cosine"]
    theirs = judge({f"a{i}": row for i, row in enumerate(a)} | {f"b{i}": row for i, row in enumerate(b)})
    ours = sts(a, b, gold)
    assert ours["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-12)
    assert ours["pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-12)
