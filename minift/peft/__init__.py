"""Parameter-efficient fine-tuning: train a few new numbers, leave the model's own alone.

    attach.py    put a method's small modules into any model; switch, disable, merge, remove; several sets in one batch
    count.py     how much is trained
    wrapper.py   the one wrapper those modules live in
    targets.py   which modules: "all-linear", names, or a regular expression
    training.py  what a method may ask of the training loop
    files.py     Hugging Face peft folders, written and read
    lora.py      LoRA and rsLoRA, on linears and embeddings"""

from minift.peft.attach import attach, disabled, merge, names, remove, rows, switch, unmerge
from minift.peft.count import Counts, trainable
from minift.peft.files import load, save
from minift.peft.lora import LoRA

__all__ = ["Counts", "LoRA", "attach", "disabled", "load", "merge", "names", "remove", "rows", "save", "switch", "trainable", "unmerge"]
