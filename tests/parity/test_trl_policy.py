"""GRPO, RLOO and PPO against trl, live: losses, advantages and gradients.

GRPOTrainer and RLOOTrainer are trl's of today. They are given hand-made answers; log-probabilities either come from a tiny model or are put
in the model's place, in float64. PPO left trl after 1.0.0: that version lives in .venv/trl-ppo and is run once, as a program of its own
(trl_ppo.py). Tolerance 1e-6 absolute for numbers of size ~1: our weights are float32, and so are trl's rewards."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tokenizers
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from minift.losses.advantages import gae, group_advantages, rloo_advantages, to_flat, to_rows, token_rewards, whiten
from minift.losses.kl import k3, reweighted_k3
from minift.losses.logprobs import entropy_of, of_tokens, per_answer
from minift.losses.policy import clipped_surrogate, token_weights, value_loss

LENGTHS, T, V, G = torch.tensor([3, 7, 1, 5, 2, 4]), 7, 23, 3
REWARDS = [0.1, 0.7, 0.2, 0.5, 0.5, 0.9]
ADVANTAGES = torch.tensor([1.5, -0.5, -1.0, 0.25, 2.0, -0.75], dtype=torch.float64)
PADS = torch.arange(T) >= LENGTHS[:, None]
PPO = Path(sys.prefix) / "trl-ppo"


def close(ours, theirs, atol=1e-6):
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(seed):
    """Log-probabilities for answers of up to T tokens, pads included (trl's own hold rubbish there too)."""
    return -1.5 + 0.4 * draw(len(LENGTHS), T, seed=seed)


def flat(x):
    return to_flat(x, LENGTHS)


@pytest.fixture(scope="module", params=[(GRPOConfig, GRPOTrainer), (RLOOConfig, RLOOTrainer)], ids=["grpo", "rloo"])
def any_trainer(request):
    return trainer_of(*request.param)


@pytest.fixture(scope="module")
def grpo():
    return trainer_of(GRPOConfig, GRPOTrainer)


@pytest.fixture(scope="module")
def rloo():
    return trainer_of(RLOOConfig, RLOOTrainer)


def trainer_of(config, trainer):
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", *map(str, range(3, V))])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="3"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    shape = dict(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)
    made = trainer(
        LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=2)).double(),
        reward_funcs=lambda completions, **_: REWARDS,
        args=config(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=6, num_generations=G, max_completion_length=T, beta=0.0,
                    report_to="none", use_cpu=True, bf16=False, disable_tqdm=True),
        train_dataset=Dataset.from_dict({"prompt": ["5 6 7", "8 9"]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>"),
    )  # fmt: skip
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


def step(**more):
    """What a trl trainer is given for one step, but for log-probabilities: prompts of two tokens."""
    ids = torch.randint(3, V, (len(LENGTHS), 2 + T), generator=torch.Generator().manual_seed(3))
    return {"prompt_ids": ids[:, :2], "prompt_mask": torch.ones(len(LENGTHS), 2).long(), "completion_ids": ids[:, 2:].masked_fill(PADS, 0),
            "completion_mask": (~PADS).long(), "advantages": ADVANTAGES, "num_items_in_batch": LENGTHS.sum(), **more}  # fmt: skip


def their_loss(trainer, monkeypatch, logprobs, inputs, cuts=(6,), **settings):
    """Value, and gradient with respect to logprobs (A, T), of trl's loss over micro-batches of some answers."""
    for name, value in settings.items():
        monkeypatch.setattr(trainer, name, value)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", len(cuts))
    monkeypatch.setattr(trainer.args, "steps_per_generation", len(cuts))
    leaf, total, start = logprobs.detach().clone().requires_grad_(), 0.0, 0
    for count in cuts:
        some = slice(start, start + count)
        monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, some=some, **__: (leaf[some], torch.zeros_like(leaf[some]), None))
        part = {name: value[some] if value.dim() else value for name, value in inputs.items()}
        total = total + trainer._compute_loss(trainer.model, part)
        start += count
    return total.detach(), torch.autograd.grad(total, leaf)[0]


