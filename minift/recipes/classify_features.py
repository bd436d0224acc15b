"""A head on frozen features: the model runs once over every text, and what it found is kept (classify/features.py).

    texts -> features (N, C), from disk if they are there -> head -> scores (N, K)

SetFit comes before: pairs of texts with one label are to have the cosine 1, pairs with two labels 0 (`minift embed --loss cosine`), which makes many pairs
of few rows. Its model lies in the run folder; otherwise the model stays where it is, and classifier.json names it.
Proved in tests/recipes/test_classify.py."""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minift.classify.classifier import Classifier, embedder, save_head
from minift.classify.features import default_cache, features
from minift.classify.heads import chosen_l2, make
from minift.data.classified import Classified, targets
from minift.embed import fingerprint, pooling_of
from minift.errors import InputError
from minift.files import write_text
from minift.recipes.classify_task import Config, Data, Result, lasting, objective
from minift.recipes.classify_report import measured, summary, write_report
from minift.models.transformer import Transformer
from minift.recipes.embed import Config as EmbedConfig
from minift.recipes.embed import Result as Tuned
from minift.recipes.embed import run as tune_embeddings
from minift.tokenizer import Tokenizer
from minift.train.run import open_run

L2 = {"knn": 0.0, "mlp": 1e-2}
HELD_OUT_PAIRS = 500
SETFIT_RATE = 2e-5
"""Of every weight of a sentence encoder, where --lr does not say otherwise."""


def prepare(config: Config, data: Data) -> tuple[Transformer, Tokenizer] | None:
    """Refuse whatever cannot be, and read the model that makes the features; None for SetFit, which has yet to tune it."""
    if config.head == "knn" and config.neighbours > len(data.train):
        raise InputError(f"--neighbours {config.neighbours} of {len(data.train)} training rows: take fewer")
    if config.method == "setfit" and data.problem != "single":
        raise InputError(f"--method setfit draws pairs by their one label, and these rows ask {data.problem}: take features, or another method")
    if config.method == "setfit" and data.found.sides == 2:
        raise InputError("--method setfit tunes the embeddings of single texts, and these rows have two: take features, or another method")
    if config.method == "setfit" and len({(row.answer, row.texts[0]) for row in data.train}) == len({row.answer for row in data.train}):
        raise InputError("no label has two different texts: SetFit has nothing to draw together, give at least two rows of each label")
    if config.resume:
        raise InputError("--resume: a head on features is trained in seconds, and features are kept: start again with --overwrite")
    return None if config.method == "setfit" else _embedder(config, None)


