"""Before and after the loop of on_policy.py: model, prompts, rewards, reference and run folder made ready; what was learned written down.

Proved in tests/recipes/test_grpo.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

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
from minift.recipes.on_policy import Ask, OnPolicyConfig, Outcome, asks, write_samples
from minift.recipes.on_policy_plots import draw_rewards
from minift.recipes.tuning import choose_parameters, loaded_in, write_result
from minift.rl.reference import Reference
from minift.rl.rewards import combined
from minift.rl.reward_source import Source
from minift.tokenizer import Tokenizer
from minift.train.run import open_run


@dataclass
class Start:
    model: Transformer
    tokenizer: Tokenizer
    source: Source
    reference: Reference
    train: list[Ask]
    judged: list[Ask]
    folder: Path


def start(config: OnPolicyConfig, verb: str, needs_reference: bool, quiet: bool = False) -> Start:
    """All that the loop needs. Whatever can be refused is refused before there is a folder."""
    if METHODS[config.method].whole and config.dtype != "float32":
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {config.dtype} cannot resolve its small steps")
    if config.lora_dropout:
        raise InputError("--lora-dropout would make another policy of the one that answers: leave it out")
    if config.reference is not None and not needs_reference:
        raise InputError("--reference has no effect where no distance to it is measured (--skip-kl): leave it out")
    train, valid = split_prompts(config)
    source = combined(config.rewards, lambda name: load_scorer(name, device=config.device))
    model, tokenizer = folders.load(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    use_template(tokenizer, [prompt.row for prompt in [*train, *valid]], config.template)
    reference = Reference()
    if needs_reference:
        reference = reference_of(config, tokenizer)
    choose_parameters(model, config, tokenizer)
    asked, judged = asks(train, tokenizer), asks(spread(valid, config.judged), tokenizer)
    longest, limit = max(len(own.ids) for own in [*asked, *judged]), position_limit(model)
    if longest + config.new_tokens > limit:
        raise InputError(f"the longest prompt has {longest} tokens and an answer up to {config.new_tokens}, this model has positions for {limit}: "
                         "shorten the prompts, or pass a smaller --new-tokens")
    folder = open_run(config.out, verb, config, config.overwrite, config.resume)
    if not quiet:
        print(f"{len(asked)} prompts to learn from, {len(judged)} held-out ones to judge by; rewarded for {source.name}")
        print(f"{config.method}: {peft.trainable(model)}")
    return Start(model, tokenizer, source, reference, asked, judged, folder)


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
    model, theirs = folders.load(config.reference or config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    if theirs.vocab_size != tokenizer.vocab_size or theirs.encode("The quick brown fox, 12 times.") != tokenizer.encode("The quick brown fox, 12 times."):
        raise InputError(f"the reference {config.reference} has another tokenizer than the model: its probabilities are of other tokens; name one with the same")
    return Reference(model.requires_grad_(False))


def finish(begun: Start, config: OnPolicyConfig, outcome: Outcome, quiet: bool) -> Path:
    """Write the adapter or model, samples.md and the pictures."""
    written = write_result(begun.model, begun.tokenizer, config, begun.folder, base=config.model)
    write_samples(begun.folder)
    draw_rewards(begun.folder)
    if not quiet:
        before, after = outcome.before, outcome.after
        distance = f", {after['kl']:.2f} nats per answer from the reference" if "kl" in after else ""
        print(f"held-out reward {before['reward']:.3f} -> {after['reward']:.3f}{distance}; written: {written}")
    return written
