"""Parameter-efficient fine-tuning: train a few new numbers, leave the model's own alone.

    attach.py    put a method's small modules into any model; switch, disable, merge, remove, count
    wrapper.py   the one wrapper those modules live in
    targets.py   which modules: "all-linear", names, or a regular expression
    files.py     Hugging Face peft folders, written and read
    lora.py      LoRA and rsLoRA, on linears and embeddings"""

from minift.peft.attach import Counts, attach, disabled, merge, names, remove, switch, trainable, unmerge
from minift.peft.files import load, save
from minift.peft.lora import LoRA

__all__ = ["Counts", "LoRA", "attach", "disabled", "load", "merge", "names", "remove", "save", "switch", "trainable", "unmerge"]
