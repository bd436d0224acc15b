"""The transformer: embed the tokens, let each block read and write one stream of vectors, and predict the next token.

    x = embed[ids]                                  (B, T, C)
    for each block:  x = x + attention(norm1(x));  x = x + mlp(norm2(x))
    logits = norm(x) headT                          (B, T, V)

One class serves every family (GPT-2, LLaMA, Mistral, Qwen, Falcon, BLOOM, GPT-NeoX, Gemma): what differs is a field of ModelConfig.
Four doors lead in: token ids or ready-made embeddings, a KV cache (generation), and `virtual` (prompt and prefix tuning, virtual.py).
Texts share a batch padded or packed (`segments`) or end to end in one row without pads (`ragged`, ragged.py); encoders (encoder.py) and
scorers (scorer.py) are this with another top.
`capture={}` collects named intermediates for a lesson; the normal path never computes them. An encoder-decoder (encoder_decoder.py)
is two of these, the second with cross-attention. Left out: experts.
Proved in tests/models/test_transformer.py; equal to transformers in tests/parity/test_families.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minift.errors import InputError
from minift.models.attention import Context, visibility
from minift.models.block import Block
from minift.models.cache import KVCache
from minift.models.config import ModelConfig
from minift.models.cross import Memory
from minift.models.families import module_names
from minift.models.linear import Linear
from minift.models.norm import make_norm
from minift.models.pooling import Pooling
from minift.models.ragged import Ragged
from minift.models.relative import relative_bias
from minift.models.rope import rotation
from minift.models.virtual import NoVirtual, Virtual


class Transformer(nn.Module):
    """A decoder-only language model. `Transformer(config)` has random weights; folder.read_model fills in a checkpoint's."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.pooling: Pooling | None = None
        """How the folder says that embeddings of texts are made (pooling.py)."""
        self.checkpointing = False
        """Recompute each block in the backward pass instead of keeping its activations: about 30 % more time, far less memory."""
        C = config.hidden_size
        # `_start` draws the numbers. nn.Embedding(V, C) would too, and on the meta device that costs a second and 150 MB of imports.
        self.embed = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, C), freeze=False)                     # (V, C)
        table = lambda rows, width=C: nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
        self.positions = table(config.first_position + config.max_positions) if config.position == "learned" else None
        self.relative = table(config.relative_buckets, config.heads) if config.position == "relative" else None
        self.types = table(config.token_types) if config.token_types else None
        self.virtual = NoVirtual()                                                      # virtual tokens come in here
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.Identity() if config.norm_after else make_norm(config)
        if config.top == "next":
            self.head = Linear(C, config.vocab_size, bias=False)
            if config.tie_embeddings:
                self.head.weight = self.embed.weight
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        """Normal(0, 0.02) everywhere, and 1/sqrt(2 layers) of it where a branch joins the stream (GPT-2, section 2.3)."""
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.device.type != "meta":
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block) and module.mlp.down.weight.device.type != "meta":
            cross = [] if module.cross is None else [module.cross.out]
            for joining in (module.attention.out, module.mlp.down, *cross):                         # apply() visits children first
                joining.weight.data.div_((2 * self.config.layers) ** 0.5)

    def hidden(
        self,
        token_ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        branches: Tensor | None = None,
        cache: KVCache | None = None,
        capture: dict | None = None,
        ragged: Ragged | None = None,
        token_types: Tensor | None = None,
        bidirectional: bool = False,
        memory: Memory | None = None,
    ) -> Tensor:
        """The stream after the last norm, (B, T, C): `forward` without the head. Same arguments, and `bidirectional`: a decoder's tokens see the
        whole text (pooling.py); texts are then one in a row, or ragged. memory: what a decoder with cross-attention reads."""
        if bidirectional and not (self.can_look_ahead() and segments is None and cache is None):
            raise InputError("sliding windows and ALiBi look backwards, and so does a cache; texts packed by segments are not told apart: this cannot be bidirectional")
        x = self.embed(token_ids) if embeds is None else embeds                         # (B, T, C)
        B, T, _ = x.shape
        if cache is not None and segments is not None:
            raise InputError("a KV cache holds one text per row: pass segments or a cache, not both")
        if ragged is not None and not (B == 1 and T == ragged.tokens and cache is None and segments is None):
            raise InputError(f"ragged lays {ragged.tokens} tokens in one row, without a cache and segments: the row is ({B}, {T})")
        if branches is not None and segments is None:
            raise InputError("branches belong to a segment: pass segments too (all ones where a row is one tree)")
        if branches is not None and not self.can_branch():
            raise InputError("dynamic rotary scaling turns a prompt by the length of its text, so answers cannot share one: run each behind its own copy")
        if cache is not None and not cache.lengths.any():
            self._begin(cache)
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype)                # rounded to x's dtype, as Gemma does
        virtual = self.virtual() if cache is None else None                             # a cache holds them already
        V = cache.virtual if cache is not None else virtual.count if virtual is not None else 0
        counted = self._places(B, T, V, segments, branches, cache, x.device) if ragged is None else V + ragged.places().to(x.device)[None]
        places, positions = counted, counted if positions is None else positions        # (B, T)
        if virtual is None or virtual.embeds is None:
            prefix = None if virtual is None else virtual.keys_values
            return self.norm(self._blocks(x, places, positions, segments, branches, V, prefix, cache, capture, ragged, token_types, bidirectional, memory))
        if ragged is not None:
            raise InputError("virtual tokens would have to stand before each text of the row: pad or pack the texts (segments) instead")
        if segments is not None and not self.config.causal:                             # they read the text too, and cannot read several
            raise InputError("virtual tokens of an encoder belong to one text each: run texts of one length together, without segments")
        self._refuse_shared_stretch(places, segments)
        before = torch.arange(V, device=x.device).expand(B, V)
        x = torch.cat([virtual.embeds.to(x.dtype).expand(B, V, -1), x], dim=1)          # (B, V + T, C)
        places, positions = torch.cat([before, places], dim=1), torch.cat([before, positions], dim=1)
        segments = None if segments is None else F.pad(segments, (V, 0), value=-1)      # which number is all the same: all may see them
        branches = None if branches is None else F.pad(branches, (V, 0), value=0)
        token_types = None if token_types is None else F.pad(token_types, (V, 0), value=0)
        return self.norm(self._blocks(x, places, positions, segments, branches, V, None, None, capture, None, token_types, bidirectional, memory)[:, V:])

    def _blocks(
        self,
        x: Tensor,
        places: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        branches: Tensor | None,
        virtual: int,
        prefix: list[tuple[Tensor, Tensor]] | None,
        cache: KVCache | None,
        capture: dict | None,
        ragged: Ragged | None = None,
        token_types: Tensor | None = None,
        bidirectional: bool = False,
        memory: Memory | None = None,
    ) -> Tensor:
        """Embedded tokens, virtual ones among them -> the stream before the last norm, (B, T, C) both."""
        config, T = self.config, x.shape[1]
        slots = T + (virtual if prefix is not None else 0) if cache is None else cache.reserve(T)                 # S
        if self.positions is not None:
            longest = int(positions.max()) + 1                                          # packed rows may be longer than a text
            if longest > config.max_positions:
                behind = f" and {virtual} virtual ones before them" if virtual else ""
                raise InputError(
                    f"this model has {config.max_positions} learned positions, the text has {longest - virtual} tokens{behind}: shorten it"
                )
            x = x + self.positions(config.first_position + positions)
        if self.types is not None:
            x = x + (self.types.weight[0] if token_types is None else self.types(token_types))
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if config.dropout:
            x = F.dropout(x, config.dropout, self.training)
        if capture is not None:
            capture["embed"] = x
        turns = rotation(config, positions, segments) if config.position == "rope" else None
        windows = {config.window(layer) for layer in range(config.layers)}
        if ragged is None:
            biases = {w: self._bias(places, segments, cache, w, slots, virtual, branches) for w in windows}
        else:                                                                           # a run has one length, so all its texts have one bias
            before = 0 if prefix is None else virtual
            own = [virtual + torch.arange(length, device=x.device)[None] for _, length in ragged.runs]
            biases = {w: tuple(self._bias(one, None, None, w, before + one.shape[1], virtual) for one in own) for w in windows}
        if bidirectional:                                                               # a bias that hides nothing: without one, a decoder is causal
            biases = dict.fromkeys(windows, x.new_ones(1, 1, 1, 1, dtype=torch.bool))
            biases = biases if ragged is None else {w: (all_seen,) * len(ragged.runs) for w, all_seen in biases.items()}
        recompute = self.checkpointing and torch.is_grad_enabled() and cache is None    # a cache must not be written twice (trap 33)
        for layer, block in enumerate(self.blocks):
            own = None if prefix is None else prefix[layer]
            bias = biases[config.window(layer)]
            whole, by_run = (bias, ()) if ragged is None else (None, bias)
            context = Context(positions, turns, whole, own, cache, capture, virtual, ragged, by_run, memory)
            x = checkpoint(block, x, context, use_reentrant=False) if recompute else block(x, context)
        if cache is not None:
            cache.lengths = cache.lengths + T
        return x

    def forward(
        self,
        token_ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        branches: Tensor | None = None,
        cache: KVCache | None = None,
        capture: dict | None = None,
        ragged: Ragged | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); position t predicts token t + 1.

        token_ids (B, T) int64, or embeds (B, T, C) instead. segments (B, T) int: a token sees only its own segment of the row and
        positions restart at 0 in each; this is packing, and padding too (pads are one more segment). branches (B, T) int: answers 1, 2, ...
        that follow the segment's first tokens, its trunk 0, each as if the others were not there (data/branches.py). positions (B, T) override
        the counted ones, which begin at V behind V virtual tokens. cache: the tokens follow those it holds and are added to it.
        capture: a dict to be filled with "embed", "blocks.N.attention.weights" (B, H, T, S), "blocks.N.attention" and "blocks.N.hidden"
        (B, T, C); virtual tokens come first in S, and those of prompt tuning in T too. ragged: the row (1, N) is texts end to end; the attention
        weights are then not captured. token_types (B, T) int64: which text of a pair (None: the first)."""
        doors = dict(positions=positions, segments=segments, branches=branches, cache=cache, capture=capture, ragged=ragged, token_types=token_types)
        return self.head(self.hidden(token_ids, embeds=embeds, **doors))

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` tokens of text in each row; the virtual tokens, if there are any, lie in it already."""
        weight = self.norm.weight
        cache = KVCache(self.config, batch, capacity + self.virtual_count(), weight.dtype, weight.device)
        self._begin(cache)
        return cache

    @torch.no_grad()
    def virtual_count(self) -> int:
        """V: how many virtual tokens stand in front of each text; 0 without a method that has them."""
        virtual = self.virtual()
        return 0 if virtual is None else virtual.count

    @torch.no_grad()
    def _begin(self, cache: KVCache) -> None:
        """Put the virtual tokens into a cache that holds no text. They are the same in every row, so embeddings are run as one row."""
        virtual = self.virtual()
        cache.virtual = 0
        if virtual is None:
            return
        keys_values, V = virtual.keys_values, virtual.count
        if keys_values is None:
            weight = self.norm.weight
            one, places = KVCache(self.config, 1, V, weight.dtype, weight.device), torch.arange(V, device=weight.device)[None]
            self._blocks(virtual.embeds[None].to(weight.dtype), places, places, None, None, V, None, one, None)
            keys_values = [(keys[0], values[0]) for keys, values in zip(one.keys, one.values)]
        cache.begin(keys_values)

    def can_branch(self) -> bool:
        """Whether several answers may share a prompt's keys and values; dynamic rotary scaling would want other ones for each."""
        return self.config.rope_scaling is None or self.config.rope_scaling.kind != "dynamic"

    def can_look_ahead(self) -> bool:
        """Whether tokens may see the whole text: not where the distance back is all that a model knows of places."""
        return self.config.position not in ("alibi", "relative") and not any(self.config.windows)

    def _bias(self, places: Tensor, segments: Tensor | None, cache: KVCache | None, window: int | None, slots: int, virtual: int, branches=None):
        """attention.visibility, and with relative positions what they add."""
        seen = visibility(self.config, places, segments, cache, window, slots, virtual, branches)
        if self.relative is None:
            return seen
        T, slot = places.shape[1], torch.arange(slots, device=places.device)[None]      # (1, S)
        if cache is not None:                                                           # slot s holds the token at place s
            return relative_bias(self.config, self.relative, places, slot, seen)
        if not virtual and branches is None:                                            # inside a text, slots are as far apart as places
            return relative_bias(self.config, self.relative, slot, slot, seen)
        keys = torch.cat([slot[:, : slots - T].expand(len(places), -1), places], dim=1)
        return relative_bias(self.config, self.relative, places, keys, seen)

    def _places(self, B: int, T: int, virtual: int, segments: Tensor | None, branches: Tensor | None, cache: KVCache | None, device) -> Tensor:
        """(B, T): how many tokens of its own text, and virtual ones, stand before each token."""
        place = torch.arange(T, device=device)
        if cache is not None:
            return cache.lengths[:, None] + place
        if segments is None:
            return (virtual + place).expand(B, T)
        first = _first_of_run(segments, place)                                          # (B, T): where the token's segment starts
        if branches is None:
            return virtual + place - first
        trunk = (branches == 0).cumsum(1)                                               # tokens of trunks up to here
        before = trunk - trunk.gather(1, first) + 1                                     # the trunk's length, for a token of a branch
        return virtual + torch.where(branches == 0, place - first, before + place - _first_of_run(branches, place))

    def _refuse_shared_stretch(self, places: Tensor, segments: Tensor | None) -> None:
        """Texts of one row share the virtual tokens, which "dynamic" rotary scaling would turn otherwise for each length of text."""
        scaling = self.config.rope_scaling
        if segments is None or scaling is None or scaling.kind != "dynamic":
            return
        trained = scaling.original_max_positions or self.config.max_positions
        if int(places.max()) >= trained:
            raise InputError(
                f"dynamic rotary scaling turns virtual tokens by the length of the text, and packed or padded texts of more than {trained}"
                " tokens (virtual ones included) would share them: shorten the texts, or run them one by one without segments"
            )

    def module_names(self) -> dict[str, str]:
        """Our module paths -> the paths the family's Hugging Face checkpoints and adapters use."""
        return module_names(self.config)


def _first_of_run(numbers: Tensor, place: Tensor) -> Tensor:
    """(B, T) int64 -> (B, T): where the run of equal numbers that a token is in starts; place: 0 ... T - 1."""
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return torch.where(starts, place, 0).cummax(dim=1).values
