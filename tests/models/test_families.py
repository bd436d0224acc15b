"""config.json <-> ModelConfig, and the weight names, worked by hand. That the numbers are right is tests/parity/test_families.py."""

import dataclasses

import pytest

from minift.errors import InputError
from minift.models.config import RopeScaling
from minift.models.families import FAMILIES, from_hf, to_hf
from minift.models.names import is_transposed, module_names
from minift.models.transformer import Transformer
from tests.models.small import CONFIGS

LLAMA = dict(
    model_type="llama", vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
)  # fmt: skip
GPT2 = dict(model_type="gpt2", vocab_size=100, n_embd=24, n_layer=2, n_head=3, n_positions=16)
NEOX = dict(model_type="gpt_neox", vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
FALCON = dict(model_type="falcon", vocab_size=100, hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
BLOOM = dict(model_type="bloom", vocab_size=100, n_embed=24, n_layer=2, num_attention_heads=3)


def llama(**fields):
    return from_hf({**LLAMA, **fields})


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_reads_back_as_the_same_model(name):
    assert from_hf(to_hf(CONFIGS[name])) == CONFIGS[name]


def test_a_small_llama_config_is_understood_field_by_field():
    config = llama(torch_dtype="float16", rope_theta=500.0)
    assert (config.vocab_size, config.hidden_size, config.layers, config.mlp_size, config.max_positions) == (100, 24, 2, 40, 64)
    assert (config.heads, config.kv_heads, config.head_dim) == (6, 2, 4)                   # 24 / 6 = 4
    assert (config.norm, config.norm_eps, config.rope_theta, config.rope_scaling) == ("rmsnorm", 1e-5, 500.0, None)
    assert (config.tie_embeddings, config.qkv_bias, config.mlp_bias) == (False, False, False)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)  # LlamaConfig's defaults


def test_head_dim_and_kv_heads_default_to_full_heads():
    assert llama(num_key_value_heads=None).kv_heads == 6
    assert llama(head_dim=16).head_dim == 16


def test_gpt2_hub_fields():
    config = from_hf(GPT2)
    assert (config.mlp_size, config.max_positions, config.activation, config.tie_embeddings) == (96, 16, "gelu_tanh", True)
    assert config.dropout == 0.1 and config.eos_token_id is None                            # 50256 is no row of this embedding
    assert from_hf({**GPT2, "n_inner": 50, "activation_function": "gelu"}).activation == "gelu"


def test_bloom_old_names_are_understood():
    assert from_hf(BLOOM) == from_hf({**BLOOM, "hidden_size": 24, "n_head": 3, "n_embed": None})


def test_gpt_neox_rotates_a_quarter_of_each_head_unless_told():
    assert from_hf(NEOX).rope_dim == 2                                                      # 8 / 4
    assert from_hf({**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 77}).rope_dim == 4
    new = from_hf({**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 77, "partial_rotary_factor": 0.5}})
    assert new == from_hf({**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 77})


def test_the_three_falcon_layouts():
    seven = from_hf({**FALCON, "num_kv_heads": 3})                                          # multi_query: num_kv_heads does not count
    assert (seven.qkv, seven.kv_heads, seven.parallel, seven.shared_norm) == ("joined", 1, True, True)
    forty = from_hf({**FALCON, "hidden_size": 48, "num_attention_heads": 6, "new_decoder_architecture": True, "num_kv_heads": 2})
    assert (forty.qkv, forty.kv_heads, forty.parallel, forty.shared_norm) == ("grouped", 2, True, False)
    plain = from_hf({**FALCON, "multi_query": False, "parallel_attn": False})
    assert (plain.qkv, plain.kv_heads, plain.parallel, plain.shared_norm) == ("grouped", 3, False, False)


BERT = dict(model_type="bert", vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)


def test_a_small_bert_config_is_understood_field_by_field():
    config = from_hf(BERT)
    assert (config.causal, config.norm_after, config.embed_norm, config.norm, config.norm_eps) == (False, True, True, "layernorm", 1e-12)
    assert (config.token_types, config.max_positions, config.first_position, config.activation) == (2, 512, 0, "gelu")
    assert (config.pad_token_id, config.bos_token_id, config.dropout, config.top) == (0, None, 0.1, "pooler")
    for architecture, top, labels in (("BertForMaskedLM", "mask", 0), ("BertForPreTraining", "mask", 0), ("BertForSequenceClassification", "pooler", 2), ("BertModel", "pooler", 0)):
        config = from_hf({**BERT, "architectures": [architecture]})
        assert (config.top, config.labels) == (top, labels)


