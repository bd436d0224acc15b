"""Folders of the `adapters` library: names and fields, back bit for bit, and every way in which one can be wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.files import read
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
ENDS = ["adapter_down.0.bias", "adapter_down.0.weight", "adapter_up.bias", "adapter_up.weight"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"


def saved(folder, new=llama, kind=peft.Pfeiffer, name="sst", **options):
    """A model with a random set, and its folder."""
    model = new().eval()
    peft.attach(model, kind(**{**dict(width=5), **options}), name=name)
    peft.save(filled(model), folder, name=name, base_model="some/model")
    return model


def twin(model, new=llama):
    """The same base without adapters."""
    again = new().eval()
    again.load_state_dict({k.replace(".base.", "."): v for k, v in model.state_dict().items() if ".adapters." not in k})
    return again


def edit(folder, **fields):
    """Change fields of the config; those of the method as config__FIELD, None to take one out."""
    path = folder / CONFIG
    content = json.loads(path.read_text())
    for key, value in fields.items():
        part, key = (content["config"], key.removeprefix("config__")) if key.startswith("config__") else (content, key)
        part[key] = value
        if value is None:
            del part[key]
    path.write_text(json.dumps(content))


def rewrite(folder, change, file=WEIGHTS):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


LLAMA, GPT2 = "model.layers.{}.{}_adapters.adapters.sst.", "transformer.h.{}.{}_adapters.adapters.sst."


@pytest.mark.parametrize("kind, places", [(peft.Houlsby, ["attention", "output"]), (peft.Pfeiffer, ["output"]), (peft.Parallel, ["output"])])
@pytest.mark.parametrize("new, key, family", [(llama, LLAMA, "llama"), (gpt2, GPT2, "gpt2")])
def test_a_folder_has_the_librarys_names_and_comes_back_bit_for_bit(new, key, family, kind, places, tmp_path):
    model = saved(tmp_path / "a", new, kind, dropout=0.25, activation="gelu", scale=2.0)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [WEIGHTS, CONFIG]
    stored = load_file(tmp_path / "a" / WEIGHTS)
    assert sorted(stored) == sorted(key.format(n, place) + end for n in range(2) for place in places for end in ENDS)
    assert stored[key.format(1, "output") + "adapter_down.0.weight"].shape == (5, 12)
    fields = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert {k: v for k, v in fields.items() if k != "config"} == {
        "hidden_size": 12, "model_class": "Transformer", "model_name": "some/model", "model_type": family, "name": "sst", "version": "adapters.1.3.0",
    }  # fmt: skip
    assert fields["config"] == {
        **kind.arrangement, "reduction_factor": 2.4, "non_linearity": "gelu", "scaling": 2.0, "dropout": 0.25, "init_weights": kind().init,
        "residual_before_ln": True, "original_ln_after": True,
    }  # fmt: skip
    again = twin(model, new)
    peft.load(again, tmp_path / "a", name="other")
    assert torch.equal(again(IDS), model(IDS)) and peft.names(again) == ["other"]
    method, _ = read(tmp_path / "a")
    assert method == kind(reduction_factor=2.4, dropout=0.25, activation="gelu", scale=2.0)


def test_a_set_named_like_a_part_of_its_keys_comes_back(tmp_path):
    for name in ("adapters", "NAME", "adapter_up", "model"):
        model = saved(tmp_path / name, name=name)
        again = twin(model)
        peft.load(again, tmp_path / name, name="b")
        assert torch.equal(again(IDS), model(IDS))


def test_what_the_library_writes_beside_the_method_is_understood(tmp_path):
    model = saved(tmp_path / "a")
    edit(tmp_path / "a", config__leave_out=[], config__ln_before=False, config__phm_layer=False, config__phm_dim=4, config__factorized_phm_W=True,
         config__hypercomplex_nonlinearity="glorot-uniform", config__inv_adapter=False, config__stochastic_depth=0.0, config__use_gating=False,
         config__init_weights_seed=42, config__cross_adapter=False)  # fmt: skip
    again = twin(model)
    peft.load(again, tmp_path / "a")
    assert torch.equal(again(IDS), model(IDS))


def test_adapters_on_named_modules_have_folders_too_and_the_library_is_told(tmp_path):
    new = lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for kind in (peft.Houlsby, peft.Parallel):
        model, x = saved(tmp_path / kind.__name__, new, kind, width=2, targets=["0", "2"]), torch.randn(4, 6)
        fields = json.loads((tmp_path / kind.__name__ / CONFIG).read_text())
        assert fields["config"]["architecture"] == "minift-targets" and fields["model_type"] is None      # the library knows no such architecture
        assert sorted(load_file(tmp_path / kind.__name__ / WEIGHTS)) == sorted(f"{n}.adapters.sst.{end}" for n in (0, 2) for end in ENDS)
        again = twin(model, new)
        peft.load(again, tmp_path / kind.__name__)
        assert torch.equal(again(x), model(x))
    llama_ = saved(tmp_path / "down", targets=["mlp.down"])
    assert "model.layers.1.mlp.down_proj.adapters.sst.adapter_up.bias" in load_file(tmp_path / "down" / WEIGHTS)
    again = twin(llama_)
    peft.load(again, tmp_path / "down")
    assert torch.equal(again(IDS), llama_(IDS))


def fused(folder):
    model = llama().eval()
    for name in ("a", "b"):
        peft.attach(model, peft.Houlsby(width=5), name=name)
    peft.attach(model, peft.AdapterFusion(("a", "b"), regularization=False), name="both")
    filled(model)
    for name in peft.names(model):
        peft.save(model, folder / name, name=name)
    return model


def test_a_fusion_has_a_folder_that_needs_the_sets_it_mixes(tmp_path):
    model = fused(tmp_path)
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["adapter_fusion_config.json", "model_adapter_fusion.safetensors"]
    stored = load_file(tmp_path / "both" / "model_adapter_fusion.safetensors")
    places, ends = ("attention", "output"), ("key.bias", "key.weight", "query.bias", "query.weight", "value.weight")
    assert sorted(stored) == sorted(
        f"model.layers.{n}.{place}_adapters.adapter_fusion_layer.a,b.{end}" for n in range(2) for place in places for end in ends
    )
    fields = json.loads((tmp_path / "both" / "adapter_fusion_config.json").read_text())
    assert fields["name"] == "a,b" and fields["adapter_names"] == ["a", "b"] and fields["config"]["regularization"] is False
    again = twin(model)
    with pytest.raises(InputError, match="no adapters are attached"):
        peft.load(again, tmp_path / "both")
    peft.load(again, tmp_path / "a", name="a")
    with pytest.raises(InputError, match="mixes 'b', and this model has no such set"):
        peft.load(again, tmp_path / "both", name="both")
    peft.load(again, tmp_path / "b", name="b")
    peft.load(again, tmp_path / "both", name="both")
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    "key, value", [("value", False), ("query", False), ("query_before_ln", True), ("residual_before", True), ("dropout_prob", 0.1)]
)
def test_another_fusion_is_refused(key, value, tmp_path):
    fused(tmp_path)
    path = tmp_path / "both" / "adapter_fusion_config.json"
    fields = json.loads(path.read_text())
    fields["config"][key] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=key):
        read(tmp_path / "both")


class TheirEdit(nn.Module):
    """LoReFT as the library builds it, on torch's own orthogonal parametrization."""

    def __init__(self, C, r):
        super().__init__()
        self.learned_source = nn.Linear(C, r)
        self.projection = nn.utils.parametrizations.orthogonal(nn.Linear(C, r, bias=False))

    def forward(self, h):
        return h + (self.learned_source(h) - self.projection(h)) @ self.projection.weight


