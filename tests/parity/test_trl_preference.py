"""Preference losses against trl's trainers, value and gradient: DPO's family, KTO, ORPO, CPO and SimPO.

The trainers' own loss methods run on an object that has what they read and no more; in the model's place stands a function that returns
log-probabilities per token (DPO, KTO) or logits (ORPO, CPO) made by hand, in float64, of answers that are unequally long. Gradients are
with respect to those. What trl returns is a mean over pairs: our sum over our count. Tolerance 1e-9, a thousandth of the 1e-6 that is
asked for; ORPO's log odds are computed in float32 by trl, sums of five numbers of size ~2 with eps 1.2e-7 each: 1e-6."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from minift.losses.kto import kto, kto_kl
from minift.losses.preference import apo_down, apo_zero, cdpo, dpo, hinge, ipo, robust
from minift.losses.reference_free import cpo, orpo, simpo

PROMPT, T, V = 2, 8, 11
CHOSEN, REJECTED = torch.tensor([3, 6, 1, 4]), torch.tensor([5, 2, 4, 4])        # tokens of the answers


def close(ours, theirs, atol=1e-9):
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trainer_like(kind, **attributes):
    """One of trl's trainers that was never set up: only what its loss reads."""
    made = object.__new__(kind)
    same = lambda value: value
    made.__dict__ |= dict(
        model=SimpleNamespace(training=True), accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        aux_loss_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1, **attributes,
    )  # fmt: skip
    return made


def masks(lengths):
    """(B, T): 1 on the tokens of the answer, which stand behind PROMPT others and before the padding."""
    place = torch.arange(T)
    return ((place >= PROMPT) & (place < PROMPT + lengths[:, None])).long()


