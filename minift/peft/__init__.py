"""Parameter-efficient fine-tuning: train a few new numbers, leave the model's own alone.

    attach.py    put a method's small modules into any model; switch, disable, merge, remove; several sets in one batch
    count.py     how much is trained
    wrapper.py   the one wrapper those modules live in
    targets.py   which modules: "all-linear", names, or a regular expression
    training.py  what a method may ask of the training loop
    files.py     Hugging Face peft folders, written and read
    combine.py   one LoRA set of several: linear, concat, SVD, TIES, DARE
    extract.py   the LoRA set that the difference of two checkpoints almost is
    own.py       the baselines: full fine-tuning, the last layers, the head
    tokens.py    the embeddings of new tokens only
    prompt.py    prompt tuning: learned embeddings in front of the text
    ptuning.py   P-tuning: the same, written by a small LSTM or MLP
    prefix.py    prefix tuning: learned keys and values in every block; ptuning_v2.py is P-tuning v2
    lora.py      LoRA, rsLoRA and LoRA+, on linears and embeddings
    dora.py      DoRA: the length of each row of a weight apart from its direction
    pissa.py     PiSSA: LoRA that starts from a weight's largest singular vectors"""

from minift.peft.attach import attach, disabled, merge, names, remove, rows, switch, unmerge
from minift.peft.combine import combine
from minift.peft.count import Counts, trainable
from minift.peft.dora import DoRA
from minift.peft.extract import Extracted, extract_lora
from minift.peft.files import load, save
from minift.peft.lora import LoRA
from minift.peft.own import Full, Head, LastLayers
from minift.peft.pissa import PiSSA
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.peft.ptuning import PTuning
from minift.peft.ptuning_v2 import PTuningV2
from minift.peft.tokens import NewTokens

__all__ = [
    "Counts",
    "DoRA",
    "Extracted",
    "Full",
    "Head",
    "LastLayers",
    "LoRA",
    "NewTokens",
    "PTuning",
    "PTuningV2",
    "PiSSA",
    "Prefix",
    "Prompt",
    "attach",
    "combine",
    "disabled",
    "extract_lora",
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
