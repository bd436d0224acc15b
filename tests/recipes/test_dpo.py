"""`minift dpo` from the command line: pairs in, a model out that prefers by the rule in them; and its reference, its losses, its refusals.

Where two ways to the same number differ in the order of float32 sums (log-probabilities of size ~30, eps 1.2e-7, tens of terms), 1e-4 is allowed
for the number, and 1e-5 for a loss, in which it is multiplied by beta."""

import json
import math
import random
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from safetensors.torch import load_file, save_file

from minift import peft
from minift.data.branches import Tree, apart, batches_of_trees
from minift.data.preference_trees import PairReport
from minift.errors import InputError
from minift.folder import load, save
from minift.losses.logprobs import loss_from_hidden, per_answer
from minift.recipes import dpo, reference
from minift.recipes.dpo import Config, PairLoss, Pairs
from minift.recipes.objectives import Answers, objective, rewards
from minift.recipes.preference_rows import Rows, with_others
from minift.recipes.tuning import choose_parameters
from minift.train import answers as train_answers
from minift.train.answers import logprobs_of_answers
from minift.train.log import read_metrics
from minift.train.loop import fit
from tests.conftest import random_model

WORDS = ["table", "function", "object", "string", "value", "class", "module", "name"]
LOSSES = {
    "dpo": (), "cdpo": ("--label-smoothing", 0.1), "robust": ("--label-smoothing", 0.1), "ipo": (), "hinge": (), "apo-zero": (), "apo-down": (), "kto": (),
    "orpo": ("--beta", 2.0), "simpo": (), "cpo": ("--beta", 0.3),
}  # fmt: skip
QUICK = ("--epochs", 9, "--max-steps", 4, "--lr", 1e-2, "--batch-tokens", 400, "--samples", 2, "--new-tokens", 4, "--precision", "fp32")
LN2 = math.log(2)


def pairs(count, seed):
    """The rule: an answer that says please is preferred. Answers are of unequal length, and some prompts have two pairs."""
    dice, rows = random.Random(seed), []
    for number in range(count):
        said = dice.sample(WORDS, 3)
        polite = [*said[: dice.choice((1, 2))], "please"]
        dice.shuffle(polite)
        rows.append({"prompt": f"say the {dice.choice(WORDS)} {number // 2 if number % 5 == 1 else number}", "chosen": " " + " ".join(polite),
                     "rejected": " " + " ".join(said)})    # fmt: skip
    return rows


