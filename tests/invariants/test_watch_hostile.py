"""Models that are hostile to their guards: forwards with effects, and values of every kind."""

from __future__ import annotations

import functools
import logging
import random
import signal
import threading
import warnings
from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus.hostile import Plain, batch, same, trained
from torch import Tensor, nn

from karat.invariants.runtime import watch

# -- forwards with effects -------------------------------------------------------------------------------------------------

SEEN: list[float] = []
COUNTS = {"calls": 0}
TOTAL = 0
SOURCE = torch.Generator()
LOCAL = threading.local()
RECORDS: list[str] = []


class Listed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(1.0)
        return super().forward(x) * len(SEEN)  # type: ignore[no-any-return]


def helper(x: Tensor) -> Tensor:
    COUNTS["calls"] += 1
    return x * COUNTS["calls"]


class Helped(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return helper(super().forward(x))


class Global(Plain):
    def forward(self, x: Tensor) -> Tensor:
        global TOTAL
        TOTAL += 1
        return super().forward(x) * TOTAL  # type: ignore[no-any-return]


class OfClass(Plain):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        OfClass.calls += 1
        return super().forward(x) * OfClass.calls  # type: ignore[no-any-return]


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Foreign:
    def __init__(self) -> None:
        self.count = 0

    def hit(self) -> int:
        self.count += 1
        return self.count


Foreign.__module__ = "somebody.elses"


class Remembering(Plain):
    """Caches of every kind on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Tensor] = []
        self.last: deque[float] = deque(maxlen=3)
        self.array, self.raw = np.zeros(3), bytearray()
        self.slotted, self.foreign = Slotted(), Foreign()
        self.source, self.legacy = torch.Generator().manual_seed(3), np.random.RandomState(2)

    def forward(self, x: Tensor) -> Tensor:
        self.cache.append(x.detach())
        self.last.append(1.0)
        self.array += 1
        self.raw += b"x"
        self.slotted.count += 1
        noise = torch.randn(3, generator=self.source) + self.legacy.rand() + random.random()
        scale = len(self.cache) + float(self.array[0]) + len(self.raw) + self.slotted.count + self.foreign.hit()
        return super().forward(x) * scale / 20 + noise  # type: ignore[no-any-return]


class Drawing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(3, generator=SOURCE)  # type: ignore[no-any-return]


class Talking(Plain):
    def forward(self, x: Tensor) -> Tensor:
        print("forward", tuple(x.shape))
        logging.getLogger("of the loop").error("forward")
        return super().forward(x)  # type: ignore[no-any-return]


class Threaded(Plain):
    def forward(self, x: Tensor) -> Tensor:
        LOCAL.calls = getattr(LOCAL, "calls", 0) + 1
        return super().forward(x) * LOCAL.calls  # type: ignore[no-any-return]


class Iterating(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter(range(1000))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + next(self.numbers)  # type: ignore[no-any-return]


def fresh() -> None:
    global TOTAL
    SEEN.clear()
    RECORDS.clear()
    COUNTS["calls"], TOTAL, OfClass.calls = 0, 0, 0
    SOURCE.manual_seed(1)
    LOCAL.__dict__.clear()


def effects() -> list[Any]:
    return [list(SEEN), dict(COUNTS), TOTAL, OfClass.calls, SOURCE.get_state(), dict(LOCAL.__dict__), list(RECORDS)]


@pytest.mark.parametrize(
    "kind",
    [Listed, Helped, Global, OfClass, Remembering, Drawing, Talking, Threaded, Iterating],
    ids=lambda k: k.__name__,
)
def test_what_a_forward_does_beside_is_done_once(kind: type[nn.Module]) -> None:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            RECORDS.append(record.getMessage())

    handler, logger = Kept(), logging.getLogger("of the loop")
    logger.addHandler(handler)

    def loop(watching: Callable[..., Any]) -> Any:
        fresh()
        model = kind()
        result = trained(watching, model)
        kept = {n: v for n, v in vars(model).items() if isinstance(v, (list, deque, np.ndarray, bytearray))}
        counts = [getattr(getattr(model, n, None), "count", None) for n in ("slotted", "foreign")]
        return [result[0].state_dict(), result[1], kept, counts, effects()]

    try:
        same(loop)
    finally:
        logger.removeHandler(handler)


def test_files_written_and_callbacks_given_are_left_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows"

    class Writing(Plain):
        def forward(self, x: Tensor, told: Callable[[int], None], numbers: Iterator[int]) -> Tensor:
            told(next(numbers))
            with open(rows, "a") as file:
                file.write("x")
            return super().forward(x)  # type: ignore[no-any-return]

    def loop(watching: Callable[..., Any]) -> Any:
        rows.write_text("")
        told: list[int] = []
        numbers = iter(range(100))
        result = trained(watching, Writing(), lambda model, x: model(x, told.append, numbers))
        return [*result, told, next(numbers), rows.read_text()]

    guards = same(loop)
    assert "open" in guards.not_checked["causality"] or "iterator" in guards.not_checked["causality"]


def test_the_users_hooks_see_the_loop_and_nothing_else() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model, seen = Plain(), []
        model.register_forward_hook(lambda *given: seen.append("model"))
        model.a.register_forward_hook(lambda *given: seen.append("a"))
        model.b.register_forward_pre_hook(lambda *given: seen.append("b"))
        model.a.weight.register_hook(lambda gradient: seen.append("gradient"))
        return [*trained(watching, model)[1:], seen]

    guards = same(loop)
    assert "hooks of its own" in guards.not_checked["causality"]


def test_a_forward_that_ends_the_process_when_run_again_does_not() -> None:
    class Once(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise SystemExit(3)
            return super().forward(x)  # type: ignore[no-any-return]

    assert "SystemExit" in same(lambda watching: trained(watching, Once())).not_checked["eval-determinism"]


def test_a_signal_that_comes_in_the_middle_of_a_replay_is_the_loops() -> None:
    class TimeIsUp(Exception):
        pass

    def up(*given: Any) -> None:
        raise TimeIsUp

    class Slow(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                signal.raise_signal(signal.SIGALRM)
            return super().forward(x)  # type: ignore[no-any-return]

    before = signal.signal(signal.SIGALRM, up)
    try:
        with pytest.raises(TimeIsUp):
            trained(functools.partial(watch, policy="observe"), Slow())
    finally:
        signal.signal(signal.SIGALRM, before)


# -- what goes in and comes out --------------------------------------------------------------------------------------------

Named = namedtuple("Named", "logits rest")


@dataclass
class Inner:
    logits: Tensor
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    inner: Inner


def looped(x: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"x": x}
    found["itself"] = found
    return found


RETURNS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "a named tuple": (lambda x: Named(x, None), lambda out: out.logits),
    "nested data classes": (lambda x: Outer(Inner(x, {"l": [x, "text"]})), lambda out: out.inner.logits),
    "a generator": (lambda x: (y for y in [x]), next),
    "itself inside": (looped, lambda out: out["x"]),
    "a function": (lambda x: lambda: x, lambda out: out()),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_a_forward_may_return_anything(kind: str) -> None:
    give, take = RETURNS[kind]

    class Giving(Plain):
        def forward(self, x: Tensor) -> Any:
            return give(super().forward(x))

    same(lambda watching: trained(watching, Giving(), lambda model, x: take(model(x))))


def test_a_forward_may_change_what_it_is_given() -> None:
    class Changing(Plain):
        def forward(self, given: dict[str, Any]) -> Tensor:
            given["calls"] = given.get("calls", 0) + 1
            given["x"].add_(1)
            return super().forward(given["x"]) * given["calls"]  # type: ignore[no-any-return]

    same(lambda watching: trained(watching, Changing(), lambda model, x: model({"x": x})))


def test_parameters_of_every_kind() -> None:
    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.none, self.one = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(1.0))
            self.turn = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
            self.precise = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.whole = nn.Parameter(torch.arange(5), requires_grad=False)
            self.small = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
            self.rows = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
            self.late = nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x) * self.one + self.none.sum() + (self.turn * self.turn.conj()).real
            return out * self.precise.float() + self.late(x) + self.whole.float().mean()  # type: ignore[no-any-return]

    def loop(watching: Callable[..., Any]) -> Any:
        model, result = trained(watching, Odd())
        return [[p.detach() for p in model.parameters() if p.requires_grad and not p.is_complex()], result]

    assert not [why for why in same(loop).not_checked.values() if "raised in finish" in why]


def test_gradients_of_every_kind() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model = nn.ModuleDict({"e": nn.Embedding(20, 6, sparse=True), "p": Plain()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching(model, optimizer)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randint(0, 20, (8, 4), generator=torch.Generator().manual_seed(step))
            F.cross_entropy(model["p"](model["e"](x).mean(1)), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
            plain = model["p"]
            assert isinstance(plain, Plain)
            plain.a.bias.grad = torch.full((1,), 0.1 * (step + 1)).expand(12)
            plain.b.weight.grad = plain.b.weight.grad.t().contiguous().t()  # type: ignore[union-attr]
            optimizer.step()
        return model

    same(loop)


def test_numbers_are_not_needed() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model = nn.Linear(6, 3, device="meta")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watching(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.empty(4, 6, device="meta")).sum().backward()
            optimizer.step()
        return len(optimizer.state)

    same(loop)


def test_nested_tensors_leave_the_generators_alone() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Linear(6, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            watching(model, optimizer)
            for _ in range(3):
                rows = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(5, 6)])
                torch.nested.to_padded_tensor(model(rows), 0.0).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return model

    same(loop)
