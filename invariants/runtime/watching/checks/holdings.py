"""RUN-15: the optimizers hold the model's trainable parameters, these very objects, each once.

Compared is identity. It comes before the other checks, for it renews the names when a module was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from karat.invariants.run.cadence import TURNS, turn
from karat.invariants.run.run15_optimizer_parameters import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.holdings import Mark, Places, holds, ids_held, others_hold, unregistered
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some


class Holdings(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._places: Places | None = None
        self._ids: dict[int, list[int]] = {}
        self._held: list[list[Tensor]] = []
        self._read_at: dict[int, int] = {}
        self._unheld: dict[str, Tensor] = {}
        self._hidden: dict[str, Tensor] = {}
        self._marks: dict[str, Mark] = {}
        self._elsewhere: set[int] | None = None
        self._settled: set[int] = set()
        self._shared: _Shared | None = None
        self._before: dict[int, str] = {}
        """Names that parameters had before the model was changed."""

    def start(self, loop: Loop) -> None:
        self._read(loop)
        self._read_at = dict.fromkeys(self._ids, -1)
        self._share(loop)

    def look(self, loop: Loop, moment: Moment) -> None:
        places = self._places
        if places is None or places.changed(turn(moment.step)) or not holds(moment.optimizer, self._held[moment.index]):
            self._before.update(loop.names)
            loop.rename()
            moment.held = loop.held[moment.index]
            self._read(loop)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        step = moment.step
        if self._read_at[moment.index] != loop.renamed:
            self._read_at[moment.index] = loop.renamed
            self._twice(loop, moment)
        if self._shared:
            self._stepped_by_both(loop, moment)
        if self._marks:
            self._unmoved(loop)
        missing = {}
        if self._unheld or self._hidden:
            missing = self._missing(loop, moment)
        if missing:
            self._stale(loop, moment, missing)
        elif step == 0 or loop.dense(step):
            self._all_frozen(loop, moment)
        loop.held_for(RULE, step)

    def finish(self, loop: Loop) -> None:
        self._unmoved(loop)

    def drop(self) -> None:
        if self._shared is not None:
            self._shared.handle.remove()
        self._places, self._shared = None, None
        self._unheld, self._hidden, self._marks = {}, {}, {}
        self._held = []

    # -- what is where ------------------------------------------------------------------------------------------------

    def _read(self, loop: Loop) -> None:
        self._places = Places(loop.model)
        self._ids = {place: ids_held(o) for place, o in enumerate(loop.optimizers)}
        self._held = [[h.parameter for h in several] for several in loop.held]
        held = {key for ids in self._ids.values() for key in ids}
        free = (*loop.spec.frozen, *loop.spec.detached)
        self._unheld = {n: p for n, p in loop.parameters.items() if id(p) not in held and not covered(n, free)}
        self._settled &= {*held, *loop.names}
        self._hidden = {
            n: p for n, p in unregistered(loop.model).items() if id(p) not in held and not covered(n, free)
        }  # fmt: skip

    def _missing(self, loop: Loop, moment: Moment) -> dict[str, Tensor]:
        """Those that no optimizer holds, and that get a gradient."""
        found = {
            n: p for table in (self._unheld, self._hidden) for n, p in table.items()
            if p.grad is not None and p.requires_grad and id(p) not in self._settled
        }  # fmt: skip
        if not found:
            return {}
        if self._elsewhere is None:
            self._elsewhere = others_hold(loop.optimizers)
        self._settled.update(id(p) for p in found.values() if id(p) in self._elsewhere)
        return {n: p for n, p in found.items() if id(p) not in self._elsewhere and n not in self._marks}

    # -- what is wrong ------------------------------------------------------------------------------------------------

    def _stale(self, loop: Loop, moment: Moment, missing: dict[str, Tensor]) -> None:
        """A parameter in the optimizer that is no longer the model's, gets no gradient, and fits one that is missing: it
        was replaced. Else it is waited for one step, whether somebody moves what is missing."""
        foreign = [h.parameter for several in loop.held for h in several if not h.name and h.parameter.grad is None]
        by_name = {name: key for key, name in self._before.items()}
        gone = {id(p): p for p in foreign}
        stale = [
            n for n, p in missing.items()
            if n in self._unheld and (by_name.get(n) in gone or any(p.shape == f.shape for f in foreign))
        ]  # fmt: skip
        named = [h for several in loop.held for h in several if h.name]
        if stale and not named:
            message = (
                f"the optimizer holds none of the model's parameters: it was built for another model, before this one "
                f"was copied, replaced or wrapped; {spoken(missing, list(loop.parameters))} "
                f"{'get' if len(missing) > 1 else 'gets'} a gradient and will never move"
            )
        elif stale:
            message = (
                f"{spoken(missing, [*loop.parameters, *self._hidden])} was replaced after the optimizer was built: the "
                f"optimizer holds the {len(foreign)} old parameters, which get no gradient, and not the new ones, which do"
            )
        else:
            self._marks.update({n: Mark.of(p, moment.step) for n, p in missing.items()})
            if moment.step == 0 and self._frozen(loop):
                self._say(loop, moment.step, missing, self._frozen_message(loop, missing))
            return
        self._say(loop, moment.step, missing, message)

    def _unmoved(self, loop: Loop) -> None:
        """What got a gradient a step ago, is held by nobody, and has not moved since."""
        tables = {**self._unheld, **self._hidden}
        still: dict[str, Tensor] = {}
        steps: list[int] = []
        for name, mark in self._marks.items():
            p = tables.get(name)
            if p is None or id(p) in self._settled:
                continue
            if mark.moved(p):
                self._settled.add(id(p))
            else:
                still[name] = p
                steps.append(mark.step)
        self._marks = {}
        hidden = {n: p for n, p in still.items() if n in self._hidden}
        if hidden:
            self._say(
                loop, min(steps), hidden,
                f"{spoken(hidden, list(self._hidden))} is not among the model's parameters, for it is kept in a plain "
                "list or dictionary; it gets a gradient and never moves (nn.ModuleList, nn.ParameterList)",
            )  # fmt: skip
        rest = {n: p for n, p in still.items() if n not in hidden}
        if rest:
            several = len(groups(rest, list(loop.parameters))) > 1
            self._say(
                loop, min(steps), rest,
                f"no optimizer holds {spoken(rest, list(loop.parameters))}: {'they get' if several else 'it gets'} a "
                f"gradient and never {'move' if several else 'moves'}",
            )  # fmt: skip

    def _frozen(self, loop: Loop) -> bool:
        """Whether no watched optimizer holds anything that asks for a gradient."""
        return not any(h.parameter.requires_grad for several in loop.held for h in several)

    def _frozen_message(self, loop: Loop, missing: Mapping[str, Tensor]) -> str:
        count = sum(len(several) for several in loop.held)
        return (
            f"each of the {count} parameters that the optimizer holds is frozen (requires_grad is False), while "
            f"{spoken(missing, list(loop.parameters))} gets a gradient and is in no optimizer"
        )

    def _all_frozen(self, loop: Loop, moment: Moment) -> None:
        """Nothing of the model is trained at all: every parameter is frozen."""
        if not self._frozen(loop) or moment.grads or any(p.requires_grad for p in loop.parameters.values()):
            return
        if self._elsewhere is None:
            self._elsewhere = others_hold(loop.optimizers)
        if not self._elsewhere:
            self._say(
                loop, moment.step, dict(loop.parameters), "every parameter of the model is frozen: no step moves any"
            )

    def _say(self, loop: Loop, step: int, those: dict[str, Tensor], message: str) -> None:
        self._settled.update(id(p) for p in those.values())
        self._marks = {n: m for n, m in self._marks.items() if n not in those}
        loop.judge(
            RULE, step, RULE.margin(len(those), 0),
            lambda: {
                "message": message, "where": next(iter(those)),
                "evidence": f"by identity: {some(those)}, of {len(loop.parameters)} parameters of the model",
            },
        )  # fmt: skip

    def _twice(self, loop: Loop, moment: Moment) -> None:
        ids = ids_held(moment.optimizer)
        if len(set(ids)) == len(ids):
            return
        again = {i: h for i, h in enumerate(moment.held) if ids.count(id(h.parameter)) > 1}
        names = list(dict.fromkeys(h.name or "a parameter outside the model" for h in again.values()))
        loop.judge(
            RULE, moment.step, RULE.margin(len(names), 0),
            lambda: {
                "message": f"one optimizer holds {spoken(names, [*loop.parameters, *names])} twice: each step moves it twice",
                "where": names[0], "evidence": f"by identity; {len(ids)} places, {len(set(ids))} parameters",
            },
        )  # fmt: skip

    def _share(self, loop: Loop) -> None:
        """Of parameters that several optimizers hold, one tells when it gets a gradient."""
        everywhere = [key for ids in self._ids.values() for key in set(ids)]
        shared = {key for key in everywhere if everywhere.count(key) > 1}
        table = {id(h.parameter): h for several in loop.held for h in several if id(h.parameter) in shared}
        fit = [h for h in table.values() if h.parameter.requires_grad and h.parameter.is_leaf]
        if fit:
            self._shared = one = _Shared(fit[0].name, fit[0].parameter, list(table))
            hook = harmless(loop, self, one.added)
            one.handle = one.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _stepped_by_both(self, loop: Loop, moment: Moment) -> None:
        """Whether another optimizer has applied the same gradient already."""
        shared = self._shared
        if shared is None or shared.key not in self._ids[moment.index] or shared.parameter.grad is None:
            return
        by, count = shared.applied
        shared.applied = (moment.index, shared.count)
        if by is None or by == moment.index or count != shared.count or not shared.count:
            return
        names = [loop.names[k] for k in shared.keys if k in loop.names]
        loop.judge(
            RULE, moment.step, RULE.margin(len(shared.keys), 0),
            lambda: {
                "message": f"several optimizers hold {spoken(names, list(loop.parameters))}, and each applies the "
                "same gradient: it moves twice for one backward",
                "where": shared.name, "evidence": f"{len(shared.keys)} parameters, by identity",
            },
        )  # fmt: skip


class _Shared:
    """A parameter of several optimizers: how often a gradient was added to it, and who applied it last. keys: the ids of
    all such parameters."""

    def __init__(self, name: str, parameter: Tensor, keys: list[int]) -> None:
        self.name, self.parameter, self.key, self.keys = name, parameter, id(parameter), keys
        self.count = 0
        self.applied: tuple[int | None, int] = (None, 0)
        self.handle: Any = None

    def added(self, parameter: Tensor) -> None:
        self.count += 1
