"""`minift quantize`: rounding with a report."""

import json
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import pytest
import torch

from minift import load
from minift.data import pydocs
from minift.data.sources import read_texts
from minift.data.split import split_rows
from minift.evaluate.forgetting import text_windows
from minift.evaluate.perplexity import perplexity
from minift.folder import save
from minift.models.transformer import Transformer
from minift.quant import QuantizedLinear, awq, gptq, nbytes, quantize
from minift.quant.errors import Error, error
from minift.quant.model import quantizable
from minift.recipes.quantize import Config, added, run
from minift.recipes.quantize_report import Added, by_kind, draw_errors, kind_rows, layer_rows
from tests.conftest import random_model
from tests.recipes.test_using import rows

SMALL = dict(context=24, windows=6)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """24 different texts, about half of them held out."""
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    found = [" ".join(text.split())[:300] for text in list(topics.values())[12:36]]             # the tokenizer has seen the first 12
    file.write_text("\n\n".join(found))
    return file


def short(*more):
    return ("--context", 24, "--windows", 6, *more)


@pytest.mark.parametrize("to", ["nf4", "fp4", "int8", "int4"])
def test_the_folder_written_is_the_model_that_was_measured(small_model, texts, tmp_path, to):
    result = run(Config(model=str(small_model), to=to, out=tmp_path / to, data=(str(texts),), **SMALL), quiet=True)
    model, tokenizer = load(result.written)
    assert all(isinstance(m, QuantizedLinear) and m.q.scheme == to for m in quantizable(model).values())
    full, _ = load(small_model)
    held_out = text_windows(tokenizer, halves(texts)[1], 24, 6)
    assert perplexity(full, held_out).nats_per_token == pytest.approx(result.before.nats_per_token, rel=1e-6)
    assert perplexity(model, held_out).nats_per_token == pytest.approx(result.after.nats_per_token, rel=1e-6)
    for path, linear in quantizable(full).items():
        assert result.errors[path] == error(linear.weight, quantize(linear.weight, to))
    assert result.errors.keys() == quantizable(full).keys() and result.before != result.after


def halves(texts):
    """(to calibrate on, held out)."""
    return split_rows(read_texts([str(texts)]), fraction=0.5, seed=0, key=lambda text: text)


@pytest.mark.parametrize("name, method", [("gptq", gptq), ("awq", awq)])
def test_calibrated_methods_see_the_other_half_of_the_texts_and_are_measured_on_the_same(small_model, texts, tmp_path, name, method):
    options = dict(model=str(small_model), to="int4", block_size=16, data=(str(texts),), **SMALL)
    result = run(Config(**options, method=name, calibration=11, out=tmp_path / "out"), quiet=True)
    model, tokenizer = load(small_model)
    windows = torch.tensor([example.ids for example in text_windows(tokenizer, halves(texts)[0], 24, 11)])
    errors = method.quantize_model(model, [windows[:8], windows[8:]], 16)
    assert result.errors == errors and result.before == run(Config(**options), quiet=True).before
    written, _ = load(tmp_path / "out")
    for path in errors:
        assert torch.equal(written.get_submodule(path).q.packed, model.get_submodule(path).q.packed)
    with torch.no_grad():                                                        # the norms that took up AWQ's scales are written too
        torch.testing.assert_close(written(windows[:2]), model(windows[:2]), rtol=0, atol=0)


def test_bytes_and_bits_are_those_of_the_model(small_model, texts, tmp_path):
    options = dict(model=str(small_model), data=(str(texts),), **SMALL)
    result = run(Config(to="nf4", out=tmp_path / "out", full_scales=True, block_size=32, **options), quiet=True)
    full, _ = load(small_model)
    numbers = sum(linear.weight.numel() for linear in quantizable(full).values())
    linears, whole = result.sizes["the linears"], result.sizes["the whole model"]
    assert (linears.before, linears.numbers) == (4 * numbers, numbers)
    assert linears.after == sum(nbytes(quantize(m.weight, "nf4", 32, False)) for m in quantizable(full).values())
    assert 8 * linears.after / numbers == pytest.approx(4 + 32 / 32, rel=1e-2)
    assert whole.before == sum(p.numel() * 4 for p in full.parameters()) and whole.before - whole.after == linears.before - linears.after
    stored = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert whole.after < stored < whole.after + 16_000                          # the header, and the maps that bitsandbytes writes beside each weight
    half = run(Config(to="nf4", dtype="bfloat16", **options), quiet=True).sizes["the linears"]
    assert half.before == 2 * numbers


