"""The verbs that use a model: generate, chat, evaluate, merge, inspect, data; and what they share."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from minift import generate, load, peft, save
from minift.data import pydocs
from minift.data.examples import ask, build, prompt_ids
from minift.data.sources import Row
from minift.evaluate.perplexity import text_bits_per_byte
from minift.recipes.loading import ModelChoice, SamplingChoice, use_template
from minift.train import memory
from tests.conftest import random_model

PROMPTS = ["The object is", "A name", "return"]
ASK = {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]}


@pytest.fixture(scope="module")
def adapter(small_model, tmp_path_factory):
    """An adapter that changes a lot: B is far from zero."""
    model, _ = load(small_model)
    peft.attach(model, peft.LoRA(rank=3, alpha=6))
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=dice)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    peft.save(model, folder)
    return folder


SETS = {
    "lora": peft.LoRA(rank=3), "rslora": peft.LoRA(rank=2, rslora=True), "dora": peft.DoRA(rank=2), "pissa": peft.PiSSA(rank=2),
    "adalora": peft.AdaLoRA(init_r=3, target_r=2), "vera": peft.VeRA(rank=5), "ia3": peft.IA3(), "norms": peft.LayerNormTuning(),
    "bitfit": peft.BitFit(add_missing=True), "tokens": peft.NewTokens(ids=(5, 9)), "full": peft.Full(), "last": peft.LastLayers(),
    "head": peft.Head(), "prompt": peft.Prompt(length=3), "prefix": peft.Prefix(length=3, projection_size=7), "p-tuning": peft.PTuning(length=3),
    "p-tuning-v2": peft.PTuningV2(length=3), "bottleneck": peft.BottleneckAdapter(), "pfeiffer": peft.Pfeiffer(), "parallel": peft.Parallel(),
    "reft": peft.LoReFT(rank=2),
}  # fmt: skip
UNMERGEABLE = {"prompt", "prefix", "p-tuning", "p-tuning-v2", "bottleneck", "pfeiffer", "parallel", "reft"}
READ_AS = {"p-tuning-v2": peft.Prefix, "pissa": peft.LoRA}
"""Sets whose file is that of another method."""


@pytest.fixture(scope="module")
def adapters(small_model, tmp_path_factory):
    """name of a method -> the folder of such an adapter, far from its start."""
    made = {}

    def make(name):
        if name not in made:
            model, _ = load(small_model)
            torch.manual_seed(3)
            peft.attach(model, SETS[name])
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if ".adapters." in key:
                        parameter += 0.1 * torch.randn(parameter.shape)
            made[name] = tmp_path_factory.mktemp("adapters") / name
            peft.save(model, made[name])
        return made[name]

    return make


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": f"{n} and", "completion": f" {n + 1}"}) + "\n" for n in range(5)))
    return tmp_path / "questions.jsonl"


def rows(text):
    """The lines of a terminal table as lists of cells, which at least two blanks keep apart (with or without a frame)."""
    return [[cell for cell in re.split("  +|[│┃]", line.strip()) if cell.strip()] for line in text.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------------------------------------ generate


def test_one_prompt_is_streamed_behind_itself(minift, small_model):
    model, tokenizer = load(small_model)
    status, said, _ = minift("generate", "--model", small_model, "--prompt", PROMPTS[0], "--max-new-tokens", 9)
    assert status == 0 and said == PROMPTS[0] + generate(model, tokenizer, PROMPTS[:1], 9)[0] + "\n"


def test_what_a_prompt_freed_is_kept_for_the_next(minift, small_model, talk, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "keep", lambda: asked.append(1))
    minift("generate", "--model", small_model, "--prompt", "ab", "--max-new-tokens", 2)
    talk("ab", "")
    assert len(asked) == 2


def test_several_prompts_come_one_after_the_other_from_options_and_a_file(minift, small_model, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + PROMPTS[2].encode() + b"\r\n\r\n")
    status, said, _ = minift("generate", "--model", small_model, "--prompt", *PROMPTS[:2], "--file", tmp_path / "prompts.txt",
                             "--max-new-tokens", 6)    # fmt: skip
    model, tokenizer = load(small_model)
    assert status == 0
    assert said == "\n---\n".join(p + a + "\n" for p, a in zip(PROMPTS, generate(model, tokenizer, PROMPTS, 6)))


def test_every_sampling_option_reaches_the_sampler(minift, small_model):
    model, tokenizer = load(small_model)
    options = dict(temperature=2.0, top_k=40, top_p=0.9, min_p=0.001, repetition_penalty=1.3, stop=("e",), seed=7)
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value if name != "stop" else "e")]
    status, said, _ = minift("generate", "--model", small_model, "--prompt", *PROMPTS, "--max-new-tokens", 12, *arguments)
    wanted = generate(model, tokenizer, PROMPTS, 12, **options)
    assert status == 0 and said == "\n---\n".join(p + a + "\n" for p, a in zip(PROMPTS, wanted)) and not any("e" in a for a in wanted)
    assert SamplingChoice(**options).options() == options


def test_an_adapter_changes_what_is_written(minift, small_model, adapter):
    base, adapted = (minift("generate", "--model", small_model, "--prompt", *PROMPTS, "--max-new-tokens", 12, *more)[1]
                     for more in ((), ("--adapter", adapter)))    # fmt: skip
    assert base != adapted


@pytest.mark.parametrize("arguments, text", [
    ((), "no prompt: give --prompt TEXT (several may follow) or --file FILE"),
    (("--file", "nowhere.txt"), "cannot read the prompts of nowhere.txt"),
    (("--prompt", "a", "--top-k", 3), "has no effect at temperature 0"),
    (("--prompt", "a", "--max-new-tokens", 0), "max_new_tokens is 0: wanted 1 or more"),
    (("--prompt", "a", "--adapter", "nowhere"), "no such folder: nowhere"),
    (("--prompt", "a", "--device", "gpu"), "device 'gpu' cannot be used here"),
])    # fmt: skip
def test_what_cannot_be_generated(minift, small_model, arguments, text):
    status, said, complaint = minift("generate", "--model", small_model, *arguments)
    assert status == 2 and text in complaint


def test_an_adapter_given_as_the_model_is_explained(minift, adapter):
    status, _, complaint = minift("generate", "--model", adapter, "--prompt", "a")
    assert status == 2 and f"{adapter} holds an adapter, not a model" in complaint and "--adapter" in complaint


def test_an_adapter_of_another_model_is_refused(minift, small_model, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    status, _, complaint = minift("generate", "--model", small_model, "--adapter", tmp_path / "adapter", "--prompt", "a")
    assert status == 2 and "has shape (3, " in complaint and "call for (5, " in complaint


def test_weights_are_loaded_in_the_dtype_asked_for(small_model):
    assert ModelChoice(model=str(small_model), dtype="bfloat16").load()[0].head.weight.dtype == torch.bfloat16


def test_the_adapters_template_is_the_one_used(small_model, adapter, tmp_path):
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert ModelChoice(model=str(small_model), adapter=tmp_path).load()[1].chat_template == "{{ messages[0].content }}"
    assert ModelChoice(model=str(small_model), adapter=adapter).load()[1].chat_template is None


# ---------------------------------------------------------------------------------------------------------------------------- chat


@pytest.fixture
def talk(minift, small_model, monkeypatch):
    """Say these lines to `minift chat`; returns what it printed. After the last one comes ctrl-D."""

    def run(*lines, options=()):
        said = iter(lines)

        def answer(prompt):
            assert prompt == "> "
            try:
                return next(said)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", answer)
        status, printed, _ = minift("chat", "--model", small_model, "--max-new-tokens", 6, *options)
        assert status == 0
        return printed

    return run


def test_a_chat_renders_the_whole_conversation_as_in_training(talk, small_model, monkeypatch):
    _, tokenizer = load(small_model)
    asked = []
    monkeypatch.setattr("minift.recipes.chat.stream", lambda model, tokenizer, prompt, *_, **__: asked.append(prompt) or iter(["Su", "re."]))
    printed = talk("What is it", " A name ", options=("--system", "be brief"))
    assert printed.startswith("An empty line ends the conversation, /new starts a new one.\nSure.\nSure.\n")
    use_template(tokenizer, [ask("")], None)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "What is it"}, {"role": "assistant", "content": "Sure."},
             {"role": "user", "content": "A name"}, {"role": "assistant", "content": "Yes."}]    # fmt: skip
    for prompt, length in zip(asked, (3, 5), strict=True):
        [example], _ = build([Row("messages", "x", messages=tuple(turns[:length]))], tokenizer)
        assert example.ids[: len(prompt)] == prompt and example.loss_mask.index(True) == len(prompt)


def test_a_chat_streams_what_the_model_writes(talk, small_model):
    model, tokenizer = load(small_model)
    use_template(tokenizer, [ask("")], "alpaca")
    [answer] = generate(model, tokenizer, [prompt_ids(ask("What is it"), tokenizer)], 6, temperature=1.5, seed=3)
    assert answer.strip() and f"\n{answer}\n" in talk("What is it", options=("--template", "alpaca", "--temperature", 1.5, "--seed", 3))


def test_new_forgets_what_was_said(talk):
    printed = talk("What is it", "/new", "What is it")
    assert "(a new conversation)" in printed
    before, after = printed.split("(a new conversation)\n")
    assert before.split("\n", 1)[1] + "\n" == after                                # the last line break is ctrl-D's


def test_an_empty_line_or_ctrl_d_ends_the_conversation(talk):
    assert len(talk("", "never read").splitlines()) == 1
    assert len(talk().splitlines()) == 2


def test_an_answer_ends_where_the_template_ends_it(small_model):
    _, tokenizer = load(small_model)
    use_template(tokenizer, [Row("messages", "x", messages=tuple(ASK["messages"]))], "{{ messages[0].content }}{% if messages|length > 1 %}"
                 "{{ messages[1].content + '<pad>' }}{% endif %}")    # fmt: skip
    assert tokenizer.vocabulary.id("<pad>") in tokenizer.end_ids and "<pad>" in tokenizer.chat_template


def test_without_a_template_rows_of_messages_are_plain_and_others_untouched(small_model):
    _, tokenizer = load(small_model)
    use_template(tokenizer, [Row("text", "x", completion="a")], None)
    assert tokenizer.chat_template is None
    use_template(tokenizer, [Row("messages", "x", messages=tuple(ASK["messages"]))], None)
    assert "message.content" in tokenizer.chat_template


# ------------------------------------------------------------------------------------------------------------------------ evaluate


def test_texts_are_measured_in_bits_per_byte(minift, small_model, tmp_path):
    texts = ["The first of two documents, which is longer than the window.", "The other."]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    status, said, _ = minift("evaluate", "--model", small_model, "--data", tmp_path / "texts.txt", "--context", 16, "--stride", 5,
                             "--out", tmp_path / "numbers.json")    # fmt: skip
    model, tokenizer = load(small_model)
    wanted = text_bits_per_byte(model, tokenizer, texts, 16, 5)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert status == 0 and "2 texts, windows of 16" in " ".join(said.split())
    assert numbers == {"nats per token": wanted.nats_per_token, "perplexity": wanted.perplexity, "tokens": wanted.tokens,
                       "bits per byte": wanted.bits_per_byte, "bytes": len("".join(texts).encode())}    # fmt: skip
    assert ["bits per byte", f"{wanted.bits_per_byte:.4f}"] in rows(said) and ["tokens", f"{wanted.tokens:,}"] in rows(said)


def test_questions_are_measured_on_their_answers_only(minift, small_model, questions, tmp_path):
    out = ("--out", tmp_path / "numbers.json")
    answers = minift("evaluate", "--model", small_model, "--data", questions, *out)[1]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert "5 questions" in answers and numbers["bytes"] == 5 * len(" 1") and numbers["perplexity"] == pytest.approx(math.exp(numbers["nats per token"]))
    minift("evaluate", "--model", small_model, "--data", questions, "--learn", "all", "--limit", 2, *out)
    assert json.loads((tmp_path / "numbers.json").read_text())["bytes"] == len("0 and 11 and 2")


def test_answers_are_written_and_scored_beside_the_loss(minift, small_model, tmp_path):
    model, tokenizer = load(small_model)
    said = generate(model, tokenizer, ["The object"], 4)[0]
    assert said.strip()
    rest = [{"prompt": "Another thing", "completion": " zzz"}]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "The object", "completion": said}, *rest]))
    status, table, _ = minift("evaluate", "--model", small_model, "--data", tmp_path / "known.jsonl", "--generate", 9, "--max-new-tokens", 4)
    assert status == 0 and ["exact match", "0.5000"] in rows(table) and "ROUGE-L (2 answers)" in table
    assert "ROUGE-L F1 as rouge_score computes it" in table


@pytest.mark.parametrize("content, options, text", [
    ("Only text.\n\nAnd more.", ("--generate", 2), "--generate needs questions with answers; these rows are plain text"),
    ("Only text.", ("--limit", 0), "--limit 0 leaves no row to measure"),
    ("Only text.", ("--stride", 600), "wanted 1 <= stride < context"),
    ("Only text.", ("--template", "alpaca"), "--template alpaca would change nothing: these rows are text"),
])    # fmt: skip
def test_what_cannot_be_evaluated(minift, small_model, tmp_path, content, options, text):
    (tmp_path / "texts.txt").write_text(content)
    status, _, complaint = minift("evaluate", "--model", small_model, "--data", tmp_path / "texts.txt", *options)
    assert status == 2 and text in complaint


def test_pydocs_are_the_documents_of_held_out_modules(minift, small_model, monkeypatch):
    monkeypatch.setattr(pydocs, "documents", lambda split: {"test": ["Return it.", "Do it."]}[split])
    status, said, _ = minift("evaluate", "--model", small_model, "--data", "pydocs", "--limit", 2, "--context", 256, "--stride", 128)
    assert status == 0 and "2 texts" in said


# --------------------------------------------------------------------------------------------------------------------------- merge


def test_a_merged_model_writes_what_base_and_adapter_write(minift, small_model, adapter, tmp_path):
    asked = ("--prompt", *PROMPTS, "--max-new-tokens", 12)
    status, said, _ = minift("merge", "--model", small_model, "--adapter", adapter, "--out", tmp_path / "merged")
    assert status == 0 and f"written: {tmp_path / 'merged'}, a plain llama checkpoint in float32" in said
    both = minift("generate", "--model", small_model, "--adapter", adapter, *asked)[1]
    assert minift("generate", "--model", tmp_path / "merged", *asked)[1] == both != minift("generate", "--model", small_model, *asked)[1]
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {file.name for file in small_model.iterdir()}


def test_a_merge_needs_an_adapter_and_a_free_folder(minift, small_model, adapter, tmp_path):
    assert "merge needs --adapter FOLDER" in minift("merge", "--model", small_model, "--out", tmp_path / "merged")[2]
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine").write_text("mine")
    status, _, complaint = minift("merge", "--model", small_model, "--adapter", adapter, "--out", tmp_path / "used")
    assert status == 2 and "is in use: name another one, or pass --overwrite" in complaint and (tmp_path / "used/mine").exists()
    assert minift("merge", "--model", small_model, "--adapter", adapter, "--out", tmp_path / "used", "--overwrite")[0] == 0
    assert not (tmp_path / "used/mine").exists()


@pytest.mark.parametrize("name", sorted(SETS.keys() - UNMERGEABLE))
def test_every_mergeable_method_is_merged_into_a_checkpoint_that_answers_alike(minift, small_model, adapters, name, tmp_path):
    status, said, complaint = minift("merge", "--model", small_model, "--adapter", adapters(name), "--out", tmp_path / "merged")
    if name == "bitfit":                                                            # biases that LLaMA's layout has no place for
        assert status == 2 and "bias" in complaint and not (tmp_path / "merged").exists()
        return
    assert status == 0 and "written" in said
    ids = torch.tensor([[5, 9, 11, 3], [7, 7, 2, 30]])
    model, _ = load(small_model)
    base = model(ids)
    peft.load(model, adapters(name))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "merged")[0](ids), model(ids), rtol=0, atol=2e-3 * base.abs().max().item())
        assert not torch.allclose(model(ids), base, atol=1e-2)


@pytest.mark.parametrize("name", sorted(UNMERGEABLE))
def test_methods_that_no_weight_can_hold_refuse_to_be_merged_and_say_why(minift, small_model, adapters, name, tmp_path):
    status, _, complaint = minift("merge", "--model", small_model, "--adapter", adapters(name), "--out", tmp_path / "merged")
    assert status == 2 and re.search("cannot be merged|nothing to merge", complaint) and "eep" in complaint and not (tmp_path / "merged").exists()


def test_merging_in_bfloat16_rounds_the_float32_sum_once(minift, small_model, adapter, tmp_path):
    status, said, _ = minift("merge", "--model", small_model, "--adapter", adapter, "--dtype", "bfloat16", "--out", tmp_path / "merged")
    assert status == 0 and "checkpoint in bfloat16" in said
    model, _ = load(small_model, torch.bfloat16)
    peft.load(model, adapter)
    part = model.blocks[1].mlp.up
    exact = part.base.weight.float() + 6 / 3 * part.adapters["default"].B @ part.adapters["default"].A
    merged = load_file(tmp_path / "merged/model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, exact.to(torch.bfloat16))


# --------------------------------------------------------------------------------------------------------- combine and extract-lora


def test_adapters_are_combined_into_one_that_does_both(minift, small_model, adapter, adapters, tmp_path):
    other = adapters("rslora")
    status, said, _ = minift("combine", "--adapters", adapter, other, "--weights", 0.7, -0.3, "--model", small_model, "--out", tmp_path / "both")
    assert status == 0 and "100.00 %" in said and f"a LoRA adapter for {small_model}" in said
    weight = "blocks.1.mlp.up.weight"
    changes = []
    for folder in (adapter, other, tmp_path / "both"):
        model, _ = load(small_model)
        before = model.get_parameter(weight).clone()
        peft.load(model, folder)
        peft.merge(model)
        changes.append(model.get_parameter(weight) - before)
    torch.testing.assert_close(changes[2], 0.7 * changes[0] - 0.3 * changes[1], rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "both/adapter_config.json").read_text())["base_model_name_or_path"] == str(small_model)


def test_a_vote_is_cut_to_its_rank_and_says_what_it_kept(minift, small_model, adapter, adapters, tmp_path):
    status, said, _ = minift("combine", "--adapters", adapter, adapters("rslora"), "--weights", 1, 1, "--how", "ties", "--rank", 2, "--density", 0.4,
                             "--model", small_model, "--out", tmp_path / "both")    # fmt: skip
    [line] = [line for line in rows(said) if line[0] == "blocks.1.mlp.up"]
    assert status == 0 and line[1] == "2" and 0 < float(line[2].split()[0]) < 100


@pytest.mark.parametrize("options, text", [
    (("--weights", 1), "2 --adapters but 1 --weights"),
    (("--weights", 1, 1, "--rank", 2), "has no effect on 'linear'"),
    (("--weights", 1, "nan"), "weights is {'1': 1.0, '2': nan}"),
])    # fmt: skip
def test_what_cannot_be_combined(minift, small_model, adapter, adapters, tmp_path, options, text):
    status, _, complaint = minift("combine", "--adapters", adapter, adapters("rslora"), "--model", small_model, "--out", tmp_path / "out", *options)
    assert status == 2 and text in complaint and not (tmp_path / "out").exists()
    ia3 = ("--adapters", adapter, adapters("ia3"), "--weights", 1, 1, "--model", small_model, "--out", tmp_path / "out")
    assert "the set '2' is IA3, whose change is no low-rank product" in minift("combine", *ia3)[2]


@pytest.fixture(scope="module")
def tuned(small_model, tmp_path_factory):
    """A checkpoint that differs from the small model in every block's MLP and in the last norm."""
    model, tokenizer = load(small_model)
    dice = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name or name == "norm.weight":
                parameter += 0.05 * torch.randn(parameter.shape, generator=dice)
    save(model, tokenizer, tmp_path_factory.mktemp("tuned") / "model")
    return tmp_path_factory.getbasetemp() / "tuned0/model"