@pytest.mark.parametrize("r", [1, 3, 11])
@pytest.mark.parametrize("tied", [True, False])
def test_the_librarys_loreft_is_read_through_its_orthogonal_parametrization(r, tied, tmp_path):
    units = [[TheirEdit(12, r) for _ in range(1 if tied else 2)] for _ in range(2)]
    for pair in units:
        with torch.no_grad():
            original = pair[0].projection.parametrizations.weight.original
            original += torch.randn_like(original).triu(1 - 12) * (1 - torch.eye(r, 12))      # trained: no longer the start, the signs as they were
    stored = {
        f"model.layers.{n}.reft_layer.refts.sst.units.{u}.{key}": tensor.contiguous().clone()
        for n, pair in enumerate(units) for u, unit in enumerate(pair) for key, tensor in unit.state_dict().items()
    }  # fmt: skip
    save_file(stored, tmp_path / WEIGHTS)
    options = dict(architecture="reft", dropout=0.05, dtype=None, init_weights_seed=None, layers="all", non_linearity=None, orthogonality=True,
                   output_reft=True, prefix_positions=2, r=r, suffix_positions=0, tied_weights=tied)  # fmt: skip
    fields = dict(config=options, hidden_size=12, model_class="LlamaForCausalLM", model_name="", model_type="llama", name="sst")
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    model = llama().eval()
    peft.load(model, tmp_path)
    for n in range(2):
        ours, h = model.blocks[n].adapters["default"], torch.randn(2, 5, 12)
        y = ours(nn.Identity(), h)
        torch.testing.assert_close(y[:, :2], units[n][0](h[:, :2]), rtol=0, atol=1e-5)
        assert torch.equal(y[:, 2:], h[:, 2:])
    assert read(tmp_path)[0] == peft.LoReFT(rank=r, prefix=2, dropout=0.05)
    for change, words in [
        (dict(config__suffix_positions=2), "does not implement suffix_positions = 2"),
        (dict(config__suffix_positions=0, config__orthogonality=False), "with orthogonality"),
        (dict(config__orthogonality=True, config__non_linearity="relu"), "does not implement non_linearity = 'relu'"),
    ]:
        edit(tmp_path, **change)
        with pytest.raises(InputError, match=words):
            peft.load(llama(), tmp_path)
    edit(tmp_path, config__non_linearity=None)
    rewrite(tmp_path, lambda t: t.pop("model.layers.1.reft_layer.refts.sst.units.0.projection.parametrizations.weight.0.base"))
    with pytest.raises(InputError, match=r"lacks model.layers.1.*weight.0.base"):
        peft.load(llama(), tmp_path)
    theirs = nn.Linear(12, 12).state_dict(prefix="model.layers.1.reft_layer.refts.sst.units.0.learned_source.")
    rotation = "model.layers.1.reft_layer.refts.sst.units.0.projection.parametrizations.weight."
    save_file({**theirs, **{rotation + end: torch.zeros(12, 12) for end in ("original", "0.base")}}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="rank 12 at width 12: the library builds a square R in another way"):
        peft.load(llama(), tmp_path)


