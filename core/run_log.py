"""A run's log as rows of numbers, each as far as its digits go: what an audit looks at, whatever the file's format.

A number in a log is rounded. `Digits` says how finely a column was written, from the numbers as they stand there, so that
"agrees with the schedule" can mean: to half a unit of the last digit logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ARITHMETIC = 2.0**-20
"""Relative. A rate that was computed in float32, by another order of operations, differs by less."""

LEAST_PLACES = 300
"""Decimals beyond which no float64 has any use."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "steps", "global_step", "iter", "iters", "iteration", "iterations", "update", "num_updates", "it"),
    "lr": ("lr", "lrs", "learning_rate", "learningrate", "lr_0", "lr_group_0", "lr_adam", "lr_adamw", "lr_sgd"),
    "loss": ("loss", "train_loss", "training_loss", "loss_train", "total_loss", "ce", "cross_entropy"),
    "val_loss": ("val_loss", "eval_loss", "valid_loss", "validation_loss", "test_loss", "loss_val"),
    "bpb": ("bpb", "val_bpb", "eval_bpb", "valid_bpb", "bits_per_byte"),
    "grad_norm": ("grad_norm", "gradient_norm", "gnorm", "gradnorm", "total_norm", "grad_l2"),
    "tokens": ("tokens", "tokens_seen", "num_tokens", "total_tokens", "num_input_tokens_seen", "tokens_total"),
    "epoch": ("epoch", "epochs"),
}
"""Canonical name -> the names by which it is recognised, lower case, other signs as _; `train/loss` is read as train_loss."""


def canonical(name: str) -> str | None:
    """The canonical column that a written name stands for; None when it is not recognised."""
    plain = "".join(c if c.isalnum() else "_" for c in name.strip().lower()).strip("_")
    while "__" in plain:
        plain = plain.replace("__", "_")
    for known, names in COLUMNS.items():
        if plain in names or plain.removeprefix("train_") in names or plain.removeprefix("optim_") in names:
            return known
    return None


@dataclass(frozen=True)
class Digits:
    """How finely a column was written: at most `places` decimals and `significant` digits, over all its numbers."""

    places: int
    significant: int

    def unit(self, value: float) -> float:
        """The place value of the last digit logged of a number in this column: the coarser of the two readings."""
        if value == 0 or not math.isfinite(value):
            return 10.0**-self.places
        leading = math.floor(math.log10(abs(value)))
        return max(10.0**-self.places, 10.0 ** max(-LEAST_PLACES, leading - self.significant + 1))


def digits_of(texts: Iterable[str]) -> Digits:
    """The digits of a column from its numbers as written; texts that are no decimals are passed over."""
    places, significant = 0, 1
    for text in texts:
        mantissa, _, exponent = text.strip().lower().replace(",", "").replace("_", "").lstrip("+-").partition("e")
        whole, _, part = mantissa.partition(".")
        if not (whole + part).isdigit() or not (exponent.lstrip("+-").isdigit() or not exponent):
            continue
        places = max(places, len(part) - int(exponent or 0))
        significant = max(significant, len((whole + part).lstrip("0")))
    return Digits(min(max(places, 0), LEAST_PLACES), significant)


@dataclass(frozen=True)
class Row:
    """One row: where it stands in the file, the step it is of (None where it names none), canonical name -> number."""

    place: str
    step: float | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunLog:
    """A log as read. `columns`: canonical name -> name as written; `unread`: what was not understood, by place."""

    source: str
    form: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    digits: Mapping[str, Digits]
    ignored: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def points(self, column: str) -> list[tuple[float, float]]:
        """(step, number) of every row that has both, in the order of the steps; of one step the last row counts."""
        held = {row.step: row.values[column] for row in self.rows if row.step is not None and column in row.values}
        return sorted(held.items())

    def series(self, column: str) -> list[tuple[str, float]]:
        """(place, number) of every row that has it, in the order of the file."""
        return [(row.place, row.values[column]) for row in self.rows if column in row.values]

    def slack(self, column: str, value: float) -> float:
        """How far a number in this column may be from what it was rounded from: half a unit, and float32 arithmetic."""
        return self.digits[column].unit(value) / 2 + ARITHMETIC * abs(value)

    @property
    def last_step(self) -> float | None:
        """The largest step that any row names; None without steps."""
        steps = [row.step for row in self.rows if row.step is not None]
        return max(steps) if steps else None
