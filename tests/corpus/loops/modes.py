"""In which mode the model trains and is validated, what dropout does, and whether evaluation repeats itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import HIDDEN, Batch, Classifier, Loss, Tokens, adam, blobs, fit, next_token, text, validate
from .case import Attach, Case

STEPS = 40


def with_validation(model: nn.Module, attach: Attach, batches: list[Batch], loss: Loss,
                    **declared: object) -> None:  # fmt: skip
    """A loop that validates before the first step, and after every tenth."""
    optimizer = adam(model)
    *training, held_out = batches
    with attach(model, optimizer, **declared):
        for step, batch in enumerate(training):
            if step % 10 == 0:
                model.eval()
                validate(model, held_out, loss)
                model.train()
            fit(model, optimizer, [batch], loss)


class Dropping(nn.Module):
    """Dropout by the function; without the flag, which is True by default, it drops in evaluation too."""

    def __init__(self, flag: bool) -> None:
        super().__init__()
        self.flag = flag

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training) if self.flag else F.dropout(x, 0.3)


def dropout_without_the_flag(attach: Attach, buggy: bool) -> None:
    with_validation(Classifier(drop=Dropping(flag=not buggy)), attach, blobs(STEPS + 1), F.cross_entropy)


class TokensThatDrop(Tokens):
    """Dropout in the attention, by number."""

    def __init__(self, gated: bool) -> None:
        super().__init__(self._drop)
        self.gated = gated

    def _drop(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = 0.0 if self.gated and not self.training else 0.2
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)


def attention_drops_in_evaluation(attach: Attach, buggy: bool) -> None:
    with_validation(TokensThatDrop(gated=not buggy), attach, text(STEPS + 1), next_token)


class Noisy(nn.Module):
    """Adds noise in training, or always."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training or self.always else x


def noise_in_evaluation(attach: Attach, buggy: bool) -> None:
    spec = {"deterministic": True}
    with_validation(Classifier(drop=Noisy(buggy)), attach, blobs(STEPS + 1), F.cross_entropy, spec=spec)


def never_back_to_training(attach: Attach, buggy: bool) -> None:
    """After the first validation, which follows step 9, nobody calls model.train()."""
    model, held_out = Classifier(norm=nn.BatchNorm1d(HIDDEN), drop=nn.Dropout(0.2)), blobs(1, seed=9000)[0]
    optimizer = adam(model)
    model.train()
    with attach(model, optimizer):
        for step, batch in enumerate(blobs(STEPS)):
            fit(model, optimizer, [batch])
            if step % 10 == 9:
                model.eval()
                validate(model, held_out)
                if not buggy:
                    model.train()


def validated_in_training_mode(attach: Attach, buggy: bool) -> None:
    """The validation that follows step 9 runs with dropout on and gives its statistics to the batch norm."""
    model, held_out = Classifier(norm=nn.BatchNorm1d(HIDDEN), drop=nn.Dropout(0.2)), blobs(1, seed=9000)[0]
    optimizer = adam(model)
    with attach(model, optimizer):
        for step, batch in enumerate(blobs(STEPS)):
            fit(model, optimizer, [batch])
            if step % 10 == 9:
                if not buggy:
                    model.eval()
                validate(model, held_out)
                model.train()


def loaded_in_evaluation_mode(attach: Attach, buggy: bool) -> None:
    """A pretrained model arrives in evaluation mode, and is trained in it."""
    model = Classifier(drop=nn.Dropout(0.2)).eval()
    optimizer = adam(model)
    if not buggy:
        model.train()
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


class Unassigned(nn.Module):
    """Calls dropout, and may go on with what it had."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets, self.dropout = forgets, nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.dropout(x)
        return x if self.forgets else dropped


def dropout_result_unused(attach: Attach, buggy: bool) -> None:
    model = Classifier(drop=Unassigned(forgets=buggy))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def dropout_keeps_a_tenth(attach: Attach, buggy: bool) -> None:
    """What was the probability to keep becomes the probability to drop."""
    model = Classifier(drop=nn.Dropout(0.9 if buggy else 0.1))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


DROP, MODE, STILL = frozenset({"dropout"}), frozenset({"mode"}), frozenset({"dropout", "eval-determinism"})
CASES: tuple[Case, ...] = (
    Case("dropout-without-the-flag", "F.dropout(x, p) in evaluation", STILL, 0, dropout_without_the_flag),
    Case("attention-drops-in-evaluation", "dropout_p does not ask for the mode", STILL, 0,
         attention_drops_in_evaluation, "TrainCheck TF-33844"),
    Case("noise-in-evaluation", "noise is added in evaluation", frozenset({"eval-determinism"}), 0,
         noise_in_evaluation, needs="deterministic"),
    Case("never-back-to-training", "evaluation mode stays after validation", MODE, 10, never_back_to_training),
    Case("validated-in-training-mode", "validation in training mode", MODE, 9, validated_in_training_mode),
    Case("loaded-in-evaluation-mode", "trained in evaluation mode from the start", MODE, 0,
         loaded_in_evaluation_mode),
    Case("dropout-result-unused", "the result of dropout is not used", DROP, 0, dropout_result_unused),
    Case("dropout-keeps-a-tenth", "keep and drop probability exchanged", DROP, 0, dropout_keeps_a_tenth),
)  # fmt: skip
