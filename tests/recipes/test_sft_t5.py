"""`minift sft` on an encoder-decoder: which ids are read, written and learned, and from a file to a model that answers."""

import dataclasses
import json

import pytest
import torch

from minift import folder as folders
from minift import peft
from minift import tokenizer as tokenizers
from minift.data.batches import Example, by_length, pad
from minift.data.examples import build, prompt_ids
from minift.data.sources import Row
from minift.errors import InputError
from minift.evaluate.perplexity import perplexity, scored_bytes
from minift.generate import generate
from minift.models.encoder_decoder import EncoderDecoder
from minift.models.folder import write_model
from minift.recipes import sft
from tests.models.small_t5 import PAIRS, pair, write_tokenizer
from tests.recipes.test_sft import ROWS, held_out

QUICK = ("--precision", "fp32", "--held-out", 0.3, "--samples", 2, "--new-tokens", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fresh little T5."""
    root = tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = dict(vocab_size=800, hidden_size=32, heads=4, kv_heads=4, head_dim=8, mlp_size=48, layers=2, dropout=0.0, head_scale=32**-0.5)
        model = EncoderDecoder(dataclasses.replace(PAIRS["t5"], **shape))
        torch.nn.init.normal_(model.embed.weight)
    write_model(model, root / "model")
    write_tokenizer(root / "model")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load(folder / "model")


# ---- what is read, written and learned


def test_question_and_answer_are_two_texts_each_with_its_end(tokenizer):
    rows = [Row("prompt/completion", "a row", prompt="What follows?", completion=" a list")]
    (example,), report = build(rows, tokenizer, start=0)
    assert example.prompt == tokenizer.encode("What follows?") == prompt_ids(rows[0], tokenizer, start=0) and example.prompt[-1] == 1
    assert example.ids == [0, *tokenizer.encode("a list")] and example.ids[-1] == 1
    assert example.loss_mask == [False] + [True] * (len(example.ids) - 1)
    assert (report.targets, report.tokens) == (len(example.ids) - 1, len(example.ids) + len(example.prompt))
    assert scored_bytes(tokenizer, [example]) == len("a list")


def test_one_turn_of_each_is_a_question_and_its_answer(tokenizer):
    turns = ({"role": "user", "content": "Say the colour."}, {"role": "assistant", "content": "red"})
    (example,), _ = build([Row("alpaca", "a row", messages=turns, input="a red sun")], tokenizer, start=0)
    assert example.prompt == tokenizer.encode("Say the colour.\na red sun") and example.ids == [0, *tokenizer.encode("red")]
    assert prompt_ids(Row("messages", "a row", messages=turns[:1]), tokenizer, start=0) == tokenizer.encode("Say the colour.")
    with pytest.raises(InputError, match="a row: a conversation of system, user, assistant, and an encoder-decoder learns one answer to one question"):
        build([Row("messages", "a row", messages=({"role": "system", "content": "x"}, *turns))], tokenizer, start=0)
    with pytest.raises(InputError, match="a row: a plain text"):
        build([Row("text", "a row", completion="a text")], tokenizer, start=0)
    with pytest.raises(InputError, match="--learn all is for decoders"):
        build([Row("messages", "a row", messages=turns)], tokenizer, learn="all", start=0)


def test_a_long_question_loses_its_middle_and_keeps_its_end(tokenizer):
    row = Row("prompt/completion", "a row", prompt="What follows is a list of all names that are there, and of what they mean.", completion="a list")
    (whole,), _ = build([row], tokenizer, start=0)
    (cut,), report = build([row], tokenizer, start=0, max_length=len(whole.ids) + 7)
    assert cut.ids == whole.ids and list(cut.prompt) == [*whole.prompt[:4], *whole.prompt[-3:]] and (report.truncated, report.answers_cut) == (1, 0)
    (short,), report = build([row], tokenizer, start=0, max_length=4)
    assert short.ids == whole.ids[:3] and short.prompt == whole.prompt[:1] and report.answers_cut == 1


def test_prompts_are_padded_beside_their_answers_and_batched_by_all_tokens():
    examples = [Example([0, 5, 1], [False, True, True], [7, 8, 9, 1]), Example([0, 1], [False, True], [4])]
    batch = pad(examples)
    assert batch.token_ids.tolist() == [[0, 5, 1], [0, 1, 0]] and batch.loss_mask.tolist() == [[False, True, True], [False, True, False]]
    assert batch.prompts.tolist() == [[7, 8, 9, 1], [4, 0, 0, 0]] and batch.there.sum(1).tolist() == [4, 1] and batch.targets == 3
    assert sorted(map(len, by_length(examples * 2, 14, seed=0))) == [2, 2] and sorted(map(len, by_length(examples * 2, 13, seed=0))) == [1, 1, 2]


def test_the_loss_of_a_batch_is_the_sum_of_its_rows_with_or_without_an_adapted_head():
    one, rng = pair(), torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(2, 31, (n,), generator=rng).tolist()
    examples = [Example([0, *draw(m)], [False] + [True] * m, draw(n)) for m, n in ((3, 5), (1, 9), (6, 2))]
    total, targets = sft.loss(one, pad(examples))
    alone = sum(sft.loss(one, pad([example]))[0] for example in examples)
    torch.testing.assert_close(total, alone, rtol=0, atol=1e-10)
    assert targets == 10 and perplexity(one, examples).nats_per_token == pytest.approx(total.item() / 10, abs=1e-6)        # sums in float32
    peft.attach(one, peft.LoRA(rank=2, targets=["head"]))
    assert sft.loss(one, pad(examples))[0].item() == pytest.approx(total.item(), abs=1e-4)                         # of float32 logits


def test_minift_data_shows_both_texts(folder, minift):
    status, said, _ = minift("data", folder / "rows.jsonl", "--model", folder / "model", "--rows", 1)
    first = said.splitlines()
    assert status == 0 and first[0].endswith("13 tokens, 4 of them count in the loss") and first[1] == " a| re|d| su|n| |is|</s>|<pad>[[ re|d|.|</s>]]", said


def test_the_last_layers_of_a_pair_are_those_that_write():
    one = pair()
    peft.attach(one, peft.LastLayers(1))
    trained = {name.split(".adapters")[0] for name, parameter in one.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("decoder.blocks.1.", "decoder.norm", "head")) for name in trained) and any("cross" in name for name in trained)


# ---- from a file to a model that answers


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fresh_t5_learns_from_a_file_and_its_result_is_used(method, folder, minift, tmp_path):
    status, said, complaint = minift("sft", "--model", folder / "model", "--data", folder / "rows.jsonl", "--out", tmp_path / "run", *QUICK,
                                     "--method", method, "--lr", 1e-2, "--epochs", 12, "--batch-tokens", 200)    # fmt: skip
    assert not complaint and status == 0
    before, after = held_out(said)
    assert after < before - 2, said
    made = ("--model", folder / "model", "--adapter", tmp_path / "run/adapter") if method == "lora" else ("--model", tmp_path / "run/model")
    status, measured, _ = minift("evaluate", *made, "--data", folder / "rows.jsonl", "--generate", 3, "--out", tmp_path / "found.json")
    assert status == 0 and json.loads((tmp_path / "found.json").read_text())["nats per token"] < before - 2
    status, answer, _ = minift("generate", *made, "--prompt", "a red sun is", "--max-new-tokens", 4)
    assert status == 0 and answer.startswith("a red sun is\n")


def test_a_fresh_t5_learns_six_answers_by_heart(folder):
    model, tokenizer = folders.load(folder / "model")
    rows = [Row("prompt/completion", "a row", prompt=row["prompt"], completion=row["completion"]) for row in ROWS[:6]]
    examples, _ = build(rows, tokenizer, start=0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(60):
        total, targets = sft.loss(model, pad(examples))
        (total / targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert generate(model.eval(), tokenizer, [row.prompt for row in rows], max_new_tokens=8) == [row.completion.strip() for row in rows]


def test_templates_and_text_are_for_decoders(folder, minift, tmp_path):
    run = ("sft", "--model", folder / "model", "--out", tmp_path / "run")
    status, _, complaint = minift(*run, "--data", folder / "rows.jsonl", "--template", "chatml")
    assert status and "templates are for decoders" in complaint
    (tmp_path / "page.txt").write_text("a text\n\nanother text\n\nand a third one\n")
    status, _, complaint = minift(*run, "--data", tmp_path / "page.txt", "--held-out", 0.4)
    assert status and "an encoder-decoder learns one answer to one question" in complaint
    status, _, complaint = minift(*run, "--data", folder / "rows.jsonl", "--method", "prompt")
    assert status and "EncoderDecoder has no door for them" in complaint
