"""resume_parity: the run that was interrupted, made anew and loaded, beside the one that was not, bit for bit.

    report = resume_parity(make, step)

What is not equal is traced to its cause by trying: a generator put back, an object kept, an attribute copied, until the two
runs are one; the causes are those that cannot be left out. Everything stays in memory; nothing is unpickled but tensors.
"""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from karat.core.errors import ConfigError
from karat.invariants.run.finding import Finding, Outcome, Severity, decided, exit_code, undecided
from karat.invariants.run.run42_resume import RULE as RESUME
from karat.invariants.run.run44_data_position import RULE as POSITION
from karat.invariants.runtime.preflight.keep import Kept, seed_all

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
        return "\n".join([*lines, *(f"{f.word:<11} {f.id} {f.slug}: {f.observed}" for f in self.findings)])


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
        noise = _first_difference(straight[: self.at], before, 0, self.tolerance)
        if noise:
            why = f"two runs from one seed differ before any interruption: {noise}; make() must build all that a step uses"
            return self._result((undecided(RESUME.id, Severity.FAIL, why, required),), straight, "")
        resumed = self._resumed(frozenset())
        difference = _first_difference(straight[self.at :], resumed, self.at, self.tolerance)
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
            findings.append(decided(rule.id, Severity.FAIL, False, seen, rule.statement, rows=1, at=str(cause)))
        return self._result(tuple(findings), straight, difference)

    def _result(self, findings: tuple[Finding, ...], straight: list[dict[str, Any]], difference: str) -> ParityReport:
        compared = sum(len(snapshot) for snapshot in straight[self.at :])
        return ParityReport(findings, self.steps, self.at, compared, difference)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _made(self) -> Objects:
        seed_all(self.seed)
        objects = dict(self.make())
        if not any(_saves(o) for o in objects.values()):
            raise ConfigError(
                "make() gives nothing that has a state_dict",
                required="a mapping of names to objects, model and optimizer among them",
                next_step='make = lambda: {"model": model, "optimizer": optimizer}',
            )
        return objects

    def _run(self, objects: Objects, first: int, last: int) -> list[dict[str, Any]]:
        """What is to be compared after each step."""
        return [_snapshot(objects, self.step(objects, i)) for i in range(first, last)]

    def _interrupted(self) -> tuple[Objects, list[dict[str, Any]]]:
        """A run up to the interruption; it can be left alone, its generators are not kept."""
        objects = self._made()
        return objects, self._run(objects, 0, self.at)

    def _resumed(self, remedies: frozenset[Remedy]) -> list[dict[str, Any]]:
        """The interrupted run again, saved, made anew, loaded, with remedies, and run to its end."""
        original = self._made()
        self._run(original, 0, self.at)
        saved = {name: self._saved(name, o) for name, o in original.items() if _saves(o)}
        generators = _generators()
        objects = self._made()
        for remedy in remedies:
            if remedy.kind == "object":
                objects[remedy.name] = original[remedy.name]
        for name, state in saved.items():
            objects[name].load_state_dict(state)
        for remedy in remedies:
            if remedy.kind == "attribute":
                _copy_attribute(original[remedy.name], objects[remedy.name], remedy)
        for remedy in remedies:
            if remedy.kind == "generator":
                _restore(remedy.name, generators)
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
            return not _first_difference(straight[self.at :], resumed, self.at, self.tolerance)

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
            if _saves(thing):
                found += [Remedy("attribute", name, path, key) for path, key in _changed(thing, fresh[name])]
        found = found[:MOST_ATTRIBUTES]
        found += [Remedy("generator", name) for name in GENERATORS]
        return found + [Remedy("object", name) for name, thing in again.items() if not _saves(thing)]


