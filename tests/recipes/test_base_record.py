"""An adapter is used on the kind of base it was trained on, or on another one on purpose."""

import json

import pytest
import torch

from minift import load
from minift.errors import InputError
from minift.folder import save
from minift.quant import quantize_model
from minift.recipes import base_record
from tests.recipes.test_methods import data  # noqa: F401  (a fixture)
from tests.recipes.test_qlora import measured, reported, tune  # noqa: F401  (fixtures)

SHORT = ("--rank", 2, "--max-steps", 1)
ON_PURPOSE = "to put it on full weights on purpose, pass --quantize none"


def rounded(folder, out, *how):
    model, tokenizer = load(folder)
    quantize_model(model, *how)
    save(model, tokenizer, out)


def test_sft_records_the_base_beside_the_adapter(tune):  # noqa: F811
    record = lambda *more, out: json.loads((tune(*SHORT, *more, out=out)[3] / "adapter" / "base.json").read_text())
    assert record(out="full") == {"quantize": None}
    assert record("--quantize", "nf4", out="nf4") == {"quantize": "nf4", "block_size": 64, "double_quant": True, "rounded_by": "nearest"}
    assert record("--quantize", "int8", out="int8") == {"quantize": "int8", "rounded_by": "nearest"}
    assert record("--quantize", "int4", "--method", "loftq", out="loftq") == {"quantize": "int4", "block_size": 128, "rounded_by": "loftq"}


def test_every_verb_refuses_a_qlora_adapter_on_the_full_base_unless_it_is_asked_for(minift, tune, small_model, data, tmp_path):  # noqa: F811
    adapter = tune(*SHORT, "--quantize", "nf4")[3] / "adapter"
    verbs = {
        "generate": ("--adapter", adapter, "--model", small_model, "--prompt", "a", "--max-new-tokens", 2),
        "chat": ("--adapter", adapter, "--model", small_model),
        "evaluate": ("--adapter", adapter, "--model", small_model, "--data", data),
        "merge": ("--adapter", adapter, "--model", small_model, "--out", tmp_path / "merged"),
        "inspect": (adapter, "--model", small_model),
    }
    for verb, options in verbs.items():
        status, _, complaint = minift(verb, *options)
        assert status == 2 and f"{adapter} was trained on nf4 weights in blocks of 64, and this base is full weights" in complaint, verb
        assert "pass --quantize nf4, with the full weights as the model" in complaint and ON_PURPOSE in complaint
        status, _, complaint = minift(verb, *options, "--quantize", "int4")                 # a mistake too: 4 bits, but others
        assert status == 2 and "this base is int4 weights in blocks of 128" in complaint
        assert verb != "merge" or not (tmp_path / "merged").exists()
        if verb != "chat":
            assert minift(verb, *options, "--quantize", "none")[0] == 0, verb


def test_an_adapter_of_full_weights_goes_on_rounded_ones_on_purpose_only(minift, tune, measured, small_model, data, tmp_path):  # noqa: F811
    run = tune(*SHORT)[3]
    rounded(small_model, tmp_path / "nf4", "nf4")
    status, _, complaint = minift("evaluate", "--model", tmp_path / "nf4", "--adapter", run / "adapter", "--data", data)
    assert status == 2 and "was trained on full weights, and this base is nf4 weights" in complaint and ON_PURPOSE not in complaint
    measured("--model", small_model, "--quantize", "nf4", "--adapter", run / "adapter")
    status, _, complaint = minift("evaluate", "--model", tmp_path / "nf4", "--quantize", "none", "--data", data)
    assert status == 2 and "--quantize none asks for full weights, and" in complaint and "has nf4 weights in blocks of 64" in complaint


def test_a_folder_of_the_same_codes_is_the_same_base(minift, tune, measured, small_model, data, tmp_path):  # noqa: F811
    _, said, _, run = tune(*SHORT, "--quantize", "nf4")
    rounded(small_model, tmp_path / "nf4", "nf4")
    rounded(small_model, tmp_path / "fine", "nf4", 32, False)
    assert measured("--model", tmp_path / "nf4", "--adapter", run / "adapter") == pytest.approx(reported(said)[1], abs=0.0006)
    status, _, complaint = minift("evaluate", "--model", tmp_path / "fine", "--adapter", run / "adapter", "--data", data)
    assert status == 2 and "this base is nf4 weights in blocks of 32, scales in float32" in complaint