def our_loss(logprobs, old, advantages, how, beta=0.0, reference=None, reweighted=False, **clips):
    leaf = logprobs.detach().clone().requires_grad_()
    each = clipped_surrogate(flat(leaf), flat(old), advantages.repeat_interleave(LENGTHS), **clips)
    if beta:
        each = each + beta * (reweighted_k3(flat(leaf), flat(old), flat(reference)) if reweighted else k3(flat(leaf), flat(reference)))
    total = (token_weights(LENGTHS, how, max_length=T) * each).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0]


AVERAGES = {"grpo": "answer", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.28), (0.1, 0.05)])
@pytest.mark.parametrize("beta, reweighted", [(0.0, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize("kind", AVERAGES)
def test_grpo_losses(grpo, monkeypatch, kind, beta, reweighted, clips):
    """trl multiplies the KL term by the ratio unless it is told not to."""
    monkeypatch.setattr(grpo.args, "use_bias_correction_kl", reweighted)
    logprobs, old, reference = rows(0), rows(1), rows(2)
    inputs = step(old_per_token_logps=old, ref_per_token_logps=reference)
    theirs = their_loss(grpo, monkeypatch, logprobs, inputs, loss_type=kind, beta=beta, epsilon_low=clips[0], epsilon_high=clips[1])
    ours = our_loss(logprobs, old, ADVANTAGES, AVERAGES[kind], beta, reference, reweighted, clip_low=clips[0], clip_high=clips[1])
    for our, their in zip(ours, theirs):
        close(our, their)
    assert beta or (ours[1] == 0).sum() > PADS.sum()                   # some tokens were cut


@pytest.mark.parametrize("kind", AVERAGES)
def test_trap14_grpo_on_its_own_answers(grpo, monkeypatch, kind):
    """trl takes the policy itself where no old log-probabilities are given: ratio 1."""
    logprobs = rows(0)
    for our, their in zip(our_loss(logprobs, logprobs, ADVANTAGES, AVERAGES[kind]), their_loss(grpo, monkeypatch, logprobs, step(), loss_type=kind)):
        close(our, their)


@pytest.mark.parametrize("cuts", [(3, 3), (2, 2, 2), (1,) * 6])
@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_trap16_grpo_over_micro_batches(grpo, monkeypatch, kind, cuts):
    logprobs, old = rows(0), rows(1)
    theirs = their_loss(grpo, monkeypatch, logprobs, step(old_per_token_logps=old), cuts, loss_type=kind)
    for our, their in zip(our_loss(logprobs, old, ADVANTAGES, AVERAGES[kind]), theirs):
        close(our, their)


def test_trap01_bnpo_in_trl_is_another_loss_for_another_cut(grpo, monkeypatch):
    """Where we differ: it averages micro-batches' means. Ours is the one it has uncut."""
    logprobs, old = rows(0), rows(1)
    whole, cut = (their_loss(grpo, monkeypatch, logprobs, step(old_per_token_logps=old), cuts, loss_type="bnpo") for cuts in ((6,), (2, 2, 2)))
    close(our_loss(logprobs, old, ADVANTAGES, "token")[1], whole[1])
    assert (whole[1] - cut[1]).abs().max() > 0.02


def test_gspo_is_the_surrogate_of_mean_log_probabilities(grpo, monkeypatch):
    logprobs, old = rows(0), rows(1)
    theirs = their_loss(grpo, monkeypatch, logprobs, step(old_per_token_logps=old), loss_type="grpo", importance_sampling_level="sequence")
    leaf = logprobs.clone().requires_grad_()
    total = clipped_surrogate(per_answer(flat(leaf), LENGTHS) / LENGTHS, per_answer(flat(old), LENGTHS) / LENGTHS, ADVANTAGES).mean()
    close(total.detach(), theirs[0])
    close(torch.autograd.grad(total, leaf)[0], theirs[1])


@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.9, 2.0)])
def test_rloos_loss_is_the_surrogate_of_whole_answers(rloo, monkeypatch, clips):
    logprobs, old = rows(0), rows(1)
    theirs = their_loss(rloo, monkeypatch, logprobs, step(old_logps=per_answer(flat(old), LENGTHS)), epsilon_low=clips[0], epsilon_high=clips[1])
    leaf = logprobs.clone().requires_grad_()
    whole, before = per_answer(flat(leaf), LENGTHS), per_answer(flat(old), LENGTHS)
    total = clipped_surrogate(whole, before, ADVANTAGES, clip_low=clips[0], clip_high=clips[1]).mean()
    close(total.detach(), theirs[0])
    close(torch.autograd.grad(total, leaf)[0], theirs[1])