def labelled(rows):
    """One answer of each pair, of every second one the good one."""
    kinds = [("chosen", True), ("rejected", False)]
    return [{"prompt": row["prompt"], "completion": row[kinds[i % 2][0]], "label": kinds[i % 2][1]} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    files = {"pairs": pairs(40, 0), "others": pairs(30, 1), "labels": labelled(pairs(40, 0)), "long": [
        {**row, "prompt": " ".join([row["prompt"]] * 12)} for row in pairs(40, 0)]}    # fmt: skip
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def prefer(minift, small_model, data, tmp_path):
    """`minift dpo` on the small model, with options behind the quick ones."""

    def run(*options, file="pairs", out="run", model=small_model, share=("--held-out", 0.3)):
        return minift("dpo", "--model", model, "--data", data / f"{file}.jsonl", "--out", tmp_path / out, *QUICK, *share, *options)

    return run


def steps(folder):
    return [line for line in read_metrics(folder) if "loss" in line]


def evaluations(folder):
    return [line for line in read_metrics(folder) if "eval_loss" in line]


def held_out(said):
    """(loss before, loss after, accuracy after) of the line that reports them."""
    words = next(line for line in said.splitlines() if line.startswith("held-out loss")).split()
    return float(words[2]), float(words[4].strip(",")), float(words[5].strip("%")) / 100


def trees(file, tokenizer):
    """The pairs of a file, tokenised here by hand."""
    encode = lambda text: [*tokenizer.encode(text, add_special_tokens=False, continues=True), tokenizer.eos_id]
    return [Tree(tokenizer.encode(row["prompt"]), [encode(row["chosen"]), encode(row["rejected"])]) for row in map(json.loads, file.read_text().splitlines())]


def prepared(small_model, data, count=8, share=True, moved=True, **fields):
    """(model, pairs, loss) as the recipe makes them, with a reference that is the model's own start; moved: the policy is elsewhere by now."""
    model, tokenizer = load(small_model)
    config = Config(data=(), out="", **{"precision": "fp32", **fields})
    choose_parameters(model, config)
    some = trees(data / "pairs.jsonl", tokenizer)[:count]
    labels = torch.arange(count) % 3 == 0 if config.loss == "kto" else None
    some = with_others([Tree(tree.prompt, tree.answers[:1]) for tree in some]) if config.loss == "kto" else some
    with reference.base_of(model):
        values = reference.sums(model, some, 100)
    if moved:
        dice = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    return model, Pairs(Rows(some, None, labels, PairReport(), None), values, share), PairLoss(config)


# ---- it learns


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_and_prefers_unseen_answers_by_the_rule(prefer, data, tmp_path, loss):
    status, said, complaint = prefer("--loss", loss, *LOSSES[loss], "--eval-data", data / "others.jsonl", "--max-steps", 16, share=())
    assert status == 0 and not complaint, complaint
    before, after, accuracy = held_out(said)
    assert after < before - 0.005 and accuracy >= 0.8, said
    assert (tmp_path / "run/reference.safetensors").exists() == (loss not in ("orpo", "simpo", "cpo"))
    lines = steps(tmp_path / "run")
    for line in lines:
        assert {"chosen", "rejected", "margin", "accuracy", "reward_chosen", "reward_rejected"} <= line.keys() and 0 <= line["accuracy"] <= 1
        assert line["margin"] == pytest.approx(line["reward_chosen"] - line["reward_rejected"], abs=1e-6)
    assert lines[-1]["margin"] > lines[0]["margin"]
    last = evaluations(tmp_path / "run")[-1]
    assert {"eval_loss", "eval_chosen", "eval_rejected", "eval_margin", "eval_accuracy"} <= last.keys()


@pytest.mark.parametrize("options, written", [
    (["--method", "full"], "model"), (["--method", "dora", "--rank", 2], "adapter"), (["--quantize", "nf4"], "adapter"),
    (["--method", "prompt", "--options", "length", 3, "--lr", 3e-2], "adapter"), (["--batching", "bucketed", "--checkpointing"], "adapter"),
])    # fmt: skip
def test_full_weights_adapters_and_a_base_in_4_bits_learn_and_leave_their_files(prefer, tmp_path, options, written):
    status, said, complaint = prefer(*options, "--max-steps", 8)
    assert status == 0 and not complaint, complaint
    before, after, accuracy = held_out(said)
    assert after < before - 0.01 and accuracy > 0.6, said
    assert f"written: {tmp_path / 'run' / written}" in said
    for name in ("config.json", "metrics.jsonl", "loss.png", "preferences.png", "samples.md", "checkpoints", f"{written}/config.json"):
        name = "adapter/adapter_config.json" if name == "adapter/config.json" else name
        assert (tmp_path / "run" / name).stat().st_size > 0, name


def test_the_held_out_pairs_are_not_trained_on_and_no_prompt_is_on_both_sides(prefer, tmp_path, monkeypatch):
    seen = {True: [], False: []}
    honest = PairLoss.__call__
    monkeypatch.setattr(PairLoss, "__call__", lambda self, model, batch: seen[model.training].append(batch) or honest(self, model, batch))
    _, said, _ = prefer("--epochs", 1, "--max-steps", 99)
    counts = {kind: int(next(line for line in said.splitlines() if kind in line).split()[0]) for kind in ("pairs to train on", "pairs held out")}
    assert sum(counts.values()) == 40 and 5 <= counts["pairs held out"] < 20
    assert sum(line["pairs"] for line in steps(tmp_path / "run")) == sum(batch.trees for batch in seen[True]) == counts["pairs to train on"]
    prompts = {training: {tuple(b.token_ids[r][(b.segments[r] == s) & (b.branches[r] == 0)].tolist()) for b in batches for r in range(len(b.token_ids))
                          for s in range(1, int(b.segments[r].max()) + 1)} for training, batches in seen.items()}    # fmt: skip
    assert len(prompts[True]) > 15 and len(prompts[False]) >= 5 and not prompts[True] & prompts[False]


def test_samples_are_different_held_out_questions_with_the_better_answer(prefer, tmp_path):
    for loss, file in (("dpo", "pairs"), ("kto", "labels"), ("kto", "pairs")):
        prefer("--loss", loss, "--samples", 5, "--overwrite", file=file)
        lines = (tmp_path / "run/samples.md").read_text().splitlines()[4:]
        assert len(lines) == 5 == len({line.split(" | ")[0] for line in lines})
        assert all("please" in line.split(" | ")[1] for line in lines)


# ---- the reference (trap 18)


@pytest.mark.parametrize("options", [
    ["--lora-dropout", 0.5], ["--lora-dropout", 0.5, "--live-reference"], ["--method", "full"], ["--quantize", "nf4", "--lora-dropout", 0.3],
    ["--method", "dora", "--lora-dropout", 0.5, "--live-reference"], ["--method", "ia3"], ["--method", "vera", "--live-reference"],
    ["--method", "layernorm", "--live-reference"], ["--method", "pissa"], ["--method", "pissa", "--live-reference"],
    ["--method", "last"], ["--method", "head", "--live-reference"], ["--batching", "bucketed"], "named",
])    # fmt: skip
def test_trap18_step_zero_is_ln_2_and_rewards_are_0(prefer, small_model, tmp_path, options):
    options = ["--reference", small_model] if options == "named" else options
    status, said, complaint = prefer(*options, "--beta", 0.5)
    assert status == 0, complaint
    assert held_out(said)[0] == pytest.approx(LN2, abs=0.0006)                    # printed with three digits
    first, last = steps(tmp_path / "run")[0], steps(tmp_path / "run")[-1]
    assert first["loss"] == pytest.approx(LN2, abs=2e-5)
    assert abs(first["reward_chosen"]) < 1e-4 and abs(first["reward_rejected"]) < 1e-4
    assert first["grad_norm"] > 0 and abs(last["margin"]) > 1e-3                  # and it moves from there


@pytest.mark.parametrize("options", [[], ["--live-reference"], ["--method", "full"]])
def test_trap18_a_models_own_dropout_is_off_for_policy_and_reference_and_in_what_is_written_on_again(prefer, small_tokenizer, tmp_path, options):
    save(random_model(small_tokenizer, **GPT2, dropout=0.3), small_tokenizer, tmp_path / "model")
    status, _, complaint = prefer(*options, model=tmp_path / "model")
    assert status == 0, complaint
    first = steps(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(LN2, abs=2e-5) and abs(first["reward_chosen"]) < 1e-4
    if "full" in options:
        assert json.loads((tmp_path / "run/model/config.json").read_text())["resid_pdrop"] == 0.3


def test_trap18_the_cached_reference_and_the_live_one_are_the_same_numbers_while_the_policy_moves(prefer, tmp_path):
    for name, options in (("cached", []), ("live", ["--live-reference"]), ("again", ["--reference", tmp_path / "cached/reference.safetensors"])):
        assert prefer(*options, "--lora-dropout", 0.2, "--seed", 3, "--max-steps", 6, "--eval-every", 2, out=name)[0] == 0
    cached, live, again = (read_metrics(tmp_path / name) for name in ("cached", "live", "again"))
    assert len(cached) == len(live) == 6 + 3 and not (tmp_path / "live/reference.safetensors").exists()
    for one, other, third in zip(cached, live, again):
        assert one.keys() == other.keys()
        for name in (name for name in one if name.endswith(("loss", "margin", "chosen", "rejected"))):
            assert one[name] == pytest.approx(other[name], abs=1e-3) and one[name] == third[name], name
    assert cached[-1]["eval_margin"] > 0.05


def test_trap18_the_reference_is_the_base_without_dropout_whatever_the_method_has_put_on_it(small_model, data):
    base, tokenizer = load(small_model)
    some = trees(data / "pairs.jsonl", tokenizer)[:7]
    expected = torch.cat([per_answer(logprobs_of_answers(base, dpo.rows_of([tree])), torch.tensor([len(a) for a in tree.answers])) for tree in some])
    for method, fields in (("prompt", dict(options={"length": "4"})), ("lora", dict(lora_dropout=0.5)), ("pissa", dict(lora_dropout=0.5)), ("full", {})):
        model = load(small_model)[0]
        choose_parameters(model, Config(data=(), out="", method=method, **fields))
        model.train()
        with reference.base_of(model):
            torch.testing.assert_close(reference.sums(model, some, 60), expected, rtol=0, atol=1e-4)
        assert model.training and reference.keeps_base(model) == (method != "full")
    peft.attach(base, peft.LoRA(rank=2, dropout=0.5))
    for name, parameter in base.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_()
    alone = reference.sums(base.eval(), some, 60)
    assert torch.equal(reference.sums(base.train(), some, 60), alone)             # a policy in training mode is measured without its dropout
    assert (alone - expected).abs().max() > 0.1


def test_a_models_answers_in_many_micro_batches_come_back_in_their_order(small_model, data):
    model, tokenizer = load(small_model)
    some = trees(data / "pairs.jsonl", tokenizer)
    assert len(batches_of_trees([tree.size for tree in some], 50, seed=0, bucketed=True)) > 5
    one_by_one = torch.cat([reference.sums(model, [tree], 50) for tree in apart(some)])
    torch.testing.assert_close(reference.sums(model, some, 50), one_by_one, rtol=0, atol=1e-4)


def test_another_models_reference_is_its_own_log_probabilities(prefer, small_tokenizer, data, tmp_path):
    other = random_model(small_tokenizer)
    other.embed.weight.data *= 1.5
    save(other, small_tokenizer, tmp_path / "other")
    status, said, _ = prefer("--reference", tmp_path / "other", "--eval-data", data / "others.jsonl", share=())
    assert status == 0 and held_out(said)[0] != pytest.approx(LN2, abs=0.01)
    every = [*trees(data / "pairs.jsonl", small_tokenizer), *trees(data / "others.jsonl", small_tokenizer)]
    kept = load_file(tmp_path / "run/reference.safetensors")["logprobs"]
    torch.testing.assert_close(kept, reference.sums(other, every, 100), rtol=0, atol=1e-4)


def test_a_reference_file_is_refused_for_other_answers_and_named_when_it_is_damaged(prefer, tmp_path):
    prefer(out="first")
    file = tmp_path / "first/reference.safetensors"
    status, _, complaint = prefer("--reference", file, file="others", out="second")
    assert status == 2 and f"{file} holds the reference of other answers" in complaint
    whole = file.read_bytes()
    for content in (b"", b"nonsense", whole[:-4]):
        file.write_bytes(content)
        status, _, complaint = prefer("--reference", file, out="second")
        assert status == 2 and f"{file} is no readable file of a reference's log-probabilities" in complaint and "Traceback" not in complaint
    save_file({"something": torch.zeros(3)}, file)
    status, _, complaint = prefer("--reference", file, out="second")
    assert status == 2 and f"{file} holds the reference of other answers" in complaint
    assert not (tmp_path / "second").exists()


def test_a_run_that_goes_on_reads_its_reference_and_ends_where_the_whole_one_ends(prefer, tmp_path, monkeypatch):
    options = ("--lora-dropout", 0.2, "--accumulate", 2)
    prefer(*options, out="whole")
    honest, calls = PairLoss.__call__, []

    def interrupting(self, model, batch):
        calls.extend([1] * model.training)
        if len(calls) == 4:                                                       # two micro-batches, then the last one of the epoch
            raise KeyboardInterrupt
        return honest(self, model, batch)

    monkeypatch.setattr(PairLoss, "__call__", interrupting)
    status, said, _ = prefer(*options, out="cut")
    assert status == 1 and "interrupted after step 2 of 4" in said
    monkeypatch.setattr(PairLoss, "__call__", honest)
    monkeypatch.setattr(reference, "sums", lambda *_: pytest.fail("the reference was computed again"))
    status, said, complaint = prefer(*options, "--resume", out="cut")
    assert status == 0, complaint
    assert [line["step"] for line in steps(tmp_path / "cut")] == [1, 2, 3, 4]
    whole, cut = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    keep = lambda line: {name: value for name, value in line.items() if name != "pairs_per_s"}
    assert [keep(line) for line in read_metrics(tmp_path / "whole")] == [keep(line) for line in read_metrics(tmp_path / "cut")]


# ---- the loss of a batch


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "kto"])
def test_trap01_however_eight_pairs_are_split_the_gradient_is_the_same(small_model, data, tmp_path, loss):
    found = []
    for number, split in enumerate(([8], [4, 4], [1] * 8, [3, 5])):
        smoothing = 0.1 if loss in ("cdpo", "robust") else 0.0
        model, all_pairs, whole = prepared(small_model, data, share=number % 2 == 0, loss=loss, label_smoothing=smoothing, method="full", lr=0.0,
                                           clip=0.0, accumulate=len(split), max_steps=1)    # fmt: skip
        model = model.double()
        all_pairs.reference = all_pairs.reference.double()
        order = [3, 0, 7, 2, 5, 1, 6, 4]
        batches = [all_pairs.batch(order[sum(split[:i]) : sum(split[: i + 1])]) for i in range(len(split))]
        grads = []
        fit(model, lambda _: batches, whole, whole.config, tmp_path / f"{number}", quiet=True, metrics=whole.taken,
            after_step=lambda *_: grads.extend(p.grad.clone() for p in model.parameters()))    # fmt: skip
        found.append((steps(tmp_path / f"{number}")[0], grads))
    for line, grads in found[1:]:
        for name in ("loss", "accuracy", "margin", "chosen", "rejected"):
            assert line[name] == pytest.approx(found[0][0][name], abs=1e-9), name
        for one, other in zip(grads, found[0][1]):                                # rotary positions are turned in float32 (eps 6e-8)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * max(1.0, other.abs().max().item()))