def outputs(log_probs):
    """What trl's model returns when its head is fused: log_probs (B, T - 1) are 0 where nothing is an answer's token."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


# ---- pairs against a reference


def their_pairs(loss_type, rows, mask, reference, *, beta, label_smoothing=0.0):
    """rows, mask (2 B, T - 1): chosen, then rejected."""
    trainer = trainer_like(
        DPOTrainer, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
        use_weighting=False, beta=beta, label_smoothing=label_smoothing,
    )  # fmt: skip
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask], 1)
    inputs = dict(input_ids=torch.zeros_like(whole), attention_mask=torch.ones_like(whole), completion_mask=whole,
                  ref_chosen_logps=reference[0], ref_rejected_logps=reference[1])  # fmt: skip
    return trainer._compute_loss(lambda **_: outputs(rows * mask), inputs, return_outputs=False)


def pairs():
    lengths = torch.cat([CHOSEN, REJECTED])
    rows = (-1.5 + draw(8, T - 1, seed=1)).requires_grad_()
    mask = masks(lengths)[:, 1:]
    reference = (rows.detach() * mask).sum(1) + 2 * draw(8, seed=2)               # the policy has moved, some nats either way
    return rows, mask, reference.chunk(2)


def our_pairs(loss, rows, mask, reference, **options):
    lengths = mask.sum(1).chunk(2) if loss is ipo else ()
    total, count = loss(*(rows * mask).sum(1).chunk(2), *reference, *lengths, **options)
    return total / count


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    "loss, loss_type, options",
    [
        (dpo, "sigmoid", {}), (robust, "robust", dict(label_smoothing=0.0)), (robust, "robust", dict(label_smoothing=0.2)), (ipo, "ipo", {}),
        (hinge, "hinge", {}), (apo_zero, "apo_zero", {}), (apo_down, "apo_down", {}),
    ],
)  # fmt: skip
def test_value_and_gradient_of_pairs(loss, loss_type, options, beta):
    rows, mask, reference = pairs()
    ours, theirs = our_pairs(loss, rows, mask, reference, beta=beta, **options), their_pairs(loss_type, rows, mask, reference, beta=beta, **options)
    close(ours, theirs)
    close(*(torch.autograd.grad(value, rows)[0] for value in (ours, theirs)))


def test_trap22_trls_sigmoid_ignores_label_smoothing_and_ours_has_a_function_for_it():
    rows, mask, reference = pairs()
    close(their_pairs("sigmoid", rows, mask, reference, beta=0.3, label_smoothing=0.2), our_pairs(dpo, rows, mask, reference, beta=0.3))
    apart = our_pairs(cdpo, rows, mask, reference, beta=0.3, label_smoothing=0.2) - our_pairs(dpo, rows, mask, reference, beta=0.3)
    assert apart.abs() > 1e-3


def test_cdpo_is_trls_smoothed_loss_where_one_still_smooths():
    """aot_unpaired smooths, after sorting the gains of a batch: of one pair there is nothing to sort, and it is cDPO."""
    rows, mask, reference = pairs()
    one_by_one = [their_pairs("aot_unpaired", rows[[i, 4 + i]], mask[[i, 4 + i]], [r[i : i + 1] for r in reference], beta=0.3, label_smoothing=0.2)
                  for i in range(4)]  # fmt: skip
    ours, theirs = our_pairs(cdpo, rows, mask, reference, beta=0.3, label_smoothing=0.2), torch.stack(one_by_one).mean()
    close(ours, theirs)
    close(*(torch.autograd.grad(value, rows)[0] for value in (ours, theirs)))


# ---- KTO


@pytest.mark.parametrize("labels", [[True, False, False, True], [True] * 4, [False] * 4])
@pytest.mark.parametrize("shift", [2.0, -9.0])                                    # of the mismatched answers: a KL above 0, and one to be clamped
def test_value_and_gradient_of_kto(labels, shift):
    beta, up, down = 0.3, 1.7, 0.6
    rows, strange = ((-1.5 + draw(4, T - 1, seed=seed)).requires_grad_() for seed in (3, 4))
    whole, other = masks(CHOSEN), masks(CHOSEN.roll(1))
    mask, other_mask = whole[:, 1:], other[:, 1:]
    ref, ref_strange = ((values.detach() * m).sum(1) + draw(4, seed=5) for values, m in ((rows, mask), (strange, other_mask)))
    ref_strange = ref_strange - shift
    ids, strange_ids = torch.zeros(4, T, dtype=torch.long), torch.ones(4, T, dtype=torch.long)
    trainer = trainer_like(KTOTrainer, calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=beta, desirable_weight=up, undesirable_weight=down)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=whole, label=torch.tensor(labels), ref_logps=ref, ref_KL_logps=ref_strange,
                 KL_input_ids=strange_ids, KL_attention_mask=torch.ones_like(ids), KL_completion_mask=other)  # fmt: skip
    model = lambda input_ids, **_: outputs(strange * other_mask if input_ids.any() else rows * mask)
    theirs = trainer._compute_loss(model, batch, return_outputs=False)
    kl = kto_kl((strange * other_mask).sum(1), ref_strange)
    assert (kl == 0) == (shift < 0)
    total, count = kto((rows * mask).sum(1), ref, torch.tensor(labels), kl, beta=beta, desirable_weight=up, undesirable_weight=down)
    close(total / count, theirs)
    close(*(torch.autograd.grad(value, rows)[0] for value in (total / count, theirs)))
    assert torch.autograd.grad(total, strange, allow_unused=True) == (None,)


# ---- pairs without a reference


def batch_of(chosen, rejected, prompt=PROMPT):
    """A padded batch as trl's collator makes it, and the masks (B, T) of answers."""
    batch, answers = {}, []
    for name, lengths, seed in (("chosen", chosen, 6), ("rejected", rejected, 7)):
        ids = torch.randint(1, V, (len(lengths), T), generator=torch.Generator().manual_seed(seed))
        place, ends = torch.arange(T), prompt + lengths[:, None]
        answer = (place >= prompt) & (place < ends)
        batch |= {f"{name}_input_ids": ids * (place < ends), f"{name}_attention_mask": (place < ends).long(), f"{name}_labels": torch.where(answer, ids, -100)}
        answers.append(answer)
    return batch, torch.cat(answers)


