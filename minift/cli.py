"""`minift VERB ...`: nothing but wiring.

Each verb is a recipe: a module with a `Config` dataclass, whose fields and their docstrings are the command line, and `run(config)`.
A recipe is imported only when its verb is asked for. Exit status: 0 done, 1 failed while running, 2 bad arguments or bad input.
The help shows a verb's own options before those that it shares with others.
Proved in tests/test_cli.py."""

import dataclasses
import importlib
import os
import sys

import minift
from minift.errors import InputError, RunError

VERBS = {
    "quickstart": "fine-tune the bundled model on this machine's own Python, in minutes, and show what it learned",
    "sft": "supervised fine-tuning on your data, with any of the methods",
    "find-lr": "find a learning rate for sft: raise it until the loss bursts, and draw what happened",
    "reward": "train a reward model on pairs of a better and a worse answer",
    "dpo": "learn from pairs of a better and a worse answer: DPO, IPO, KTO, ORPO, SimPO and their kin",
    "grpo": "learn from rewards by comparing answers to one prompt: GRPO, RLOO, REINFORCE",
    "ppo": "learn from rewards with a second network that expects them",
    "embed": "fine-tune a model's embeddings on texts that belong together, or that were found alike",
    "encode": "texts to vectors, kept as an index",
    "search": "the texts of an index that are nearest to a query",
    "classify": "train a classifier or a regression: a head on frozen features, few-shot, or any fine-tuning method",
    "predict": "ask a classifier: labels and probabilities for a file's texts, or for lines of the standard input",
    "rlhf": "supervised fine-tuning, a reward model and PPO in one command: the path of InstructGPT",
    "methods": "the fine-tuning methods: what each trains, and its options",
    "compare": "measure every method on one task: memory, time, quality, forgetting",
    "rlaif": "let a judge compare a model's answers, and train on what it prefers",
    "pretrain": "train a tokenizer and a small model from scratch on text",
    "generate": "continue prompts",
    "chat": "talk to a model in the terminal",
    "evaluate": "perplexity, bits per byte, ROUGE-L and exact match on a file",
    "data": "show what the model will see of a data file: tokens, loss mask, lengths",
    "inspect": "a table of a model's or an adapter's modules, parameters and memory",
    "quantize": "round a model's linears to 4 or 8 bits, and say what it cost",
    "merge": "fold an adapter into its base model and write a plain checkpoint",
    "combine": "make one LoRA adapter of several",
    "kernel": "a Triton kernel as a lesson: its maths, its bound on a GPU you name, its machine code",
    "extract-lora": "turn a fully fine-tuned checkpoint into a LoRA adapter for its base",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"minift {minift.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"minift: there is no verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    import tyro

    recipe = importlib.import_module(f"minift.recipes.{verb.replace('-', '_')}")
    options = tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName
    try:
        result = recipe.run(tyro.cli(own_first(recipe.Config), prog=f"minift {verb}", args=rest, config=options))
    except SystemExit as stop:                                          # tyro has said what is wrong, or printed the help
        return int(stop.code or 0)
    except InputError as error:
        print(f"minift {verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                             # `minift ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FloatingPointError, OSError, RunError) as error:
        print(f"minift {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"minift {verb}: interrupted", file=sys.stderr)
        return 1
    return 1 if result is not None and getattr(result, "interrupted", False) else 0


def own_first(config: type) -> type:
    """Order the fields of a dataclass: its own, then those of the class it extends, and so on."""
    names = [name for home in config.__mro__ for name in vars(home).get("__annotations__", {})]
    fields = {field.name: field for field in dataclasses.fields(config)}
    config.__dataclass_fields__ = {name: fields[name] for name in dict.fromkeys(names) if name in fields}
    return config


def usage() -> str:
    lines = "\n".join(f"  {verb:<13} {text}" for verb, text in VERBS.items())
    return f"usage: minift VERB [options]\n\n{lines}\n\n`minift VERB --help` lists a verb's options with their defaults."
