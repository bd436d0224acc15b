"""Fine-tuning from the command line, end to end: files in, an adapter or a checkpoint out, and what is said on the way."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minift import peft
from minift.data.batches import Example
from minift.data.examples import Report
from minift.errors import InputError
from minift.folder import load
from minift.recipes import sft
from minift.recipes.sft import Config, batches, choose_parameters, describe
from minift.train.kept import Checkpoints
from minift.train.log import read_metrics

COLOURS, THINGS = ["red", "blue", "green", "grey", "white", "black"], ["sun", "moon", "cat", "dog", "tea", "sea"]
ROWS = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in COLOURS for thing in THINGS]
FILES = {
    "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "alpaca.json": json.dumps([{"instruction": "Say the colour.", "input": row["prompt"], "output": row["completion"]} for row in ROWS]),
    "chats.jsonl": "".join(json.dumps({"messages": [{"role": "user", "content": row["prompt"]},
                                                    {"role": "assistant", "content": row["completion"]}]}) + "\n" for row in ROWS),
    "pairs.csv": "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS),
    "pages.txt": "\n\n".join(f"{row['prompt']}{row['completion']}" for row in ROWS),
}    # fmt: skip
QUICK = ("--lr", 1e-2, "--epochs", 9, "--max-steps", 4, "--samples", 2, "--new-tokens", 4, "--precision", "fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def tune(minift, small_model, data, tmp_path):
    """`minift sft` on the small model, with options in front of the quick ones."""

    def run(file, *options, out="run", share=("--held-out", 0.3)):
        return minift("sft", "--model", small_model, "--data", data / file, "--out", tmp_path / out, *QUICK, *share, *options)

    return run


def held_out(text):
    """(before, after) of the line that reports them."""
    line = next(line for line in text.splitlines() if line.startswith("held-out loss"))
    words = line.split()
    return float(words[2]), float(words[4])


@pytest.mark.parametrize("method, file", [("lora", "pairs.jsonl"), ("lora", "alpaca.json"), ("full", "chats.jsonl"), ("full", "pages.txt"),
                                          ("last", "pairs.csv")])    # fmt: skip
def test_every_method_and_format_lowers_the_held_out_loss_and_says_so(tune, tmp_path, method, file):
    status, said, complaint = tune(file, "--method", method)
    assert not complaint
    before, after = held_out(said)
    assert status == 0 and after < before - 0.2, said
    assert f"written: {tmp_path / 'run' / ('adapter' if method == 'lora' else 'model')}" in said
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]
    for name in ("config.json", "metrics.jsonl", "loss.png", "samples.md", "checkpoints/step-4.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name


def test_the_adapter_is_in_pefts_format_and_gives_the_reported_loss(tune, minift, small_model, data, tmp_path):
    _, said, _ = tune("pairs.jsonl", "--rank", 3, "--alpha", 5, "--targets", "q_proj", "down_proj", "--eval-data", data / "pairs.jsonl",
                      share=())    # fmt: skip
    fields = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == ("LORA", 3, 5, str(small_model))
    assert sorted(fields["target_modules"]) == ["down_proj", "q_proj"]
    tensors = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (3, 48)
    assert len(tensors) == 2 * 2 * 2                                               # layers, targets, A and B
    assert 0 == minift("evaluate", "--model", small_model, "--adapter", tmp_path / "run/adapter", "--data", data / "pairs.jsonl",
                       "--out", tmp_path / "measured.json")[0]    # fmt: skip
    assert json.loads((tmp_path / "measured.json").read_text())["nats per token"] == pytest.approx(held_out(said)[1], abs=0.0006)


def test_a_written_model_reloads_with_equal_logits(tune, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(sft, "write_samples", lambda *_: None)
    written = sft.write_result
    monkeypatch.setattr(sft, "write_result", lambda model, *rest, **more: kept.update(model=model) or written(model, *rest, **more))
    tune("pairs.jsonl", "--method", "full")
    model, tokenizer = load(tmp_path / "run/model")
    ids = torch.tensor([tokenizer.encode("a red sun is")])
    with torch.no_grad():
        assert torch.equal(model(ids), kept["model"].eval()(ids))


def test_only_the_last_blocks_and_the_norm_train(small_model):
    model, _ = load(small_model)
    choose_parameters(model, Config(data=(), out="", method="last"))
    assert {name.split(".")[0] + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {"blocks1", "normbase"}
    choose_parameters(two := load(small_model)[0], Config(data=(), out="", method="last", last_n=2))
    assert not two.embed.weight.requires_grad and two.blocks[0].mlp.down.weight.requires_grad


@pytest.mark.parametrize("last_n", [0, 3])
def test_more_blocks_than_there_are_is_refused(small_model, last_n):
    with pytest.raises(InputError, match=f"the last {last_n} blocks of a model with 2"):
        choose_parameters(load(small_model)[0], Config(data=(), out="", method="last", last_n=last_n))


def test_a_fresh_adapter_changes_nothing_and_its_seed_is_the_runs(small_model):
    ids = torch.tensor([[1, 50, 60, 70]])
    first, second, third = (load(small_model)[0] for _ in range(3))
    choose_parameters(first, Config(data=(), out=""))
    torch.rand(3)                                                                  # whatever was drawn in between
    choose_parameters(second, Config(data=(), out=""))
    choose_parameters(third, Config(data=(), out="", seed=1))
    a, b, c = (dict(model.named_parameters())["blocks.0.mlp.down.adapters.default.A"] for model in (first, second, third))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(first(ids), load(small_model)[0](ids))


def test_the_share_held_out_is_measured_and_not_trained_on(tune):
    status, said, _ = tune("pairs.jsonl")
    train, valid = (int(said.split(" examples to train on")[0].split()[-1]), int(said.split(" held out")[0].split()[-1]))
    assert status == 0 and train + valid == 36 and 5 <= valid <= 17


@pytest.mark.parametrize("adapted", [["q_proj"], ["lm_head"]])                        # an adapter on the head: it has to be called for its logits
def test_trap08_packed_and_bucketed_batches_hold_the_same_targets_and_lose_the_same(small_model, adapted):
    model, _ = load(small_model)
    peft.attach(model, peft.LoRA(rank=2, targets=adapted))
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    dice = torch.Generator().manual_seed(0)
    lengths = [2, 9, 5, 17, 3, 11, 8, 2, 13]
    examples = [Example(torch.randint(4, 400, (n,), generator=dice).tolist(), [False] + [i % 3 != 0 for i in range(1, n)]) for n in lengths]

    def epoch(batching):
        config = Config(data=(), out="", batching=batching, batch_tokens=34)
        sums = [sft.loss(model, batch) for batch in batches(examples, config)(0)]
        return sum(total.item() for total, _ in sums), sum(int(count) for _, count in sums)

    with torch.no_grad():
        (packed, targets), (bucketed, same) = epoch("packed"), epoch("bucketed")
    assert targets == same == sum(sum(example.loss_mask) for example in examples)
    assert packed == pytest.approx(bucketed, rel=1e-6)


def test_trap08_both_ways_of_batching_report_the_same_loss_before(tune):
    before = [held_out(tune("chats.jsonl", "--batching", way, out=way)[1])[0] for way in ("packed", "bucketed")]
    assert before[0] == before[1]


def test_an_interrupted_run_says_how_to_go_on_and_ends_where_the_whole_one_ends(tune, tmp_path, monkeypatch):
    tune("pairs.jsonl", "--batch-tokens", 60, "--lora-dropout", 0.2, out="whole")
    honest, calls = sft.loss, []

    def interrupting(model, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(model, batch)

    monkeypatch.setattr(sft, "loss", interrupting)
    status, said, _ = tune("pairs.jsonl", "--batch-tokens", 60, "--lora-dropout", 0.2, out="cut")
    assert status == 1 and "interrupted after step 2 of 4" in said and "--resume to go on" in said
    monkeypatch.setattr(sft, "loss", honest)
    (tmp_path / "cut").rename(tmp_path / "moved")
    status, said, _ = tune("pairs.jsonl", "--batch-tokens", 60, "--lora-dropout", 0.2, "--resume", out="moved")
    assert status == 0 and [line["step"] for line in read_metrics(tmp_path / "moved") if "loss" in line] == [1, 2, 3, 4]
    whole, cut = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "moved"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_stopped_before_its_first_step_still_leaves_its_files(tune, tmp_path, monkeypatch):
    def stop(model, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "loss", stop)
    status, said, _ = tune("pairs.jsonl")
    assert status == 1 and "interrupted after step 0 of 4" in said
    assert (tmp_path / "run/loss.png").exists() and (tmp_path / "run/checkpoints/step-0.safetensors").exists()


def test_a_resumed_run_keeps_its_settings(tune):
    tune("pairs.jsonl")
    status, _, complaint = tune("pairs.jsonl", "--resume", "--seed", 5)
    assert status == 2 and "a resumed run keeps its settings: seed was 0, is 5" in complaint


def test_patience_stops_a_run_that_learns_nothing(tune):
    status, said, _ = tune("pairs.jsonl", "--patience", 2, "--lr", 0, "--eval-every", 1, "--max-steps", 9)
    assert status == 0 and "no better held-out loss in 2 evaluations: stopped at step 3 of 9" in said


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tune, tmp_path, monkeypatch):
    honest, calls = sft.loss, []

    def poisoned(model, batch):
        calls.append(1)
        total, count = honest(model, batch)
        return total * (float("nan") if len(calls) == 3 else 1), count

    monkeypatch.setattr(sft, "loss", poisoned)
    status, _, complaint = tune("pairs.jsonl", "--save-every", 1, "--batch-tokens", 60)
    assert status == 1 and "the loss is nan at step 3 (epoch 1, batch 3)" in complaint and "Traceback" not in complaint
    assert Checkpoints(tmp_path / "run").newest()["step"] == 2
    assert not (tmp_path / "run/adapter").exists()


def test_weights_that_leap_in_the_last_step_are_not_written_as_a_result(tune, tmp_path):
    status, _, complaint = tune("pairs.jsonl", "--method", "full", "--lr", 1e38, "--max-steps", 1, "--warmup", 0, "--schedule", "constant")
    assert status == 1 and "the held-out loss is nan after step 1" in complaint
    assert not (tmp_path / "run/model").exists()


def test_the_template_is_saved_with_the_adapter_and_with_the_model(tune, tmp_path):
    tune("chats.jsonl", "--template", "alpaca", out="lora")
    tune("chats.jsonl", "--template", "alpaca", "--method", "full", out="full")
    assert "### Response:" in (tmp_path / "lora/adapter/chat_template.jinja").read_text()
    assert "### Response:" in load(tmp_path / "full/model")[1].chat_template
    tune("pairs.jsonl", out="pairs")
    assert not (tmp_path / "pairs/adapter/chat_template.jinja").exists()           # no template was used


def test_samples_show_held_out_questions_before_and_after(tune, tmp_path):
    tune("chats.jsonl")
    lines = (tmp_path / "run/samples.md").read_text().splitlines()
    assert lines[2] == "| question | the file's answer | before | after |" and len(lines) == 4 + 2
    question, reference = lines[4].split(" | ")[:2]
    assert question.startswith("| user: a ") and reference.strip().strip(".") in question


def test_texts_have_no_questions_to_sample(tune, tmp_path):
    assert tune("pages.txt")[0] == 0 and len((tmp_path / "run/samples.md").read_text().splitlines()) == 4


@pytest.mark.parametrize("options, text", [
    (["--method", "full", "--rank", 4], "not of full: leave it out"),
    (["--method", "last", "--targets", "q_proj"], "--targets is an option of --method lora"),
    (["--last-n", 2], "--last-n is an option of --method last, not of lora"),
    (["--method", "full", "--dtype", "bfloat16"], "pass --dtype float32, bfloat16 cannot resolve its small steps"),
    (["--optimizer", "muon"], "--optimizer muon is for whole weight matrices (--method full), and --method lora trains others: take adamw"),
    (["--optimizer", "galore"], "--optimizer galore is for whole weight matrices (--method full or last), and --method lora trains others"),
    (["--optimizer", "galore", "--method", "full"], "wider than --galore-rank 128, and the smaller side of the widest of them is 32"),
    (["--galore-rank", 4], "--galore-rank is an option of --optimizer galore"),
    (["--template", "chatml"], "--template chatml would change nothing: these rows are prompt/completion"),
    (["--eval-data", "x.jsonl"], "--eval-data says what is measured"),
    (["--resume", "--overwrite"], "choose one of them"),
    (["--rank", 0], "LoRA rank is 0"),
    (["--targets", "qq_proj"], "matches no linear or embedding of this model"),
    (["--held-out", 1.5], "the held-out fraction must lie between 0 and 1, it is 1.5"),
    (["--max-length", 1], "max_length 1 leaves no room"),
    (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
    (["--epochs", -1], "wanted at least one step"),
    (["--max-steps", 0], "wanted at least one step"),
    (["--accumulate", 0], "--accumulate is 0: wanted 1 or more"),
    (["--warmup", 2], "it is a share of the steps, wanted 0 to 1"),
    (["--lr", -1], "--lr is -1.0: wanted 0 or more"),
    (["--columns", "prompt", "question"], "there is no column 'question'; found prompt, completion"),
])    # fmt: skip
def test_options_without_effect_or_meaning_are_refused_and_nothing_is_written(tune, tmp_path, options, text):
    status, _, complaint = tune("pairs.jsonl", *options)
    assert status == 2 and text in " ".join(complaint.split()), complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options, text", [
    (["--no-such-option", 3], "no-such-option"),
    (["--method", "no-such-method"], "invalid choice"),
    (["--options", "no_such_field", 3], "--options no_such_field: the method lora has no such option; it has"),
    (["--method", "lora", "--options", "mlp_size", 3], "--options mlp_size: the method lora has no such option"),
    (["--method", "bitfit", "--rank", 4], "not of bitfit: leave it out"),
    (["--quantize", "nf5"], "invalid choice"),
])    # fmt: skip
def test_trap22_an_unknown_or_unused_option_raises(tune, tmp_path, options, text):
    status, _, complaint = tune("pairs.jsonl", *options)
    assert status == 2 and text in " ".join(complaint.replace("│", "").split()), complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options, name", [(["--checkpointing"], "checkpointing"), (["--accumulate", 2], "accumulate"), (["--clip", 0], "clip"),
                                           (["--schedule", "linear"], "schedule"), (["--learn", "all"], "learn"),
                                           (["--precision", "bf16"], "precision"), (["--betas", 0.8, 0.9], "betas")])    # fmt: skip
def test_every_option_ends_in_the_runs_config(tune, tmp_path, options, name):
    assert tune("pairs.jsonl", *options)[0] == 0
    settings = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert settings[name] == {"checkpointing": True, "accumulate": 2, "clip": 0, "schedule": "linear", "learn": "all", "precision": "bf16",
                              "betas": [0.8, 0.9]}[name]    # fmt: skip


def test_nothing_that_was_dropped_or_cut_goes_unsaid(tune, data, tmp_path):
    rows = [{**ROWS[0], "completion": ""}, ROWS[1], *ROWS, {"prompt": "long " * 40, "completion": " long" * 40}]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, said, _ = tune(tmp_path / "odd.jsonl", "--max-length", 30, "--eval-data", data / "pairs.jsonl", share=())
    assert status == 0 and "1 questions repeat an earlier one" in said
    assert "1 training examples were cut to --max-length, 1 of them in the answer" in said
    assert f"1 training rows have no answer and are left out: {tmp_path / 'odd.jsonl'}, line 1\n" in said


def test_a_list_of_rows_left_out_is_cut_after_three():
    text = describe(Report(without_answer=["a", "b", "c", "d"]), Report(without_answer=["e"]))
    assert "left out: a, b, c ..." in text and text.endswith("left out: e")


def test_a_run_in_use_is_replaced_only_when_told(tune, tmp_path):
    tune("pairs.jsonl", "--seed", 3)
    status, _, complaint = tune("pairs.jsonl")
    assert status == 2 and f"the folder {tmp_path / 'run'} is in use: name another one, or pass --overwrite" in complaint
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["seed"] == 3
    assert tune("pairs.jsonl", "--overwrite")[0] == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["seed"] == 0


def test_targets_may_be_one_regular_expression(small_model):
    model, _ = load(small_model)
    choose_parameters(model, Config(data=(), out="", targets=(r".*layers\.1.*(q|v)_proj",)))
    assert peft.trainable(model).trained == 8 * (32 + 32 + 32 + 16)
