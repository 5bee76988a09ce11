"""What a loop of the corpus sets off: with the guards, under torch's anomaly detection, and in the eyes of a loss watcher.

Steps are counted here, by a hook on the first optimizer, and not taken from the guards: a violation counts from the step
at which it can be read.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from corpus.loops.case import Attach, Case, Clean  # noqa: E402

SUBJECTS = (
    "schedule", "schedulers", "reach", "terms", "fresh", "finite", "accumulation", "clipping", "scaling", "parameters", "copies",
    "semantics", "modes", "outputs", "numerics", "data", "state", "search", "general", "exchanged", "keeping", "midrun",
    "rounded",
    "replaced",
    "followed", "leftover", "attended", "overlooked", "carried", "latents",
)  # fmt: skip
RISE = 1.1
"""How far the last quarter's mean loss may be above the first quarter's before the loss watcher speaks."""

Guards = Callable[..., Any]


@dataclass(frozen=True)
class Seen:
    """One violation: which rule, how bad, at which step it could be read, and what it said."""

    id: str
    slug: str
    severity: str
    step: int
    message: str


@dataclass
class Run:
    """One run of a loop: what was seen, how many steps it took, and why it broke off if it did."""

    seen: list[Seen] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    error: str = ""
    missing: str = ""
    """What the package does not have and the loop needs."""


class Observed:
    """Guards under observation: after whatever they are told, and after each step, new violations get their step."""

    def __init__(self, guards: Any, run: Run, optimizer: Any) -> None:
        self._guards, self._run, self._read = guards, run, 0
        first = optimizer if isinstance(optimizer, torch.optim.Optimizer) else next(iter(optimizer))
        self._handle = first.register_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        self._look(self._run.steps)
        self._run.steps += 1

    def _look(self, now: int) -> None:
        records = list(getattr(self._guards, "violations", ()))
        for record in records[self._read :]:
            step = max(now, int(record.step)) if record.step is not None else now
            self._run.seen.append(
                Seen(str(record.id), str(record.slug), str(record.severity), step, str(record.message))
            )
        self._read = len(records)

    def __getattr__(self, name: str) -> Any:
        held = getattr(self._guards, name)
        if not callable(held):
            return held

        def told(*given: Any, **named: Any) -> Any:
            result = held(*given, **named)
            self._look(max(0, self._run.steps - 1))
            return result

        return told

    def take(self, finding: Any) -> None:
        """A finding of a pure function (`karat.invariants.run.finding.Finding`) that the loop called on its logs."""
        if str(finding.outcome) == "violated" and str(finding.severity) in ("FAIL", "WARN"):
            slug = getattr(finding, "slug", "") or finding.id.removeprefix("RUN-")
            step = max(0, self._run.steps - 1)
            self._run.seen.append(Seen(finding.id, slug, str(finding.severity), step, finding.message))

    def finish(self) -> Any:
        """Ends the guards; what they say at the end counts for the last step."""
        result = self._guards.finish()
        self._look(max(0, self._run.steps - 1))
        self._handle.remove()
        return result

    def __enter__(self) -> Observed:
        return self

    def __exit__(self, *_: Any) -> None:
        self.finish()


def guarded(loop: Callable[[Attach], None], watch: Guards) -> Run:
    """Runs a loop with the guards attached wherever it attaches them; an exception ends it and is kept."""
    run, opened = Run(), []

    def attach(model: Any, optimizer: Any, **declared: Any) -> Observed:
        opened.append(Observed(watch(model, optimizer, **declared), run, optimizer))
        return opened[-1]

    began = time.perf_counter()
    with quiet():
        try:
            loop(attach)
            for observed in opened:
                observed.finish()
        except NotImplementedError as why:
            run.missing = str(why) or "not implemented"
        except Exception as why:
            frame = traceback.extract_tb(why.__traceback__)[-1]
            first = next(iter(str(why).splitlines()), "")
            run.error = f"{type(why).__name__}: {first} ({Path(frame.filename).name}:{frame.lineno})"
    run.seconds = time.perf_counter() - began
    return run


class Unwatched:
    """Guards that do nothing and know nothing."""

    violations: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: None


def no_guards(model: Any, optimizer: Any, **declared: Any) -> Unwatched:
    """An attach that attaches nothing."""
    return Unwatched()


def anomaly(loop: Callable[[Attach], None]) -> bool:
    """Whether the loop raises under torch.autograd.set_detect_anomaly(True)."""
    with torch.autograd.set_detect_anomaly(True):
        return bool(guarded(loop, no_guards).error)


def loss_watcher(loop: Callable[[Attach], None]) -> bool:
    """Whether a watcher of the loss alone speaks: it became NaN or infinite, or ended higher than it began.

    The loss is what backward() is called on, so that the watcher sees it also where the loop logs nothing.
    """
    losses: list[float] = []
    original = torch.Tensor.backward

    def backward(tensor: torch.Tensor, *given: Any, **named: Any) -> None:
        if tensor.numel() == 1:
            losses.append(float(tensor.detach()))
        original(tensor, *given, **named)

    torch.Tensor.backward = backward  # type: ignore[method-assign]
    try:
        guarded(loop, no_guards)
    finally:
        torch.Tensor.backward = original  # type: ignore[method-assign]
    if not all(math.isfinite(loss) for loss in losses):
        return True
    quarter = len(losses) // 4
    if not quarter:
        return False
    start, end = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    return end - start > (RISE - 1) * abs(start)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the terminal, no warnings, and the generator of torch as it was."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Judged:
    """A case: what was seen in it and in its twin, and what the rivals said of both (None: not asked)."""

    case: Case
    buggy: Run
    twin: Run
    rivals: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    @property
    def detections(self) -> list[Seen]:
        """What was seen by rules that are silent on the twin; within a step the right cause comes first.

        Before the first effect only the right cause counts: a checkpoint may be judged before anything is resumed from it.
        """
        silent, effect, rules = {seen.slug for seen in self.twin.seen}, self.case.first_effect or 0, self.case.rules
        found = [s for s in self.buggy.seen if s.slug not in silent and (s.step >= effect or s.slug in rules)]
        return sorted(found, key=lambda s: (s.step, s.slug not in self.case.rules, s.severity != "FAIL"))

    @property
    def caught(self) -> Seen | None:
        """The first detection."""
        return next(iter(self.detections), None)

    @property
    def cause(self) -> bool:
        """Whether any detection names the right cause."""
        return any(seen.slug in self.case.rules for seen in self.detections)

    @property
    def delay(self) -> int | None:
        """Steps from the first effect to the first detection, below 0 when it was foreseen; None without either."""
        if self.caught is None or self.case.first_effect is None:
            return None
        return self.caught.step - self.case.first_effect

    @property
    def broken(self) -> str:
        """Why the guards could not be judged on this case."""
        return self.buggy.missing or self.buggy.error or self.twin.missing or self.twin.error


RIVALS: dict[str, Callable[[Callable[[Attach], None]], bool]] = {"anomaly": anomaly, "loss": loss_watcher}


def judge(case: Case, watch: Guards, rivals: bool = True) -> Judged:
    """Runs a case with its bug and without, with the guards and under each rival."""

    def buggy(attach: Attach) -> None:
        case.run(attach, True)

    def twin(attach: Attach) -> None:
        case.run(attach, False)

    said = {name: (rival(buggy), rival(twin)) for name, rival in RIVALS.items()} if rivals else {}
    return Judged(case, guarded(buggy, watch), guarded(twin, watch), said)


def cases() -> list[Case]:
    """Every buggy loop of the corpus, in the order of its modules."""
    names = [f"corpus.loops.{subject}" for subject in SUBJECTS]
    return [case for module in map(importlib.import_module, names) for case in module.CASES]


def clean_loops() -> list[Clean]:
    """Every legitimate loop of the corpus."""
    return list(importlib.import_module("corpus.loops.clean").CLEAN)