def test_rloo_by_token_is_trls_on_the_first_pass(rloo, monkeypatch):
    logprobs = rows(0)
    theirs = their_loss(rloo, monkeypatch, logprobs, step(old_logps=per_answer(flat(logprobs), LENGTHS)))
    close(our_loss(logprobs, logprobs, ADVANTAGES, "sum")[1], theirs[1])


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_grpo_through_a_model(grpo, monkeypatch, beta):
    """The same, down to the weights of a model, whose log-probabilities are ours."""
    monkeypatch.setattr(grpo, "beta", beta)
    inputs, old, reference = step(), rows(1) - 2, rows(2) - 2
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": reference}
    their = grpo._compute_loss(grpo.model, inputs)
    ids, seen = (torch.cat([inputs[f"prompt_{what}"], inputs[f"completion_{what}"]], 1) for what in ("ids", "mask"))
    logits = flat(grpo.model(input_ids=ids, attention_mask=seen).logits[:, 1:-1])
    logprobs = of_tokens(logits, flat(inputs["completion_ids"]))
    each = clipped_surrogate(logprobs, flat(old), ADVANTAGES.repeat_interleave(LENGTHS)) + beta * reweighted_k3(logprobs, flat(old), flat(reference))
    our = (token_weights(LENGTHS, "token") * each).sum()               # trl's defaults: dapo, r k3
    close(our, their)
    weights = list(grpo.model.parameters())
    for ours, theirs in zip(torch.autograd.grad(our, weights), torch.autograd.grad(their, weights)):
        close(ours, theirs)
    close(entropy_of(logits.detach()).mean(), torch.tensor(grpo._metrics["train"]["entropy"][-1]))


def their_advantages(trainer, rewards, monkeypatch, **settings):
    for name, value in settings.items():
        monkeypatch.setattr(trainer, name, value)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: torch.tensor(rewards)[:, None])
    return trainer._generate_and_score_completions([{"prompt": "5 6 7"}] * G + [{"prompt": "8 9"}] * G)["advantages"].view(-1, G)


@pytest.mark.parametrize("scale, std", [("group", "unbiased"), ("none", None)])
def test_grpo_advantages(grpo, monkeypatch, scale, std):
    theirs = their_advantages(grpo, REWARDS, monkeypatch, scale_rewards=scale)
    close(group_advantages(torch.tensor(REWARDS).view(-1, G), std=std), theirs)


def test_grpo_advantages_in_units_of_the_batchs_spread(grpo, monkeypatch):
    theirs, rewards = their_advantages(grpo, REWARDS, monkeypatch, scale_rewards="batch"), torch.tensor(REWARDS)
    close(group_advantages(rewards.view(-1, G), std=None) / (rewards.std() + 1e-4), theirs)


def test_rloo_advantages(rloo, monkeypatch):
    theirs = their_advantages(rloo, REWARDS, monkeypatch)
    close(rloo_advantages(torch.tensor(REWARDS).view(-1, G)), theirs)


def test_trap16_equal_rewards(any_trainer, monkeypatch):
    """Zero on both sides, but for trl's rounding; ours exactly."""
    rewards = [0.1] * G + [0.7] * G
    theirs, ours = their_advantages(any_trainer, rewards, monkeypatch), torch.tensor(rewards).view(-1, G)
    close(theirs, torch.zeros(2, G), atol=1e-3)
    assert not group_advantages(ours).any() and not rloo_advantages(ours).any()


