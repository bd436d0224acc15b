"""Prompt tuning: learn the embeddings of V words that nobody wrote, and put them in front of every text (Lester et al. 2021, arXiv:2104.08691).

    x = [P; embed[ids]]        P: (V, C), the only numbers that learn        embed[ids]: (T, C)        x: (V + T, C)

         P_1 P_2 ... P_V  the  text  ...          every token of the text may look at all V rows, which cost their share
                 \\______________/                  of attention at each step: nothing is merged, nothing is free

The text stands at positions V, V+1, ...; what the model says behind the V rows themselves is thrown away (models/virtual.py).
It matters where P begins (section 3.2): "vocabulary" takes rows of frequent tokens, "text" those of words that describe the task, "random"
draws from +-0.5. Started from a text's own rows, step 0 is the model that has just read that text.
Left out: the paper's "class labels" start by name (give them as init_ids), ensembles, encoder-decoders.
Proved in tests/peft/test_prompt.py; equal to Hugging Face peft in tests/parity/test_peft_prompt.py."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.virtual import NoVirtual, Virtual
from minift.peft.wrapper import base_at, base_modules

FREQUENT = 5000
"""The paper starts from the 5,000 most frequent tokens. Vocabularies are built from frequent to rare, so these are the first rows."""


@dataclass(frozen=True)
class Prompt:
    """How many virtual tokens, and where they begin."""

    length: int = 100
    """V. The paper's figure 3a: 20 give most of the gain, 100 a little more."""
    init: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Rows of tokens drawn among the first 5,000; uniform on +-0.5; or the rows of init_ids."""
    init_ids: tuple[int, ...] = ()
    """Token ids for "text", repeated or cut to `length`."""

    peft_type = "PROMPT_TUNING"

    def __post_init__(self):
        check_length("prompt", self.length)
        if self.init not in ("vocabulary", "random", "text"):
            raise InputError(f'prompt init is {self.init!r}: choose "vocabulary", "random" or "text"')
        if (self.init == "text") != bool(self.init_ids):
            wanted = 'init="text" begins with the rows of init_ids: give both, tokenizer.encode("Summarize:") say, or neither'
            raise InputError(f"prompt init is {self.init!r} with {len(self.init_ids)} init_ids: {wanted}")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        V, config, weight = self.length, door(model, "prompt tuning", self.length), base_at(model, "embed").weight
        if self.init == "random":
            table = torch.empty(V, config.hidden_size, dtype=at_least_float32(weight), device=weight.device).uniform_(-0.5, 0.5)
        elif self.init == "vocabulary":
            table = embedded(model, torch.randint(0, min(FREQUENT, config.vocab_size), (V,)))
        else:
            table = embedded(model, torch.tensor(fitted(self.init_ids, V, config.vocab_size)))
        return {"virtual": SoftPrompt(table)}

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """How the table began is not told: it is in the file itself."""
        return {**prompt_fields(model.config, self.length), "prompt_tuning_init": "RANDOM"}

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        return {"prompt_embeddings": small["virtual"].table}

    @classmethod
    def from_file(cls, fields: dict) -> "Prompt":
        for start in ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"):
            fields.pop(start, None)                                        # where it began; the table has learned since
        return cls(length=read_prompt_fields(fields)[0], init="random")


class SoftPrompt(nn.Module):
    """V rows (V, C), as they are."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, base: nn.Module) -> Virtual:
        return Virtual(embeds=self.table)

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise cannot_merge()


# -- what the methods with virtual tokens share --------------------------------------------------------------------------------------


def door(model: nn.Module, method: str, length: int) -> ModelConfig:
    """The config of a model that has the door for virtual tokens, and a context with room for `length` of them and a text."""
    if not isinstance(base_modules(model).get("virtual"), NoVirtual):
        raise InputError(
            f"{method} puts virtual tokens in front of the text, and {type(model).__name__} has no door for them: it needs a module `virtual`"
            " (minift.models.virtual), as minift's Transformer has. Read the checkpoint with minift.load"
        )
    if length >= model.config.max_positions:
        context = f"this model's {model.config.max_positions} positions"
        raise InputError(f"a prompt longer than the context: {length} virtual tokens leave no room for text in {context}; choose a shorter one")
    return model.config


def check_length(method: str, length: int) -> None:
    if not isinstance(length, int) or length < 1:
        raise InputError(f"{method} length is {length!r}: it is a number of virtual tokens, at least 1")


def fitted(ids: tuple[int, ...], length: int, vocabulary: int) -> list[int]:
    """The token ids repeated, or cut, to `length`."""
    wrong = [i for i in ids if not 0 <= i < vocabulary]
    if wrong:
        raise InputError(f"token id {wrong[0]} is to start a virtual token, but the model knows 0 to {vocabulary - 1}: is this its tokenizer?")
    return [ids[place % len(ids)] for place in range(length)]


@torch.no_grad()
def embedded(model: nn.Module, ids: Tensor) -> Tensor:
    """(V,) -> (V, C): the rows as the first block reads them, embed_scale included, and rounded as the model rounds."""
    weight, scale = base_at(model, "embed").weight, model.config.embed_scale
    return (weight[ids.to(weight.device)] * torch.tensor(scale, dtype=weight.dtype)).to(at_least_float32(weight))


def at_least_float32(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)                # small steps vanish in bf16 (trap 34)


def prompt_fields(config: ModelConfig, length: int) -> dict:
    """What every prompt method tells in adapter_config.json."""
    heads = {"token_dim": config.hidden_size, "num_layers": config.layers, "num_attention_heads": config.heads}
    return {"num_virtual_tokens": length, **heads, "num_transformer_submodules": 1}


def read_prompt_fields(fields: dict) -> tuple[int, int | None, int | None, int | None]:
    """Takes them out: (length, token_dim, layers, heads)."""
    if fields.pop("num_transformer_submodules", None) not in (None, 1):
        raise InputError("num_transformer_submodules is not 1: an adapter of an encoder-decoder, which minift does not have")
    names = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
    return tuple(fields.pop(name, None) for name in names)


def cannot_merge() -> InputError:
    return InputError(
        "virtual tokens stand in front of the text, not inside a weight, so there is nothing to merge them into: keep the adapter beside"
        " the model (peft.save, peft.load)"
    )
