"""RUN-10: each term of the loss that is given is connected to parameters, and a backward goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run10_loss_terms import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks.replaced import out_of_range
from karat.invariants.runtime.watching.graph import contains, walk
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop

ROUNDING = 2e-7
"""Of a term over the largest one beside it: what float32 leaves of a difference of equal things."""
LINEAR = ("Mul", "Div", "Mean", "Sum", "Neg", "Clone", "ToCopy", "View", "Reshape", "Squeeze", "Unsqueeze", "Alias")
"""Nodes that only weigh, add up or shape one tensor: a term below them is the same term."""


@dataclass
class Given:
    """The terms of a step that are to train something: which of them a backward went through."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    total: Tensor | None = None
    passed: set[str] = field(default_factory=set)
    step: int = 0


class LossTerms(Check):
    rules = (RULE,)
    interval = "when terms are given"

    def __init__(self) -> None:
        self._given: Given | None = None
        self._handles: list[Any] = []
        self._ever: set[str] = set()
        self._zero: dict[str, tuple[int, int, bool]] = {}
        """Term -> the first step in which it was given, in how many it was zero, -1 once it was not, and whether ever below."""
        self._never: dict[str, int] = {}

    def start(self, loop: Loop) -> None:
        loop.not_checked(RULE, "no terms were given: guards.log(losses={…}) before backward")
        loop.rest(self, "before_step")

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        losses = logged.get("losses")
        if not losses:
            return
        late = bool(loop.step) and loop.applied == loop.forwards and bool(loop.forwards)
        terms = {
            str(name): term for name, term in losses.items()
            if isinstance(term, Tensor) and term.is_floating_point() and not covered(str(name), loop.spec.detached)
        }  # fmt: skip
        total = logged.get("loss")
        total = total if isinstance(total, Tensor) and total.requires_grad else None
        attached = {name: term for name, term in terms.items() if term.requires_grad}
        if not attached and (total is None or len(terms) > 1):
            return  # numbers to be seen, or a validation
        loop.unchecked.pop(RULE.slug, None)
        loop.wake(self, "before_step")
        step = loop.step - late
        if not late and loop.looked(step):
            out_of_range(loop, step, attached)
        for name in terms.keys() - attached.keys():
            self._detached(loop, step, name, terms[name], bool(attached))
        for name, term in attached.items():
            self._connected(loop, step, name, term)
        if loop.step < loop.spec.window and (alone := [n for n, term in attached.items() if term.numel() == 1]):
            asked = [attached[name].detach().reshape(()).float() for name in alone]
            loop.transfer.ask(asked, partial(self._are_zero, alone, step))
        self._ever |= self._given.passed if self._given is not None else set()
        self.drop()
        if not late:
            self._given = given = Given(attached, total, set(), step)
            for name, term in [*attached.items(), *([("", total)] if total is not None else [])]:
                if term.grad_fn is not None:
                    hook = harmless(loop, self, partial(_passed, given, name))
                    self._handles.append(term.register_hook(hook))  # type: ignore[no-untyped-call]

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step + 1 == loop.spec.window:
            self._zero_throughout(loop)
        given = self._given
        if given is None:
            return
        self._ever |= given.passed
        idle = [name for name in given.terms if name not in given.passed and name not in self._ever]
        if given.passed or (given.total is not None and loop.dense(moment.step)):
            for name in idle:
                self._idle(loop, moment, given, name)
        self.drop()

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._given = [], None

    def _detached(self, loop: Loop, step: int, name: str, term: Tensor, beside: bool) -> None:
        if not bool(term.detach().any()):
            return  # a zero in the place of a term that this batch has none of
        loop.judge(
            RULE, step, RULE.margin(1, 0),
            lambda: {
                "message": f"the term {name!r} has no gradient: it was detached, or made under no_grad or of numbers; "
                "it trains nothing",
                "where": name, "severity": Severity.FAIL if beside else Severity.WARN,
                "evidence": f"{name}.requires_grad is False, its value is {float(term.detach().float().mean()):.4g}",
            },
        )  # fmt: skip

    def _connected(self, loop: Loop, step: int, name: str, term: Tensor) -> None:
        """In the first steps and every K, and for a new name: a walk down the term's graph."""
        if name in self._ever and not loop.dense(step):
            loop.held_for(RULE, step)
            return
        walked = walk([term])
        if not walked.certain:
            return
        held = {id(h.parameter) for several in loop.held for h in several}
        hit = [t for key, t in walked.leaves.items() if isinstance(t, nn.Parameter) or key in held]
        loop.judge(
            RULE, step, RULE.margin(float(not hit), 0),
            lambda: {
                "message": f"the term {name!r} reaches no parameter: what it is made of was detached",
                "where": name,
                "evidence": f"its graph ends at {len(walked.leaves)} tensors that need a gradient, none a parameter",
            },
        )  # fmt: skip

    def _are_zero(self, names: list[str], step: int, numbers: list[float]) -> None:
        """Exactly, or to the rounding of the largest term: a difference of equal things is hardly ever exactly zero."""
        largest = max(map(abs, numbers))
        for name, number in zip(names, numbers, strict=True):
            first, count, below = self._zero.get(name, (step, 0, False))
            zero = number == 0 or (len(names) > 1 and abs(number) <= ROUNDING * largest)
            self._zero[name] = (first, count + 1 if zero and count >= 0 else -1, below or number < 0)

    def _zero_throughout(self, loop: Loop) -> None:
        """A term that was zero in every step of the window: its weight is, or what it compares is one thing."""
        for name, (first, count, below) in self._zero.items():
            if count >= loop.spec.window - first > 1:
                why = (
                    "what it compares is one and the same"
                    if below
                    else "its weight is zero, or what it compares is one"
                )
                loop.judge(
                    RULE, first, RULE.margin(1, 0),
                    partial(dict, message=f"the term {name!r} was zero in all {count} steps: {why}",
                            where=name, severity=Severity.WARN, evidence=f"from step {first} on, to rounding"),
                )  # fmt: skip

    def _idle(self, loop: Loop, moment: Moment, given: Given, name: str) -> None:
        """A term through which no backward went, while one went through another."""
        several = len(loop.optimizers) > 1 or moment.closure
        self._never[name] = self._never.get(name, 0) + 1
        if several and self._never[name] < loop.spec.window * len(loop.optimizers):
            return
        if _is_part(given, name):
            self._ever.add(name)
            return
        by = "the total loss" if given.total is not None else " and ".join(repr(n) for n in sorted(given.passed) if n)
        loop.judge(
            RULE, given.step, RULE.margin(1, 0),
            lambda: {
                "message": f"the term {name!r} is computed but not in the total: no backward went through it",
                "where": name, "evidence": f"{name!r} is no part of the graph of {by}",
            },
        )  # fmt: skip


def _passed(given: Given, name: str, gradient: Tensor) -> None:
    given.passed.add(name)


def _is_part(given: Given, name: str) -> bool:
    """Whether what went backward has the term in another form: weighed, averaged or added up apart."""
    through = [t for n, t in given.terms.items() if n in given.passed]
    through += [given.total] if given.total is not None else []
    node = given.terms[name].grad_fn
    while node is not None:
        found = [contains(t, node) for t in through]
        if any(answer is not False for answer in found):
            return True
        below = [n for n, _ in node.next_functions if n is not None]
        if len(below) != 1 or not type(node).__name__.startswith(LINEAR):
            return False
        node = below[0]
    return False