def test_an_adapter_is_extracted_from_two_checkpoints(minift, small_model, tuned, tmp_path):
    status, said, _ = minift("extract-lora", "--base", small_model, "--tuned", tuned, "--rank", 32, "--out", tmp_path / "all")
    assert status == 0 and "1 parameters differ and are not in the adapter" in said
    [line] = [line for line in rows(said) if line[0] == "norm.weight"]
    assert line[1].startswith("left: ")
    model, _ = load(small_model)
    whole, _ = load(tuned)
    model.norm = whole.norm
    peft.load(model, tmp_path / "all")
    ids = torch.tensor([[5, 9, 11, 3]])
    torch.testing.assert_close(model(ids), whole(ids), rtol=0, atol=1e-3)
    status, said, _ = minift("extract-lora", "--base", small_model, "--tuned", tuned, "--share", 0.5, "--out", tmp_path / "half")
    kept = [float(line[2].split()[0]) for line in rows(said) if ".mlp." in line[0]]
    assert status == 0 and len(kept) == 6 and 50 <= min(kept) <= max(kept) < 65


@pytest.mark.parametrize("options, text", [
    ((), "name a rank or a share"),
    (("--rank", 0), "rank is 0"),
    (("--rank", 2, "--targets", "query"), "'query' matches no linear"),
])    # fmt: skip
def test_what_cannot_be_extracted(minift, small_model, tuned, tmp_path, options, text):
    status, _, complaint = minift("extract-lora", "--base", small_model, "--tuned", tuned, "--out", tmp_path / "out", *options)
    assert status == 2 and text in complaint and not (tmp_path / "out").exists()


