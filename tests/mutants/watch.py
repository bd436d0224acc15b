"""Plausible bugs of what the lessons look at."""

from tests.mutants.mutant import Mutant

FILE, TEST = "minift/watch.py", "tests/test_watch.py"

MUTANTS = [
    Mutant(
        name="looking_back_looks_ahead", file=FILE, test=TEST,
        old="weights.diagonal(-back, dim1=-2, dim2=-1)", new="weights.diagonal(back, dim1=-2, dim2=-1)",
    ),
    Mutant(
        name="lens_predicts_the_token_just_read", file=FILE, test=TEST,
        old="stream(model, ids)[:, :-1]", new="stream(model, ids)[:, 1:]",
    ),
    Mutant(
        name="lens_without_the_last_norm", file=FILE, test=TEST,
        old="model.head(model.norm(stream(", new="model.head((stream(",
    ),
    Mutant(
        name="watching_with_dropout", file=FILE, test=TEST,
        old="    model.eval()\n", new="",
    ),
    Mutant(
        name="watching_ends_the_training_mode", file=FILE, test=TEST,
        old="model.train(was_training)", new="model.eval()",
    ),
    Mutant(
        name="stream_forgets_the_embedding", file=FILE, test=TEST,
        old='[seen["embed"][0], *(', new="[*(",
    ),
    Mutant(
        name="size_by_rank_adds_values_not_squares", file=FILE, test=TEST,
        old="singular_values.square().cumsum(-1)", new="singular_values.cumsum(-1)",
    ),
    Mutant(
        name="agreement_of_rows_with_columns", file=FILE, test=TEST,
        old="U[:, :most].T @ U_other[:, :most]", new="U[:most] @ U_other[:most].T",
    ),
    Mutant(
        name="agreement_swaps_reading_and_writing", file=FILE, test=TEST,
        old="(U, _, Vt), (U_other, _, Vt_other) =", new="(Vt, _, U), (Vt_other, _, U_other) =",
    ),
    Mutant(
        name="survived_divides_by_what_arrived", file=FILE, test=TEST,
        old="along / wanted.square().sum()", new="along / found.square().sum()",
    ),
    Mutant(
        name="to_virtual_reads_the_virtual_tokens_own_rows", file=FILE, test=TEST,
        old="weights[..., -T:, :virtual]", new="weights[..., :T, :virtual]",
    ),
    Mutant(
        name="nearest_by_product_prefers_long_rows", file=FILE, test=TEST,
        old="@ F.normalize(table, dim=-1).T", new="@ table.T",
    ),
    Mutant(
        name="kept_bytes_counts_the_weights", file=FILE, test=TEST,
        old=" if address not in own)", new=")",
    ),
    Mutant(
        name="distance_in_the_other_direction", file=FILE, test=TEST,
        old="for model in (policy, reference)]", new="for model in (reference, policy)]",
    ),
    Mutant(
        name="distance_at_temperature_one", file=FILE, test=TEST,
        old=".float() / temperature for", new=".float() for",
    ),
    Mutant(
        name="distance_counts_the_prompt", file=FILE, test=TEST,
        old=".flatten(0, 1)[batch.places]    #", new=".flatten(0, 1)[batch.places - 1]    #",
    ),
]  # fmt: skip