UP = "model.layers.1.output_adapters.adapters.sst.adapter_up.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop(UP), r"1 missing: model.layers.1.output_adapters.adapters.NAME.adapter_up.weight"),
        (lambda t: t.update({UP.replace("sst", "other"): t.pop(UP)}), "1 missing.*1 left over: .*adapters.other.adapter_up.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 left over: extra"),
        (lambda t: t.update({k.removeprefix("model."): t.pop(k) for k in list(t)}), "8 missing.*8 left over"),
        (lambda t: t.update({UP: torch.zeros(5, 12)}), r"adapter_up.weight has shape \(5, 12\), but .* call for \(12, 5\)"),
        (lambda t: t[UP].fill_(float("nan")), "adapter_up.weight contains NaN or infinity"),
    ],
)
def test_trap27_wrong_tensors_are_refused_and_the_model_is_untouched(change, words, tmp_path):
    model = twin(saved(tmp_path / "a"))
    rewrite(tmp_path / "a", change)
    before = model(IDS)
    with pytest.raises(InputError, match=words) as caught:
        peft.load(model, tmp_path / "a")
    assert str(tmp_path / "a" / WEIGHTS) in str(caught.value)
    assert torch.equal(model(IDS), before) and "_peft" not in model.__dict__


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(config__ln_before=True), "does not implement ln_before = True"),
        (dict(config__phm_layer=True), "does not implement phm_layer = True"),
        (dict(config__inv_adapter="nice"), "does not implement inv_adapter = 'nice'"),
        (dict(config__leave_out=[0]), r"does not implement leave_out = \[0\]"),
        (dict(config__brand_new=1), "does not implement brand_new = 1"),
        (dict(config__residual_before_ln="post_add"), "residual_before_ln other than true"),
        (dict(config__original_ln_after=False), "original_ln_after other than true"),
        (dict(config__mh_adapter=True), "no bottleneck adapter with mh_adapter True, output_adapter True, original_ln_before True"),
        (dict(config__reduction_factor={"default": 16}), "reduction_factor differs by layer"),
        (dict(config__reduction_factor=None), "reduction_factor is missing"),
        (dict(config__scaling="learned"), "scale is 'learned'"),
        (dict(config__non_linearity="leakyrelu"), "activation is 'leakyrelu'"),
        (dict(config__architecture="lora"), "architecture is 'lora'"),
        (dict(config__targets=["down"]), "targets do not go with architecture None"),
        (dict(config=None), "peft_type is None"),
        (dict(config="pfeiffer"), "config is 'pfeiffer' and name is 'sst'"),
        (dict(name=None), "name is None"),
        (dict(model_type="mistral"), "made for a model with model_type 'mistral', and this one has 'llama'"),
        (dict(hidden_size=768), "made for a model with hidden_size 768, and this one has 12"),
        (dict(config__reduction_factor=3), r"adapter_down.0.weight has shape \(5, 12\), but .* call for \(4, 12\)"),
    ],
)
def test_a_config_that_would_give_other_numbers_is_refused(change, words, tmp_path):
    model = twin(saved(tmp_path / "a"))
    edit(tmp_path / "a", **change)
    with pytest.raises(InputError, match=words):
        peft.load(model, tmp_path / "a")
    assert "_peft" not in model.__dict__