def test_checkpoints_of_two_families_or_shapes_are_not_compared(minift, small_model, small_tokenizer, tmp_path):
    save(random_model(small_tokenizer, layers=1), small_tokenizer, tmp_path / "short")
    gpt2 = dict(family="gpt2", norm="layernorm", position="learned", activation="gelu_tanh", gated=False, qkv="joined", qkv_bias=True, kv_heads=4,
                attention_out_bias=True, mlp_bias=True)    # fmt: skip
    save(random_model(small_tokenizer, **gpt2), small_tokenizer, tmp_path / "gpt2")
    against = lambda folder: minift("extract-lora", "--base", small_model, "--tuned", folder, "--rank", 2, "--out", tmp_path / "out")
    status, _, complaint = against(tmp_path / "gpt2")
    assert status == 2 and f"{small_model} is a llama model and {tmp_path / 'gpt2'} a gpt2" in complaint
    status, _, complaint = against(tmp_path / "short")
    assert status == 2 and "only in the base: blocks.1.norm1.weight" in complaint and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------ inspect and data


def test_inspect_counts_every_parameter_of_a_model(minift, small_model):
    status, said, _ = minift("inspect", small_model)
    numbers = sum(p.numel() for p in load(small_model)[0].parameters())
    assert status == 0
    assert ["model.layers.N.mlp.down_proj.weight", "2", "32 x 48", "F32", "3,072", f"{100 * 3072 / numbers:.1f} %"] in rows(said)
    assert rows(said)[-1] == ["all", str(2 + 2 * 9), f"{numbers:,}", f"{4 * numbers / 1e6:.1f} MB"]


