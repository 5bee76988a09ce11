"""RUN-42 within a run: what an optimizer remembers stays with the weights that it was made from.

Of each optimizer one parameter is followed: the entry of its state, by identity, and how many steps that has counted. An
entry that is gone, or counts from an earlier step, was lost or put back; so were weights that a load_state_dict finds.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE as MOVES
from karat.invariants.run.run42_resume import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.holdings import ids_held
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import roots, unwrapped
from karat.invariants.runtime.watching.sampling import fit, run_of
from karat.invariants.runtime.watching.states import keeps_moments
from karat.invariants.runtime.watching.unsaved import before_loading, before_saving

FEW, MOST_SAVED = 16, 64
"""Elements of a parameter that weights are told by; states of the model that are remembered so."""
WOUND = 5
"""Steps from which on a scheduler counts as wound on to where another run stopped."""
STEPS = ("step", "global_step", "iteration", "iter", "it")
"""Names under which loops log the number of the step."""
DESIGN = 3
"""First steps, in which a load tells that the loop does so by design."""
MOST_BEGUN = 8
"""Parameters of which the numbers at the start are kept until one is chosen."""
MOST_SEARCHES = 3
"""Searches for another optimizer, each through all objects of the process."""


@dataclass
class Memory:
    """One parameter of an optimizer. entry: its state; count: steps that the entry has counted, None where it counts none;
    step: when that was seen; version: of the parameter after the last step."""

    parameter: Tensor
    entry: Any
    count: int | None
    step: int
    version: int
    seen: int
    """The last step before which the entry was looked at."""
    at: int = -1
    """The step after which `version` was read."""
    before: int = 0
    """The version before the step `seen`, and what that step added to it."""
    each: int = 0

    def written(self, step: int) -> bool:
        """Whether it was written to before this step by something else than the steps of its optimizer."""
        return self.parameter._version != self.version + self.each * (step - self.at - 1)


class Moments(Check):
    rules = (RULE, MOVES)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}
        self._saved: dict[int, deque[tuple[int, Tensor]]] = {}
        self._loading: dict[int, Tensor] = {}
        self._evaluated = 0
        """Forwards in eval mode before the last load of the model."""
        self._swaps = False
        """Whether the loop loads other weights by design: in its first steps, or without an evaluation of them."""
        self._handles: list[Any] = []
        self._read = 0
        self._most, self._patience, self._searches = 1, 0, 0
        self._rates: dict[int, float] = {}
        self._began: dict[int, Tensor] = {}
        self._empty = ""
        self._told: tuple[int, int] | None = None

    def start(self, loop: Loop) -> None:
        self._read = loop.renamed
        for held, optimizer in zip(loop.held, loop.optimizers, strict=True):
            own = [h.parameter for h in held if h.name and fit(h.parameter) and h.parameter.requires_grad]
            self._began.update((id(p), _few(p)) for p in sorted(own, key=_plain)[:MOST_BEGUN])
            hook = harmless(loop, self, _of(optimizer, weakref.WeakMethod(self._restores), weakref.ref(loop)))
            self._handles.append(optimizer.register_load_state_dict_post_hook(hook))
        save, load = weakref.WeakMethod(self._saves), weakref.WeakMethod(self._loads)
        for _, module in roots(loop.model):
            inner = unwrapped(module)
            self._handles += [
                before_saving(inner, harmless(loop, self, _of(inner, save, weakref.ref(loop)))),
                before_loading(inner, harmless(loop, self, _of(inner, load, weakref.ref(loop)))),
            ]

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._patience and loop.forwards - loop.applied > self._patience:
            self._patience *= 2
            self._replaced(loop)

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """A number of the step that is logged with the first steps tells where the run goes on."""
        told = next((logged[name] for name in STEPS if isinstance(logged.get(name), int)), None)
        if not self._empty or loop.step - loop.first > 2:
            loop.rest(self, "log")
        elif told is not None:
            before, self._told = self._told, (loop.step, told)
            counts = before is not None and loop.step == before[0] + 1 and told == before[1] + 1
            if counts and told - loop.step >= WOUND:
                self._say(
                    loop, loop.first, self._empty, f"the steps that the loop logs go on, with {told - 1} and {told}, and "
                    f"{self._empty} started from nothing: its state was not loaded",
                )  # fmt: skip

    def before_step(self, loop: Loop, moment: Moment) -> None:
        loading = self._loading.pop(moment.index, None) if self._loading else None
        if self._read != loop.renamed:
            self._read = loop.renamed
            self._memories, self._saved = {}, {}
        memory = self._memories.get(moment.index)
        if memory is None:
            if moment.step == loop.first:
                self._resumed(loop, moment)
            return
        entry = moment.optimizer.state.get(memory.parameter)
        if entry is not memory.entry:
            self._changed(loop, moment, memory, entry, loading)
        elif loading is not None:
            self._put_back(loop, moment, memory, loading)
        memory.seen, memory.before = moment.step, memory.parameter._version

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.forwards > self._most:
            self._most = moment.forwards
        memory = self._memories.get(moment.index)
        if memory is None:
            self._choose(moment)
            return
        memory.version, memory.at = memory.parameter._version, moment.step
        if memory.seen == moment.step:
            memory.each = memory.version - memory.before
        self._patience = 2 * self._most + 2
        if memory.entry is None:
            memory.entry = moment.optimizer.state.get(memory.parameter)
            memory.count, memory.step = _count(memory.entry), moment.step + 1

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._memories, self._saved, self._loading, self._began = [], {}, {}, {}, {}

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _choose(self, moment: Moment) -> None:
        """The first parameter with a state that weights can be told by."""
        state = moment.optimizer.state
        own = [h.parameter for h in moment.held if h.name and fit(h.parameter) and h.parameter.requires_grad]
        able = [p for p in own if p in state] or (
            [] if state else own
        )  # plain SGD remembers nothing, and may be made again
        chosen = min(able, key=_plain, default=None)
        if chosen is not None:
            if (few := self._began.get(id(chosen))) is not None:
                self._saved[moment.index] = deque([(moment.step, few)], maxlen=MOST_SAVED)
            self._began = {key: few for key, few in self._began.items() if key != id(chosen)}
            entry = state.get(chosen)
            self._memories[moment.index] = Memory(
                chosen, entry, _count(entry), moment.step + 1, chosen._version, moment.step, moment.step
            )
            self._rates[moment.index] = moment.rates[0] if moment.rates else 0.0

    def _saves(self, loop: Loop) -> None:
        """The model is asked for its state: which weights that are."""
        for index, memory in self._memories.items():
            self._saved.setdefault(index, deque(maxlen=MOST_SAVED)).append((loop.step, _few(memory.parameter)))

    def _loads(self, loop: Loop) -> None:
        """The model is about to load a state: the weights before the first one since the step."""
        loop.loaded = loop.step
        self._evaluated = loop.so_far.evaluated
        loop.stir(turn=True)
        for index, memory in self._memories.items():
            self._loading.setdefault(index, _few(memory.parameter))

    def _restores(self, loop: Loop) -> None:
        """An optimizer has loaded a state."""
        loop.restored = loop.step
        loop.stir(turn=True)

    # -- what is wrong ------------------------------------------------------------------------------------------------

    def _changed(self, loop: Loop, moment: Moment, memory: Memory, entry: Any, loading: Tensor | None) -> None:
        """The entry is another one, or none: lost, put back, or merely moved."""
        count, had = _count(entry), bool(memory.entry)
        expected = None if memory.count is None else memory.count + moment.step - memory.step
        memory.entry, memory.count, memory.step = entry or None, count, moment.step
        if not had:
            return
        written = loading is not None or memory.written(moment.step)
        since = moment.step - memory.seen
        lost = not entry or (expected is not None and count is not None and count <= since and count < expected - 1)
        kind = type(moment.optimizer).__name__
        if lost:
            at = moment.step - (count or 0)
            back = self._known(moment.index, memory) if loading is not None else None
            if back is not None and back > loop.first:
                self._say(
                    loop, at, kind, f"the weights of step {back} were loaded, and the state of {kind} was not: it starts "
                    "from nothing",
                )  # fmt: skip
            elif not written:
                self._say(
                    loop, at, kind, f"the state of {kind} is gone before step {at}: its moments start from nothing, while "
                    "the weights go on",
                )  # fmt: skip
        elif expected is not None and count is not None and count + 2 < expected and not written:
            self._say(
                loop, moment.step, kind, f"{kind} was given a state of {count} steps after {expected}: the weights were not "
                "loaded with it",
            )  # fmt: skip

    def _put_back(self, loop: Loop, moment: Moment, memory: Memory, before: Tensor) -> None:
        """Weights of an earlier step were loaded, and the state of the optimizer is that of now."""
        if loop.loaded == loop.restored or torch.equal(before, _few(memory.parameter)):
            return
        step = self._known(moment.index, memory)
        kind = type(moment.optimizer).__name__
        if step is not None and step < moment.step and memory.entry and keeps_moments(moment.optimizer):
            self._say(
                loop, moment.step, kind, f"the weights of step {step} were loaded after {moment.step} steps, and the state of "
                f"{kind} is that of now: optimizer.load_state_dict is missing",
            )  # fmt: skip
        elif step is None:
            self._left(loop, moment, memory, before)

    def _left(self, loop: Loop, moment: Moment, memory: Memory, before: Tensor) -> None:
        """Weights of no step of this run were loaded, evaluated, and are still there: an average that was put in for it."""
        evaluated = loop.so_far.evaluated > self._evaluated
        if moment.step - loop.first <= DESIGN or not evaluated:
            self._swaps = True
        if self._swaps:
            return
        now, name = _few(memory.parameter), loop.names.get(id(memory.parameter), "")
        apart = float((now.double() - before.double()).norm() / before.double().norm().clamp_min(1e-30))
        loop.judge(
            MOVES, moment.step, MOVES.margin(2, 1),
            lambda: {
                "message": f"before step {moment.step} other weights were loaded into the model and evaluated, and training "
                f"goes on from them: those of {moment.step} steps were not put back (an average that was put in?)",
                "where": "evaluated", "severity": Severity.WARN,
                "evidence": f"{name or 'a parameter'} differs from what the last step left by {apart:.3g} of its norm",
            },
        )  # fmt: skip

    def _known(self, index: int, memory: Memory) -> int | None:
        """The step after which the weights of now were saved."""
        now = _few(memory.parameter)
        found = [step for step, few in self._saved.get(index, ()) if few.shape == now.shape and torch.equal(few, now)]
        return found[-1] if found else None

    def _resumed(self, loop: Loop, moment: Moment) -> None:
        """The first step of a run that goes on: its schedule, or its declared first step, is past the beginning."""
        kind = type(moment.optimizer).__name__
        own = [one for one in loop.attached.schedulers if one.drives == moment.index]
        if moment.optimizer.state:
            taken = max((_count(entry) or 0 for entry in list(moment.optimizer.state.values())[:1]), default=0)
            if taken >= WOUND and own and not any(one.started or one.steps for one in own):
                self._say(
                    loop, moment.step, own[0].name, f"{kind} goes on after {taken} steps, and {own[0].name} stands at its "
                    "beginning: its state was not loaded",
                )  # fmt: skip
            return
        if not keeps_moments(moment.optimizer):
            return
        self._empty = kind
        wound = [one for one in own if one.started >= WOUND]
        if wound:
            why = f"{wound[0].name} stands at {wound[0].started} before the first step"
        elif loop.first >= WOUND:
            why = f"the run goes on at step {loop.first}"
        else:
            return
        self._say(loop, moment.step, kind, f"{why}, and {kind} starts from nothing: its state was not loaded")

    def _replaced(self, loop: Loop) -> None:
        """Forwards go on, the parameters move, and the optimizer that is watched does not step."""
        for index, memory in self._memories.items():
            if memory.parameter._version == memory.version or self._searches >= MOST_SEARCHES:
                continue
            self._searches += 1
            own = loop.optimizers[index]
            if not own._optimizer_step_pre_hooks:
                again = True  # __init__ was called again, which takes all hooks off
            else:
                again = any(_same(other, own, self._rates[index]) for other in _others(loop.optimizers))
            if again:
                kind = type(own).__name__
                lost = ", with moments that started from nothing" if memory.entry else ""
                self._searches = MOST_SEARCHES
                self._say(
                    loop, loop.step, kind, f"{kind} was made anew after step {loop.step - 1}: another one steps the same "
                    f"parameters{lost}, and the guards see none of its steps",
                )  # fmt: skip
            else:
                memory.version = memory.parameter._version

    def _say(self, loop: Loop, step: int, kind: str, message: str) -> None:
        loop.judge(
            RULE, step, RULE.margin(1, 0),
            lambda: {"message": message, "where": kind, "severity": Severity.WARN,
                     "evidence": "the state of one parameter, followed by identity"},
        )  # fmt: skip


def _plain(parameter: Tensor) -> tuple[bool, int]:
    """Weights first, for biases begin at zero: the smallest with enough elements."""
    return parameter.ndim < 2 or parameter.numel() < FEW, parameter.numel()


def _of(module: Any, method: weakref.WeakMethod[Any], running: weakref.ref[Loop]) -> Callable[..., None]:
    """A hook of a module or an optimizer that is deaf to copies, which have it too, and keeps nothing alive."""
    own = weakref.ref(module)

    def hook(asked: Any, *rest: Any) -> None:
        told, loop = method(), running()
        if asked is own() and told is not None and loop is not None:
            told(loop)

    return hook


def _few(parameter: Tensor) -> Tensor:
    return run_of(parameter, FEW).detach().clone()


def _count(entry: Any) -> int | None:
    """Steps that an entry of an optimizer's state has counted; where that is on another device nobody waits for it."""
    count = entry.get("step") if isinstance(entry, dict) else None
    if isinstance(count, Tensor):
        return int(count) if count.device.type == "cpu" and count.numel() == 1 else None
    return int(count) if isinstance(count, (int, float)) else None


def _others(watched: tuple[torch.optim.Optimizer, ...]) -> list[torch.optim.Optimizer]:
    mine = {id(o) for o in watched}
    return [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer) and id(o) not in mine]


def _same(other: Any, own: torch.optim.Optimizer, rate: float) -> bool:
    """Whether an optimizer is the same one made again: its class, its parameters, its settings, the rate then or now."""
    if type(other) is not type(own) or ids_held(other) != ids_held(own):
        return False
    left_out = ("params", "lr", "initial_lr")
    for a, b in zip(other.param_groups, own.param_groups, strict=True):
        if any(a.get(key) is not b[key] and a.get(key) != b[key] for key in b if key not in left_out):
            return False
    return other.param_groups[0].get("lr") in (rate, own.param_groups[0].get("lr"))
