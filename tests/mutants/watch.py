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
]  # fmt: skip