def test_inspect_shows_what_an_adapter_changes_and_how_much(minift, small_model, adapter):
    model, _ = load(small_model)
    peft.load(model, adapter)
    found = dict(model.named_parameters())
    place = "blocks.1.mlp.up.adapters.default."
    change = 6 / 3 * found[place + "B"] @ found[place + "A"]                       # (N, K)
    status, said, _ = minift("inspect", adapter)
    [line] = [line for line in rows(said) if line[0].endswith("layers.1.mlp.up_proj")]
    assert status == 0 and line[1:3] == ["3", str(3 * (32 + 48))]
    assert float(line[3]) == pytest.approx(change.norm().item(), abs=6e-5)
    assert float(line[4]) == pytest.approx(torch.linalg.matrix_norm(change, 2).item(), abs=6e-5)


def stored_numbers(folder):
    [file] = folder.glob("*.safetensors")
    return sum(tensor.numel() for tensor in load_file(file).values())


@pytest.mark.parametrize("name", sorted(SETS))
def test_inspect_shows_every_method_from_its_folder_alone(minift, adapters, name):
    folder = adapters(name)
    status, said, _ = minift("inspect", folder)
    table = rows(said)
    assert status == 0 and table[-1][:2] == ["all", f"{stored_numbers(folder):,}"] and f"{READ_AS.get(name, type(SETS[name])).__name__}(" in " ".join(said.split())
    assert all(math.isfinite(float(number)) for line in table[4:-1] for number in re.findall(r" (-?\d+\.\d{4}|nan|inf)\b", " ".join(line)))


