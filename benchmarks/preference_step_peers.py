"""The other sides of benchmarks/preference_step.py: trl's trainers, trl 1.0's PPO, and a bare loop on transformers' models.

Trainers are set so that they lose nothing by their defaults: no gradient checkpointing, fused AdamW, no logging, evaluation or saving, no
worker processes, SDPA attention, rows in order and of one length, so that nothing is padded. trl's PPO clips no gradients. bf16 is the
trainers' own mixed precision, which covers what they run under it: in PPO that is the update, not the answers nor the frozen models."""

import sys
from pathlib import Path

from benchmarks import trainers
from benchmarks.bare_loop import bare_loop
from benchmarks.preference_step_case import BETA, END, GROUPS, KL, PASSES, RATE, SPECIAL, Sizes, preferences, prompts, reward, text, word
from benchmarks.trainers import ticking, train
from benchmarks.turns import Gate

PPO = Path(sys.prefix) / "trl-ppo"
"""trl 1.0, the last with a PPO trainer; `make parity` makes the folder."""


def trl_dpo(gate: Gate, folder: Path, sizes: Sizes, precision: str, once: bool = False) -> None:
    """The reference in every step; once: its log-probabilities computed before training."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = preferences(sizes)
    texts = [{"prompt": text(p), "chosen": " " + text(c[:-1]), "rejected": " " + text(r[:-1])} for p, c, r in rows]
    args = arguments(DPOConfig, folder, precision, sizes.pairs, beta=BETA, max_length=None, precompute_ref_log_probs=once)
    trainer = DPOTrainer(
        model=causal(folder), ref_model=None if once else causal(folder), args=args, train_dataset=Dataset.from_list(texts),
        processing_class=words(sizes), callbacks=[ticking(gate)],
    )  # fmt: skip
    first = trainer.train_dataset[0]
    if [list(first[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] != [list(part) for part in rows[0]]:
        raise RuntimeError("the trainer made other tokens of the first row than it was given")
    train(gate, trainer)


def trl_dpo_once(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    trl_dpo(gate, folder, sizes, precision, once=True)


def trl_reward(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in preferences(sizes)]
    args = arguments(RewardConfig, folder, precision, sizes.pairs, max_length=None)
    train(gate, RewardTrainer(model=scorer(folder, "scorer"), args=args, train_dataset=Dataset.from_list(rows), processing_class=words(sizes),
                              callbacks=[ticking(gate)]))  # fmt: skip


def trl_grpo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    from trl import GRPOConfig, GRPOTrainer

    _trl_groups(gate, folder, sizes, precision, "grpo", GRPOTrainer, GRPOConfig, beta=0.0)


def trl_rloo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    from trl import RLOOConfig, RLOOTrainer

    _trl_groups(gate, folder, sizes, precision, "rloo", RLOOTrainer, RLOOConfig, beta=KL)


def _trl_groups(gate: Gate, folder: Path, sizes: Sizes, precision: str, task: str, trainer_class, config_class, beta: float) -> None:
    from datasets import Dataset

    each, group = GROUPS[task]
    args = arguments(
        config_class, folder, precision, each * group, max_completion_length=sizes.drawn, num_generations=group, beta=beta, temperature=1.0,
        num_iterations=1, shuffle_dataset=False, model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": text(ids)} for ids in prompts(sizes, task)])
    judge = lambda completions, **_: reward(completions)
    judge.__name__ = "rule"
    train(gate, trainer_class(model=str(folder / "base"), reward_funcs=judge, args=args, train_dataset=rows, processing_class=words(sizes),
                              callbacks=[ticking(gate)]))  # fmt: skip


def trl_ppo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    if not (PPO / "trl").is_dir():
        raise RuntimeError(f"no trl 1.0 in {PPO}: `make parity` installs it there")
    sys.path.insert(0, str(PPO))
    from datasets import Dataset
    from transformers import DataCollatorWithPadding
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    each, _ = GROUPS["ppo"]
    tokenizer, rows = words(sizes), Dataset.from_dict({"input_ids": prompts(sizes, "ppo")})
    tokenizer.padding_side = "left"
    args = arguments(
        PPOConfig, folder, precision, each, max_steps=-1, total_episodes=each * 10_000, response_length=sizes.drawn, num_ppo_epochs=PASSES["ppo"],
        num_mini_batches=1, temperature=1.0, kl_coef=KL, num_sample_generations=0, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=causal(folder), ref_model=causal(folder), reward_model=scorer(folder, "scorer"),
        value_model=scorer(folder, "value"), train_dataset=rows, eval_dataset=rows.select(range(2)), data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[ticking(gate)],
    )  # fmt: skip
    gate.open()
    trainer.train()


def loop_dpo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    """Chosen and rejected in one batch, logits of the answers only, the reference in every step."""
    import torch
    import torch.nn.functional as F

    policy, frozen = causal(folder).train(), causal(folder).requires_grad_(False)

    def sums(model, ids):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=sizes.answer + 1).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), ids[:, sizes.prompt :].flatten(), reduction="none")
        return -each.view(len(ids), -1).sum(1)

    def loss(ids):
        with torch.no_grad():
            reference = sums(frozen, ids)
        gain = sums(policy, ids) - reference
        return -F.logsigmoid(BETA * (gain[: sizes.pairs] - gain[sizes.pairs :])).mean()

    pairs_loop(gate, policy, loss, sizes, precision)


def loop_reward(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    import torch.nn.functional as F

    model = scorer(folder, "scorer").train()

    def loss(ids):
        scores = model(input_ids=ids, use_cache=False).logits[:, 0]
        return -F.logsigmoid(scores[: sizes.pairs] - scores[sizes.pairs :]).mean()

    pairs_loop(gate, model, loss, sizes, precision)


def pairs_loop(gate: Gate, model, loss, sizes: Sizes, precision: str) -> None:
    """loss(ids) of n pairs: their n better rows, then their n worse ones."""
    import torch

    rows, n = preferences(sizes), sizes.pairs
    batches = [torch.tensor([p + a[which] for which in (0, 1) for p, *a in rows[i : i + n]]) for i in range(0, len(rows), n)]
    bare_loop(gate, model, loss, batches, precision, RATE)


def arguments(config_class, folder: Path, precision: str, rows: int, **own):
    """The settings of every trainer, and its own."""
    return trainers.arguments(config_class, folder / "out", precision, rows, learning_rate=RATE, **own)


def causal(folder: Path):
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="sdpa")


def scorer(folder: Path, name: str):
    import torch
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="sdpa")


def words(sizes: Sizes):
    """A tokenizer for which each word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word(i): i for i in range(sizes.vocab)}, unk_token=SPECIAL[3]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[END], unk_token=SPECIAL[3])
