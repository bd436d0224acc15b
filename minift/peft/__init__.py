"""Parameter-efficient fine-tuning: train a few new numbers, leave the model's own alone.

    attach.py    put a method's small modules into any model; switch, disable, merge, remove; several sets in one batch
    count.py     how much is trained
    wrapper.py   the one wrapper those modules live in
    targets.py   which modules: "all-linear", names, or a regular expression
    training.py  what a method may ask of the training loop
    files.py     Hugging Face peft folders, written and read
    own.py       the baselines: full fine-tuning, the last layers, the head
    tokens.py    the embeddings of new tokens only
    lora.py      LoRA and rsLoRA, on linears and embeddings"""

from minift.peft.attach import attach, disabled, merge, names, remove, rows, switch, unmerge
from minift.peft.count import Counts, trainable
from minift.peft.files import load, save
from minift.peft.lora import LoRA
from minift.peft.own import Full, Head, LastLayers
from minift.peft.tokens import NewTokens

__all__ = [
    "Counts",
    "Full",
    "Head",
    "LastLayers",
    "LoRA",
    "NewTokens",
    "attach",
    "disabled",
    "load",
    "merge",
    "names",
    "remove",
    "rows",
    "save",
    "switch",
    "trainable",
    "unmerge",
]