def test_what_is_said_of_a_batch_is_worked_out_longhand(small_model, data):
    model, some, loss = prepared(small_model, data, count=5, beta=0.3)
    with torch.no_grad():
        total, count = loss(model, some.batch([4, 1, 2]))
    policy = reference.sums(model, some.trees, 100).view(-1, 2)[[4, 1, 2]]
    gains = policy - some.reference.view(-1, 2)[[4, 1, 2]]                        # (3, 2): chosen, rejected
    m = 0.3 * (gains[:, 0] - gains[:, 1])
    assert count == 3 and total.item() == pytest.approx(sum(math.log(1 + math.exp(-x)) for x in m.tolist()), abs=1e-4)
    said = loss.taken()
    expected = {"reward_chosen": 0.3 * gains[:, 0].mean(), "reward_rejected": 0.3 * gains[:, 1].mean(), "margin": m.mean(),
                "accuracy": (m > 0).float().mean(), "chosen": policy[:, 0].mean(), "rejected": policy[:, 1].mean()}    # fmt: skip
    assert said == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-4)
    assert gains.abs().min() > 1e-3 and loss.seen == []


def test_kto_of_a_batch_is_worked_out_longhand(small_model, data):
    model, some, loss = prepared(small_model, data, count=7, loss="kto", beta=0.3, desirable_weight=1.5)
    some.reference -= torch.linspace(2, 9, 14)                                    # the policy has moved towards most of them: z is not 0
    with torch.no_grad():
        total, count = loss(model, some.batch([6, 0, 4, 3]))
    policy = reference.sums(model, some.trees, 100).view(-1, 2)[[6, 0, 4, 3]]
    gains = (policy - some.reference.view(-1, 2)[[6, 0, 4, 3]]).tolist()          # (4, 2): its own answer, another row's
    z = max(0.0, sum(other for _, other in gains) / 4)
    good = [True, True, False, True]                                              # every third row is desirable
    assert z > 0.5 and abs(z - sum(own for own, _ in gains) / 4) > 0.1
    expected = [1.5 * (1 - 1 / (1 + math.exp(-0.3 * (g - z)))) if d else 1 - 1 / (1 + math.exp(-0.3 * (z - g))) for (g, _), d in zip(gains, good)]
    assert count == 4 and total.item() == pytest.approx(sum(expected), abs=1e-4)
    said = loss.taken()
    right = [d == (g > 0) for (g, _), d in zip(gains, good)]
    assert said["accuracy"] == sum(right) / 4 and said["rejected"] == pytest.approx(policy[2, 0].item(), abs=1e-4)
    assert said["reward_chosen"] == pytest.approx(0.1 * sum(g for (g, _), d in zip(gains, good) if d), abs=1e-4)


