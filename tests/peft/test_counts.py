"""The papers' own parameter counts come out of our methods, on skeletons without memory."""

import pytest

from minift import peft
from tests.peft.skeletons import bert, gpt3, llama_7b, t0_3b
from tests.peft.small import llama


def count(model, method):
    peft.attach(model, method)
    return peft.trainable(model)


@pytest.mark.parametrize("rank, millions", [(1, 4.7), (8, 37.7)])
def test_lora_on_gpt3_as_in_table_4_of_the_lora_paper(rank, millions):
    assert round(count(gpt3(), peft.LoRA(rank=rank, targets=["q", "v"])).trained / 1e6, 1) == millions


def test_a_prompt_of_264_tokens_on_gpt3_as_in_the_lora_paper():
    assert round(count(gpt3(), peft.Prompt(length=264)).trained / 1e6, 1) == 3.2


def test_a_prompt_of_5_tokens_on_t5_xxl_as_in_the_prompt_tuning_paper():
    width_of_t5_xxl = llama(hidden_size=4096, head_dim=64, heads=64, kv_heads=64).to("meta")
    assert count(width_of_t5_xxl, peft.Prompt(length=5)).trained == 20_480


def test_lora_and_dora_on_llama_7b_as_in_table_1_of_the_dora_paper():
    targets = ["q", "k", "v", "up", "down"]
    base = sum(p.numel() for p in llama_7b().parameters())
    assert round(100 * count(llama_7b(), peft.LoRA(rank=32, targets=targets)).trained / base, 2) == 0.83
    share = 100 * count(llama_7b(), peft.DoRA(rank=32, targets=targets)).trained / base
    assert int(100 * share) / 100 == 0.84 and round(share, 3) == 0.846                # the paper cuts, it does not round


@pytest.mark.parametrize("bottleneck, millions", [(1, 7.1), (8, 40.1)])
def test_houlsby_adapters_on_gpt3_as_in_table_4_of_the_lora_paper(bottleneck, millions):
    assert round(count(gpt3(), peft.Houlsby(width=bottleneck)).trained / 1e6, 1) == millions


@pytest.mark.parametrize("layers, C, percent", [(12, 768, 0.09), (24, 1024, 0.08)])
def test_bitfit_on_bert_as_in_the_bitfit_paper(layers, C, percent):
    model = bert(layers, C)
    assert round(100 * count(model, peft.BitFit()).trained / sum(p.numel() for p in bert(layers, C).parameters()), 2) == percent


def test_ia3_on_t0_3b_as_in_the_ia3_paper():
    trained = count(t0_3b(), peft.IA3(targets=["k", "v", "wo"], feedforward=["wo"])).trained
    assert trained == 24 * (2 * 2048 + 5120) + 24 * (4 * 2048 + 5120) == 540_672              # "540K" in the paper


@pytest.mark.parametrize("layers, C, rank, millions", [(12, 768, 1024, 0.043), (24, 1024, 256, 0.061)])
def test_vera_on_roberta_as_in_table_2_of_the_vera_paper(layers, C, rank, millions):
    model = bert(layers, C, V=50265)
    assert round(count(model, peft.VeRA(rank=rank, targets=["query", "value"])).trained / 1e6, 3) == millions
