"""The loss that a step minimises: next-token cross-entropy plus, when configured, the automaton's and T-JEPA's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from karat.trainer.models.transformer import Output, Transformer
from karat.trainer.objectives.jepa import JepaObjective, JepaOutput
from karat.trainer.objectives.nca import NcaObjective, NcaOutput
from karat.trainer.objectives.next_token import head_loss


@dataclass(frozen=True)
class Losses:
    """One forward pass, with everything a guard may want to look at."""

    total: Tensor
    """cross_entropy + nca.loss + jepa.loss, 0-dim, with gradient."""
    cross_entropy: Tensor
    """Nats per token, 0-dim, with gradient."""
    nca: NcaOutput | None
    output: Output
    jepa: JepaOutput | None = None


class TrainingObjective(nn.Module):
    """Model and auxiliary objectives as one module: one set of parameters to train, save and guard.

    step: of the run, from 0; what T-JEPA masks depends on it.
    """

    def __init__(self, model: Transformer, nca: NcaObjective | None = None, jepa: JepaObjective | None = None) -> None:
        super().__init__()
        self.model = model
        self.nca = nca
        self.jepa = jepa

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor, step: int = 0) -> Losses:
        jepa: JepaOutput | None = None
        if self.jepa is not None:  # first, so that what guards read off the model is of the next-token pass
            jepa = self.jepa(self.model, tokens_BT, step)
        output: Output = self.model(tokens_BT)
        cross_entropy = head_loss(output.hidden_BTD, output.head_VD, targets_BT)
        nca: NcaOutput | None = None if self.nca is None else self.nca(output.hidden_BTD, tokens_BT)
        total = cross_entropy
        for part in (nca, jepa):
            total = total if part is None else total + part.loss
        return Losses(total, cross_entropy, nca, output, jepa)
