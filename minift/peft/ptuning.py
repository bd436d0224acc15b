"""P-tuning: let a small network write the virtual tokens, so that neighbours learn together (Liu et al. 2021, arXiv:2103.10385).

    E: (V, C) -> both directions of a 2-layer LSTM, S each -> (V, 2S) -> Linear, ReLU, Linear -> P: (V, C)          "lstm", the paper's
    E: (V, C) -> Linear, ReLU, Linear, ReLU, Linear, S wide inside -> P: (V, C)                                     "mlp"
    x = [P; embed[ids]]                                                                                            (V + T, C)

Rows learned one by one (prompt.py) start as strangers; here row i is a function of all rows, and one step moves them all (section 3.2).
When training is over the network is not needed: only P is in the file. So a loaded one has encoder="none", a plain table that can go on.
Left out: virtual tokens between the words of a template, anchor words; all V stand in front.
Proved in tests/peft/test_ptuning.py; equal to Hugging Face peft in tests/parity/test_peft_ptuning.py."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.virtual import Virtual
from minift.peft.prompt import at_least_float32, cannot_merge, check_length, door, prompt_fields, read_prompt_fields
from minift.peft.wrapper import base_at


@dataclass(frozen=True)
class PTuning:
    """How many virtual tokens, and what writes them."""

    length: int = 20
    """V."""
    encoder: Literal["lstm", "mlp", "none"] = "lstm"
    """"none" is the table alone, as it is after loading."""
    hidden_size: int | None = None
    """S; None is C / 2, the paper's, with which the LSTM's two directions together are as wide as the model."""
    lstm_layers: int = 2
    """Layers of the LSTM; the paper's."""
    dropout: float = 0.0
    """Between the layers of the LSTM, while training."""

    peft_type = "P_TUNING"

    def __post_init__(self):
        check_length("P-tuning", self.length)
        if self.encoder not in ("lstm", "mlp", "none"):
            raise InputError(f'P-tuning encoder is {self.encoder!r}: choose "lstm", "mlp" or "none"')
        for name, size in (("hidden_size", 1 if self.hidden_size is None else self.hidden_size), ("lstm_layers", self.lstm_layers)):
            if not isinstance(size, int) or size < 1:
                raise InputError(f"P-tuning {name} is {size!r}: it must be a whole number, at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"P-tuning dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if self.dropout and (self.encoder != "lstm" or self.lstm_layers == 1):
            raise InputError(f"P-tuning dropout is {self.dropout} and acts between the layers of an LSTM, of which there are none: make it 0")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        C, weight = door(model, "P-tuning", self.length).hidden_size, base_at(model, "embed").weight
        S, own = self.hidden_size or C // 2, dict(dtype=at_least_float32(weight), device=weight.device)
        table, lstm, mlp = torch.empty(self.length, C, **own).normal_(), None, None
        if self.encoder == "lstm":
            lstm = nn.LSTM(C, S, self.lstm_layers, dropout=self.dropout, bidirectional=True, **own)
            mlp = nn.Sequential(nn.Linear(2 * S, 2 * S, **own), nn.ReLU(), nn.Linear(2 * S, C, **own))
        elif self.encoder == "mlp":
            inner = nn.Linear(C, S, **own), nn.ReLU(), nn.Linear(S, S, **own), nn.ReLU()
            mlp = nn.Sequential(*inner, nn.Linear(S, C, **own))
        return {"virtual": PromptEncoder(table, lstm, mlp)}

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """How the table was learned, as peft tells it; the table is all that is stored."""
        kind = {"encoder_reparameterization_type": "LSTM" if self.encoder == "lstm" else "MLP"}
        sizes = {"encoder_hidden_size": self.hidden_size or model.config.hidden_size // 2, "encoder_num_layers": self.lstm_layers}
        return {**prompt_fields(model.config, self.length), **kind, **sizes, "encoder_dropout": self.dropout}

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        return {"prompt_embeddings": small["virtual"].rows()}

    @classmethod
    def from_file(cls, fields: dict) -> "PTuning":
        for network in ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"):
            fields.pop(network, None)                                      # what wrote the table, and is not in the file
        return cls(length=read_prompt_fields(fields)[0], encoder="none")


class PromptEncoder(nn.Module):
    """E (V, C) and the network that makes of it the rows P (V, C)."""

    def __init__(self, table: Tensor, lstm: nn.LSTM | None = None, mlp: nn.Module | None = None):
        super().__init__()
        self.table = nn.Parameter(table)
        self.lstm, self.mlp = lstm, mlp

    def rows(self) -> Tensor:
        rows = self.table                                                  # (V, C)
        if self.lstm is not None:
            rows = self.lstm(rows)[0]                                      # (V, 2 S): the V rows are the LSTM's time
        return rows if self.mlp is None else self.mlp(rows)

    def forward(self, base: nn.Module) -> Virtual:
        return Virtual(embeds=self.rows())

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise cannot_merge()
