"""Runs the cases: three opinions on every tensor, and which part is at fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from karat.trainer.gradcheck.case import Arrays, Case, Own, Tensors
from karat.trainer.gradcheck.compare import (
    LIMITS,
    OUTPUT,
    OWN,
    REFERENCE,
    TORCH,
    Comparison,
    Result,
    Row,
    compared,
    norm,
)  # fmt: skip
from karat.trainer.gradcheck.composites import composites
from karat.trainer.gradcheck.differences import Weighted, by_differences
from karat.trainer.gradcheck.parts import layers
from karat.trainer.reference.arrays import Array

HELD, FAILED, CANNOT_JUDGE = 0, 1, 2


@dataclass(frozen=True)
class Checked:
    """One part: where the trainer's own counterpart is ("" where it has none), and a row for its output and every gradient."""

    part: str
    place: str
    contains: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def result(self) -> Result:
        results = [row.result for row in self.rows]
        if Result.FAILED in results:
            return Result.FAILED
        return Result.NOT_TESTED if Result.NOT_TESTED in results else Result.HELD

    def suspect(self, row: Row) -> str:
        """Who differs on one of its rows."""
        return row.suspect(forward_agrees=self.rows[0].result is Result.HELD)

    def worst(self, opinion: str) -> float | None:
        """The largest error with that opinion; None where it was never compared. NaN is worse than any number."""
        errors = [c.error for row in self.rows for c in row.comparisons if c.opinion == opinion and c.error is not None]
        return max(errors, key=lambda e: (e != e, e), default=None)


@dataclass(frozen=True)
class GradCheck:
    """All parts, smallest first."""

    seed: int
    length: int
    parts: tuple[Checked, ...]

    @property
    def exit_code(self) -> int:
        """0 every tensor held, 1 one failed, 2 none failed and one was not tested."""
        results = [part.result for part in self.parts]
        if Result.FAILED in results:
            return FAILED
        return CANNOT_JUDGE if Result.NOT_TESTED in results else HELD

    @property
    def at_fault(self) -> tuple[str, ...]:
        """The parts that failed and are made of none that did; the others that failed follow from them."""
        failed = {part.part for part in self.parts if part.result is Result.FAILED}
        return tuple(p.part for p in self.parts if p.part in failed and not failed & set(p.contains))


def gradcheck(seed: int, length: int) -> GradCheck:
    """Every layer and the whole models, on inputs drawn by the seed, with sequences of so many tokens."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        cases = [*layers(seed, length), *composites(seed, length)]
        return GradCheck(seed, length, tuple(_checked_or_failed(case, seed) for case in cases))


def checked(case: Case, seed: int) -> Checked:
    """The reference's output and gradients on the case's inputs, against each opinion."""
    random = np.random.default_rng([seed, *case.part.encode(), 1])
    output = case.forward(case.inputs)
    cotangent = random.standard_normal(output.shape)
    gradients = case.backward(cotangent, case.inputs)
    if gradients.keys() != case.inputs.keys():
        raise ValueError(f"{case.part}: gradients by {sorted(gradients)}, inputs {sorted(case.inputs)}")
    scale = max((norm(gradient) for gradient in gradients.values()), default=0.0)
    own = case.own or Own("", case.torch)
    voices = [(TORCH, Own("", case.torch))] if case.own is None else [(OWN, own), (TORCH, Own("", case.torch))]
    found = {opinion: _by_autograd(voice, case.inputs, cotangent) for opinion, voice in voices}
    limits = LIMITS | {OWN: own.limit}

    def row(name: str, ours: Array, of: float) -> Row:
        told = []
        for opinion, theirs in found.items():
            if isinstance(theirs, str):
                told.append(Comparison(opinion, Result.NOT_TESTED, reason=theirs))
            elif name in theirs:
                told.append(compared(opinion, ours, theirs[name], of, limits[opinion]))
        if name != OUTPUT:
            told.append(by_differences(_difference(case, name, cotangent), case.inputs[name], ours, of, random))
        return Row(name, norm(ours), tuple(told))

    rows = [row(OUTPUT, output, 0.0), *(row(name, gradients[name], scale) for name in case.inputs)]
    return Checked(case.part, own.place, case.contains, tuple(rows))


def _checked_or_failed(case: Case, seed: int) -> Checked:
    """As checked; a part of the reference that raises has failed, and the other parts are judged all the same."""
    try:
        return checked(case, seed)
    except Exception as error:  # whatever it is: the inputs are sound
        raised = Comparison(REFERENCE, Result.FAILED, reason=f"{type(error).__name__}: {error}")
        place = case.own.place if case.own else ""
        return Checked(case.part, place, case.contains, (Row(OUTPUT, math.nan, (raised,)),))


def _by_autograd(voice: Own, inputs: Arrays, cotangent: Array) -> dict[str, Array] | str:
    """Output and gradients of a torch function; a sentence where it cannot be run on these inputs."""
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in inputs.items()}
    try:
        output = voice.function(leaves)
        gradients = _gradients(output, leaves, cotangent)
    except Exception as error:  # whatever a module raises, the other opinions are still heard
        return f"cannot be run: {type(error).__name__}: {error}"
    kept = {name: gradient for name, gradient in gradients.items() if name not in voice.constants}
    return {OUTPUT: output.detach().numpy(), **kept}


def _gradients(output: Tensor, leaves: Tensors, cotangent: Array) -> dict[str, Array]:
    """By every leaf; zeros for one that the output does not reach, since that is what a detached tensor trains with."""
    reached: list[Tensor | None] = [None] * len(leaves)
    if output.requires_grad and leaves:
        weights = torch.from_numpy(np.asarray(cotangent))
        reached = list(torch.autograd.grad(output, list(leaves.values()), weights, allow_unused=True))
    return {
        name: (torch.zeros_like(leaf) if gradient is None else gradient).detach().numpy()
        for (name, leaf), gradient in zip(leaves.items(), reached, strict=True)
    }


def _difference(case: Case, name: str, cotangent: Array) -> Weighted:
    """The reference's own forward as a function of one of its inputs, the output weighted by the cotangent."""

    def moved(by: Array) -> Array:
        return case.forward({**case.inputs, name: case.inputs[name] + by})

    return lambda v, w: float((cotangent * (moved(v) - moved(w))).sum())
