"""An encoder-decoder: one stack reads the prompt both ways, another writes the answer and looks at what the first one found (T5).

    m = encoder(embed[prompt])                          (B, S, C)       once for a prompt
    h = decoder(embed[start, y1, ..., yt-1], m)         (B, T, C)       each block: itself, then m (cross.py), then its MLP
    logits = head(head_scale h)                         (B, T, V)       place t predicts yt

Both stacks are the house's Transformer: the encoder an Encoder without a top, the decoder one whose blocks have cross-attention and which has no head of
its own. So whatever goes on a linear of theirs (adapters, 4 bits) goes on these. The embedding is one module with three names. An answer starts behind
start_token_id, not behind the prompt, so a decoder's KV cache holds the answer alone, and beside it what it reads of the prompt.
Proved in tests/models/test_t5.py, equal to transformers in tests/parity/test_t5.py.
Left out: dropout on attention weights, inside the MLP and behind the last norms (T5 was trained with it: attention.py); virtual tokens."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.cache import KVCache
from minift.models.config import ModelConfig
from minift.models.cross import Memory
from minift.models.encoder import Encoder
from minift.models.families import module_names
from minift.models.linear import Linear
from minift.models.pooling import Pooling
from minift.models.ragged import lay_out
from minift.models.transformer import Transformer


class AnswerCache(KVCache):
    """The keys and values of answers so far, beside the prompts they answer."""

    memory: Memory

    def copies(self, rows: list[int], capacity: int) -> "AnswerCache":
        other = super().copies(rows, capacity)
        other.memory = self.memory.rows(rows)
        return other

    def keep_rows(self, rows: Tensor) -> None:
        super().keep_rows(rows)
        self.memory = self.memory.rows(rows)


class EncoderDecoder(nn.Module):
    """`EncoderDecoder(config)` has random weights; folder.read_model fills in a checkpoint's."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.pooling: Pooling | None = None
        encoder, decoder = Encoder(encoder_of(config)), Transformer(decoder_of(config))
        self.embed = decoder.embed = encoder.embed                                      # (V, C)
        self.encoder, self.decoder = encoder, decoder
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)           # (V, C)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        elif self.head.weight.device.type != "meta":
            nn.init.normal_(self.head.weight, std=0.02)

    @property
    def norm(self) -> nn.Module:
        """The last one before the head."""
        return self.decoder.norm

    @property
    def checkpointing(self) -> bool:
        """As Transformer's."""
        return self.decoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = on

    def forward(self, prompts: Tensor, answers: Tensor, there: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `answers`; arguments as of `hidden`."""
        return self.head(self.hidden(answers, memory=self.memory(prompts, there)))

    def memory(self, prompts: Tensor, there: Tensor | None = None) -> Memory:
        """prompts (B, S) int64, there (B, S) bool: False at pads, on whichever side (None: no row has any) -> what the decoder reads."""
        segments = None if there is None else (~there).long()                           # pads are a text of their own
        return Memory(self.encoder.hidden(prompts, segments=segments), None if there is None else there[:, None, None])

    def hidden(self, answers: Tensor, *, memory: Memory | None = None, cache: AnswerCache | None = None) -> Tensor:
        """What the head reads, (B, T, C). answers (B, T) int64: the start token and the answer's tokens, pads on the right; they follow those in `cache`, which
        knows its prompts."""
        if (memory is None) == (cache is None):
            raise InputError("an encoder-decoder's answers follow a prompt: pass its memory, or a cache that was made for it")
        return self.decoder.hidden(answers, memory=memory or cache.memory, cache=cache) * self.config.head_scale

    def new_cache(self, prompts: Sequence[Sequence[int]], capacity: int) -> AnswerCache:
        """A cache with room for `capacity` tokens of an answer to each of the prompts, which are read here, end to end, without a pad."""
        weight = self.norm.weight
        cache = AnswerCache(self.decoder.config, len(prompts), capacity, weight.dtype, weight.device)
        row, ragged, order = lay_out(prompts)
        lengths = ragged.lengths()
        texts = self.encoder.hidden(row.to(weight.device), ragged=ragged)[0].split(lengths.tolist())
        there = torch.arange(int(lengths.max())) < lengths[:, None]                     # (B, S)
        back = order.argsort()
        seen = None if there.all() else there[back, None, None].to(weight.device)
        cache.memory = Memory(nn.utils.rnn.pad_sequence(list(texts), batch_first=True)[back.to(weight.device)], seen, kept={})
        return cache

    def virtual_count(self) -> int:
        """0: there are none in front of a prompt or an answer."""
        return 0

    def module_names(self) -> dict[str, str]:
        """Our module paths -> the paths the family's Hugging Face checkpoints and adapters use."""
        return module_names(self.config)


def encoder_of(config: ModelConfig) -> ModelConfig:
    """The encoder's config: also that of a folder that holds it alone."""
    return dataclasses.replace(config, causal=False, top="none", decoder_layers=0, start_token_id=None, tie_embeddings=True, head_scale=1.0)


def decoder_of(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, top="none", cross=True, layers=config.decoder_layers, decoder_layers=0)