def test_robertas_positions_begin_behind_the_pads_number():
    config = from_hf({**BERT, "model_type": "roberta", "max_position_embeddings": 514})
    assert (config.first_position, config.max_positions, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (2, 512, 1, 0, 2)
    assert from_hf({**BERT, "model_type": "xlm-roberta", "pad_token_id": 4}).first_position == 5


def test_distilbert_has_other_names_and_no_types():
    config = from_hf(dict(model_type="distilbert", vocab_size=100, dim=24, hidden_dim=40, n_layers=2, n_heads=3, dropout=0.2, activation="relu", layer_norm_eps=0.5))
    assert (config.hidden_size, config.mlp_size, config.layers, config.heads, config.dropout, config.activation) == (24, 40, 2, 3, 0.2, "relu")
    assert (config.token_types, config.norm_eps, config.top) == (0, 1e-12, "none")


@pytest.mark.parametrize("fields, text", [
    (dict(is_decoder=True), "is_decoder is True: minift implements only False for the bert family"),
    (dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key': minift implements only 'absolute'"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings is False"),
])    # fmt: skip
def test_encoders_refuse_what_they_do_not_have(fields, text):
    with pytest.raises(InputError, match=text):
        from_hf({**BERT, **fields})


def test_gemma_scales_its_embedding_and_offsets_its_norms():
    config = llama(model_type="gemma", hidden_act="gelu", head_dim=16)                      # the first release's "gelu" means tanh
    assert (config.embed_scale, config.norm_offset, config.activation) == (24**0.5, 1.0, "gelu_tanh")
    assert (config.tie_embeddings, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (True, 2, 1, 0)


@pytest.mark.parametrize(
    "old, new",
    [
        ({}, {"rope_type": "default", "rope_theta": 500.0}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "rope_theta": 500.0},
        ),
    ],
)
def test_old_and_new_rope_spellings_say_the_same(old, new):
    assert llama(rope_theta=500.0, **old) == llama(rope_parameters=new)


def test_llama3_scaling_keeps_its_four_numbers():
    block = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0, "original_max_position_embeddings": 16}
    assert llama(rope_scaling=block).rope_scaling == RopeScaling("llama3", 8.0, 2.0, 5.0, 16)


def test_written_config_has_both_spellings():
    hf = to_hf(CONFIGS["linear"], "bfloat16")
    assert hf["torch_dtype"] == hf["dtype"] == "bfloat16"
    assert hf["rope_theta"] == 10000.0 and hf["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert hf["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def test_mistral_window_null_means_everything_and_absent_means_4096():
    assert llama(model_type="mistral", sliding_window=None).windows == ()
    assert llama(model_type="mistral").windows == (4096, 4096)
    assert llama(model_type="mistral", sliding_window=9).windows == (9, 9)


def test_qwen_windows_are_off_unless_switched_on_and_start_at_max_window_layers():
    assert llama(model_type="qwen2", sliding_window=9).windows == ()
    assert llama(model_type="qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=1).windows == (None, 9)
    kinds = ["sliding_attention", "full_attention"]
    assert llama(model_type="qwen3", head_dim=4, sliding_window=9, use_sliding_window=True, layer_types=kinds).windows == (9, None)


def test_qwen_biases():
    two, three = llama(model_type="qwen2"), llama(model_type="qwen3", head_dim=4)
    assert (two.qkv_bias, two.attention_out_bias, two.qk_norm) == (True, False, False)
    assert (three.qkv_bias, three.attention_out_bias, three.qk_norm) == (False, False, True)


def test_several_ends_of_text_are_a_tuple_and_a_null_is_none():
    assert llama(eos_token_id=[2, 7], bos_token_id=None).eos_token_id == (2, 7)
    assert llama(bos_token_id=None).bos_token_id is None


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="model_type is 'mamba'.*gpt2, llama, mistral, qwen2, qwen3, falcon, bloom, gpt_neox, gemma"):
        from_hf({"model_type": "mamba"})
    with pytest.raises(InputError, match="no model_type"):
        from_hf({"vocab_size": 3})
    assert list(FAMILIES) == "gpt2 llama mistral qwen2 qwen3 falcon bloom gpt_neox gemma bert roberta xlm-roberta distilbert t5 mt5".split()


@pytest.mark.parametrize(
    "hf, named",
    [
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights is False"),
        ({**GPT2, "reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({**GPT2, "activation_function": "mish"}, "activation_function is 'mish'.*silu"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
        ({**GPT2, "n_head": 5}, "hidden size 24 is not a multiple of the 5"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not implemented: known are default, linear"),
        ({**LLAMA, "rope_parameters": {"rope_type": "linear"}}, "'linear' needs a factor; found rope_type"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one flat set"),
        (
            {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}},
            "original_max_position_embeddings is 8",
        ),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({**LLAMA, "hidden_size": "24"}, "hidden_size is '24': wanted a positive whole number"),
        ({**LLAMA, "hidden_size": -1}, "hidden_size is -1"),
        ({**LLAMA, "num_key_value_heads": 4}, "multiple of kv_heads"),
        ({**LLAMA, "tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes': wanted true or false"),
        ({key: value for key, value in LLAMA.items() if key != "vocab_size"}, "vocab_size is missing"),
        ({**LLAMA, "model_type": "mistral", "mlp_bias": True}, "mlp_bias"),
        ({**LLAMA, "model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**LLAMA, "model_type": "qwen3", "layer_types": ["sliding_attention"] * 2}, "use_sliding_window is off"),
        ({**LLAMA, "model_type": "qwen3", "layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ({**LLAMA, "model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**FALCON, "alibi": True}, "alibi is True"),
        ({**FALCON, "num_ln_in_parallel_attn": 2}, "is no Falcon layout"),
        ({**FALCON, "new_decoder_architecture": True, "parallel_attn": False}, "is no Falcon layout"),
        ({**BLOOM, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ],
)
def test_an_option_that_is_not_implemented_is_refused_by_name(hf, named):
    with pytest.raises(InputError, match=named):
        from_hf(hf)


def test_a_choice_the_family_cannot_express_is_not_written():
    with pytest.raises(InputError, match="llama family cannot express norm 'layernorm'"):
        to_hf(dataclasses.replace(CONFIGS["llama"], norm="layernorm"))
    with pytest.raises(InputError, match="mistral family cannot express windows"):
        to_hf(dataclasses.replace(CONFIGS["mistral"], windows=(4, None)))
    with pytest.raises(InputError, match="known families"):
        to_hf(dataclasses.replace(CONFIGS["llama"], family="nanogpt"))


def test_redundant_choices_are_written_in_their_plain_form():
    full = dataclasses.replace(CONFIGS["llama"], windows=(None, None), rope_dim=8, rope_scaling=RopeScaling("llama3", 2.0))
    again = from_hf(to_hf(full))
    assert (again.windows, again.rope_dim, again.rope_scaling.original_max_positions) == ((), None, 64)


def test_dropout_survives_in_families_without_a_field_for_it():
    assert from_hf(to_hf(dataclasses.replace(CONFIGS["llama"], dropout=0.1))).dropout == 0.1


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("llama", "blocks.1.attention.q", "model.layers.1.self_attn.q_proj"),
        ("llama", "blocks.1.mlp.gate", "model.layers.1.mlp.gate_proj"),
        ("llama", "blocks.0.norm2", "model.layers.0.post_attention_layernorm"),
        ("qwen3", "blocks.1.attention.k_norm", "model.layers.1.self_attn.k_norm"),
        ("gpt2", "blocks.1.mlp.up", "transformer.h.1.mlp.c_fc"),
        ("gpt2", "positions", "transformer.wpe"),
        ("bloom", "embed_norm", "transformer.word_embeddings_layernorm"),
        ("falcon_7b", "blocks.0.norm1", "transformer.h.0.input_layernorm"),
        ("falcon_40b", "blocks.0.norm2", "transformer.h.0.ln_mlp"),
        ("gpt_neox", "head", "embed_out"),
        ("gpt2", "head", "lm_head"),
    ],
)
def test_module_names(name, ours, theirs):
    assert module_names(CONFIGS[name])[ours] == theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_every_module_with_weights_has_a_name_and_no_two_share_one(name):
    names = module_names(CONFIGS[name])
    model = Transformer(CONFIGS[name])
    assert set(names) == {path.rpartition(".")[0] for path, _ in model.named_parameters(remove_duplicate=False)}
    assert len(set(names.values())) == len(names)
    assert model.module_names() == names


def test_only_gpt2_transposes_and_only_its_linears():
    assert is_transposed(CONFIGS["gpt2"], "blocks.0.attention.qkv") and is_transposed(CONFIGS["gpt2"], "blocks.1.mlp.down")
    assert not is_transposed(CONFIGS["gpt2"], "head") and not is_transposed(CONFIGS["gpt2"], "embed")
    assert not is_transposed(CONFIGS["bloom"], "blocks.0.attention.qkv")
