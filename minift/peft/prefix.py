"""Prefix tuning: learn the keys and values of V tokens that every block reads in front of the text (Li and Liang 2021, arXiv:2101.00190).

    k = [Pk; x Wk]    v = [Pv; x Wv]        for each block Pk, Pv: (V, kv heads, D)        x: (T, C)        k, v: (V + T, kv heads, D)

It is a KV cache that was trained instead of computed: no token need exist that would leave these keys behind. They are not rotated
(RoPE turns the text, which begins at position V), and there is no query for them, so they cost attention but no MLP.
Learned directly, the paper found the table unstable; so it learns through a small network and keeps only what comes out (section 4.3):

    table (V, layers 2 kv heads D) = tanh(E U + b) W + c        E: (V, kv heads D)    U: (kv heads D, S)    W: (S, layers 2 kv heads D)

Or it starts from the activations of real words (section 7.4): init_tokens. Step 0 is then the model that has just read them.
A file holds the table alone. So a loaded prefix is flat: the same outputs, and it learns on, but without the network.
Left out: encoder-decoders, infixes.
Proved in tests/peft/test_prefix.py; equal to Hugging Face peft in tests/parity/test_peft_prefix.py."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.cache import KVCache
from minift.models.config import ModelConfig
from minift.models.virtual import Virtual
from minift.peft.attach import disabled, names
from minift.peft.prompt import at_least_float32, cannot_merge, check_length, door, fitted, prompt_fields, read_prompt_fields
from minift.peft.wrapper import base_at


@dataclass(frozen=True)
class Prefix:
    """How many virtual tokens, and how their keys and values are learned."""

    length: int = 10
    """V. The paper's 10 for table-to-text; 200 for summarization."""
    projection: bool = True
    """Learn through the network above, as the paper does; False learns the table itself."""
    projection_size: int = 512
    """S."""
    init_tokens: tuple[int, ...] = ()
    """Token ids whose keys and values the table starts from, repeated or cut to `length`; with projection=False only."""
    made_for: tuple[int, int, int] | None = None
    """(layers, kv heads, D) of the model a file was written for; another model is refused."""

    peft_type = "PREFIX_TUNING"

    def __post_init__(self):
        check_length("prefix", self.length)
        if self.projection and (not isinstance(self.projection_size, int) or self.projection_size < 1):
            raise InputError(f"prefix projection_size is {self.projection_size!r}: it is the width of a network, at least 1")
        if self.projection and self.init_tokens:
            raise InputError("init_tokens set the table itself, and with projection=True a network makes the table: pass projection=False")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        V, config, weight = self.length, door(model, "prefix tuning", self.length), base_at(model, "embed").weight
        shape = (config.layers, config.kv_heads, config.head_dim)
        if self.made_for not in (None, shape):
            found = f"a prefix for (layers, kv heads, head width) {self.made_for}"
            raise InputError(f"{found}, but this {config.family} model has {shape}: was it made for another base?")
        if self.init_tokens:
            return {"virtual": SoftPrefix(activations(model, fitted(self.init_tokens, V, config.vocab_size)), shape)}
        width, total = config.kv_heads * config.head_dim, 2 * config.layers * config.kv_heads * config.head_dim
        own = dict(dtype=at_least_float32(weight), device=weight.device)
        table = torch.empty(V, width if self.projection else total, **own).normal_()
        S, network = self.projection_size, None
        if self.projection:
            network = nn.Sequential(nn.Linear(width, S, **own), nn.Tanh(), nn.Linear(S, total, **own))
        return {"virtual": SoftPrefix(table, shape, network)}

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """prefix_projection is false whatever made the table: the file holds no network."""
        config: ModelConfig = model.config
        fields = {**prompt_fields(config, self.length), "token_dim": config.kv_heads * config.head_dim, "num_attention_heads": config.kv_heads}
        return {**fields, "prefix_projection": False, "encoder_hidden_size": self.projection_size if self.projection else None}

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        return {"prompt_embeddings": small["virtual"].flat()}

    @classmethod
    def from_file(cls, fields: dict) -> "Prefix":
        for start in ("prefix_projection", "encoder_hidden_size", "init_weights"):
            fields.pop(start, None)                                        # how the table was learned; the file holds the table
        length, width, layers, heads = read_prompt_fields(fields)
        made_for = (layers, heads, width // heads) if layers and heads and width else None
        return cls(length=length, projection=False, made_for=made_for)


class SoftPrefix(nn.Module):
    """The table, or what makes it; cut into each block's k and v."""

    def __init__(self, table: Tensor, shape: tuple[int, int, int], network: nn.Module | None = None):
        super().__init__()
        self.table = nn.Parameter(table)
        self.shape, self.network = shape, network

    def flat(self) -> Tensor:
        """(V, layers * 2 * kv heads * D), in this order: what a file holds."""
        return self.table if self.network is None else self.network(self.table)

    def forward(self, base: nn.Module) -> Virtual:
        layers, K, D = self.shape
        parts = self.flat().view(-1, layers, 2, K, D).permute(1, 2, 3, 0, 4)              # (layers, k|v, kv heads, V, D)
        return Virtual(keys_values=[(k, v) for k, v in parts])

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise cannot_merge()


@torch.no_grad()
def activations(model: nn.Module, ids: list[int]) -> Tensor:
    """The keys and values the base model leaves in its cache for V tokens at positions 0..V-1 -> (V, layers * 2 * kv heads * D)."""
    weight, was_training = base_at(model, "embed").weight, model.training
    cache = KVCache(model.config, 1, len(ids), weight.dtype, weight.device)
    with disabled(model) if names(model) else contextlib.nullcontext():
        model.eval()
        try:
            model.hidden(torch.tensor([ids], device=weight.device), cache=cache)
        finally:
            model.train(was_training)
    pairs = torch.stack([cache.keys[:, 0], cache.values[:, 0]], dim=1)                    # (layers, k|v, kv heads, V, D)
    return pairs.permute(3, 0, 1, 2, 4).flatten(1).to(at_least_float32(weight)).contiguous()
