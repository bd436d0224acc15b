"""Parameter-efficient fine-tuning: train a few new numbers, leave the model's own alone.

    attach.py    put a method's small modules into any model; switch, disable, remove; several sets in one batch
    merging.py   compute a set into the weights, and the way back
    quantized.py what a base in 4 or 8 bits asks of both, and what of a change survives rounding
    state.py     what a model remembers of its sets
    count.py     how much is trained
    wrapper.py   the one wrapper those modules live in
    targets.py   which modules: "all-linear", names, or a regular expression
    training.py  what a method may ask of the training loop
    files.py     Hugging Face peft folders, written and read
    combine.py   one LoRA set of several: linear, concat, SVD, TIES, DARE
    extract.py   the LoRA set that the difference of two checkpoints almost is
    changes.py   what an adapter changes, and by how much
    head.py      a scorer's new head, which trains and is saved with any method
    own.py       the baselines: full fine-tuning, the last layers, the head
    tokens.py    the embeddings of new tokens only
    prompt.py    prompt tuning: learned embeddings in front of the text
    ptuning.py   P-tuning: the same, written by a small LSTM or MLP
    prefix.py    prefix tuning: learned keys and values in every block; ptuning_v2.py is P-tuning v2
    lora.py      LoRA, rsLoRA and LoRA+, on linears and embeddings
    dora.py      DoRA: the length of each row of a weight apart from its direction
    pissa.py     PiSSA: LoRA that starts from a weight's largest singular vectors
    loftq.py     LoftQ: LoRA that starts from what rounding the weight lost
    adalora.py   AdaLoRA: training decides which modules keep how much rank
    vera.py      VeRA: two vectors per module around shared random matrices
    ia3.py       IA3: a factor per key, value and inner feed-forward number
    layernorm.py bitfit.py   the norms only; the biases only
    bottleneck.py  adapters proper: Houlsby's, Pfeiffer's, parallel; fusion.py mixes several
    reft.py      LoReFT: edits of the stream at a text's first positions
    places.py    where a block's parts are; adapter_folders.py the `adapters` library's files"""

from minift.peft.adalora import AdaLoRA
from minift.peft.attach import attach, disabled, merge, names, remove, rows, switch, unmerge
from minift.peft.bitfit import BitFit
from minift.peft.bottleneck import BottleneckAdapter, Houlsby, Parallel, Pfeiffer
from minift.peft.combine import combine
from minift.peft.count import Counts, trainable
from minift.peft.dora import DoRA
from minift.peft.extract import Extracted, extract_lora
from minift.peft.files import load, save
from minift.peft.fusion import AdapterFusion
from minift.peft.ia3 import IA3
from minift.peft.layernorm import LayerNormTuning
from minift.peft.loftq import LoftQ
from minift.peft.lora import LoRA
from minift.peft.own import Full, Head, LastLayers
from minift.peft.pissa import PiSSA
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.peft.ptuning import PTuning
from minift.peft.ptuning_v2 import PTuningV2
from minift.peft.reft import LoReFT
from minift.peft.tokens import NewTokens
from minift.peft.vera import VeRA

__all__ = [
    "AdaLoRA",
    "AdapterFusion",
    "BitFit",
    "BottleneckAdapter",
    "Counts",
    "DoRA",
    "Extracted",
    "Full",
    "Head",
    "Houlsby",
    "IA3",
    "LastLayers",
    "LayerNormTuning",
    "LoRA",
    "LoftQ",
    "LoReFT",
    "NewTokens",
    "PTuning",
    "PTuningV2",
    "Parallel",
    "Pfeiffer",
    "PiSSA",
    "Prefix",
    "Prompt",
    "VeRA",
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