def without_reference(trainer, ours, chosen, rejected, prompt=PROMPT, atol=1e-9):
    """Our loss and trl's of the same logits (2 B, T, V)."""
    batch, mask = batch_of(chosen, rejected, prompt)
    logits = draw(2 * len(chosen), T, V, seed=8).requires_grad_()
    theirs, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    ids = torch.cat([batch["chosen_input_ids"], batch["rejected_input_ids"]])
    rows = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]   # (2 B, T - 1)
    total, count = ours(*(rows * mask[:, 1:]).sum(1).chunk(2), chosen, rejected)
    close(total / count, theirs, atol)
    close(*(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (total / count, theirs)), atol)


def cpo_trainer(loss_type, *, beta, weight=0.0, gamma=0.0):
    return trainer_like(CPOTrainer, is_encoder_decoder=False, pad_token_id=0, loss_type=loss_type, beta=beta, cpo_alpha=weight, simpo_gamma=gamma,
                        alpha=0.0, label_smoothing=0.0)  # fmt: skip


def orpo_trainer(beta):
    return trainer_like(ORPOTrainer, is_encoder_decoder=False, padding_value=0, beta=beta)


EQUAL = torch.full((4,), 5)


@pytest.mark.parametrize("beta, gamma", [(2.0, 0.5), (0.7, 1.4)])
def test_value_and_gradient_of_simpo(beta, gamma):
    without_reference(cpo_trainer("simpo", beta=beta, gamma=gamma), lambda *p: simpo(*p, beta=beta, gamma=gamma), CHOSEN, REJECTED)


def test_value_and_gradient_of_cpo():
    """Unequal answers without the chosen answer's own loss; with it chosen answers of one length: trl takes its mean over all tokens of the batch."""
    without_reference(cpo_trainer("sigmoid", beta=0.3), lambda *p: cpo(*p, beta=0.3, sft_weight=0.0), CHOSEN, REJECTED)
    without_reference(cpo_trainer("sigmoid", beta=0.3, weight=0.8), lambda *p: cpo(*p, beta=0.3, sft_weight=0.8), EQUAL, REJECTED)


def test_trls_chosen_loss_is_a_mean_over_the_batchs_tokens_and_ours_over_each_answers():
    with pytest.raises(AssertionError, match="not close"):
        without_reference(cpo_trainer("sigmoid", beta=0.3, weight=0.8), lambda *p: cpo(*p, beta=0.3, sft_weight=0.8), CHOSEN, REJECTED)
    one = torch.tensor([3]), torch.tensor([6])                                    # of one pair the two are the same
    without_reference(cpo_trainer("sigmoid", beta=0.3, weight=0.8), lambda *p: cpo(*p, beta=0.3, sft_weight=0.8), *one)


def test_value_and_gradient_of_orpo():
    """Behind a prompt of one token, which nothing predicts, and with chosen answers of one length."""
    without_reference(orpo_trainer(0.4), lambda *p: orpo(*p, beta=0.4), EQUAL, REJECTED, prompt=1, atol=1e-6)


def test_trls_orpo_learns_the_prompt_too_and_ours_does_not():
    with pytest.raises(AssertionError, match="not close"):
        without_reference(orpo_trainer(0.4), lambda *p: orpo(*p, beta=0.4), torch.full((4,), 5), REJECTED, prompt=2, atol=1e-6)


def test_value_and_gradient_of_the_odds_alone_for_unequal_answers():
    sums = [(-2 * lengths + draw(4, seed=seed)).requires_grad_() for lengths, seed in ((CHOSEN, 9), (REJECTED, 10))]
    theirs = -orpo_trainer(0.4).odds_ratio_loss(sums[0] / CHOSEN, sums[1] / REJECTED)[0].mean()
    total, count = orpo(*sums, CHOSEN, REJECTED, beta=0.4, sft_weight=0.0)
    close(total / count, theirs, atol=1e-6)
    for ours, their in zip(*(torch.autograd.grad(value, sums) for value in (total / count, theirs))):
        close(ours, their, atol=1e-6)
