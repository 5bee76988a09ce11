"""RUN-17: what is declared frozen, or was frozen in mid-run, does not move.

A write in place is seen by the counter of a tensor, at once; a write past it on a sample, in turn. Only values count: what
was written and is the same as before did not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import SETTLED, TURNS, turn
from karat.invariants.run.run17_frozen import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Held, Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.sampling import fit, rate_of, sharded, spread, window

MOST_READ = 64
_asks = attrgetter("parameter.requires_grad")
TRIES = 3
"""Steps in which a parameter with an old gradient is looked at: where none moves it, it is let be."""


@dataclass
class Kept:
    """A parameter that is declared frozen, as it was before the first step."""

    name: str
    parameter: nn.Parameter
    view: Tensor
    values: Tensor
    version: int

    def moved(self) -> bool:
        """Whether the sample is another than at the start: exact, waits for the device."""
        if self.parameter.data_ptr() != self.view.data_ptr():
            if not fit(self.parameter) or self.parameter.device != self.values.device:
                return False
            self.view = spread(self.parameter)
        return not torch.equal(self.view.to(self.values.dtype).nan_to_num(), self.values.nan_to_num())


class Frozen(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._kept: list[Kept] | None = None
        self._trained: dict[int, list[bool]] = {}
        self._before: dict[int, list[tuple[int, Tensor]]] = {}
        self._tries: dict[tuple[int, int], int] = {}
        self._all: dict[int, list[Held]] = {}
        """Of the optimizers all of whose parameters were trained: what they hold."""

    def start(self, loop: Loop) -> None:
        if sharded(loop.model):
            loop.not_checked(RULE, "the parameters are sharded by FSDP: their storage comes and goes")
            loop.off(self)

    def look(self, loop: Loop, moment: Moment) -> None:
        if moment.closure:
            return
        if self._kept is None:
            self._kept = [
                Kept(name, p, spread(p), spread(p).clone(), p._version)
                for name, p in loop.parameters.items() if covered(name, loop.spec.frozen) and fit(p)
            ]  # fmt: skip
        elif self._kept:
            self._scan(loop, moment, "between", moment.step)
        self._left_over(loop, moment)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if self._kept:
            self._scan(loop, moment, "step", moment.step)
        for place, values in self._before.pop(moment.index, ()):
            self._judge_left_over(loop, moment, place, values)

    # -- declared -----------------------------------------------------------------------------------------------------

    def _scan(self, loop: Loop, moment: Moment, when: str, step: int) -> None:
        kept = self._kept or []
        looked = range(len(kept)) if loop.dense(step) else window(len(kept), MOST_READ, turn(step))
        written = [kept[n] for n in looked if kept[n].parameter._version != kept[n].version]
        if loop.dense(step) and when == "step":
            written = kept
        elif when == "step" and step % 4 == 0:  # past the counters, by .data
            written = [*written, kept[(turn(step) if step >= SETTLED else step // 4) % len(kept)]]
        moved = [k for k in written if k.moved()]
        for k in written:
            k.version = k.parameter._version
        if not moved:
            if when == "step":
                loop.held_for(RULE, step)
            return
        for k in moved:
            k.values = k.view.clone()
        self._say(loop, moment, moved, when, step)

    def _say(self, loop: Loop, moment: Moment, moved: list[Kept], when: str, step: int) -> None:
        first = moved[0]
        group = next((h.group for h in loop.held[moment.index] if h.parameter is first.parameter), None)
        if when == "between":
            cause = "written to between two steps, by something else than the optimizer"
        elif group is not None:
            asks = "it asks for a gradient and " if first.parameter.requires_grad else "it has an old gradient and "
            cause = f"{asks}group {group} of {type(moment.optimizer).__name__} holds it"
        else:
            cause = "written to during the step by something else than this optimizer"
        loop.judge(
            RULE, step, RULE.margin(len(moved), 0),
            lambda: {
                "message": f"{first.name} is declared frozen and moved: {cause}",
                "where": first.name, "phase": "after the step" if when == "step" else "before the step",
                "evidence": f"{len(moved)} frozen parameters moved: {some(k.name for k in moved)}",
            },
        )  # fmt: skip

    # -- frozen in mid-run --------------------------------------------------------------------------------------------

    def _left_over(self, loop: Loop, moment: Moment) -> None:
        held, step = loop.held[moment.index], moment.step
        trained = self._trained.get(moment.index)
        if trained is None or len(trained) != len(held):
            trained = self._trained[moment.index] = [False] * len(held)
        if self._all.get(moment.index) is held and all(map(_asks, held)):
            return
        found = []
        for n in range(len(held)) if loop.dense(step) else window(len(held), MOST_READ, turn(step)):
            if held[n].parameter.requires_grad:
                trained[n] = True
            elif trained[n] and n in moment.grads:
                found.append(n)
        if not found:
            if all(trained):
                self._all[moment.index] = held
            return
        key = moment.index
        due = [n for n in found if self._tries.get((key, n), 0) < TRIES and fit(held[n].parameter)]
        for n in due:
            self._tries[key, n] = self._tries.get((key, n), 0) + 1
        self._before[key] = [(n, spread(held[n].parameter).clone()) for n in due]

    def _judge_left_over(self, loop: Loop, moment: Moment, place: int, values: Tensor) -> None:
        held = loop.held[moment.index][place]
        moved = not torch.equal(spread(held.parameter), values)
        group = moment.optimizer.param_groups[held.group]
        norm = float(moment.grads[place].norm()) if place in moment.grads else 0.0
        by = [f"{key} {group[key]:g}" for key in ("momentum", "weight_decay") if isinstance(group.get(key), (int, float))
              and group[key]]  # fmt: skip
        what = "gradient of zeros" if norm == 0 else f"gradient of norm {norm:.3g}"
        loop.judge(
            RULE, moment.step, RULE.margin(float(moved), 0),
            lambda: {
                "message": f"{held.name or 'a parameter'} was frozen by requires_grad=False and moves on: its old {what} is "
                f"not None, so {type(moment.optimizer).__name__} steps it" + (f", with {' and '.join(by)}" if by else ""),
                "where": held.name, "phase": "after the step",
                "evidence": f"group {held.group}, rate {rate_of(group)}; zero_grad(set_to_none=True), or p.grad = None",
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        moved = [k for k in self._kept or [] if k.moved()]
        if self._kept:
            loop.judge(
                RULE, loop.step, RULE.margin(len(moved), 0),
                lambda: {
                    "message": f"{moved[0].name} is declared frozen and moved since it was last looked at",
                    "where": moved[0].name, "phase": "at the end", "evidence": some(k.name for k in moved),
                },
            )  # fmt: skip

    def drop(self) -> None:
        self._kept, self._before, self._all = [], {}, {}