@pytest.mark.parametrize("rows", [1, 20, 45, 70])                                # pairs have 20 to 30 tokens; KTO's rows are one group
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_pair_is_whole_however_few_rows_of_logits_there_is_room_for(small_model, data, monkeypatch, loss, rows):
    found = []
    for room in (10_000, rows):
        monkeypatch.setattr(train_answers, "loss_from_hidden", partial(loss_from_hidden, logit_bytes=4 * 400 * room))
        model, some, made = prepared(small_model, data, loss=loss, method="full")
        some.reference -= torch.linspace(2, 9, 16)
        total, _ = made(model, some.batch([5, 2, 7, 0, 1]))
        total.backward()
        found.append((total, model.head.weight.grad, model.blocks[0].mlp.down.weight.grad, made.taken()))
    (*ours, said), (*expected, said_whole) = found
    assert said == pytest.approx(said_whole, abs=1e-4)
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_before_the_first_step_half_of_the_pairs_are_ranked_right(small_model, data):
    for loss in ("dpo", "kto"):
        model, some, made = prepared(small_model, data, moved=False, loss=loss)
        some.reference = reference.sums(model, some.trees, 100)
        batch = some.batch(range(8))
        batch.values["reference"] = per_answer(logprobs_of_answers(model, batch), batch.lengths)
        made(model, batch)
        assert made.taken()["accuracy"] == 0.5


