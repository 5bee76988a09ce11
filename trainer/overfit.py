"""Overfit one batch: every step takes the batch of step 0, and the loss on it must come down to what it can be at least.

A model, a loss and an optimizer that are wired right learn a batch by heart; one that cannot has a fault that no data mends.
The batch has a least loss of its own: where the same tokens go on in two ways, no causal model knows which is next.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from karat.trainer.data.batches import Batch, Batches
from karat.trainer.objectives.next_token import head_loss
from karat.trainer.session import Session

NEAR_ZERO = 0.05
"""Nats per token above the least loss of the batch: 19 of 20 tokens' worth of certainty (e^-0.05 = 0.951)."""
LABEL = "; of a run that saw one batch alone, by design: it says nothing of the model"
NEXT = "more --set steps=, another optim.lr, model.dropout=0; or look for the fault: trainer preflight"


class OneBatch(Batches):
    """As Batches, but every step's batch is that of step 0."""

    def batch_at(self, step: int) -> Batch:
        """(inputs, targets) of step 0, whatever the step."""
        return super().batch_at(min(step, 0))


@dataclass(frozen=True)
class Learnt:
    """The loss on the batch with the final weights, and the least that any causal model can have; nats per token."""

    loss: float
    least: float

    @property
    def by_heart(self) -> bool:
        """Whether the loss came near its least; never for NaN."""
        return self.loss - self.least < NEAR_ZERO

    @property
    def text(self) -> str:
        """The verdict as one clause."""
        word = "the batch was learnt by heart" if self.by_heart else "the batch was NOT learnt by heart"
        return (
            f"{word}: loss {self.loss:.4f} nats per token, required below {self.least + NEAR_ZERO:.4f} "
            f"({NEAR_ZERO:g} above the {self.least:.4f} that this batch has at least)"
        )


def least_loss(batch: Batch) -> float:
    """The least mean loss of a causal model on a batch, nats per token: the entropy of what follows equal beginnings."""
    follows: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    inputs, targets = batch
    for row, wanted in zip(inputs, targets, strict=True):
        for position, target in enumerate(wanted.tolist()):
            follows[row[: position + 1].tobytes()][target] += 1
    nats = 0.0
    for counts in follows.values():
        nats += sum(n * math.log(counts.total() / n) for n in counts.values())
    return nats / targets.size


@torch.no_grad()
def learnt(session: Session) -> Learnt:
    """How well the model, as it is now and without dropout, knows the run's batch."""
    inputs, targets = batch = session.batches.batch_at(0)
    was_training = session.model.training
    session.model.eval()
    try:
        output = session.model(torch.from_numpy(inputs))
        loss = float(head_loss(output.hidden_BTD, output.head_VD, torch.from_numpy(targets)))
    finally:
        session.model.train(was_training)
    return Learnt(loss, least_loss(batch))


def judged(session: Session, code: int, outcome: str, bpb: float) -> tuple[int, str, str]:
    """(exit code, outcome, message) of a run on one batch that ended with this code: 1 unless the batch was learnt."""
    found = learnt(session)
    message = f"overfit one batch: {found.text}\nvalidation {bpb:.4f} bits per byte{LABEL}"
    if not found.by_heart:
        code, message = 1, f"{message}\n  next      {NEXT}"
    return code, f"{outcome}; {found.text}", message