def test_what_the_command_line_prints_and_writes(minift, small_model, texts, tmp_path):
    options = ("--to", "int4", "--method", "gptq", "--block-size", 16, "--data", texts, "--out", tmp_path / "out", *short("--calibration", 8))
    status, said, _ = minift("quantize", small_model, *options)
    assert status == 0 and f"written: {tmp_path / 'out'}" in said.replace("\n", "")
    result = run(Config(model=str(small_model), to="int4", method="gptq", block_size=16, data=(str(texts),), calibration=8, **SMALL), quiet=True)
    found, report = rows(said), (tmp_path / "out/report.md").read_text()
    ups = [e for path, e in result.errors.items() if path.endswith("mlp.up")]
    mean = lambda values: f"{sum(values) / len(values):.4f}"
    assert ["mlp.up", "2", mean([e.weight for e in ups]), f"{max(e.worst_block for e in ups):.4f}", mean([e.output for e in ups]),
            mean([e.nearest for e in ups])] in found    # fmt: skip
    [perplexities] = [line for line in found if line[0] == "perplexity"]
    assert perplexities[1:3] == [f"{result.before.perplexity:.4f}", f"{result.after.perplexity:.4f}"]
    assert "bits per byte" in report and "6 windows of 24 tokens of the half of --data held out (138 tokens scored)" in report      # 6 x 23
    assert "(138 tokens scored)" in " ".join(said.split()) and f"{result.added.nats:+.4f} (too few windows for an interval)" in report
    for path, e in result.errors.items():
        assert f"| {path} | {e.weight:.4f} | {e.worst_block:.4f} | {e.output:.4f} | {e.nearest:.4f} |" in report
    assert "- method: gptq" in report and "- block_size: 16" in report and str(tmp_path / "out") not in report
    assert (tmp_path / "out/errors.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_the_documentation_is_measured_and_the_training_modules_calibrate(minift, small_model, monkeypatch, texts):
    asked, prose = [], texts.read_text().split("\n\n")
    monkeypatch.setattr(pydocs, "documents", lambda split: asked.append(split) or prose)
    status, said, _ = minift("quantize", small_model, "--to", "int4", "--method", "awq", *short("--calibration", 4))
    assert status == 0 and sorted(asked) == ["test", "train"] and "Python documentation of modules held out" in " ".join(said.split())
    asked.clear()
    assert minift("quantize", small_model, "--to", "int8", *short())[0] == 0 and asked == ["test"]


@pytest.mark.parametrize("options, text", [
    (("--to", "nf5"), "invalid choice"),
    ((), "required"),
    (("--to", "nf4", "--method", "gptq"), "--method gptq chooses whole numbers on int4's grids, and --to is nf4: pass --to int4"),
    (("--to", "int8", "--block-size", 64), "int8 has one scale per row: leave it out"),
    (("--to", "nf4", "--block-size", 63), "block_size is 63: nf4 takes one of 32, 64"),
    (("--to", "int4", "--method", "awq", "--block-size", 4), "at least 8"),
    (("--to", "int4", "--full-scales"), "--full-scales keeps the scales of nf4 and fp4 in float32; int4 has other scales"),
    (("--to", "int4", "--calibration", 9), "rounding to nearest looks at none: leave it out"),
    (("--to", "int4", "--method", "gptq", "--calibration", 0), "--calibration is 0: wanted 1 or more"),
    (("--to", "nf4", "--windows", 0), "--windows is 0: wanted 1 or more"),
    (("--to", "nf4", "--overwrite"), "--overwrite replaces the folder of --out, and none is given"),
    (("--to", "nf4", "--data", "nowhere.txt"), "nowhere.txt"),
    (("--to", "nf4", "--context", 100000), "none of the"),
    (("--to", "nf4", "--device", "gpu"), "device 'gpu' cannot be used here"),
])    # fmt: skip
def test_what_has_no_effect_or_no_meaning_is_refused(minift, small_model, texts, options, text):
    data = () if "--data" in options else ("--data", texts)
    status, _, complaint = minift("quantize", small_model, *data, *options)
    assert status == 2 and text in " ".join(complaint.replace("│", "").split())


def test_a_single_text_cannot_be_halved(minift, small_model, tmp_path):
    (tmp_path / "one.txt").write_text("Only one text, and not a long one.")
    status, _, complaint = minift("quantize", small_model, "--to", "nf4", "--data", tmp_path / "one.txt")
    assert status == 2 and "1 rows (1 different) cannot be split" in complaint


def test_a_quantized_folder_is_not_quantized_again_and_a_used_folder_is_kept(minift, small_model, texts, tmp_path):
    run(Config(model=str(small_model), to="nf4", out=tmp_path / "nf4", data=(str(texts),), **SMALL), quiet=True)
    before = (tmp_path / "nf4/model.safetensors").read_bytes()
    status, _, complaint = minift("quantize", tmp_path / "nf4", "--to", "int4", "--data", texts)
    assert status == 2 and "is in nf4 already: quantizing twice would add the errors" in complaint
    status, _, complaint = minift("quantize", small_model, "--to", "int4", "--data", texts, "--out", tmp_path / "nf4")
    assert status == 2 and "is in use: name another one, or pass --overwrite" in complaint
    assert (tmp_path / "nf4/model.safetensors").read_bytes() == before
    assert minift("quantize", small_model, "--to", "int4", "--data", texts, "--out", tmp_path / "nf4", "--overwrite", *short())[0] == 0
    assert load(tmp_path / "nf4")[0].blocks[0].mlp.up.q.scheme == "int4"


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_weights_that_are_no_numbers_are_refused_by_name(minift, small_tokenizer, texts, tmp_path, method):
    model: Transformer = random_model(small_tokenizer)
    model.blocks[1].mlp.up.weight.data[3, 7] = float("nan")
    save(model, small_tokenizer, tmp_path / "model")
    status, _, complaint = minift("quantize", tmp_path / "model", "--to", "int4", "--method", method, "--data", texts, "--out", tmp_path / "out")
    assert status == 2 and "blocks.1.mlp.up: the weight holds nan at [3, 7]" in complaint and not (tmp_path / "out").exists()


def test_windows_longer_than_learned_positions_are_refused_before_the_model_is_asked(minift, small_tokenizer, texts, tmp_path):
    biases = dict(qkv_bias=True, attention_out_bias=True, mlp_bias=True)
    model = random_model(small_tokenizer, family="gpt2", norm="layernorm", position="learned", qkv="joined", kv_heads=4, max_positions=20,
                         gated=False, activation="gelu_tanh", **biases)    # fmt: skip
    save(model, small_tokenizer, tmp_path / "gpt2")
    status, _, complaint = minift("quantize", tmp_path / "gpt2", "--to", "nf4", "--data", texts, "--context", 21)
    assert status == 2 and "--context is 21, this model has 20 learned positions" in complaint
    assert minift("quantize", tmp_path / "gpt2", "--to", "nf4", "--data", texts, "--context", 20)[0] == 0


# ---------------------------------------------------------------------------------------------------------------------- the report

ERRORS = {"blocks.0.mlp.up": Error(0.1, 0.3, 0.05, 0.08), "blocks.1.mlp.up": Error(0.2, 0.25, 0.15, 0.16), "pooler": Error(0.4, 0.5)}


def test_tables_worked_by_hand():
    header, lines = layer_rows(ERRORS)
    assert header == ["linear", "weight error", "worst block", "output error", "of rtn"]
    assert lines[0] == ["blocks.0.mlp.up", "0.1000", "0.3000", "0.0500", "0.0800"]
    assert lines[2:] == [["pooler", "0.4000", "0.5000", "–", "–"], ["mean", "0.2333", "0.3500", "0.1000", "0.1200"],
                         ["worst", "0.4000", "0.5000", "0.1500", "0.1600"]]    # fmt: skip
    assert kind_rows(ERRORS)[1] == [["mlp.up", "2", "0.1500", "0.3000", "0.1000", "0.1200"], ["pooler", "1", "0.4000", "0.5000", "–", "–"]]
    assert by_kind(ERRORS) == {"mlp.up": {0: ERRORS["blocks.0.mlp.up"], 1: ERRORS["blocks.1.mlp.up"]}, "pooler": {0: ERRORS["pooler"]}}
    assert layer_rows({"a": Error(0.1, 0.2)})[0] == ["linear", "weight error", "worst block"]


def test_nats_added_have_an_interval_over_windows_and_few_windows_none():
    full, apart = [3.0, 1.0, 2.0, 5.0] * 2, [0.1, 0.3] * 4                        # mean 0.2, each 0.1 off: variance 8 * 0.01 / 7
    found = added(full, [a + b for a, b in zip(full, apart)])
    assert found.nats == pytest.approx(0.2) and found.interval == pytest.approx(1.96 * (0.08 / 7 / 8) ** 0.5)
    assert str(Added(0.2, 0.07408)) == "+0.2000 ± 0.0741"
    assert added(full[:7], full[:7]) == Added(0.0, None) and str(added([1.0], [0.5])) == "-0.5000 (too few windows for an interval)"


def test_the_interval_is_that_of_the_windows_measured(small_model, texts):
    result = run(Config(model=str(small_model), to="int4", data=(str(texts),), context=24, windows=9), quiet=True)
    assert result.added.nats == pytest.approx(result.after.nats_per_token - result.before.nats_per_token, abs=1e-6) and result.added.interval > 0


@pytest.mark.parametrize("place", ["file/below/out", "/proc/minift"])
def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(minift, texts, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    status, _, complaint = minift("quantize", "no-such-model", "--to", "nf4", "--data", texts, "--out", tmp_path / place)
    assert status == 2 and "nothing can be written in" in complaint and "name another place" in complaint


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_picture_has_a_line_for_each_kind_of_linear(monkeypatch, tmp_path, calibrated):
    axes, subplots = [], plt.subplots
    monkeypatch.setattr(plt, "subplots", lambda **sizes: axes.extend(found := subplots(**sizes)) or found)
    errors = {path: e if calibrated else Error(e.weight, e.worst_block) for path, e in ERRORS.items() if e.output or not calibrated}
    draw_errors(tmp_path / "errors.png", "A title", errors)
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes[1].get_lines()}
    assert lines["mlp.up"] == ([0, 1], [0.05, 0.15] if calibrated else [0.1, 0.2]) and "A title" in axes[1].get_title()
    assert ([0, 1], [0.08, 0.16]) in lines.values() if calibrated else lines["pooler"] == ([0], [0.4])
    low, high = axes[1].get_ylim()
    seen = [value for line in axes[1].get_lines() for value in line.get_ydata()]
    room = 0.1 * (max(seen) - min(seen))                                         # no marker on an edge
    assert low < min(seen) - room and max(seen) + room < high
    assert plt.get_fignums() == [] and (tmp_path / "errors.png").exists()


def test_report_and_picture_lie_beside_a_whole_checkpoint(minift, small_model, texts, tmp_path):
    minift("quantize", small_model, "--to", "nf4", "--data", texts, "--out", tmp_path / "out", *short())
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"report.md", "errors.png", "config.json", "model.safetensors"} <= names
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"] and not any(name.startswith(".") for name in names)
