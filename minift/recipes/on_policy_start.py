"""Before and after the loop of on_policy.py: model, prompts, rewards, reference and run folder made ready; what was learned written down.

Proved in tests/recipes/test_on_policy.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minift import folder as folders
from minift import peft
from minift.data.prompts import Prompt, docstring_prompts, read_prompts
from minift.data.split import split_rows
from minift.errors import InputError
from minift.evaluate.scoring import load_scorer
from minift.generate import position_limit
from minift.models.transformer import Transformer
from minift.recipes.docstrings import spread
from minift.recipes.loading import use_template
from minift.recipes.methods import METHODS
from minift.recipes.on_policy import Ask, OnPolicyConfig, Outcome, asks
from minift.recipes.on_policy_plots import draw_ratios, draw_rewards, write_samples
from minift.recipes.tuning import choose_parameters, loaded_in, write_result
from minift.rl.reference import Reference
from minift.rl.rewards import combined
from minift.rl.reward_source import Source
from minift.tokenizer import Tokenizer
from minift.train.run import open_run


PROBE = "The quick brown fox, 12 times."
"""Tokenizers that agree on it and on their size are taken for one."""


@dataclass
class Start:
    model: Transformer
    tokenizer: Tokenizer
    source: Source
    reference: Reference
    train: list[Ask]
    judged: list[Ask]


def start(config: OnPolicyConfig, needs_reference: bool) -> Start:
    """All that the loop needs, but for a folder: whatever can be refused is refused before there is one."""
    if METHODS[config.method].whole and config.dtype != "float32":
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {config.dtype} cannot resolve its small steps")
    if config.lora_dropout:
        raise InputError("--lora-dropout would make another policy of the one that answers: leave it out")
    if config.reference is not None and not needs_reference:
        raise InputError("--reference has no effect where no distance to it is measured (--skip-kl): leave it out")
    train, valid = split_prompts(config)
    source = combined(config.rewards, lambda name: load_scorer(name, device=config.device))
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    use_template(tokenizer, [prompt.row for prompt in [*train, *valid]], config.template)
    reference = Reference()
    if needs_reference:
        reference = reference_of(config, tokenizer)
    choose_parameters(model, config, tokenizer)
    model.checkpointing = config.checkpointing
    asked, judged = asks(train, tokenizer), asks(spread(valid, config.judged), tokenizer)
    longest, limit = max(len(own.ids) for own in [*asked, *judged]), position_limit(model)
    if longest + config.new_tokens > limit:
        raise InputError(f"the longest prompt has {longest} tokens and an answer up to {config.new_tokens}, this model has positions for {limit}: "
                         "shorten the prompts, or pass a smaller --new-tokens")
    return Start(model, tokenizer, source, reference, asked, judged)


def open_folder(begun: Start, config: OnPolicyConfig, verb: str, quiet: bool) -> Path:
    """The run folder, new or to go on with."""
    folder = open_run(config.out, verb, config, config.overwrite, config.resume)
    if not quiet:
        print(f"{len(begun.train)} prompts to learn from, {len(begun.judged)} held-out ones to judge by; rewarded for {begun.source.name}")
        print(f"{config.method}: {peft.trainable(begun.model)}")
    return folder


def refuse_without_effect(config: OnPolicyConfig) -> None:
    """Options of the loop that would do nothing here, or cannot be, are errors (trap 22)."""
    if config.compile or config.patience or config.accumulate != 1:
        raise InputError("--compile, --patience and --accumulate have no effect here: leave them out (--batch-tokens bounds a micro-batch)")
    if config.keep_best != OnPolicyConfig.keep_best:
        raise InputError("--keep-best has no effect here, where the last weights are the result: leave it out; --keep-last N keeps more of them")
    if config.epochs != OnPolicyConfig.epochs or config.batching != OnPolicyConfig.batching:
        raise InputError("--epochs and --batching have no effect here: leave them out (--max-steps says how long, rows are always shared by answers)")
    if config.optimizer in ("muon", "galore") or config.method == "adalora":
        raise InputError("--optimizer muon or galore and --method adalora are not for learning from rewards, where there is no schedule of data: take adamw, lora")
    if config.profile:
        raise InputError("--profile is for recipes whose steps are forward, loss, backward, and these answer prompts first: leave it out")
    if config.ema:
        raise InputError("--ema has no effect here: leave it out (answers are drawn from the weights that learn)")
    if config.passes < 1 or config.minibatches < 1 or config.prompts < 1 or config.judged < 1 or config.new_tokens < 1:
        raise InputError("--passes, --minibatches, --prompts, --judged and --new-tokens want 1 or more")
    if config.minibatches > config.prompts:
        raise InputError(f"--minibatches {config.minibatches} of {config.prompts} prompts: take at most one for each prompt")
    if not config.temperature > 0:
        raise InputError(f"--temperature is {config.temperature}: answers that are not drawn cannot differ; take 1.0, say")
    if not 0 <= config.clip_low <= 1 or not config.clip_high >= 0:
        raise InputError(f"--clip-low is {config.clip_low}, --clip-high {config.clip_high}: wanted 0 to 1, and 0 or more")
    if config.max_steps is None:
        raise InputError("say how long to learn: --max-steps 100, say")


def split_prompts(config: OnPolicyConfig) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """(prompts to learn from, held out): by question; the docstring prompts by module."""
    if tuple(config.data) == ("pydocs",):
        return docstring_prompts("train"), docstring_prompts("valid")
    prompts = read_prompts(config.data, columns=config.columns)
    return split_rows(prompts, fraction=config.held_out, seed=0, key=lambda prompt: prompt.row.question)


def reference_of(config: OnPolicyConfig, tokenizer: Tokenizer) -> Reference:
    """The policy with its adapter off where it has one; else, or if another is named, a second model."""
    if config.reference is None and not METHODS[config.method].whole:
        return Reference(off=peft.disabled)
    model, theirs = folders.decoder(config.reference or config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    same_tokens(tokenizer, theirs, f"the reference {config.reference}")
    return Reference(model.requires_grad_(False))


def same_tokens(own: Tokenizer, theirs: Tokenizer, who: str) -> None:
    if theirs.vocab_size != own.vocab_size or theirs.encode(PROBE) != own.encode(PROBE):
        raise InputError(f"{who} has another tokenizer than the model ({theirs.vocab_size} tokens, {own.vocab_size}): it would read other words in the "
                         "model's tokens; name one with the same")


def finish(begun: Start, config: OnPolicyConfig, outcome: Outcome, ratios: Tensor | None, quiet: bool) -> Path:
    """Write the adapter or model, samples.md and the pictures. ratios: of the last step's tokens, None if none was taken."""
    written = write_result(begun.model, begun.tokenizer, config, config.out, base=config.model)
    if outcome.before is None:                                                         # interrupted before there was anything to show
        return written
    write_samples(config.out)
    draw_rewards(config.out)
    if ratios is not None and config.passes * config.minibatches > 1:                  # else each is 1: nothing moved before they were taken
        draw_ratios(config.out, ratios.tolist(), config.clip_low, config.clip_high)
    if not quiet:
        before, after = outcome.before, outcome.after
        distance = f", {after['kl']:.2f} nats per answer from the reference" if "kl" in after else ""
        print(f"held-out reward {before['reward']:.3f} -> {after['reward']:.3f}{distance}; written: {written}")
    return written