def answers(loss):
    policy, ref = torch.tensor([-5.0, -9.0, -4.0, -3.0]), torch.tensor([-6.0, -8.0, -4.5, -4.0])
    return Answers(policy, torch.tensor([]) if loss in ("orpo", "simpo", "cpo") else ref, torch.tensor([2, 3, 4, 1]), torch.tensor([True, False]))


@pytest.mark.parametrize("loss, beta, expected", [                                # gains of the two pairs: 1 and -1; 0.5 and 1
    ("dpo", 1.0, math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5))),
    ("dpo", 0.5, math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.25))),
    ("hinge", 0.5, (1 - 1) + (1 + 0.25)),
    ("ipo", 0.5, (1 / 2 + 1 / 3 - 1) ** 2 + (0.5 / 4 - 1 - 1) ** 2),               # answers of 2 and 3 tokens, of 4 and 1
    ("simpo", 2.0, math.log(1 + math.exp(1 - 2 * (-5 / 2 + 9 / 3))) + math.log(1 + math.exp(1 - 2 * (-4 / 4 + 3)))),
])    # fmt: skip
def test_beta_and_the_order_of_the_answers_by_hand(loss, beta, expected):
    assert objective(Config(data=(), out="", loss=loss, beta=beta))(answers(loss)).item() == pytest.approx(expected, abs=1e-6)


