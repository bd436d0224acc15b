"""Every architectural choice of a decoder or an encoder, as one frozen dataclass.

A model family (GPT-2, LLaMA, Falcon, BERT, ...) is a setting of these fields, never a class of its own: families.py maps each Hugging Face
config.json to a ModelConfig and back. Letters: V vocabulary, C model width, H heads, D head width, T time."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the training one (rope.py has the formulas)."""

    kind: Literal["linear", "dynamic", "llama3"]
    factor: float
    """How many times longer the context becomes."""
    low_freq_factor: float = 1.0
    """llama3 only: wavelengths longer than original_max_positions / low_freq_factor are divided by `factor`."""
    high_freq_factor: float = 4.0
    """llama3 only: wavelengths shorter than original_max_positions / high_freq_factor are left alone."""
    original_max_positions: int | None = None
    """The context the model was trained on before it was stretched (llama3; dynamic uses max_positions if None)."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model. Defaults are LLaMA's choices."""

    vocab_size: int
    """V: rows of the embedding."""
    hidden_size: int
    """C: width of the residual stream."""
    layers: int
    """Number of blocks."""
    heads: int
    """H: query heads."""
    kv_heads: int
    """Key/value heads; H is a multiple of it (grouped-query attention), 1 is multi-query attention."""
    head_dim: int
    """D: width of one head; H * D need not equal C."""
    mlp_size: int
    """Width inside the MLP."""
    max_positions: int
    """The longest context the model was made for; a hard limit only for learned positions."""

    family: str = "llama"
    """Whose folder layout the weights are read from and written in: a name in families.FAMILIES."""
    causal: bool = True
    """A token sees the tokens before it; False: all tokens of its text (encoders)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    """Added to the stored norm weight: Gemma stores w and multiplies by 1 + w."""
    position: Literal["rope", "learned", "alibi", "relative"] = "rope"
    first_position: int = 0
    """Rows of the table of learned positions before a text's first token (RoBERTa leaves 2 out)."""
    token_types: int = 0
    """Learned vectors that say which text of a pair a token is of (BERT has 2); 0: none."""
    rope_theta: float = 10000.0
    rope_dim: int | None = None
    """How many of the D numbers of a head are rotated (None: all; GPT-NeoX rotates a quarter)."""
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32
    """Of relative positions: rows of the table of learned biases (relative.py)."""
    relative_furthest: int = 128
    """Of relative positions: the distance from which on all are one bucket."""
    attention_scale: float | None = None
    """What scores are multiplied by before the bias; None: 1 / sqrt(D). T5: 1, its start made the scale part of Wq."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    """down(act(gate(x)) * up(x)) instead of down(act(up(x)))."""
    qkv: Literal["separate", "joined", "grouped"] = "separate"
    """Three linears; or one whose rows are all Q, all K, all V (GPT-2, Falcon-7B); or one whose rows are, for each
    key/value head, its Qs, its K, its V (BLOOM, GPT-NeoX, Falcon-40B)."""
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = True
    """LayerNorm's bias (RMSNorm has none)."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k before the rotation (Qwen3)."""
    windows: tuple[int | None, ...] = ()
    """Per block, how many latest tokens a token may see, itself included (None: all). Empty: all, in every block."""
    norm_after: bool = False
    """A norm follows each residual sum instead of preceding each branch, and none stands at the end (BERT)."""
    parallel: bool = False
    """x + attention(norm1(x)) + mlp(norm2(x)) instead of one after the other."""
    shared_norm: bool = False
    """In a parallel block the MLP reads norm1's output and norm2 does not exist (Falcon-7B)."""
    embed_norm: bool = False
    """A LayerNorm right after the embedding (BLOOM, BERT)."""
    embed_scale: float = 1.0
    """The embedding is multiplied by this (Gemma: sqrt(C))."""
    tie_embeddings: bool = True
    """The output head is the embedding matrix."""
    head_scale: float = 1.0
    """Of an encoder-decoder: the stream is multiplied by this before the head (T5: 1 / sqrt(C))."""
    decoder_layers: int = 0
    """Blocks of the decoder that writes while it reads what `layers` blocks made of the prompt (encoder_decoder.py); 0: there is no second stack."""
    cross: bool = False
    """Each block also reads an encoder's stream: the decoder of such a pair (cross.py)."""
    start_token_id: int | None = None
    """What an encoder-decoder's answer begins behind."""
    dropout: float = 0.0
    """On the embedding and on each residual branch, while training."""
    top: Literal["next", "mask", "pooler", "none"] = "next"
    """What reads the stream: logits of the next token (decoders); of encoders, logits of masked tokens, a layer on the first token, or nothing."""
    labels: int = 0
    """K of a scorer: that many scores in place of the V logits (scorer.py); 0: a language model."""
    label_names: tuple[str, ...] = ()
    """What each of a classifier's K scores is for; empty: they have no names."""
    problem: Literal["single", "multi", "regression"] | None = None
    """What the scores mean: one label holds, any number of labels hold, or they are the answer; None: unsaid."""
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"windows has {len(self.windows)} entries for {self.layers} layers")
        if self.shared_norm and not self.parallel:
            raise ValueError("shared_norm is a choice of parallel blocks only")
        if self.norm_after and self.parallel:
            raise ValueError("norm_after is a choice of blocks that are not parallel")
        if not self.causal and (self.position == "alibi" or any(width is not None for width in self.windows)):
            raise ValueError("sliding windows and ALiBi look backwards: they are choices of decoders")
        if self.label_names and len(self.label_names) != self.labels:
            raise ValueError(f"label_names has {len(self.label_names)} names for {self.labels} labels")
        if self.cross and (self.norm_after or self.parallel or not self.causal):
            raise ValueError("cross is a choice of decoders whose blocks are neither parallel nor norm_after")
        if self.decoder_layers and not (self.causal and self.start_token_id is not None):
            raise ValueError("an encoder-decoder writes one token after the other: causal, and with a start_token_id")
        if self.causal != (self.top == "next") and not self.cross:
            raise ValueError(f"top is {self.top!r}: a decoder predicts the next token, an encoder does not")

    def window(self, layer: int) -> int | None:
        """The sliding window of block `layer`, or None for full attention."""
        return self.windows[layer] if self.windows else None
