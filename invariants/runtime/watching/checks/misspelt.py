"""RUN-8: `requires_grad` written where nobody reads it: on a module, or under a name that is nearly that.

Python takes any attribute. A module has the method `requires_grad_`, and no attribute `requires_grad`; a parameter has the
attribute, and none of the names that are one letter off. What was to be thawed or frozen so stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor, nn

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
"""Modules, and parameters, of which the attributes are looked at; listed in the first steps and every K."""


class Misspelt(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._named: list[tuple[str, nn.Module | Tensor]] = []
        self._read = -1

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index:
            return
        if self._read != loop.renamed or loop.dense(moment.step):
            self._read, modules, parameters = loop.renamed, loop.model.named_modules(), loop.parameters.items()
            self._named = [*islice(modules, MOST), *islice(parameters, MOST)]
        found = [given for name, thing in self._named for given in unread(name, thing)]
        if not found:
            return
        loop.off(self)
        self._named = []
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

    def drop(self) -> None:
        self._named = []


def unread(name: str, thing: nn.Module | Tensor) -> Iterator[tuple[str, str, bool, str]]:
    """Name, attribute, value and kind of a thing that holds a value which its parameters contradict."""
    own = thing.__dict__
    if NEARLY.isdisjoint(own) and NAME not in own:
        return
    of_module = isinstance(thing, nn.Module)
    parameters = [*thing.parameters()] if isinstance(thing, nn.Module) else [thing]
    for attribute in own.keys() & KNOWN:
        value = own[attribute]
        if type(value) is bool and any(p.requires_grad is not value for p in parameters):
            yield name or "model", attribute, value, "module" if of_module else "parameter"


KNOWN = NEARLY | {NAME}
