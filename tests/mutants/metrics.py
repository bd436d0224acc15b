"""Plausible bugs of metrics and search: a class forgotten in a mean, a tie, a rank off by one, an edge between blocks."""

from tests.mutants.mutant import Mutant

CLASSES = "tests/evaluate/test_classification.py"
CORRELATION = "tests/evaluate/test_correlation.py"
CALIBRATION = "tests/evaluate/test_calibration.py"
RETRIEVAL = "tests/evaluate/test_retrieval.py"
SIMILARITY = "tests/evaluate/test_similarity.py"
CLUSTERING = "tests/evaluate/test_clustering.py"
SEARCH = "tests/test_search.py"

MUTANTS = [
    Mutant(
        name="metrics_take_nan", file="minift/evaluate/arrays.py", test="tests/evaluate/test_arrays.py",
        old="if not np.isfinite(found).all():", new="if np.isinf(found).any():",
    ),
    Mutant(
        name="metrics_ignored_label_wraps_around", file="minift/evaluate/arrays.py", test="tests/evaluate/test_arrays.py",
        old="if (found != np.floor(found)).any() or found.min() < 0:", new="if (found != np.floor(found)).any():",
    ),
    Mutant(
        name="metrics_confusion_transposed", file="minift/evaluate/classification.py", test=CLASSES,
        old="labels * classes + predictions,", new="predictions * classes + labels,",
    ),
    Mutant(
        name="metrics_macro_over_classes_that_are_not_there", file="minift/evaluate/classification.py", test=CLASSES,
        old="float(each[there].mean())", new="float(each.mean())",
    ),
    Mutant(
        name="metrics_macro_leaves_out_what_was_never_predicted", file="minift/evaluate/classification.py", test=CLASSES,
        old="there = (predicted > 0) | (labelled > 0)", new="there = predicted > 0",
    ),
    Mutant(
        name="metrics_micro_is_the_mean_of_classes", file="minift/evaluate/classification.py", test=CLASSES,
        old="precision_recall_f1(hits.sum(), predicted.sum(), labelled.sum())", new="[each.mean() for each in by_class]",
    ),
    Mutant(
        name="metrics_mcc_of_one_spread", file="minift/evaluate/classification.py", test=CLASSES,
        old="(rows**2 - predicted @ predicted) * (rows**2 - labelled @ labelled)", new="(rows**2 - predicted @ predicted) ** 2",
    ),
    Mutant(
        name="metrics_auroc_of_a_logit_instead_of_a_probability", file="minift/evaluate/classification.py", test=CLASSES,
        old="auroc(log_odds(k), labels == k)", new="auroc(logits[:, k], labels == k)",
    ),
    Mutant(
        name="metrics_auroc_of_rounded_probabilities", file="minift/evaluate/classification.py", test=CLASSES,
        old="auroc(log_odds(k), ", new="auroc(p[:, k], ",
    ),
    Mutant(
        name="metrics_threshold_included", file="minift/evaluate/classification.py", test=CLASSES,
        old="logits > threshold, labels == 1 ", new="logits >= threshold, labels == 1 ",
    ),
    Mutant(
        name="metrics_samples_over_classes", file="minift/evaluate/classification.py", test=CLASSES,
        old="both.sum(1), predicted.sum(1), wanted.sum(1)", new="both.sum(0), predicted.sum(0), wanted.sum(0)",
    ),
    Mutant(
        name="metrics_ties_take_the_last_place", file="minift/evaluate/correlation.py", test=CORRELATION,
        old="(last - (counts - 1) / 2)[which]", new="last[which]",
    ),
    Mutant(
        name="metrics_constant_list_divided_by_its_rounding", file="minift/evaluate/correlation.py", test=CORRELATION,
        old="if (x == x[0]).all() or (y == y[0]).all():", new="if len(x) < 2:",
    ),
    Mutant(
        name="metrics_bins_closed_on_the_left", file="minift/evaluate/calibration.py", test=CALIBRATION,
        old="np.searchsorted(edges[1:-1], confidence)", new='np.searchsorted(edges[1:-1], confidence, side="right")',
    ),
    Mutant(
        name="metrics_ece_weighs_bins_alike", file="minift/evaluate/calibration.py", test=CALIBRATION,
        old="(self.counts * gaps).sum() / self.counts.sum()", new="gaps[self.counts > 0].mean()",
    ),
    Mutant(
        name="metrics_dcg_off_by_one_rank", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="gain / math.log2(i + 2)", new="gain / math.log2(i + 3)",
    ),
    Mutant(
        name="metrics_best_list_of_what_was_found", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="best = sorted(gains.values(), reverse=True)[:k]", new="best = sorted((gains.get(d, 0.0) for d in ranking), reverse=True)[:k]",
    ),
    Mutant(
        name="metrics_exponential_gains", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="math.fsum(gain / ", new="math.fsum((2**gain - 1) / ",
    ),
    Mutant(
        name="metrics_map_divided_by_all_relevant", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="total / min(k, len(gains))", new="total / len(gains)",
    ),
    Mutant(
        name="metrics_precision_of_a_short_list", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="for document in ranking[:k]) / k ", new="for document in ranking[:k]) / max(len(ranking[:k]), 1) ",
    ),
    Mutant(
        name="metrics_unanswered_queries_left_out", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="missing = [query for query in judged if query not in ranked]", new="judged, missing = {q: g for q, g in judged.items() if q in ranked}, []",
    ),
    Mutant(
        name="metrics_skipped_queries_in_the_mean", file="minift/evaluate/retrieval.py", test=RETRIEVAL,
        old="in judged.items()) / len(judged)", new="in judged.items()) / len(ranked)",
    ),
    Mutant(
        name="metrics_alignment_not_squared", file="minift/evaluate/similarity.py", test=SIMILARITY,
        old="** (power / 2)", new="** (power / 4)",
    ),
    Mutant(
        name="metrics_uniformity_counts_a_vector_with_itself", file="minift/evaluate/similarity.py", test=SIMILARITY,
        old="np.triu(kernel, 1)", new="np.triu(kernel)",
    ),
    Mutant(
        name="metrics_uniformity_of_blocks_alone", file="minift/evaluate/similarity.py", test=SIMILARITY,
        old="block @ x[start:].T", new="block @ block.T",
    ),
    Mutant(
        name="metrics_seeds_by_distance_not_squared", file="minift/evaluate/clustering.py", test=CLUSTERING,
        old="p=nearest / nearest.sum()", new="p=nearest**0.5 / (nearest**0.5).sum()",
    ),
    Mutant(
        name="metrics_seeds_far_from_the_last_one_only", file="minift/evaluate/clustering.py", test=CLUSTERING,
        old="np.minimum(nearest, ((x - centres[-1]) ** 2).sum(1))", new="((x - centres[-1]) ** 2).sum(1)",
    ),
    Mutant(
        name="metrics_lost_centre_stays_without_rows", file="minift/evaluate/clustering.py", test=CLUSTERING,
        old="minlength=len(centres))).min() == 0:", new="minlength=len(centres))).min() < 0:",
    ),
    Mutant(
        name="metrics_homogeneity_and_completeness_swapped", file="minift/evaluate/clustering.py", test=CLUSTERING,
        old="shared / h_label if h_label else 1.0", new="shared / h_cluster if h_cluster else 1.0",
    ),
    Mutant(
        name="search_ties_by_the_highest_id", file="minift/search.py", test=SEARCH,
        old="(bits.astype(np.int64) << 32) | rows", new="(bits.astype(np.int64) << 32) | (rows - _LOW + 2 * start + scores.shape[1])",
    ),
    Mutant(
        name="search_sums_in_float32", file="minift/search.py", test=SEARCH,
        old="(queries[part] @ block.T).astype(np.float32)", new="queries[part].astype(np.float32) @ block.astype(np.float32).T",
    ),
    Mutant(
        name="search_rows_counted_within_the_block", file="minift/search.py", test=SEARCH,
        old="np.arange(start, start + scores.shape[1], dtype=np.int64)", new="np.arange(scores.shape[1], dtype=np.int64)",
    ),
    Mutant(
        name="search_negative_scores_upside_down", file="minift/search.py", test=SEARCH,
        old="    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)\n    rows = ", new="    rows = ",
    ),
    Mutant(
        name="search_minus_zero_below_zero", file="minift/search.py", test=SEARCH,
        old="(scores + np.float32(0)).view(np.int32)", new="scores.view(np.int32)",
    ),
    Mutant(
        name="search_last_block_only", file="minift/search.py", test=SEARCH,
        old="np.concatenate([best[part], _ordered(scores, start)], axis=1)", new="np.concatenate([np.full_like(best[part], _NOTHING), _ordered(scores, start)], axis=1)",
    ),
    Mutant(
        name="search_lengths_of_vectors_forgotten", file="minift/search.py", test=SEARCH,
        old="            rows /= lengths[:, None]\n", new="            rows /= lengths[:, None] if what == 'query' else 1.0\n",
    ),
    Mutant(
        name="search_all_vectors_at_once", file="minift/search.py", test=SEARCH,
        old="        best = np.full((len(queries), k)", new="        block_rows = len(self.vectors)\n        best = np.full((len(queries), k)",
    ),
    Mutant(
        name="search_takes_another_models_index", file="minift/search.py", test=SEARCH,
        old="        index._refuse_other(model)\n", new="",
    ),
    Mutant(
        name="search_vectors_loaded_whole", file="minift/search.py", test=SEARCH,
        old='np.load(file, mmap_mode="r", allow_pickle=False)', new="np.load(file, allow_pickle=False)",
    ),
    Mutant(
        name="search_row_numbers_for_ids", file="minift/search.py", test=SEARCH,
        old="rows if self.ids is None else self.ids[rows]", new="rows",
    ),
]
