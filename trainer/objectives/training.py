"""The loss that a step minimises: next-token cross-entropy plus, when configured, the automaton's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from karat.trainer.models.transformer import Output, Transformer
from karat.trainer.objectives.nca import NcaObjective, NcaOutput
from karat.trainer.objectives.next_token import head_loss


@dataclass(frozen=True)
class Losses:
    """One forward pass, with everything a guard may want to look at."""

    total: Tensor
    """cross_entropy + nca.loss, 0-dim, with gradient."""
    cross_entropy: Tensor
    """Nats per token, 0-dim, with gradient."""
    nca: NcaOutput | None
    output: Output


class TrainingObjective(nn.Module):
    """Model and auxiliary objective as one module: one set of parameters to train, save and guard."""

    def __init__(self, model: Transformer, nca: NcaObjective | None = None) -> None:
        super().__init__()
        self.model = model
        self.nca = nca

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Losses:
        output: Output = self.model(tokens_BT)
        cross_entropy = head_loss(output.hidden_BTD, output.head_VD, targets_BT)
        if self.nca is None:
            return Losses(cross_entropy, cross_entropy, None, output)
        nca: NcaOutput = self.nca(output.hidden_BTD, tokens_BT)
        return Losses(cross_entropy + nca.loss, cross_entropy, nca, output)
