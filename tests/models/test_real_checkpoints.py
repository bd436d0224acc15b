"""Two real, tiny, trained models. They lie beside the repository, not in it: without them these tests skip and say so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minift.models.folder import read_model, write_model
from minift.models.names import CONV1D, module_names

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no ../shared/data/{name} beside the repository: this test needs the real checkpoint")
    return DATA / name


@torch.no_grad()
def greedy(model, ids: list[int], new: int) -> list[int]:
    for _ in range(new):
        ids = ids + [int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids


def test_the_story_model_tells_its_documented_story():
    from sentencepiece import SentencePieceProcessor

    path = folder("weights_stories260k")
    ids = greedy(read_model(path), [1, 403, 407, 261, 378], 50)
    text = SentencePieceProcessor(str(path / "tokenizer.model")).decode(ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    )


def test_the_sorting_model_sorts_when_wired_as_a_gpt2(tmp_path):
    """minGPT stores linears as (out, in) and its causal masks; wired by hand: six letters in, and after them the same six in order."""
    stored = load_file(folder("weights_gpt_nano_sort") / "gpt-nano-sort.safetensors")
    hf = dict(model_type="gpt2", vocab_size=3, n_embd=48, n_layer=3, n_head=3, n_positions=11, tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(hf))
    linears = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    tensors = {name: tensor.T.contiguous() if name.endswith(linears) else tensor for name, tensor in stored.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = read_model(tmp_path)

    generator = torch.Generator().manual_seed(0)
    right = 0
    for _ in range(50):
        letters = torch.randint(0, 3, (6,), generator=generator).tolist()
        right += greedy(model, letters, 6)[6:] == sorted(letters)
    assert right >= 49                                                                       # it was trained to sort, not proved to

    write_model(model, tmp_path / "again")                                                   # and the way back is exact
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(again[name], tensors[name]) for name in again) and len(again) == 3 * 12 + 5
    conv1d = [module for module, name in module_names(model.config).items() if name.endswith(("c_attn", "c_proj", "c_fc"))]
    assert len(conv1d) == 12 and all(module.endswith(CONV1D) for module in conv1d)