@pytest.fixture(scope="module")
def ppo(tmp_path_factory):
    if not PPO.exists():
        pytest.skip("trl 1.0.0, the last with PPO, is not in .venv/trl-ppo: pip install --no-deps --target .venv/trl-ppo -r tests/parity/trl_ppo.txt")
    out = tmp_path_factory.mktemp("ppo") / "seen.pt"
    environment = {**os.environ, "PYTHONPATH": str(PPO), "TRL_EXPERIMENTAL_SILENCE": "1"}
    program = [sys.executable, str(Path(__file__).with_name("trl_ppo.py")), str(out)]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return torch.load(out)


ANSWERS, LONGEST = torch.tensor([3, 6, 1, 5]), 6
ENDED = torch.tensor([True, False, True, True])
ONE_MORE = (ANSWERS + 1).clamp(max=LONGEST)
"""trl gives an answer that is shorter than the longest one step more, on the pad after its end: it has a value there, and the score."""


def mask_of(lengths):
    return torch.arange(LONGEST) < lengths[:, None]


def our_gae(ppo, lengths):
    kl = (ppo["logprobs"] - ppo["reference"]).masked_fill(~mask_of(ANSWERS), 0.0)
    rewards = token_rewards(ppo["scores"], kl, lengths, kl_coef=0.3, ended=ENDED, missing_eos_penalty=0.7)
    return gae(rewards, ppo["values"], mask_of(lengths), gamma=0.9, lam=0.8)


def test_ppo_advantages(ppo):
    """Equal for the longest answer as we have it, and for the others if they are given trl's one step more."""
    longest = ANSWERS == LONGEST
    close(our_gae(ppo, ANSWERS)[0][longest], ppo["advantages"][longest])
    (ours, _), places = our_gae(ppo, ONE_MORE), mask_of(ONE_MORE)
    close(ours[places], ppo["advantages"][places])


def test_trap12_where_trl_ppo_puts_the_score(ppo):
    """After the end: the last token's advantage is then not score - V (and its KL), but made of the value of a pad."""
    last = ANSWERS - 1
    row = torch.arange(4)[ANSWERS < LONGEST]
    kl = (ppo["logprobs"] - ppo["reference"])[row, last[row]]
    by_hand = ppo["scores"][row] - 0.3 * kl - ppo["values"][row, last[row]]
    close(our_gae(ppo, ANSWERS)[0][row, last[row]], by_hand)
    assert ((ppo["advantages"][row, last[row]] - by_hand).abs() > 0.01).all()


def test_ppo_whitens_over_real_tokens(ppo):
    ours = whiten(ppo["advantages"], mask_of(ANSWERS))
    close(ours, ppo["white"].masked_fill(~mask_of(ANSWERS), 0.0))


@pytest.mark.parametrize("number", [0, 1])
def test_ppo_losses_and_their_gradients(ppo, number):
    """Both passes over the answers, the second with other weights than drew them: ratios and values out of the clips."""
    found = ppo["passes"][number]
    logprobs, values = found["logprobs"].clone().requires_grad_(), found["values"].clone().requires_grad_()
    _, returns = our_gae(ppo, ONE_MORE)
    white = whiten(our_gae(ppo, ONE_MORE)[0], mask_of(ANSWERS))
    of, more = (lambda x: to_flat(x, ANSWERS)), (lambda x: to_flat(x, ONE_MORE))
    policy = token_weights(ANSWERS, "token") * clipped_surrogate(of(logprobs), of(ppo["logprobs"]), of(white), clip_low=0.1, clip_high=0.1)
    value = token_weights(ONE_MORE, "token") * value_loss(more(values), more(ppo["values"]), more(returns), clip=0.15)
    total = policy.sum() + 0.4 * value.sum()
    close(total.detach(), found["loss"])
    ours = torch.autograd.grad(total, (logprobs, values))
    close(ours[0], found["logprobs_grad"])
    close(ours[1], found["values_grad"])
    if number == 1:
        assert (of(ours[0]) == 0).any() and (more(ours[1]) == 0).any()          # the clips were met


def test_rows_and_flat_are_trls_padding(ppo):
    close(to_rows(to_flat(ppo["values"], ANSWERS), ANSWERS)[0], ppo["values"].masked_fill(~mask_of(ANSWERS), 0.0))
