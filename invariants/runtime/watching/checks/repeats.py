"""RUN-38: one number for the first batch of each step, and how these numbers come again.

The number is compared, and nothing of the batch is kept but a weak reference: a loop that trains on one tensor on purpose
still has it, one that loads the same batch anew has another. The first steps are known completely; from then on a few
are looked at, until something comes again: then every one, and what the loaders yield meanwhile; see draws.py.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import APART, SETTLED, TURNS
from karat.invariants.run.run38_repeats import LEAST_PERIOD, LONG_ENOUGH, MOST_TIMES, RULE, STUCK
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.draws import ALIKE, SAME, Drawn, Draws, surest
from karat.invariants.runtime.watching.fingerprint import of_batch, of_rows
from karat.invariants.runtime.watching.loop import DENSE, Loop

MOST_KNOWN = 1 << 14
"""Batches whose numbers are kept."""
RUNS = 3
"""Batches, each of which came so many times in a row, that make a rule of it."""
OTHERS = 16
"""Batches that each came once, after which one that stays has stuck."""
PATIENCE = 2
"""Steps without a batch that came again, after which nothing is suspected any more."""
MOST_LOOKS = 20
"""Steps in a row that one suspicion is followed: what is not decided by then is no mistake that is told here."""
MOST_REFUTED = 4
"""Every suspicion that came to nothing doubles the steps to the next one, so many times."""

ROUNDING = 1e-4
"""Relative difference of the numbers of one batch on two devices."""

Seen = tuple[int, "weakref.ref[Tensor]"]


class Repeats(Check):
    rules = (RULE,)
    interval = f"{TURNS}, and at every one while a batch comes again"

    def __init__(self) -> None:
        self._looked = False
        self._wide = False
        self._number: float | None = None
        self._first: float | None = None
        self._rows: float | None = None
        self._tensor: weakref.ref[Tensor] | None = None
        self._shape: torch.Size | None = None
        self._dtype: torch.dtype | None = None
        self._to = 0
        self._several = False
        self._asked = -1
        self._gap = False
        """Whether steps were left out since the last batch."""
        self._once = 0
        """Batches so far that each came once, in a row."""
        self._draws = Draws()
        self._source: tuple[int, tuple[Drawn, ...]] = (0, ())
        self._patience = self._looks = self._refuted = self._next = 0
        self._restart()

    def _restart(self) -> None:
        self._known: OrderedDict[float, Seen] = OrderedDict()
        self._judged: set[int] = set()
        """Distances at which epochs came again, and were judged."""
        self._last: tuple[float, float | None, torch.Size | None] | None = None
        self._since, self._times, self._fresh, self._excused = 0, 1, True, False
        self._runs = (0, 0)
        self._each = 1
        """Times in a row that each batch comes, once that was judged."""
        self._heard = [0, 0, 0]
        """Looks at a batch that came again while the loaders were listened to; those with a batch drawn; others so."""
        self._lag, self._matches, self._in_memory = 0, 0, 0
        self._sources: list[tuple[int, tuple[Drawn, ...]]] = []

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
        tensors = tensors if self._wide else tensors[:1]
        numbers = [n for tensor in tensors if (n := of_batch(tensor)) is not None]
        if not numbers:
            return
        self._looked = True
        first = tensors[0]
        base = first._base
        self._tensor, self._shape = weakref.ref(first if base is None else base), first.shape
        self._dtype = first.dtype
        start = first.data_ptr()
        self._in_memory = self._in_memory + 1 if start == self._to else 0
        self._to = start + first.nbytes
        self._several = len(args) + len(kwargs) > 1
        loop.transfer.ask(numbers, self._answered)
        if self._patience or loop.step - loop.first < DENSE:
            self._source = self._draws.of(first)
            loop.transfer.ask([n for tensor in tensors if (n := of_rows(tensor)) is not None], self._summed)

    def _answered(self, numbers: list[float]) -> None:
        self._number, self._first = _together(numbers), numbers[0]

    def _summed(self, numbers: list[float]) -> None:
        self._rows = _together(numbers)

    def quick(self, loop: Loop, place: int, step: int) -> bool:
        """While every step is looked at: all that there is to do."""
        if not place:
            loop.transfer.bring()
            self._look(loop, step)
        return True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if not moment.index:
            self._look(loop, moment.step)

    def _look(self, loop: Loop, step: int) -> None:
        self._gap = self._gap or step != self._asked + 1
        self._asked = step
        number, rows, tensor, self._looked = self._number, self._rows, self._tensor, False
        self._number = self._rows = self._tensor = None
        if number is not None and "batch" not in loop.fingerprint:
            loop.fingerprint["batch"] = f"{number:.9g}"
        suspect = False
        if number and tensor is not None:  # a number of 0 is that of a batch in which nothing was met but zeros
            suspect = self._meet(loop, step, number, rows, tensor)
            self._gap = False
        self._draws.turn()
        self._source = (0, ())
        self._pace(loop, step, suspect)

    def _meet(self, loop: Loop, step: int, number: float, rows: float | None, tensor: weakref.ref[Tensor]) -> bool:
        """One batch; whether it came again, and no tensor that was kept."""
        seen = self._known.pop(number, None)
        now = tensor()
        fresh = seen is None or now is None or seen[1]() is not now  # loaded, not kept, nor a view of data that is
        again = self._last is not None and self._last[0] == number
        if again and None not in (rows, self._last[1]) and rows != self._last[1]:  # type: ignore[index]
            again, seen = False, None  # batches that differ in what the number did not meet
        if again and self._several and not self._wide and not self._gap:  # another argument may tell the batches apart
            self._wide = True
            self._restart()
            return True
        if self._draws.listening:
            if again:
                self._heard[0] += 1
                self._heard[1] += self._draws.any
            else:
                self._heard[2] += self._draws.any
        distance = 0 if seen is None else step - seen[0]
        suspect = self._again(loop, step, distance, fresh) if again else self._another(loop, step, distance, fresh)
        self._known[number] = (step, tensor)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self._last = number, rows, self._shape
        return suspect

    def _pace(self, loop: Loop, step: int, suspect: bool) -> None:
        """Whether every step is looked at: the first ones, and while something is suspected; and a few, now and then, as
        batches that each come twice are only met in steps that follow each other."""
        settled = step - loop.first >= SETTLED - 1
        if suspect and not self._patience:
            suspect = step >= self._next
            if suspect:
                self._looks, self._heard = 0, [0, 0, 0]
                self._draws.listen()
        if suspect or self._patience:
            self._looks += 1
            self._patience = PATIENCE if suspect else self._patience - 1
            if self._looks > MOST_LOOKS:
                self._patience = 0
            if not self._patience:
                self._draws.leave()
                if settled:
                    self._next = step + (APART << min(self._refuted, MOST_REFUTED))
                    self._refuted += 1
        spaced = settled and not self._patience and not any(loop.looked(step - k) for k in range(PATIENCE))
        if spaced != self.spaced:
            self.spaced = spaced
            loop.duties += 1

    # -- in a row -----------------------------------------------------------------------------------------------------

    def _again(self, loop: Loop, step: int, distance: int, fresh: bool) -> bool:
        """The batch of the look before."""
        self._times = 1 if self._gap else self._times + 1
        self._fresh = self._fresh and fresh
        self._lag = self._matches = 0
        if not self._fresh or self._excused or (self._gap and self._meant(distance)):
            return False
        if not self._gap and self._times <= self._each:
            return False
        longest = self._runs[1]
        if self._runs[0] >= RUNS - 1 and longest > 1 and self._times == longest:
            self._each = longest
            if not self._kept_on_the_host():
                self._say(
                    loop, step, RUNS * longest, "in a row",
                    f"each batch comes {longest} times in a row, loaded anew each time",
                    f"{RUNS} batches, the last of them for the {longest}. time; as of workers with equal seeds, "
                    f"or of a stream that is not divided among them",
                )  # fmt: skip
        elif self._times > MOST_TIMES:
            self._excused = self._begun_anew(loop, step) or self._stuck(loop, step)
        self._excused = self._excused or self._times >= MOST_LOOKS
        return True

    def _meant(self, distance: int) -> bool:
        """Whether a batch that comes again at this distance tells nothing new: the order of the epochs was judged."""
        return any(distance % judged == 0 for judged in self._judged)

    def _kept_on_the_host(self) -> bool:
        """Whether the loaders yielded something, but not whenever a batch came again: it was copied anew, not loaded."""
        again, drawn, others = self._heard
        return drawn < again and drawn + others > 0

    def _begun_anew(self, loop: Loop, step: int) -> bool:
        """One batch of a loader that has more: by an iterator that is made at each step, or, from the first step on, by
        one that goes on, over data that are all the same."""
        level, drawn = self._source
        lengths, begun = {d.of for d in drawn}, {d.number == 1 for d in drawn}
        if level < ALIKE or len(lengths) != 1 or len(begun) != 1 or min(lengths) < 2:
            return False
        certain = level == SAME or all(_equal(d.first, self._first) for d in drawn)
        if True in begun:
            again, heard, _ = self._heard
            cast = all(d.dtype is not self._dtype for d in drawn)  # then the numbers differ, whichever it is
            if not certain and not (cast and 2 <= again == heard):
                return False
            why = "each was the first of an iterator; is iter(loader) called at each step?"
        elif certain and step + 1 - self._times == loop.first:
            why = "the iterator goes on; does the data set look at the index that it is given?"
        else:
            return False
        self._say(
            loop, step, self._times, "in a row",
            f"the same batch for the {self._times}. time in a row, of a loader that has {min(lengths)}",
            f"each time another tensor with the same numbers, sampler {drawn[0].sampler}; {why}",
        )  # fmt: skip
        return True

    def _stuck(self, loop: Loop, step: int) -> bool:
        """One batch that stays, after many that each came once."""
        if step - self._since + 1 < STUCK or self._once < OTHERS or self._kept_on_the_host():
            return False
        self._say(
            loop, step, self._times, "in a row",
            f"the same batch since step {self._since}, after {self._once} or more that each came once",
            f"each time another tensor with the same numbers, {self._times} times in steps that follow each other",
        )  # fmt: skip
        return True

    # -- epochs -------------------------------------------------------------------------------------------------------

    def _another(self, loop: Loop, step: int, lag: int, fresh: bool) -> bool:
        """Another batch than that of the look before; one of an earlier epoch, it may be."""
        if self._gap:
            self._runs = 0, 0
        else:
            count, length = self._runs
            self._runs = (count + 1, length) if self._times == length else (1, self._times)
            self._once = self._once + 1 if self._times == 1 else 0
        if self._last is not None and self._shape != self._last[2]:
            self._once = 0  # a phase of its own
        self._since, self._times, self._fresh, self._excused = step, 1, True, False
        if not fresh or lag < LEAST_PERIOD or self._meant(lag):
            self._lag = self._matches = 0
            loop.held_for(RULE, step, float(MOST_TIMES - 1))
            return False
        if lag == self._lag and not self._gap:
            self._matches += 1
        else:
            self._lag, self._matches, self._sources = lag, 1, []
        self._sources.append(self._source)
        enough = min(lag, LONG_ENOUGH)
        if self._matches == enough:
            self._judged.add(lag)
            in_order = 2 * self._in_memory >= enough  # slices in the order of memory
            if not in_order and _shuffled(self._sources):
                self._say(
                    loop, step, self._matches, "epochs",
                    f"the order of {lag} batches is that of the epoch before: {self._matches} in a row are the same",
                    f"batches {step - lag - enough + 1} to {step - lag} came again at {lag} steps' distance; "
                    f"as of a sampler that is seeded anew, or set_epoch that is not called",
                )  # fmt: skip
        return True

    def _say(self, loop: Loop, step: int, value: int, where: str, message: str, evidence: str) -> None:
        loop.judge(
            RULE, step, RULE.margin(value, MOST_TIMES),
            lambda: {"message": message, "where": where, "evidence": evidence},
        )  # fmt: skip

    def drop(self) -> None:
        self._tensor = None
        self._draws.leave()
        self._restart()


def _together(numbers: list[float]) -> float:
    return numbers[0] if len(numbers) == 1 else sum((k + 1) * n for k, n in enumerate(numbers))


def _equal(a: float | None, b: float | None) -> bool:
    """Whether two numbers are of one batch, in the same precision, on two devices it may be."""
    return a is not None and b is not None and abs(a - b) <= ROUNDING * (1 + abs(a))


def _shuffled(sources: list[tuple[int, tuple[Drawn, ...]]]) -> bool:
    """Whether epochs are meant to differ in order: so say all samplers that may have chosen it; or none had a part in it."""
    return all(drawn.shuffled for drawn in surest(sources))