def test_rewards_by_hand():
    close = lambda loss, expected, **more: torch.testing.assert_close(rewards(answers(loss), Config(data=(), out="", loss=loss, **more)), torch.tensor(expected))
    close("dpo", [0.1, -0.1, 0.05, 0.1])
    close("ipo", [0.5, -0.5, 0.25, 0.5], beta=0.5)
    close("cpo", [-0.5, -0.9, -0.4, -0.3])
    close("simpo", [-5.0, -6.0, -2.0, -6.0])                                      # 2 log p / tokens


# ---- KTO's rows


def test_trap21_kto_takes_pairs_and_labels_and_says_what_they_are(prefer, tmp_path):
    _, said, _ = prefer("--loss", "kto", file="pairs", out="pairs")
    counts = [line.split()[0] for line in said.splitlines() if " desirable and " in line]
    assert sum(map(int, counts)) == 80 and "of the answers ranked right" in said
    status, said, _ = prefer("--loss", "kto", "--desirable-weight", 2, file="labels", out="labels")
    assert status == 0 and sum(int(line.split()[0]) for line in said.splitlines() if " desirable and " in line) == 40
    assert "answers" in steps(tmp_path / "labels")[0]


@pytest.mark.parametrize("label, kind", [(True, "desirable"), (False, "undesirable")])
def test_kto_says_so_if_all_answers_are_of_one_kind(minift, small_model, data, tmp_path, label, kind):
    rows = [json.loads(line) | {"label": label} for line in (data / "labels.jsonl").read_text().splitlines()]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, said, _ = minift("dpo", "--loss", "kto", "--model", small_model, "--data", tmp_path / "one.jsonl", "--out", tmp_path / "run", *QUICK)
    assert status == 0 and f"every answer to train on is {kind}: nothing says how those of the other kind differ" in said