@pytest.mark.parametrize("name", sorted(SETS.keys() - UNMERGEABLE))
def test_inspect_with_the_base_shows_the_change_of_each_weight(minift, small_model, adapters, name):
    before = dict(load(small_model)[0].named_parameters(remove_duplicate=False))
    model, _ = load(small_model)
    peft.load(model, adapters(name))
    peft.merge(model)
    peft.remove(model, "default")
    after = dict(model.named_parameters(remove_duplicate=False))
    status, said, _ = minift("inspect", adapters(name), "--model", small_model)
    assert status == 0
    lines = {line[0]: line for line in rows(said) if len(line) > 2}
    changed = [key for key in before if key in after and not torch.equal(before[key], after[key])]
    assert changed or name == "bitfit"
    for key in changed:
        line = lines[key.removesuffix(".weight")]
        size = (after[key] - before[key]).norm().item()
        assert any(float(number) == pytest.approx(size, abs=1e-4, rel=1e-5) for number in re.findall(r"\d+\.\d{4}", " ".join(line))), (key, line, size)


def test_what_cannot_be_inspected(minift, small_model, adapters):
    assert "--model names the base of an adapter" in minift("inspect", small_model, "--model", small_model)[2]
    status, _, complaint = minift("inspect", adapters("prompt"), "--model", small_model)
    assert status == 2 and "without --model its own numbers are shown" in complaint


def test_data_shows_the_mask_the_lengths_and_the_report(minift, small_model, questions):
    status, said, _ = minift("data", questions, "--model", small_model, "--rows", 2)
    assert status == 0 and f"{questions}, line 2: " in said and f"{questions}, line 3" not in said
    assert re.search(r"<s>\|.*\[\[.*</s>\]\]", said) and "lengths: min" in said
    assert minift("data", "--model", small_model)[2] == "minift data: no data file was named\n"
