"""RUN-8: `requires_grad` written where nobody reads it: on a module, or under a name that is nearly that.

Python takes any attribute. A module has the method `requires_grad_`, and no attribute `requires_grad`; a parameter has the
attribute, and none of the names that are one letter off. What was to be thawed or frozen so stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

NAME = "requires_grad"
NEARLY = frozenset(
    ("require_grad", "require_grads", "requires_grads", "required_grad", "requiresgrad", "requires_gradient", "requires_grad_")
)  # fmt: skip
MOST = 4096
"""Modules and parameters of which the attributes are looked at."""


class Misspelt(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index:
            return
        found = list(unread(loop))
        if not found:
            return
        loop.off(self)
        where, name, value, of = found[0]
        others = f", and on {len(found) - 1} more" if len(found) > 1 else ""
        kind = (
            "a module, whose parameters do not see it" if of == "module" else "a parameter, which has no such attribute"
        )
        loop.judge(
            RULE, moment.step, RULE.margin(len(found), 0),
            lambda: {
                "message": f"{where}.{name} = {value} was set on {kind}{others}: what was to be "
                f"{'trained' if value else 'frozen'} stays as it was. Call requires_grad_({value})",
                "where": where, "severity": Severity.WARN,
                "evidence": f"an attribute {name} of {value}, and the parameters have requires_grad = {not value}",
            },
        )  # fmt: skip


def unread(loop: Loop) -> Iterator[tuple[str, str, bool, str]]:
    """Name, attribute, value and kind of what holds a value that its parameters contradict."""
    for count, (name, module) in enumerate(loop.model.named_modules()):
        if count > MOST:
            return
        own = module.__dict__
        for attribute in own.keys() & KNOWN if NAME in own or not own.keys().isdisjoint(NEARLY) else ():
            value = own[attribute]
            if type(value) is bool and any(p.requires_grad is not value for p in module.parameters()):
                yield name or "model", attribute, value, "module"
    for count, (name, parameter) in enumerate(loop.parameters.items()):
        if count > MOST:
            return
        given = getattr(parameter, "__dict__", None)
        for attribute in given.keys() & NEARLY if given else ():
            value = given[attribute] if given else None
            if type(value) is bool and parameter.requires_grad is not value:
                yield name, attribute, value, "parameter"


KNOWN = NEARLY | {NAME}