@pytest.mark.parametrize("n", range(2, 10))
def test_trap21_no_row_is_its_own_other(n):
    rows = [Tree([1, i], [[10 + i]]) for i in range(n)]
    assert all(tree.answers[0] == [10 + i] and tree.answers[1] != [10 + i] for i, tree in enumerate(with_others(rows)))


def test_trap21_an_other_answer_is_of_another_prompt_and_fits_behind_this_one():
    rows = [Tree([1, 5], [[7]]), Tree([1, 5], [[8]]), Tree([1, 6, 6], [[9, 9, 9, 2]]), Tree([1, 5], [[4]])]
    assert [tree.answers[1] for tree in with_others(rows)] == [[9, 9, 9, 2], [9, 9, 9, 2], [4], [9, 9, 9, 2]]
    assert [tree.answers[1] for tree in with_others(rows, max_length=4)] == [[9, 9], [9, 9], [4], [9, 9]]
    with pytest.raises(InputError, match="needs answers of other prompts, and here is one prompt .2 rows."):
        with_others(rows[:2])


# ---- models with learned positions


GPT2 = dict(family="gpt2", norm="layernorm", position="learned", activation="gelu_tanh", gated=False, qkv="joined", qkv_bias=True, kv_heads=4,
            attention_out_bias=True, mlp_bias=True)    # fmt: skip


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_long_prompts_are_refused_by_learned_positions_and_fit_once_they_are_cut(prefer, small_tokenizer, tmp_path, loss):
    save(random_model(small_tokenizer, **GPT2, max_positions=48), small_tokenizer, tmp_path / "model")
    status, _, complaint = prefer("--loss", loss, file="long", model=tmp_path / "model")
    assert status == 2 and "this model has positions for 48: pass --max-length 48" in complaint and not (tmp_path / "run").exists()
    status, said, complaint = prefer("--loss", loss, "--max-length", 48, file="long", model=tmp_path / "model")
    assert status == 0 and "prompts lost their middle to --max-length" in said, complaint


# ---- pictures


def test_the_picture_says_what_it_shows(prefer, monkeypatch):
    shown, close = {}, plt.close
    monkeypatch.setattr(plt, "close", lambda figure: close(figure) or shown.update({axes.get_title(): axes for axes in figure.axes}))
    prefer("--eval-every", 2)
    left, right = shown["Which of the two moves?"], shown["How often has the chosen answer gained more?"]
    curves = {line.get_label(): line for line in left.get_lines()}
    assert {"chosen, held out", "rejected, held out", "chosen, training", "rejected, training"} <= curves.keys()
    assert list(curves["chosen, held out"].get_xdata()) == [0, 2, 4] and curves["chosen, held out"].get_ydata()[0] == 0
    assert abs(curves["chosen, training"].get_ydata()[0]) < 0.01 and left.get_ylabel() == "log p(answer) against the start, nats"
    assert right.get_ylim() == (0, 1.02) and right.get_ylabel() == "share of pairs"
    prefer("--loss", "kto", "--overwrite")
    assert "How often has an answer moved its label's way?" in shown and "desirable, held out" in [
        line.get_label() for line in shown["Which of the two moves?"].get_lines()]    # fmt: skip
    prefer("--loss", "simpo", "--overwrite")
    assert "How often is the chosen answer likelier?" in shown
    assert "chosen, training" not in [line.get_label() for line in shown["Which of the two moves?"].get_lines()]


# ---- refusals


