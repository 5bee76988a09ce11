"""What DataLoaders yield while a check listens: which of them a batch came from is then seen, and not guessed.

That a loader is alive says nothing of whom it feeds. So for the few steps in which a batch has come again, and in no others,
`__next__` of torch's loader iterators is followed: it gives back what it gave before, and a note of it is made.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.attached import subclasses
from karat.invariants.runtime.watching.fingerprint import of_batch
from karat.invariants.runtime.watching.interrupts import from_signal

MOST_NOTES = 64
"""Yields that are remembered: loops that fetch ahead draw a batch some steps before it is trained on."""
MOST_TENSORS = 16
"""Tensors of a batch that are noted."""
DEEP = 6
"""Samplers inside samplers that are looked into."""
RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

OTHER, ALIKE, SAME = range(3)
"""How surely a batch is what a loader yielded: something came, a tensor of its shape came, it is the very tensor."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One batch that a loader's iterator yielded. number: from 1, of this pass over the data; of: batches in a pass, 0 where
    that is not known."""

    number: int
    of: int
    shuffled: bool
    sampler: str
    tensors: tuple[tuple[weakref.ref[Tensor], torch.Size], ...]
    first: float | None
    """The number of its first tensor (fingerprint.of_batch), where that is on the host."""
    dtype: torch.dtype | None


class Draws:
    """The notes of one listener."""

    def __init__(self) -> None:
        self._earlier: deque[Drawn] = deque(maxlen=MOST_NOTES)
        self._latest: deque[Drawn] = deque(maxlen=MOST_NOTES)
        self.listening = False

    @property
    def any(self) -> bool:
        """Whether something was drawn since the last turn."""
        return bool(self._latest)

    def listen(self) -> None:
        """Notes what is yielded from now on."""
        self.listening = True
        _TAP.open(self)

    def leave(self) -> None:
        """Notes nothing any more, and forgets."""
        if self.listening:
            self.listening = False
            _TAP.close(self)
        self._earlier.clear()
        self._latest.clear()

    def turn(self) -> None:
        """A step is over."""
        self._earlier.extend(self._latest)
        self._latest.clear()

    def take(self, drawn: Drawn) -> None:
        """Notes one batch."""
        self._latest.append(drawn)

    def of(self, tensor: Tensor) -> tuple[int, tuple[Drawn, ...]]:
        """(how surely, what) was drawn that may be this tensor: the one that it is, or is a view of; else those since the
        last turn that have its shape; else all since then."""
        base = tensor if tensor._base is None else tensor._base
        latest = tuple(self._latest)
        for drawn in (*reversed(latest), *reversed(self._earlier)):
            if any(held() is tensor or held() is base for held, _ in drawn.tensors):
                return SAME, (drawn,)
        alike = tuple(d for d in latest if any(shape in (tensor.shape, base.shape) for _, shape in d.tensors))
        return (ALIKE, alike) if alike else (OTHER, latest)


def surest(sources: Iterable[tuple[int, tuple[Drawn, ...]]]) -> tuple[Drawn, ...]:
    """Of several steps' answers the surest ones."""
    every = [source for source in sources if source[1]]
    top = max((level for level, _ in every), default=OTHER)
    return tuple(drawn for level, several in every if level == top for drawn in several)


class _Tap:
    """Follows `__next__` of the iterators while somebody listens."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[Draws] = weakref.WeakSet()
        self._placed: list[tuple[type, Any, Any]] = []
        self._lock = threading.RLock()
        self._last: tuple[weakref.ref[Any], int] | None = None

    def open(self, listener: Draws) -> None:
        with self._lock:
            self._listeners.add(listener)
            if not self._placed:
                kinds = [kind for kind in subclasses(_BaseDataLoaderIter) if "__next__" in vars(kind)]
                for kind in kinds:
                    self._placed.append(self._follow(kind))

    def close(self, listener: Draws | None = None) -> None:
        with self._lock:
            if listener is not None:
                self._listeners.discard(listener)
            if self._listeners:
                return
            for kind, plain, own in self._placed:
                if vars(kind).get("__next__") is own:  # another's that was put around it stays, and ours says nothing
                    kind.__next__ = plain  # type: ignore[attr-defined]
            self._placed, self._last = [], None

    def _follow(self, kind: Any) -> tuple[type, Any, Any]:
        plain = vars(kind)["__next__"]

        def __next__(iterator: Any) -> Any:
            batch = plain(iterator)
            if any(own is __next__ for _, _, own in self._placed):
                try:
                    self._note(iterator, batch)
                except Exception as error:  # the loop goes on, whatever a batch or a sampler is
                    if from_signal(error):
                        raise
            return batch

        kind.__next__ = __next__
        return kind, plain, __next__

    def _note(self, iterator: Any, batch: Any) -> None:
        listeners = tuple(self._listeners)
        if not listeners:  # those who listened are gone without a word
            self.close()
            return
        number = iterator._num_yielded
        if self._last is not None and self._last[0]() is iterator and self._last[1] == number:
            return  # a subclass whose __next__ calls that of its base
        self._last = weakref.ref(iterator), number
        sampler = iterator._index_sampler
        inside = _inside(sampler)
        tensors = [tensor for _, tensor in islice(leaves(batch), MOST_TENSORS)]
        several = tuple((weakref.ref(t), t.shape) for t in tensors)
        first = of_batch(tensors[0]) if tensors and tensors[0].is_cpu else None
        shuffled = any(isinstance(s, RANDOM) or getattr(s, "shuffle", False) is True for s in inside)
        drawn = Drawn(
            number, _length(sampler), shuffled, type(inside[-1]).__name__, several,
            None if first is None else first.item(), tensors[0].dtype if tensors else None,
        )  # fmt: skip
        for listener in listeners:
            listener.take(drawn)


def _inside(sampler: Any) -> list[Any]:
    """A sampler, and those in it."""
    found = [sampler]
    while len(found) < DEEP:
        held = [getattr(found[-1], name, None) for name in ("batch_sampler", "sampler")]
        further = next((s for s in held if s is not None and all(s is not f for f in found)), None)
        if further is None:
            break
        found.append(further)
    return found


def _length(sampler: Any) -> int:
    try:
        return len(sampler)
    except Exception as error:  # of a stream, or a sampler that does not know
        if from_signal(error):
            raise
        return 0


_TAP = _Tap()
