"""Poolings worked by hand, and sentence-transformers' files."""

import json

import pytest
import torch

from minift.errors import InputError
from minift.models.pooling import Pooling, pool, shortened
from minift.models.ragged import Ragged
from minift.models.sentence_folder import read_pooling, write_pooling

RAGGED = Ragged(((2, 1), (1, 3)))                                             # two texts of one token, one of three
STREAM = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 6.0], [3.0, 0.0], [6.0, 3.0]])


@pytest.mark.parametrize("mode, of_three", [
    ("cls", [0.0, 6.0]), ("last", [6.0, 3.0]), ("max", [6.0, 6.0]), ("mean", [3.0, 3.0]),
    ("weighted", [4.0, 2.5]),                                                 # (0 + 2 * 3 + 3 * 6) / 6, (6 + 0 + 3 * 3) / 6
])    # fmt: skip
def test_poolings_worked_by_hand(mode, of_three):
    assert torch.allclose(pool(STREAM, RAGGED, mode), torch.tensor([[1.0, 2.0], [3.0, 4.0], of_three]))


def test_half_precision_is_pooled_in_float32():
    stream = torch.tensor([[1.0], [1 + 2**-7]], dtype=torch.bfloat16)
    assert pool(stream, Ragged(((1, 2),)), "mean").item() == 1 + 2**-8        # which bfloat16 does not have


def test_numbers_are_left_out_before_the_length_is_made_one():
    vectors = torch.tensor([[3.0, 4.0, 12.0]])
    assert torch.allclose(shortened(vectors, 2, True), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(shortened(vectors, 2, False), vectors[:, :2]) and torch.equal(shortened(vectors, None, False), vectors)


@pytest.mark.parametrize("pooling", [
    Pooling(), Pooling("cls", False), Pooling("weighted", True, 77), Pooling("mean", bidirectional=True), Pooling("last", prompts={"query": "query: ", "passage": "passage: "}, default_prompt="query"),
])    # fmt: skip
def test_files_go_out_and_in(pooling, tmp_path):
    write_pooling(pooling, 24, tmp_path)
    assert read_pooling(tmp_path) == pooling
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 24


def test_the_newer_spelling_of_the_mode_is_read(tmp_path):
    write_pooling(Pooling("max"), 24, tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 24, "pooling_mode": "lasttoken"}')
    assert read_pooling(tmp_path).mode == "last"


def test_a_decoder_without_its_mask_is_known_by_any_of_three_places(tmp_path):
    write_pooling(Pooling(), 24, tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 24}')
    assert not read_pooling(tmp_path).bidirectional
    for file, content in (("config.json", '{"hidden_size": 24, "is_causal": false}'), ("sentence_bert_config.json", '{"config_kwargs": {"is_causal": false}}'),
                          ("sentence_bert_config.json", '{"config_args": {"is_causal": false}}')):  # fmt: skip
        kept = (tmp_path / file).read_text()
        (tmp_path / file).write_text(content)
        assert read_pooling(tmp_path).bidirectional
        (tmp_path / file).write_text(kept)
    write_pooling(Pooling(bidirectional=True), 24, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"hidden_size": 24, "is_causal": False}


def test_a_folder_that_says_nothing_has_no_pooling(tmp_path):
    assert read_pooling(tmp_path) is None


@pytest.mark.parametrize("file, content, text", [
    ("1_Pooling/config.json", '{"pooling_mode": ["mean", "cls"]}', "pools by mean and cls: wanted one of"),
    ("1_Pooling/config.json", '{"pooling_mode_mean_sqrt_len_tokens": true}', "pools by pooling_mode_mean_sqrt_len_tokens: wanted one of"),
    ("1_Pooling/config.json", '{"include_prompt": false}', "include_prompt is false"),
    ("modules.json", '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}]', "lists Transformer, Dense: minift makes embeddings with"),
    ("modules.json", '[{"type": "a.Transformer", "path": "0_Transformer"}]', "only weights beside modules.json are read; move them up"),
    ("modules.json", "{}", "is no list of modules"),
    ("modules.json", "[", "is not JSON"),
    ("config_sentence_transformers.json", '{"prompts": {"a": "b"}, "default_prompt_name": "c"}', "default_prompt_name is 'c', which is none of its prompts: a"),
])    # fmt: skip
def test_folders_that_would_give_other_vectors_are_refused(file, content, text, tmp_path):
    write_pooling(Pooling(), 24, tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=text):
        read_pooling(tmp_path)


def test_a_pooling_without_its_file_is_refused(tmp_path):
    write_pooling(Pooling(), 24, tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match="config.json is missing, but modules.json names its folder"):
        read_pooling(tmp_path)