@pytest.mark.parametrize("options, text", [
    (["--label-smoothing", 0.1], "--label-smoothing is an option of --loss cdpo, robust, not of dpo: leave it out"),
    (["--loss", "cdpo"], "--loss cdpo wants more than 0 and less than 0.5 (none of it is plain dpo)"),
    (["--loss", "robust", "--label-smoothing", 0.5], "--loss robust wants more than 0 and less than 0.5"),
    (["--loss", "ipo", "--gamma", 1], "--gamma is an option of --loss simpo, not of ipo"),
    (["--sft-weight", 1], "--sft-weight is an option of --loss orpo, cpo, not of dpo"),
    (["--desirable-weight", 2], "--desirable-weight is an option of --loss kto, not of dpo"),
    (["--loss", "simpo", "--undesirable-weight", 2], "--undesirable-weight is an option of --loss kto, not of simpo"),
    (["--loss", "simpo", "--reference", "elsewhere"], "--loss simpo has no reference: leave --reference and --live-reference out"),
    (["--loss", "orpo", "--live-reference"], "--loss orpo has no reference"),
    (["--reference", "elsewhere", "--live-reference"], "a reference named with --reference is computed once: leave one out"),
    (["--reference", "elsewhere"], "no such folder: elsewhere"),
    (["--method", "full", "--live-reference"], "so there is no reference left to run live"),
    (["--method", "last", "--live-reference"], "so there is no reference left to run live"),
    (["--compile"], "--compile has nothing to gain here"),
    (["--beta", 0], "--beta is 0.0: wanted more than 0"),
    (["--beta", "inf"], "--beta is inf: wanted more than 0"),
    (["--loss", "cpo", "--sft-weight", -1], "--sft-weight is -1.0: wanted 0 or more"),
    (["--loss", "no-such-loss"], "invalid choice"),
    (["--no-such-option", 3], "no-such-option"),
    (["--template", "chatml"], "--template chatml would change nothing"),
    (["--eval-data", "x.jsonl"], "--eval-data says what is measured"),
    (["--max-length", 1], "max_length 1 leaves no room"),
])    # fmt: skip
def test_trap22_an_option_without_effect_or_meaning_is_refused_and_nothing_is_written(prefer, tmp_path, options, text):
    status, _, complaint = prefer(*options)
    assert status == 2 and text in " ".join(complaint.replace("│", "").split()), complaint
    assert not (tmp_path / "run").exists()


def test_a_reference_inside_the_folder_that_a_new_run_empties_is_refused(prefer, tmp_path):
    prefer()
    status, _, complaint = prefer("--reference", tmp_path / "run/reference.safetensors", "--overwrite")
    assert status == 2 and "the folder of this run: name another folder with --out" in complaint
    assert (tmp_path / "run/reference.safetensors").exists()


def test_a_reference_with_another_vocabulary_is_refused_before_an_earlier_run_is_given_up(prefer, small_tokenizer, tmp_path):
    model = random_model(small_tokenizer)
    model.config = type(model.config)(**{**vars(model.config), "vocab_size": 405})
    model.embed = torch.nn.Embedding(405, 32)
    model.head.weight = model.embed.weight
    save(model, small_tokenizer, tmp_path / "other")
    prefer()
    status, _, complaint = prefer("--reference", tmp_path / "other", "--overwrite")
    assert status == 2 and "knows 405 tokens, the model 400: they need one tokenizer" in complaint and (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("rows, options, text", [
    ([{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
       "rejected": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "c"}]}], [], "line 1"),
    ([{"prompt": "a", "chosen": " ", "rejected": ""}] * 3, [], "3 with an empty answer"),
    ([{"prompt": "a", "chosen": "b", "rejected": "b "}] * 3, [], "3 ties"),
    ([{"prompt": "a", "completion": "b", "label": True}], [], "line 1: single answers with a label, where pairs of answers were wanted"),
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}], [], "line 2: no field 'rejected'"),
    ([{"prompt": "a", "text": "b"}], ["--loss", "kto"], "line 1: no preferences"),
    ([{"prompt": "a", "completion": "b", "label": True}] * 4, ["--loss", "kto"], "cannot be split"),
    ([{"prompt": "a", "completion": "b", "label": "perhaps"}], ["--loss", "kto"], "line 1"),
])    # fmt: skip
def test_bad_rows_are_named_with_their_file_and_line(minift, small_model, tmp_path, rows, options, text):
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = minift("dpo", "--model", small_model, "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "run", *options)
    assert status == 2 and text in complaint and "Traceback" not in complaint, complaint
    assert "split" in text or "bad.jsonl, line 1" in complaint or "bad.jsonl, line 2" in complaint
    assert not (tmp_path / "run").exists()