def test_loftqs_adapter_is_refused_on_any_other_base_even_on_purpose(minift, tune, small_model, data):  # noqa: F811
    run = tune(*SHORT, "--method", "loftq", "--alpha", 2)[3]
    use = ("evaluate", "--model", small_model, "--adapter", run / "adapter", "--data", data)
    for more in ((), ("--quantize", "none"), ("--quantize", "int4")):
        status, _, complaint = minift(*use, *more)
        assert status == 2 and "trained on nf4 weights in blocks of 64, rounded by LoftQ" in complaint and ON_PURPOSE not in complaint
    assert minift(*use, "--quantize", "nf4")[0] == 0


def test_loftq_of_several_alternations_wants_the_very_codes_it_left(minift, tune, small_model, data):  # noqa: F811
    run = tune(*SHORT, "--method", "loftq", "--alpha", 2, "--options", "iterations", 3)[3]
    status, _, complaint = minift("evaluate", "--model", small_model, "--quantize", "nf4", "--adapter", run / "adapter", "--data", data)
    assert status == 2 and "this base is nf4 weights in blocks of 64 of other codes: its base was saved with it" in complaint
    assert str(run / "base") in complaint
    assert minift("evaluate", "--model", run / "base", "--adapter", run / "adapter", "--data", data)[0] == 0
    assert minift("evaluate", "--model", run / "base", "--dtype", "bfloat16", "--adapter", run / "adapter", "--data", data)[0] == 0


def test_combining_keeps_the_base_they_share_and_refuses_two(minift, tune, small_model, tmp_path):  # noqa: F811
    one, two = (tune(*SHORT, "--quantize", "nf4", "--seed", seed, out=f"run{seed}")[3] / "adapter" for seed in (1, 2))
    full, loftq = tune(*SHORT, out="full")[3] / "adapter", tune(*SHORT, "--method", "loftq", out="loftq")[3] / "adapter"
    combine = lambda *folders: minift("combine", "--adapters", *folders, "--weights", 1, 1, "--model", small_model, "--out", tmp_path / "both")
    status, _, complaint = combine(one, full)
    assert status == 2 and "were not trained on the same kind of base" in complaint
    status, _, complaint = combine(loftq, loftq)
    assert status == 2 and "is LoftQ's" in complaint and not (tmp_path / "both").exists()
    assert combine(one, two)[0] == 0 and base_record.read(tmp_path / "both") == base_record.read(one)


def test_a_fusion_mixes_adapters_of_the_base_it_trains_on(tune):  # noqa: F811
    mixed = tune("--method", "pfeiffer", "--max-steps", 1, "--quantize", "nf4", out="one")[3] / "adapter"
    status, _, complaint, run = tune("--method", "fusion", "--options", "adapters", f"{mixed}", "--max-steps", 1, out="two")
    assert status == 2 and "pass --quantize nf4" in complaint and ON_PURPOSE not in complaint and not run.exists()


def test_an_adapter_without_the_file_is_loaded_as_before_and_a_broken_file_is_refused(minift, tune, small_model, data):  # noqa: F811
    adapter = tune(*SHORT, "--quantize", "nf4")[3] / "adapter"
    use = ("evaluate", "--model", small_model, "--adapter", adapter, "--data", data)
    for text, wanted in (("{", "is not valid JSON"), ("[]", 'must hold a JSON object with "quantize"')):
        (adapter / "base.json").write_text(text)
        status, _, complaint = minift(*use)
        assert status == 2 and wanted in complaint
    (adapter / "base.json").unlink()
    assert minift(*use)[0] == 0


def test_the_way_out_names_the_options_of_another_rounding(tmp_path, small_model):
    model = load(small_model)[0]
    quantize_model(model, "nf4", 32, double_quant=False)
    base_record.write(tmp_path, model, object())
    with pytest.raises(InputError, match="`minift quantize --to nf4 --block-size 32 --full-scales` and name that folder as the model"):
        base_record.compare(tmp_path, load(small_model, torch.float32, quantize="nf4")[0], None)
