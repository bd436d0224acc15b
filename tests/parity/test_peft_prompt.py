"""Prompt tuning files, outputs and gradients, both ways, against Hugging Face peft on transformers models with the same weights.

peft returns logits for the virtual positions too; ours drops them. Tolerance 1e-5 absolute: logits of size ~1, sums of at most 64
float32 products, two blocks."""

import pytest
import torch
import transformers
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from minift import peft
from minift.generate import generate_ids
from minift.models.folder import read_model
from tests.parity.test_peft_lora import CONFIGS, IDS, base_folder, close, theirs
from tests.peft.small import filled

V = 3
GEMMA = transformers.GemmaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                                 head_dim=8, max_position_embeddings=32, vocab_size=31, initializer_range=0.2, pad_token_id=0)  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def base(family, tmp_path):
    if family != "gemma":
        return base_folder(family, tmp_path / "base")
    transformers.AutoModelForCausalLM.from_config(GEMMA).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def peft_model(folder, start="RANDOM"):
    return get_peft_model(theirs(folder), PromptTuningConfig(num_virtual_tokens=V, task_type="CAUSAL_LM", prompt_tuning_init=start)).eval()


@pytest.mark.parametrize("family", [*CONFIGS, "gemma"])
def test_our_prompt_loads_in_peft_with_the_same_outputs_and_text(family, tmp_path):
    folder = base(family, tmp_path)
    model = read_model(folder)
    peft.attach(model, peft.Prompt(length=V))
    ours = filled(model)(IDS)
    assert (ours - theirs(folder)(IDS).logits).abs().max() > 0.1           # the prompt says something
    peft.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
    close(ours, loaded(IDS).logits[:, V:])
    text = loaded.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert generate_ids(model, IDS.tolist(), max_new_tokens=6, eos_ids=()) == text[:, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("start", ["RANDOM", "SAMPLE_VOCAB"])
@pytest.mark.parametrize("family", [*CONFIGS, "gemma"])
def test_pefts_prompt_loads_in_ours_with_the_same_outputs(family, start, tmp_path):
    folder = base(family, tmp_path)
    their = peft_model(folder, start)
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(folder)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits[:, V:])
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)
    assert their.get_nb_trainable_parameters() == (peft.trainable(model).trained, peft.trainable(model).total)


@pytest.mark.parametrize("family", [*CONFIGS, "gemma"])
def test_a_start_from_the_vocabulary_has_the_scale_pefts_has(family, tmp_path):
    """Every row of ours is, to the bit, what peft's embedding layer answers for some token."""
    folder = base(family, tmp_path)
    model = read_model(folder)
    peft.attach(model, peft.Prompt(length=20))
    rows, known = model.virtual.adapters["default"].table, theirs(folder).get_input_embeddings()(torch.arange(31))
    assert all(any(torch.equal(row, other) for other in known) for row in rows)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_and_padded_rows_equal_pefts(family, tmp_path):
    folder = base(family, tmp_path)
    their = peft_model(folder)
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(folder)
    peft.load(model, tmp_path / "adapter")
    weigh, mask = torch.randn(*IDS.shape, 31), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    ours, logits = model(IDS, segments=1 - mask), their(IDS, attention_mask=mask).logits[:, V:]
    close(ours[mask.bool()], logits[mask.bool()])
    (ours * weigh * mask[:, :, None]).sum().backward()
    (logits * weigh * mask[:, :, None]).sum().backward()
    table = model.virtual.adapters["default"].table
    torch.testing.assert_close(table.grad, their.prompt_encoder.default.embedding.weight.grad, rtol=1e-4, atol=1e-5)
