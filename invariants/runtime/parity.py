"""resume_parity: the run that was interrupted, made anew and loaded, beside the one that was not, bit for bit.

    report = resume_parity(make, step)

What is not equal is traced to its cause by trying: a generator put back, an object kept, an attribute copied, until the two
runs are one; the causes are those that cannot be left out. Everything stays in memory; nothing is unpickled but tensors.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError
from karat.invariants.run.finding import Finding, Outcome, decided, exit_code, undecided
from karat.invariants.run.rule import Severity
from karat.invariants.run.run42_resume import RULE as RESUME
from karat.invariants.run.run44_data_position import RULE as POSITION
from karat.invariants.runtime.preflight.keep import Kept, seed_all
from karat.invariants.runtime.run_states import (
    changed,
    copy_attribute,
    first_difference,
    generators,
    restore,
    saves,
    snapshot,
)

Objects = dict[str, Any]
Make = Callable[[], Mapping[str, Any]]
Step = Callable[[Any, int], Any]

GENERATORS = ("torch", "numpy", "random")
MOST_ATTRIBUTES = 40
"""Attributes that are tried; those after them are taken together."""
SEED = 20210  # any; both runs start from it


@dataclass(frozen=True)
class Remedy:
    """Something that a resume did not bring back: a generator, an object, or an attribute of one of its modules."""

    kind: str
    name: str
    path: str = ""
    attribute: str = ""

    def __str__(self) -> str:
        if self.kind == "generator":
            return f"the global generator of {self.name}"
        if self.kind == "object":
            return f"`{self.name}`"
        where = ".".join(part for part in (self.name, self.path) if part)
        return f"the attribute `{self.attribute}` of `{where}`"


@dataclass(frozen=True)
class ParityReport:
    """findings: of RUN-42 and RUN-44. first_difference: what differs first, and at which step; empty when nothing does."""

    findings: tuple[Finding, ...]
    steps: int
    at: int
    compared: int
    first_difference: str

    @property
    def holds(self) -> bool:
        """Whether the two runs are one, and that could be decided."""
        return exit_code(self.findings) == 0 and all(f.outcome is Outcome.HOLDS for f in self.findings)

    @property
    def exit_code(self) -> int:
        """0: one and the same. 1: not. 2: it could not be decided."""
        return exit_code(self.findings)

    def __str__(self) -> str:
        lines = [
            f"resume parity: {self.steps} steps, interrupted before step {self.at}, {self.compared} values compared"
        ]
        return "\n".join([*lines, *(f"{f.word:<11} {f.id} {f.slug}: {f.message}" for f in self.findings)])


def resume_parity(
    make: Make, step: Step, steps: int = 6, at: int = 3, *, tolerance: float = 0.0, seed: int = SEED
) -> ParityReport:
    """Whether a run that is saved before step `at`, made anew and loaded goes on as the one that is not interrupted.

    make() -> name -> object: model, optimizer, scheduler, loader; what has state_dict and load_state_dict is saved and
    loaded, in this order. step(objects, i) runs training step i, and may return its loss. Compared after each step: all
    tensors and numbers in all states, and the loss; equal bit for bit, or within a relative tolerance. The generators of
    Python, NumPy and torch are left as they were. ConfigError for at outside 1 .. steps - 1, or nothing to save.
    """
    if not 1 <= at < steps:
        raise ConfigError(f"at = {at} of {steps} steps", required="1 <= at < steps")
    kept = Kept(nn.Module(), (), ())
    try:
        return _Trial(make, step, steps, at, tolerance, seed).report()
    finally:
        kept.put_back()


class _Trial:
    """The uninterrupted run, and as many resumed ones as the search for the cause takes."""

    def __init__(self, make: Make, step: Step, steps: int, at: int, tolerance: float, seed: int) -> None:
        self.make, self.step, self.steps, self.at = make, step, steps, at
        self.tolerance, self.seed = tolerance, seed
        self.unreadable: dict[str, str] = {}

    def report(self) -> ParityReport:
        straight = self._run(self._made(), 0, self.steps)
        again, before = self._interrupted()
        required = RESUME.statement
        noise = first_difference(straight[: self.at], before, 0, self.tolerance)
        if noise:
            why = f"two runs from one seed differ before any interruption: {noise}; make() must build all that a step uses"
            return self._result((undecided(RESUME.id, Severity.FAIL, why, required),), straight, "")
        resumed = self._resumed(frozenset())
        difference = first_difference(straight[self.at :], resumed, self.at, self.tolerance)
        findings = [
            decided(RESUME.id, Severity.WARN, False, f"the state of `{name}` is not read with weights_only=True: {why}",
                    required, rows=1)
            for name, why in self.unreadable.items()
        ]  # fmt: skip
        if not difference:
            values = sum(len(snapshot) for snapshot in straight[self.at :])
            seen = f"{self.steps - self.at} steps after it are equal, {values} values"
            findings.append(decided(RESUME.id, Severity.FAIL, True, seen, required, rows=self.steps - self.at))
            return self._result(tuple(findings), straight, "")
        causes = self._causes(straight, again)
        if not causes:
            seen = f"{difference}; no generator, object or attribute alone or together brings it back"
            findings.append(decided(RESUME.id, Severity.FAIL, False, seen, required, rows=1))
        for cause in causes:
            rule = POSITION if cause.kind == "object" and _is_data(again[cause.name]) else RESUME
            seen = f"{_sentence(cause, again)}; {difference}"
            findings.append(decided(rule.id, Severity.FAIL, False, seen, rule.statement, rows=1, where=str(cause)))
        return self._result(tuple(findings), straight, difference)

    def _result(self, findings: tuple[Finding, ...], straight: list[dict[str, Any]], difference: str) -> ParityReport:
        compared = sum(len(snapshot) for snapshot in straight[self.at :])
        return ParityReport(findings, self.steps, self.at, compared, difference)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _made(self) -> Objects:
        seed_all(self.seed)
        objects = dict(self.make())
        if not any(saves(o) for o in objects.values()):
            raise ConfigError(
                "make() gives nothing that has a state_dict",
                required="a mapping of names to objects, model and optimizer among them",
                next_step='make = lambda: {"model": model, "optimizer": optimizer}',
            )
        return objects

    def _run(self, objects: Objects, first: int, last: int) -> list[dict[str, Any]]:
        """What is to be compared after each step."""
        return [snapshot(objects, self.step(objects, i)) for i in range(first, last)]

    def _interrupted(self) -> tuple[Objects, list[dict[str, Any]]]:
        """A run up to the interruption; it can be left alone, its generators are not kept."""
        objects = self._made()
        return objects, self._run(objects, 0, self.at)

    def _resumed(self, remedies: frozenset[Remedy]) -> list[dict[str, Any]]:
        """The interrupted run again, saved, made anew, loaded, with remedies, and run to its end."""
        original = self._made()
        self._run(original, 0, self.at)
        saved = {name: self._saved(name, o) for name, o in original.items() if saves(o)}
        states = generators()
        objects = self._made()
        for remedy in remedies:
            if remedy.kind == "object":
                objects[remedy.name] = original[remedy.name]
        for name, state in saved.items():
            objects[name].load_state_dict(state)
        for remedy in remedies:
            if remedy.kind == "attribute":
                copy_attribute(original[remedy.name], objects[remedy.name], remedy.path, remedy.attribute)
        for remedy in remedies:
            if remedy.kind == "generator":
                restore(remedy.name, states)
        return self._run(objects, self.at, self.steps)

    def _saved(self, name: str, thing: Any) -> Any:
        """Its state as it comes back from a file."""
        state, buffer = thing.state_dict(), io.BytesIO()
        try:
            torch.save(state, buffer)
            buffer.seek(0)
            return torch.load(buffer, weights_only=True)
        except Exception as error:
            self.unreadable.setdefault(name, next(iter(str(error).splitlines()), type(error).__name__)[:160])
            return copy.deepcopy(state)

    # -- causes -------------------------------------------------------------------------------------------------------

    def _causes(self, straight: list[dict[str, Any]], again: Objects) -> list[Remedy]:
        """The remedies that are needed, all of them, for the resumed run to be the uninterrupted one; none when even all
        together are not enough."""
        remedies = self._remedies(again)

        def cured(tried: list[Remedy]) -> bool:
            resumed = self._resumed(frozenset(tried))
            return not first_difference(straight[self.at :], resumed, self.at, self.tolerance)

        needed = list(remedies)
        if not cured(needed):
            return []
        for remedy in remedies:
            fewer = [r for r in needed if r != remedy]
            if cured(fewer):
                needed = fewer
        return needed

    def _remedies(self, again: Objects) -> list[Remedy]:
        """Least likely first, so that of two that do the same the likelier stays: attributes, generators, objects."""
        fresh = self._made()
        found: list[Remedy] = []
        for name, thing in again.items():
            if saves(thing):
                found += [Remedy("attribute", name, path, key) for path, key in changed(thing, fresh[name])]
        found = found[:MOST_ATTRIBUTES]
        found += [Remedy("generator", name) for name in GENERATORS]
        return found + [Remedy("object", name) for name, thing in again.items() if not saves(thing)]


def _is_data(thing: Any) -> bool:
    """Whether an object without a state gives out data: an iterator, a loader, a sampler."""
    kind = type(thing).__name__.lower()
    return hasattr(thing, "__next__") or any(
        word in kind for word in ("loader", "sampler", "dataset", "iter", "stream")
    )


def _sentence(cause: Remedy, objects: Objects) -> str:
    if cause.kind == "generator":
        return f"{cause} was not restored"
    if cause.kind == "object":
        kind = type(objects[cause.name]).__name__
        if _is_data(objects[cause.name]):
            return f"{cause} ({kind}) has no state_dict: after the resume its data starts at the beginning"
        return f"{cause} ({kind}) has no state_dict, and is new after the resume"
    return f"{cause} changes in training and is in no state_dict"