def run(config: Config, data: Data, quiet: bool = False) -> Result:
    ready = prepare(config, data)
    say = (lambda text: None) if quiet else print
    folder = open_run(config.out, "classify", config, config.overwrite)
    say("\n".join(data.lines()))
    place = None
    if ready is None:
        tuned = _tuned(config, data, folder, quiet)
        if tuned.interrupted:
            say("interrupted while SetFit tuned the embeddings. A SetFit run cannot be resumed, unlike one of embed alone: start again with --overwrite")
            return Result({}, folder, interrupted=True)
        place = tuned.written.relative_to(folder)
        ready = _embedder(config, place)
    model, tokenizer = ready

    cache = {"default": default_cache(), "none": None}.get(config.cache, Path(config.cache))
    started, name = time.perf_counter(), fingerprint(model)
    options = dict(prompt=config.prompt, cache=cache, precision=config.precision, name=name, tokens=config.batch_tokens)
    train, valid = (features(model, tokenizer, [row.texts for row in rows], **options) for rows in (data.train, data.valid))
    there = "read from" if train.read and valid.read else f"computed in {time.perf_counter() - started:.1f} s, kept in" if cache else "computed"
    say(f"features of {train.vectors.shape[1]} numbers: {there} {'' if cache is None else cache}".rstrip())

    answers, held_out = targets(data.train, data.labels), targets(data.valid, data.labels)
    loss = objective(config, data.problem, answers, len(data.labels))
    shape = dict(kind=config.head, width=train.vectors.shape[1], outputs=len(data.labels), problem=data.problem, hidden=config.hidden, k=config.neighbours)
    head, started = make(**shape), time.perf_counter()
    l2 = config.l2
    if l2 is None:
        l2 = chosen_l2(train.vectors, answers, loss, shape) if config.head == "linear" else L2[config.head]
    if config.head == "linear":
        said = f"{head.fit(train.vectors, answers, loss, l2)} steps of L-BFGS, l2 {l2:g}"
    elif config.head == "mlp":
        said = f"{head.fit(train.vectors, answers, loss, l2, config.seed, held_out=(valid.vectors, held_out))} epochs"
    else:
        head.fit(train.vectors, answers)
        said = f"{config.neighbours} neighbours of {len(answers)} rows"
    say(f"head trained in {time.perf_counter() - started:.2f} s ({said})")
    with torch.no_grad():
        scores = head.eval()(valid.vectors)
        found = {"loss": (loss(scores, held_out)[0] / len(held_out)).item(), **measured(data.problem, scores, held_out, data.labels)}

    labels = data.labels
    classifier = Classifier(data.problem, labels, data.found.sides, model, tokenizer, config.max_length, head, config.prompt, config.precision)
    own = {"model": str(Path("..") / place) if place else lasting(config.model), "adapter": lasting(config.adapter) if config.adapter else None}
    save_head(classifier, folder / "classifier", shape, **own, loaded={"dtype": config.dtype, "quantize": config.quantize})
    write_report(folder, data, scores, held_out, found, config.mistakes)
    say(f"{summary(data.problem, found)}; written: {folder / 'classifier'}")
    return Result(found, folder / "classifier")


def setfit_pairs(rows: Sequence[Classified], count: int, seed: int) -> list[dict]:
    """For each text `count` other texts of its label (score 1) and `count` of other labels (score 0), drawn; a label's only text has none of the first."""
    dice, by_label = random.Random(seed), {}
    for row in rows:
        by_label.setdefault(row.answer, []).append(row.texts[0])
    pairs = []
    for row in rows:
        text = row.texts[0]
        mates = [other for other in by_label[row.answer] if other != text]
        pairs += [{"sentence1": text, "sentence2": dice.choice(mates), "score": 1.0} for _ in range(count if mates else 0)]
        for _ in range(count if len(by_label) > 1 else 0):
            while (other := dice.choice(rows)).answer == row.answer:
                pass
            pairs.append({"sentence1": text, "sentence2": other.texts[0], "score": 0.0})
    return pairs


def _tuned(config: Config, data: Data, folder: Path, quiet: bool) -> Tuned:
    """The contrastive tuning, whose model lies in the run folder. Held-out rows make pairs of their own, which decide what is best."""
    pairs, others = setfit_pairs(data.train, config.pairs, config.seed), setfit_pairs(data.valid, 1, config.seed)
    files = folder / "pairs.jsonl", folder / "held_out_pairs.jsonl"
    for file, rows in zip(files, (pairs, random.Random(config.seed).sample(others, min(len(others), HELD_OUT_PAIRS)))):
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return tune_embeddings(
        EmbedConfig(
            data=(str(files[0]),), eval_data=(str(files[1]),), out=folder / "embedder", model=config.model, method="full", loss="cosine",
            rows=min(config.rows, len(pairs) // 2), lr=SETFIT_RATE if config.lr is None else config.lr, epochs=config.epochs, max_steps=config.max_steps, seed=config.seed,
            precision=config.precision, pooling=config.pooling, max_length=config.max_length, device=config.device,
        ),
        quiet,
    )


def _embedder(config: Config, place: Path | None) -> tuple[Transformer, Tokenizer]:
    """The model that makes the features, frozen; place: of a tuned one, in the run folder."""
    if place is None:
        model, tokenizer = embedder(config.model, config.adapter, None, config.dtype, config.quantize, config.device)
    else:
        model, tokenizer = embedder(str(config.out / place), None, None, config.dtype, None, config.device)
    own = pooling_of(model)
    model.pooling = replace(own, mode=config.pooling or own.mode, max_length=min(config.max_length, own.max_length or config.max_length))
    return model, tokenizer
