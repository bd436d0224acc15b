"""Different sets for different rows of one batch (trap 31): each row is answered as if its set were alone on the model."""

import pytest
import torch
from torch import nn

from minift import generate, load, peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.peft.attach import state_of
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4], [6, 2, 6, 4, 3]])
SETS = {
    "law": peft.LoRA(rank=2, targets=["q", "mlp.down", "embed"]),
    "tale": peft.IA3(),                                                     # other modules, another method
    "code": peft.LoRA(rank=3, rslora=True, targets=["q", "head", "mlp.up"]),
    "shift": peft.LayerNormTuning(),
}
CHOSEN = ["tale", None, "law", "code", "law"]


def with_sets(model: nn.Module, sets=SETS) -> nn.Module:
    for name, method in sets.items():
        peft.attach(model, method, name)
    return filled(model)


def alone(model: nn.Module, name: str | None, x, run=None) -> torch.Tensor:
    """What the model answers with this one set, or with none."""
    run = run or model
    if name is None:
        with peft.disabled(model):
            return run(x)
    peft.switch(model, name)
    return run(x)


def close(one, other):
    """Products over fewer rows may sum in another order: float32 on logits of size 10, two blocks."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chosen", [CHOSEN, ["shift", "law", None, "shift", "tale"], ["law"] * 5, [None] * 5])
def test_trap31_each_row_is_its_single_adapter_run_and_none_is_the_base(chosen):
    model = with_sets(llama(tie_embeddings=False))
    wanted = torch.cat([alone(model, name, IDS[b : b + 1]) for b, name in enumerate(chosen)])
    for active in ("tale", "shift"):                                        # whoever is active has no say
        peft.switch(model, active)
        with peft.rows(model, chosen):
            close(model(IDS), wanted)
    assert len({str(wanted[b, 0].tolist()) for b in range(5)}) > 1
    close(model(IDS), alone(model, "shift", IDS))                           # and after the block it answers again


def test_trap31_embeddings_and_learned_positions_are_answered_by_rows_too():
    sets = {"law": peft.LoRA(rank=2, targets=["embed", "positions"]), "code": peft.LoRA(rank=2), "new": peft.NewTokens(ids=(2, 5))}
    model = with_sets(gpt2(), sets)
    chosen = ["new", "law", "code", None, "new"]
    wanted = torch.cat([alone(model, name, IDS[b : b + 1]) for b, name in enumerate(chosen)])
    with peft.rows(model, chosen):
        close(model(IDS), wanted)


def test_trap31_sets_on_whole_blocks_which_are_told_more_than_a_tensor():
    sets = {"edit": peft.LoReFT(rank=2, prefix=3), "below": peft.BottleneckAdapter(width=3), "once": peft.Pfeiffer(width=2),
            "beside": peft.Parallel(width=2), "law": SETS["law"]}    # fmt: skip
    model = with_sets(llama(), sets)
    chosen = ["edit", "below", None, "once", "beside"]
    wanted = torch.cat([alone(model, name, IDS[b : b + 1]) for b, name in enumerate(chosen)])
    with peft.rows(model, chosen):
        close(model(IDS), wanted)


def test_trap31_an_unknown_name_raises_and_is_never_the_base():
    model = with_sets(llama())
    with pytest.raises(InputError, match=r"no set named 'laws'; it has \['code', 'law', 'shift', 'tale'\]"):
        with peft.rows(model, ["law", "laws"]):
            pass
    close(model(IDS), alone(model, "shift", IDS))


def test_a_batch_of_another_size_raises_and_the_model_goes_on_as_before():
    model = with_sets(llama())
    before = model(IDS)
    for wrong in (IDS[:2], torch.cat([IDS, IDS])):
        with pytest.raises(InputError, match=f"names the sets of 5 rows, but this is a batch of {len(wrong)}"), peft.rows(model, CHOSEN):
            model(wrong)
    with pytest.raises(InputError, match="needs a name, or None, for each row"), peft.rows(model, []):
        pass
    assert torch.equal(model(IDS), before)


def test_virtual_tokens_are_shared_by_all_rows_and_so_refused():
    model = with_sets(llama(), {"law": SETS["law"], "soft": peft.Prompt(length=2)})
    with peft.rows(model, ["law", None]):
        close(model(IDS[:2])[1:], alone(model, None, IDS[1:2]))
    with pytest.raises(InputError, match="virtual tokens, which all rows of a batch share"), peft.rows(model, ["law", "soft"]):
        model(IDS[:2])


def test_blocks_inside_blocks_end_where_they_began():
    model = with_sets(llama())
    one, base, law = (alone(model, name, IDS[:1]) for name in ("code", None, "law"))
    with peft.rows(model, ["code"]):
        with peft.rows(model, ["law"]):
            close(model(IDS[:1]), law)
        close(model(IDS[:1]), one)
        with peft.disabled(model):                                          # a reference model is the base, rows or not
            close(model(IDS[:1]), base)
        peft.switch(model, "tale")
        close(model(IDS[:1]), one)
    close(model(IDS[:1]), alone(model, "tale", IDS[:1]))


def test_what_would_pull_the_sets_away_is_refused_inside_the_block():
    model = with_sets(llama())
    with peft.rows(model, ["code", None]):
        with pytest.raises(InputError, match="inside peft.rows several sets: merge before or after"):
            peft.merge(model)
        with pytest.raises(InputError, match="inside peft.rows 'code' answers rows"):
            peft.remove(model, "code")
        peft.remove(model, "law")
    assert state_of(model).merged is None and peft.names(model) == ["tale", "code", "shift"]
    peft.merge(model)
    with pytest.raises(InputError, match="not merged, not inside peft.disabled"), peft.rows(model, ["code"]):
        pass
    peft.unmerge(model)
    with peft.disabled(model), pytest.raises(InputError, match="not merged, not inside"), peft.rows(model, ["code"]):
        pass


def test_gradients_reach_the_active_set_through_its_own_rows_and_no_other():
    model = with_sets(llama())
    weigh = torch.randn(5, 5, 11)
    peft.switch(model, "law")
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert mine and all(".law." in name for name in mine)
    with peft.rows(model, CHOSEN):
        (model(IDS) * weigh).sum().backward()
    found = {name: p.grad.clone() for name, p in mine.items()}
    assert all(p.grad is None for name, p in model.named_parameters() if name not in mine)
    model.zero_grad()
    (model(IDS[[2, 4]]) * weigh[[2, 4]]).sum().backward()                   # law's rows, alone
    for name, parameter in mine.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_cache_of_each_row_is_filled_by_its_own_set():
    model = with_sets(llama(tie_embeddings=False)).eval()
    with torch.no_grad():
        wanted = torch.cat([alone(model, name, IDS[b : b + 1]) for b, name in enumerate(CHOSEN)])
        cache = model.new_cache(5, 8)
        with peft.rows(model, CHOSEN):
            first = model(IDS[:, :3], cache=cache)
            later = [model(IDS[:, t : t + 1], cache=cache) for t in (3, 4)]
    close(torch.cat([first, *later], dim=1), wanted)


def test_generation_keeps_every_prompt_with_its_set_though_it_sorts_them_and_lets_finished_rows_leave():
    model = with_sets(llama(tie_embeddings=False))
    prompts = [[3, 1, 4, 1], [9], [5, 8, 9, 7, 9], [2, 7], [1, 8, 2]]       # sorted by length: another order
    wanted = []
    for prompt, name in zip(prompts, CHOSEN):
        wanted.append(alone(model, name, [prompt], lambda p: generate_ids(model, p, max_new_tokens=8, eos_ids=[4, 7]))[0])
    assert len({len(answer) for answer in wanted}) > 1                      # they end at different steps
    for batch_size in (64, 2):
        assert generate_ids(model, prompts, max_new_tokens=8, eos_ids=[4, 7], batch_size=batch_size, sets=CHOSEN) == wanted
    twice = [*prompts, prompts[2], prompts[2]]                              # one prompt, answered by three sets
    assert len({*(others := [CHOSEN[2], *[name for name in dict.fromkeys(CHOSEN) if name != CHOSEN[2]]][:3])}) == 3
    several = generate_ids(model, twice, max_new_tokens=8, eos_ids=[4, 7], sets=[*CHOSEN, *others[1:]])
    assert several[:5] == wanted
    assert several[5:] == [alone(model, name, [prompts[2]], lambda p: generate_ids(model, p, max_new_tokens=8, eos_ids=[4, 7]))[0] for name in others[1:]]
    with peft.rows(model, CHOSEN), pytest.raises(InputError, match="would mix the sets up: pass sets= instead"):
        generate_ids(model, prompts, max_new_tokens=8)
    with pytest.raises(InputError, match="2 sets for 5 prompts: name one for each"):
        generate_ids(model, prompts, sets=["law", None])
    with pytest.raises(InputError, match="no set named 'laws'"):
        generate_ids(model, prompts[:1], sets=["laws"])


def test_generate_takes_sets_for_texts(small_model):
    model, tokenizer = load(small_model)
    peft.attach(model, peft.LoRA(rank=2), "law")
    filled(model)
    texts = ["The object is", "A", "return"]
    with peft.disabled(model):
        base = generate(model, tokenizer, texts, 6)
    law = generate(model, tokenizer, texts, 6)
    assert law != base and generate(model, tokenizer, texts, 6, sets=["law", None, "law"]) == [law[0], base[1], law[2]]


def test_rows_on_any_module():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4, 6)
    with_sets(model, {"a": peft.LoRA(rank=2, targets=["0"]), "b": peft.DoRA(rank=2, targets=["2"])})
    chosen = ["b", None, "a", "b"]
    wanted = torch.stack([alone(model, name, x[b : b + 1])[0] for b, name in enumerate(chosen)])
    with peft.rows(model, chosen):
        close(model(x), wanted)
