"""The public names, used the way the README and the lessons use them. They are a promise: a change here breaks somebody's notebook."""

import inspect
import subprocess
import sys

import pytest
import torch

import minift
from minift import losses, peft


def test_load_generate_and_save(small_model, tmp_path):
    model, tokenizer = minift.load(small_model)
    logits = model(torch.tensor([tokenizer.encode("The object is")]))
    assert logits.shape == (1, len(tokenizer.encode("The object is")), tokenizer.vocab_size)
    texts = minift.generate(model, tokenizer, ["The object is", "A"], max_new_tokens=5)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    minift.save(model, tokenizer, tmp_path / "copy")
    assert minift.generate(*minift.load(tmp_path / "copy"), ["The object is", "A"], max_new_tokens=5) == texts


def test_the_life_of_an_adapter(small_model, tmp_path):
    model, tokenizer = minift.load(small_model)
    ids = torch.tensor([tokenizer.encode("The object is")])
    with torch.no_grad():
        base = model(ids)
        peft.attach(model, peft.LoRA(rank=8, alpha=16, targets="all-linear"), name="default")
        counts = peft.trainable(model)
        assert 0 < counts.trained < counts.total and counts.percent == pytest.approx(100 * counts.trained / counts.total)
        assert counts.bytes == 4 * counts.trained
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter += 0.1
        adapted = model(ids)
        with peft.disabled(model):
            assert torch.equal(model(ids), base)
        peft.save(model, tmp_path / "adapter", name="default")
        peft.load(model, tmp_path / "adapter", name="finance")
        peft.switch(model, "finance")
        assert torch.equal(model(ids), adapted) and not torch.allclose(adapted, base)
        peft.merge(model)
        assert torch.allclose(model(ids), adapted, atol=1e-4)
        peft.unmerge(model)
        peft.remove(model, "default")
        peft.remove(model, "finance")
        assert torch.allclose(model(ids), base, atol=1e-6)


@pytest.mark.parametrize("function, names", [
    (minift.load, ["name", "dtype", "device"]),
    (minift.save, ["model", "tokenizer", "folder", "overwrite"]),
    (minift.generate, ["model", "tokenizer", "prompts", "max_new_tokens", "temperature", "top_k", "top_p"]),
    (peft.attach, ["model", "method", "name"]),
    (peft.save, ["model", "folder", "name"]),
    (peft.load, ["model", "folder", "name"]),
])    # fmt: skip
def test_the_arguments_come_in_the_promised_order(function, names):
    assert list(inspect.signature(function).parameters)[: len(names)] == names


def test_defaults_are_greedy_float32_on_the_cpu():
    of = lambda function: {name: p.default for name, p in inspect.signature(function).parameters.items()}
    assert of(minift.generate)["temperature"] == 0.0 and of(minift.generate)["max_new_tokens"] == 64 and of(minift.generate)["seed"] == 0
    assert of(minift.load)["dtype"] == torch.float32 and of(minift.load)["device"] == "cpu"


def test_lora_has_the_fields_of_the_paper():
    made = peft.LoRA(rank=4, alpha=8, dropout=0.1, targets=["q_proj"], rslora=True)
    assert (made.rank, made.alpha, made.dropout, made.targets, made.rslora) == (4, 8, 0.1, ["q_proj"], True)


def test_a_tokenizer_by_itself(small_model):
    tok = minift.tokenizer.load(small_model)
    ids = tok.encode("The end.")
    assert ids[0] == tok.bos_id and tok.encode("The end.", add_special_tokens=False) == ids[1:] and tok.decode(ids) == "The end."


def test_losses_are_sums_and_counts():
    from minift.losses import sft

    total, count = sft.next_token(torch.zeros(1, 3, 7), torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, True]]))
    assert count == 2 and total.item() == pytest.approx(2 * torch.tensor(7.0).log().item()) and losses.sft is sft


def test_input_errors_are_value_errors(tmp_path):
    with pytest.raises(minift.InputError):
        minift.load(tmp_path / "nowhere")
    assert issubclass(minift.InputError, ValueError)


def test_names_that_do_not_exist_are_attribute_errors_and_dir_lists_those_that_do():
    with pytest.raises(AttributeError, match="minift has no 'loda'"):
        minift.loda
    assert {"load", "save", "generate", "InputError", "peft", "losses", "tokenizer", "models", "data", "evaluate"} <= set(dir(minift))


FIRST = """
import sys
for first in ("import minift.generate", "import minift.recipes.generate", "from minift.generate import generate", "import minift",
              "from minift import generate"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "minift"]:
        del sys.modules[name]
    exec(first)
    import minift, minift.generate
    assert minift.generate.__name__ == "generate" and callable(minift.generate), first
"""


def test_minift_generate_is_the_function_whatever_was_imported_first():
    subprocess.run([sys.executable, "-c", FIRST], check=True, cwd=minift.__path__[0] + "/..", timeout=300)