def test_pickles_and_damaged_files_are_never_opened(tmp_path):
    model = twin(saved(tmp_path / "a"))
    content = (tmp_path / "a" / WEIGHTS).read_bytes()
    (tmp_path / "a" / WEIGHTS).write_bytes(content[:-7])
    with pytest.raises(InputError, match="adapter.safetensors is damaged or cut short"):
        peft.load(model, tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "a" / "pytorch_adapter.bin")
    with pytest.raises(InputError, match="only a pickled pytorch_adapter.bin.*use_safetensors=True"):
        peft.load(model, tmp_path / "a")
    (tmp_path / "a" / "pytorch_adapter.bin").unlink()
    with pytest.raises(InputError, match="has no adapter.safetensors"):
        peft.load(model, tmp_path / "a")


def test_a_head_beside_the_adapter_must_be_the_models_own(tmp_path):
    model = saved(tmp_path / "a")
    again, head = twin(model), model.head.weight.detach()
    save_file({"lm_head.weight": head.clone()}, tmp_path / "a" / "model_head.safetensors")
    peft.load(again, tmp_path / "a", name="good")
    for other in ({"lm_head.weight": head + 1}, {"lm_head.weight": head[:5].clone()}, {"heads.sst.1.weight": head.clone()}):
        save_file(other, tmp_path / "a" / "model_head.safetensors")
        with pytest.raises(InputError, match=f"{next(iter(other))} is not this model's own, so the adapter was trained together with a head"):
            peft.load(again, tmp_path / "a", name="bad")
    assert peft.names(again) == ["good"]
