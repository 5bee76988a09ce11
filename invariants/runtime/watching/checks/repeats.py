"""RUN-38: one number for the first batch of each step, and how these numbers come again.

The number is compared, and nothing of the batch is kept but a weak reference: a loop that trains on one tensor on purpose
still has it, one that loads the same batch anew has another. Whether there was more to load is asked of the loaders that
are alive, and only once a batch has come again.
"""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from karat.invariants.run.run38_repeats import LEAST_PERIOD, LONG_ENOUGH, MOST_TIMES, RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.fingerprint import of_batch
from karat.invariants.runtime.watching.loop import Loop

MOST_KNOWN = 1 << 14
"""Batches whose numbers are kept."""
RUNS = 3
"""Batches, each of which came so many times in a row, that make a rule of it."""

Seen = tuple[int, "weakref.ref[Tensor]"]


class Repeats(Check):
    rules = (RULE,)
    spaced = True

    def __init__(self) -> None:
        self._looked = False
        self._wide = False
        self._number: float | None = None
        self._tensor: weakref.ref[Tensor] | None = None
        self._rows = 0
        self._to = 0
        self._several = False
        self._restart()

    def _restart(self) -> None:
        self._known: OrderedDict[float, Seen] = OrderedDict()
        self._place = 0
        self._last: float | None = None
        self._times, self._fresh, self._runs = 1, True, (0, 0)
        self._lag, self._matches, self._all_fresh = 0, 0, True
        self._in_memory = 0

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._looked or not torch.is_grad_enabled():
            return
        first = args[0] if args else None
        if self._wide or not isinstance(first, Tensor):
            tensors = [tensor for _, tensor in leaves((args, kwargs))]
        else:
            tensors = [first]
        if not tensors:
            return
        numbers = [n for tensor in (tensors if self._wide else tensors[:1]) if (n := of_batch(tensor)) is not None]
        if not numbers:
            return
        self._looked = True
        base = tensors[0]._base
        self._tensor = weakref.ref(tensors[0] if base is None else base)
        self._rows = tensors[0].shape[0] if tensors[0].ndim else 0
        start = tensors[0].data_ptr()
        self._in_memory = self._in_memory + 1 if start == self._to else 0
        self._to = start + tensors[0].nbytes
        self._several = len(args) + len(kwargs) > 1
        loop.transfer.ask(numbers, self._answered)

    def _answered(self, numbers: list[float]) -> None:
        self._number = numbers[0] if len(numbers) == 1 else sum((k + 1) * n for k, n in enumerate(numbers))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index:
            return
        number, self._number, self._looked = self._number, None, False
        if number is None or self._tensor is None:
            return
        if "batch" not in loop.fingerprint:
            loop.fingerprint["batch"] = f"{number:.9g}"
        if number == self._last:
            if self._several and not self._wide:  # another argument may tell the batches apart
                self._wide = True
                self._restart()
                return
            self._again(loop, moment.step)
        else:
            self._another(loop, moment.step, number)
        self._known[number] = (self._place, self._tensor)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self._last = number
        self._place += 1

    # -- in a row -----------------------------------------------------------------------------------------------------

    def _again(self, loop: Loop, step: int) -> None:
        """The batch of the step before."""
        self._times += 1
        self._fresh = self._fresh and self._tensor_is_new(self._last)
        self._lag = 0
        if not self._fresh:
            return
        longest = self._runs[1]
        if self._runs[0] >= RUNS - 1 and longest > 1 and self._times == longest:
            self._say(
                loop, step, RUNS * longest, "in a row",
                f"each batch comes {longest} times in a row, loaded anew each time",
                f"{RUNS} batches, the last of them for the {longest}. time; as of workers with equal seeds, "
                f"or of a stream that is not divided among them",
            )  # fmt: skip
        elif self._place + 1 == self._times and self._times in (MOST_TIMES + 1, 10, 100):
            loader = next((x for x in _loaders(self._rows) if _batches(x) > 1), None)
            if loader is not None:
                self._say(
                    loop, step, self._times, "in a row",
                    f"the same batch for the {self._times}. time in a row, of a loader that has {len(loader)}",
                    f"each time another tensor with the same numbers; is iter(loader) called at each step? "
                    f"{self._rows} rows, sampler {type(loader.sampler).__name__}",
                )  # fmt: skip

    def _another(self, loop: Loop, step: int, number: float) -> None:
        """Another batch than that of the step before; one of an earlier epoch, it may be."""
        count, length = self._runs
        self._runs = (count + 1, length) if self._times == length else (1, self._times)
        self._times, self._fresh = 1, True
        seen = self._known.get(number)
        if seen is None:
            self._lag = self._matches = 0
            loop.held_for(RULE, step, float(MOST_TIMES - 1))
            return
        lag = self._place - seen[0]
        new = self._tensor_is_new(number)
        if lag == self._lag:
            self._matches += 1
            self._all_fresh = self._all_fresh and new
        else:
            self._lag, self._matches, self._all_fresh = lag, 1, new
        enough = min(lag, LONG_ENOUGH)
        by_design = not self._all_fresh or 2 * self._in_memory >= enough  # kept batches; slices in the order of memory
        if lag >= LEAST_PERIOD and self._matches == enough and not by_design and _shuffled(self._rows):
            self._say(
                loop, step, self._matches, "epochs",
                f"the order of {lag} batches is that of the epoch before: {self._matches} in a row are the same",
                f"batches {self._place - lag - enough + 1} to {self._place - lag} came again at {lag} steps' distance; "
                f"as of a sampler that is seeded anew, or set_epoch that is not called",
            )  # fmt: skip

    def _say(self, loop: Loop, step: int, value: int, where: str, message: str, evidence: str) -> None:
        loop.judge(
            RULE, step, RULE.margin(value, MOST_TIMES),
            lambda: {"message": message, "where": where, "evidence": evidence},
        )  # fmt: skip

    def _tensor_is_new(self, number: float | None) -> bool:
        """Whether the batch is another tensor than the one with the same numbers before: loaded, not kept; and no view
        of data that is kept, which comes in the order in which it lies."""
        seen = self._known.get(number) if number is not None else None
        now = self._tensor() if self._tensor is not None else None
        return seen is None or now is None or seen[1]() is not now

    def drop(self) -> None:
        self._tensor = None
        self._restart()


def _loaders(rows: int) -> list[DataLoader[Any]]:
    """The loaders that are alive and have batches of so many rows."""
    found = [o for o in gc.get_objects() if issubclass(type(o), DataLoader)]
    return [loader for loader in found if loader.batch_size in (None, rows)]


def _batches(loader: DataLoader[Any]) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return 0


def _shuffled(rows: int) -> bool:
    """Whether epochs are meant to differ in order: a loader that is alive shuffles, or none is there to say otherwise."""
    samplers = [loader.sampler for loader in _loaders(rows)]
    shuffle = any(isinstance(s, RandomSampler) or getattr(s, "shuffle", False) is True for s in samplers)
    return shuffle or not samplers
