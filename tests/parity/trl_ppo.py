"""One step of trl's PPO on tiny models, with its intermediate numbers written to a file: run as a program by test_trl_policy.py.

    python trl_ppo.py OUT.pt        with the folder of trl 1.0.0, the last that has PPO, first on PYTHONPATH

trl computes rewards, advantages and losses inside train(), so what goes into its own helper functions and comes out of them is recorded.
The answers are given instead of drawn, so that their lengths are known: 3, 6 (as long as answers can be), 1 and 5."""

import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

LENGTHS, T, PAD, EOS, V = [3, 6, 1, 5], 6, 0, 1, 23
SHAPE = dict(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3,
             pad_token_id=PAD, eos_token_id=EOS, bos_token_id=2)  # fmt: skip


def model(kind: type, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return kind(LlamaConfig(**SHAPE, num_labels=1)).double()


def answers() -> torch.Tensor:
    """(4, T): each of its length, ending in EOS, pads after it; the longest has no EOS."""
    ids = torch.randint(3, V, (len(LENGTHS), T), generator=torch.Generator().manual_seed(5))
    for row, n in enumerate(LENGTHS):
        ids[row, n - 1 :] = EOS if n == T else PAD
        ids[row, n - 1] = 7 if n == T else EOS
    return ids


def run(out: Path) -> None:
    transformers.logging.set_verbosity_error()
    seen = types.SimpleNamespace(logprobs=[], learned=[], values=[], whitened=[], losses=[], rewards=[])

    def keep(name, into, only=lambda result: True):
        """Record what a helper of trl's returns, gradient included."""
        helper = getattr(ppo_trainer, name)

        def recorded(*arguments, **options):
            result = helper(*arguments, **options)
            into(arguments, result)
            return result

        setattr(ppo_trainer, name, recorded)

    def logprobs(arguments, result):
        if result.requires_grad:
            result.retain_grad()
        (seen.learned if result.requires_grad else seen.logprobs).append(result)

    def values(arguments, result):
        if isinstance(result, tuple):                                  # the policy and its values, in training
            result[1].retain_grad()
            seen.values.append(result[1])

    keep("selective_log_softmax", logprobs)
    keep("forward", values)
    keep("get_reward", lambda arguments, result: seen.rewards.append((result[0], result[1])))
    keep("masked_whiten", lambda arguments, result: seen.whitened.append((arguments[0], result)))

    def given(policy, queries, *_):
        ids = torch.cat([queries, answers()], 1)
        logits = ppo_trainer.forward(policy, ids, PAD).logits[:, queries.shape[1] - 1 : -1]
        return ids, logits

    ppo_trainer.batch_generation = given
    np.random.permutation = np.arange                                  # minibatches in order

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", *map(str, range(3, V))])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="3")), pad_token="<pad>", eos_token="<eos>")
    prompts = Dataset.from_dict({"input_ids": [[2, 5 + i, 9, 4] for i in range(4)]})
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=4, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=2, total_episodes=4,
            response_length=T, learning_rate=0.02, max_grad_norm=None, kl_coef=0.3, gamma=0.9, lam=0.8, cliprange=0.1, cliprange_value=0.15, vf_coef=0.4,
            missing_eos_penalty=0.7, stop_token="eos", num_sample_generations=0, report_to="none", save_strategy="no", bf16=False, use_cpu=True, temperature=1.0,
            disable_tqdm=True,
        )  # fmt: skip
        policy, reference = model(LlamaForCausalLM, 0), model(LlamaForCausalLM, 1)
        value, reward = model(LlamaForSequenceClassification, 2), model(LlamaForSequenceClassification, 3)
        trainer = PPOTrainer(config, tokenizer, policy, reference, reward, prompts, value, eval_dataset=prompts)
        trainer.accelerator.backward = lambda loss: (seen.losses.append(loss), loss.backward())
        trainer.train()
    context = 4
    torch.save(
        {
            "scores": seen.rewards[1][1], "logprobs": seen.logprobs[0], "reference": seen.logprobs[1],
            "values": seen.rewards[0][0][:, context - 1 : -1, 0], "advantages": seen.whitened[0][0], "white": seen.whitened[0][1],
            "passes": [
                {"loss": loss.detach(), "logprobs": p.detach(), "logprobs_grad": p.grad, "values": v.detach()[:, context - 1 : -1, 0],
                 "values_grad": v.grad[:, context - 1 : -1, 0]}
                for loss, p, v in zip(seen.losses, seen.learned, seen.values)
            ],
        }, out,
    )  # fmt: skip


if __name__ == "__main__":
    run(Path(sys.argv[1]))
