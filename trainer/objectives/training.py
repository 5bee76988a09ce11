"""The loss that a step minimises: next-token cross-entropy plus, when configured, the automaton's and T-JEPA's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from karat.core.errors import ConfigError
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


def demand_reached(objective: nn.Module) -> None:
    """ConfigError when a trainable parameter has no gradient after a backward pass that began with none.

    A term of the loss that is detached trains nothing, and its value, which guards look at, is as it would be.
    """
    missed = [
        name for name, parameter in objective.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if missed:
        more = f" and {len(missed) - 6} more" if len(missed) > 6 else ""
        raise ConfigError(
            f"no gradient reaches {', '.join(missed[:6])}{more}",
            required="a gradient for every trainable parameter at every step",
            next_step="look for a detach() or no_grad() between them and the loss; trainer gradcheck",
        )
