"""A whole step of DPO against trl's DPOTrainer, set up as its users set it up: the same LLaMA folder, the same reference, the same texts.

Our trees are made of the ids that trl made of the texts. float32 on both sides: a log-probability is a sum of 3 to 8 terms of size ~4, eps
1.2e-7, over ~50 products each: 1e-5 of the largest number of a tensor is allowed for it, for the loss and for gradients. AdamW's first step is lr g / (|g| +
eps), +-lr wherever g is not tiny: weights whose gradient is above a thousandth of the largest are compared, at 1e-3 of lr."""

import pytest
import tokenizers
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer

from minift.data.branches import Tree, rows_of
from minift.data.preference_trees import PairReport
from minift.losses.logprobs import per_answer
from minift.models.folder import read_model, write_model
from minift.recipes.dpo import Config, PairLoss, Pairs
from minift.recipes.preference_rows import Rows
from minift.recipes.reference import sums
from minift.train.answers import logprobs_of_answers
from minift.train.loop import fit

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, 97))]
TEXTS = [("w4 w5 w6", "w7 w8", "w9"), ("w10", "w11 w12 w13 w14", "w15 w16"), ("w17 w18 w19 w20 w21 w22", "w23", "w24 w25 w26 w27 w28 w29 w30"),
         ("w31 w31", "w31 w32 w33", "w33 w32 w31"), ("w40 w41 w42 w43", "w44 w45", "w44 w46")]    # fmt: skip
LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge", "apo-zero": "apo_zero"}
BETA, LR = 0.3, 1e-2


def words() -> transformers.PreTrainedTokenizerFast:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(policy, reference): the second is the first, moved a little, so that no reward is 0."""
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)    # fmt: skip
    torch.manual_seed(0)
    model, home = transformers.LlamaForCausalLM(config), tmp_path_factory.mktemp("dpo")
    for name in ("policy", "reference"):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(home / name)
    return home / "policy", home / "reference"


@pytest.fixture
def both(folders, tmp_path):
    """(loss name) -> (trl's trainer, its batch, our model, our pairs, our loss's config)."""
    policy, reference = folders

    def make(loss):
        settings = DPOConfig(
            output_dir=str(tmp_path / "trl"), loss_type=LOSSES[loss], beta=BETA, per_device_train_batch_size=len(TEXTS), max_steps=1, learning_rate=LR,
            lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.99, max_grad_norm=1.0, bf16=False, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", gradient_checkpointing=False, disable_tqdm=True, disable_dropout=True,
        )  # fmt: skip
        data = Dataset.from_list([dict(prompt=prompt, chosen=f" {chosen}", rejected=f" {rejected}") for prompt, chosen, rejected in TEXTS])
        load = transformers.LlamaForCausalLM.from_pretrained
        trainer = DPOTrainer(load(policy, dtype=torch.float32), load(reference, dtype=torch.float32), settings, train_dataset=data, processing_class=words())
        trees = [Tree(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in trainer.train_dataset]
        config = Config(data=(), out=tmp_path / "ours", loss=loss, beta=BETA, method="full", precision="fp32", lr=LR, schedule="constant", warmup=0.0,
                        weight_decay=0.0, betas=(0.9, 0.99), max_steps=1)    # fmt: skip
        pairs = Pairs(Rows(trees, None, None, PairReport(), None), sums(read_model(reference), trees, tokens=40), share=True)
        return trainer, pairs, read_model(policy), config

    return make


def in_their_names(model, numbers, folder):
    """Our parameters' gradients, or the parameters themselves, under the names of transformers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(numbers(parameter))
    write_model(model, folder)
    return load_file(folder / "model.safetensors")


def close(ours, theirs, name=""):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()), msg=lambda text: f"{name}: {text}")


def batch_of(trainer):
    """All pairs as trl batches them, in the order of the data."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(TEXTS))])


def test_trl_makes_the_tokens_we_take_an_answer_to_have(both):
    _, pairs, _, _ = both("dpo")
    ids = lambda text: [WORDS.index(word) for word in text.split()]
    assert pairs.trees == [Tree(ids(prompt), [[*ids(chosen), 2], [*ids(rejected), 2]]) for prompt, chosen, rejected in TEXTS]


@pytest.mark.parametrize("share", [True, False])
def test_log_probabilities_of_answers_are_trls(both, share):
    trainer, pairs, model, _ = both("dpo")
    inputs = batch_of(trainer)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    with torch.no_grad():
        found = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, fused_lm_head=True)
        reference = trainer.ref_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, fused_lm_head=True)
    in_our_order = lambda rows: torch.stack(rows.log_probs.sum(1).chunk(2), 1).flatten()          # theirs: all chosen, then all rejected
    batch = rows_of(pairs.trees, share)
    close(per_answer(logprobs_of_answers(model, batch), batch.lengths), in_our_order(found))
    close(pairs.reference, in_our_order(reference))
    assert (in_our_order(found) - in_our_order(reference)).abs().min() > 0.01                     # the policy is not the reference


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_of_every_weight_are_trls(both, loss, tmp_path):
    trainer, pairs, model, config = both(loss)
    theirs = trainer.compute_loss(trainer.model, batch_of(trainer))
    theirs.backward()
    total, count = PairLoss(config)(model, pairs.batch(range(len(TEXTS))))
    (total / count).backward()
    close(total / count, theirs)
    ours, gradients = in_their_names(model, lambda p: p.grad, tmp_path / "gradients"), {n: p.grad for n, p in trainer.model.named_parameters()}
    assert ours.keys() == gradients.keys() and len(ours) == 21
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item(), msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weights_after_one_step_of_the_trainers_are_trls(both, loss, tmp_path):
    trainer, pairs, model, config = both(loss)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    (total := trainer.compute_loss(trainer.model, batch_of(trainer))).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    said = trainer.train()
    assert said.training_loss == pytest.approx(total.item(), rel=1e-5)
    torch.manual_seed(0)
    outcome = fit(model, lambda epoch: pairs.batches(1000, epoch), PairLoss(config), config, tmp_path / "ours", quiet=True)
    assert outcome.steps == 1
    ours, theirs = in_their_names(model, lambda p: p.detach().clone(), tmp_path / "weights"), dict(trainer.model.named_parameters())
    compared = 0
    for name, gradient in gradients.items():
        clear = gradient.abs() > 1e-3 * gradient.abs().max()
        compared += int(clear.sum())
        torch.testing.assert_close(ours[name][clear], theirs[name].detach()[clear], rtol=0, atol=1e-3 * LR, msg=lambda text: f"{name}: {text}")
        assert ((theirs[name].detach() - before[name]).abs()[clear] > 0.5 * LR).all()             # it was a step
    assert compared > 5000