def _saves(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


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


def _snapshot(objects: Objects, loss: Any) -> dict[str, Any]:
    """Every tensor and number in every state, copied; and the loss."""
    found: dict[str, Any] = {}
    for name, thing in objects.items():
        if _saves(thing):
            _flatten(found, name, thing.state_dict())
    if loss is not None:
        found["the loss"] = loss.detach().clone() if isinstance(loss, Tensor) else loss
    return found


def _flatten(found: dict[str, Any], where: str, value: Any) -> None:
    if isinstance(value, Tensor):
        found[where] = value.detach().clone()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(found, f"{where}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _flatten(found, f"{where}.{place}", item)
    elif isinstance(value, (int, float, str)):
        found[where] = value


def _first_difference(straight: list[dict[str, Any]], other: list[dict[str, Any]], first: int, tolerance: float) -> str:
    """The first step after which something differs, and what: the loss before states, since it comes before them."""
    for step, (a, b) in enumerate(zip(straight, other, strict=True), start=first):
        names = sorted({*a, *b}, key=lambda name: (name != "the loss", list(a).index(name) if name in a else len(a)))
        apart = [n for n in names if n not in a or n not in b or not _equal(a[n], b[n], tolerance)]
        if apart:
            name = apart[0]
            return f"step {step}: {name} is {_shown(b.get(name))} instead of {_shown(a.get(name))}, {len(apart)} differ"
    return ""


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not tolerance or not a.is_floating_point():
            return bool(torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())
                                              and torch.equal(a.isnan(), b.isnan())))  # fmt: skip
        scale = float(torch.maximum(a.abs().max(), b.abs().max())) if a.numel() else 0.0
        return bool((a - b).abs().max() <= tolerance * scale) if a.numel() else True
    if isinstance(a, float) and isinstance(b, float):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b))
    return bool(type(a) is type(b) and a == b)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):.8g}" if value.numel() == 1 else f"a tensor with sum {float(value.double().sum()):.8g}"
    return "missing" if value is None else f"{value:.8g}" if isinstance(value, float) else repr(value)


def _generators() -> dict[str, Any]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": (torch.get_rng_state(), on_devices), "numpy": np.random.get_state(), "random": random.getstate(),
    }  # fmt: skip


def _restore(name: str, states: Mapping[str, Any]) -> None:
    if name == "torch":
        torch.set_rng_state(states["torch"][0])
        if states["torch"][1]:
            torch.cuda.set_rng_state_all(states["torch"][1])
    elif name == "numpy":
        np.random.set_state(states["numpy"])
    else:
        random.setstate(states["random"])


def _plain_attributes(thing: Any) -> dict[str, Any]:
    """Attributes of the user's own: numbers, texts, tensors outside the state, and small containers of these."""
    held = getattr(thing, "__dict__", {})
    registered = {*getattr(thing, "_parameters", {}), *getattr(thing, "_buffers", {}), *getattr(thing, "_modules", {})}
    simple = (bool, int, float, str, Tensor, np.ndarray, list, dict, tuple, torch.Generator, np.random.Generator,
              random.Random)  # fmt: skip
    return {
        key: value for key, value in held.items()
        if isinstance(value, simple) and key not in registered and not key.startswith(("_parameters", "_buffers", "_modules"))
        and not key.endswith("_hooks") and key not in ("state", "param_groups", "defaults", "training")
    }  # fmt: skip


def _holders(thing: Any) -> list[tuple[str, Any]]:
    return list(thing.named_modules()) if isinstance(thing, nn.Module) else [("", thing)]


def _changed(thing: Any, fresh: Any) -> list[tuple[str, str]]:
    """(where, name) of the attributes that are not as they were made, of a module and of those below it."""
    found = []
    for (path, mine), (_, new) in zip(_holders(thing), _holders(fresh), strict=False):
        theirs = _plain_attributes(new)
        for key, value in _plain_attributes(mine).items():
            if key in theirs and not _same_attribute(value, theirs[key]):
                found.append((path, key))
    return found


def _same_attribute(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Generator):
        return bool(torch.equal(a.get_state(), b.get_state()))
    if isinstance(a, random.Random):
        return bool(a.getstate() == b.getstate())
    if isinstance(a, np.random.Generator):
        return str(a.bit_generator.state) == str(b.bit_generator.state)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _equal(a.detach(), b.detach(), 0.0)
    try:
        return bool(np.all(a == b))
    except (ValueError, RuntimeError, TypeError):
        return False


def _copy_attribute(original: Any, resumed: Any, remedy: Remedy) -> None:
    source, target = dict(_holders(original))[remedy.path], dict(_holders(resumed))[remedy.path]
    value = source.__dict__[remedy.attribute]
    target.__dict__[remedy.attribute] = value if isinstance(value, torch.Generator) else copy.deepcopy(value)
