"""RUN-38: a batch that is loaded again and again, epochs in one order; and the loops that repeat data on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from karat.core.report import Violation
from karat.invariants.run import cadence
from karat.invariants.run.cadence import LATER, SETTLED, WIDE
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching import draws, fingerprint
from karat.invariants.runtime.watching.checks import repeats

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (64,), generator=torch.Generator().manual_seed(1))


def found(pairs: Iterable[tuple[Tensor, Tensor]], model: nn.Module | None = None, to: Any = None) -> list[Violation]:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guards = watch(model, optimizer, policy="observe")
    for x, y in pairs:
        optimizer.zero_grad()
        F.cross_entropy(model(*((x,) if to is None else to(x))), y).backward()
        optimizer.step()
    return [v for v in guards.finish().violations if v.slug == "repeats"]


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=8, **options)


def test_an_iterator_made_anew_at_each_step() -> None:
    data = loader()
    (said,) = found(next(iter(data)) for _ in range(12))
    assert (said.id, said.severity, said.step, said.where) == ("RUN-38", "WARN", 2, "in a row")
    assert "the same batch for the 3. time in a row, of a loader that has 8" in said.message


def test_one_batch_kept_on_purpose() -> None:
    data = loader()
    kept = next(iter(data))
    assert not found(kept for _ in range(12))
    assert not found((kept[0].view(8, 6), kept[1]) for _ in range(12))


def test_the_whole_data_at_every_step_needs_no_loader() -> None:
    assert not found((X.clone(), Y) for _ in range(12))
    data = loader()  # of other batches: 8 rows, not 64
    assert not found((X.clone(), Y) for _ in range(12))
    assert len(data) == 8


@pytest.mark.parametrize("times", [2, 3])
def test_workers_that_deliver_the_same(times: int) -> None:
    (said,) = found((X[k : k + 8].clone(), Y[k : k + 8]) for k in range(0, 40, 8) for _ in range(times))
    assert said.step == 3 * times - 1 and f"comes {times} times in a row" in said.message


def test_several_steps_on_a_batch_that_is_kept() -> None:
    assert not found((x, y) for x, y in list(loader()) for _ in range(4))


def test_a_batch_that_comes_twice_by_chance() -> None:
    order = [0, 8, 8, 16, 24, 24, 32, 40, 48, 0, 8, 56]
    assert not found((X[k : k + 8].clone(), Y[k : k + 8]) for k in order)


def epochs(seeds: Iterable[int], size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    for seed in seeds:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(size):
            yield X[rows], Y[rows]


def test_epochs_in_one_order() -> None:
    (said,) = found(epochs([0, 0, 0]))
    assert (said.where, said.step) == ("epochs", 15)
    assert "the order of 8 batches is that of the epoch before" in said.message
    assert not found(epochs([0, 1, 2]))


def test_a_shuffled_loader_that_is_seeded_anew() -> None:
    def pairs(shuffle: bool) -> Iterator[Any]:
        for _ in range(3):
            draw = torch.Generator().manual_seed(0)
            data = loader(shuffle=True, generator=draw) if shuffle else loader()
            yield from data

    assert [v.where for v in found(pairs(True))] == ["epochs"]
    assert not found(pairs(False))  # in order by design


class Blocks(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(63, -1, -1))

    def __len__(self) -> int:
        return 64


def test_orders_that_are_meant() -> None:
    batches = list(loader())
    assert not found(pair for _ in range(3) for pair in batches)  # kept
    assert not found((X[k : k + 8], Y[k : k + 8]) for _ in range(3) for k in range(0, 64, 8))  # slices
    array = X.numpy()
    assert not found(
        (torch.from_numpy(array[k : k + 8]), Y[k : k + 8]) for _ in range(3) for k in range(0, 64, 8)
    )  # of an array
    data = loader(sampler=Blocks())
    assert not found(pair for _ in range(3) for pair in data)


def test_a_curriculum_repeats_its_first_batches() -> None:
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for stage in (16, 32, 48, 64):
            for step in range(10):
                rows = (torch.arange(8) + 8 * step) % stage
                yield X[rows], Y[rows]

    assert not found(pairs())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        return self.net(x) + positions.float().mean()  # type: ignore[no-any-return]


def test_a_first_argument_that_is_always_the_same() -> None:
    data = loader(shuffle=True, generator=torch.Generator().manual_seed(0))
    assert not found((pair for _ in range(3) for pair in data), Two(), lambda x: (torch.arange(8), x))
    (said,) = found((next(iter(loader())) for _ in range(12)), Two(), lambda x: (torch.arange(8), x))
    assert "in a row" in said.message and said.step > 2


def test_evaluations_and_accumulation_are_not_counted() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = loader(shuffle=True, generator=torch.Generator().manual_seed(0))
    validation = next(iter(loader()))
    with watch(model, optimizer, policy="observe") as guards:
        for _ in range(3):
            for x, y in data:
                with torch.no_grad():
                    model(validation[0])
                optimizer.zero_grad()
                for _ in range(2):  # as SAM: two forwards of one batch
                    F.cross_entropy(model(x), y).backward()
                optimizer.step()
    assert not [v for v in guards.violations if v.slug == "repeats"]


# -- what starts late, and which steps are looked at ------------------------------------------------------------------

MANY = torch.randn(2400, 6, generator=torch.Generator().manual_seed(2))


def long(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(MANY, torch.arange(2400) % 3), batch_size=8, **options)


def cut(start: int) -> tuple[Tensor, Tensor]:
    """The eight rows from there on, anew."""
    return MANY[start : start + 8].clone(), torch.arange(start, start + 8) % 3


@pytest.mark.parametrize("late", [97, 100, 104, 131])
def test_an_iterator_that_is_made_anew_from_some_step_on(late: int) -> None:
    def pairs() -> Iterator[Any]:
        data = long()
        iterator = iter(data)
        for step in range(late + 40):
            yield next(iter(data)) if step >= late else next(iterator)

    (said,) = found(pairs())
    assert late + 2 <= said.step <= late + (16 if late < LATER else WIDE)
    assert "of a loader that has 300" in said.message and "iter(loader)" in said.evidence


@pytest.mark.parametrize("late", [20, 97, 100, 104])
def test_one_batch_that_stays_from_some_step_on(late: int) -> None:
    (said,) = found(cut(8 * min(step, late)) for step in range(late + 30))
    assert late + 7 <= said.step <= late + 17 and said.where == "in a row"
    since = int(said.message.partition("since step ")[2].partition(",")[0])
    assert late <= since <= late + 8 and "each came once" in said.message


def test_one_batch_that_is_kept_from_some_step_on() -> None:
    kept = cut(0)
    assert not found(cut(8 * step) if step < 100 else kept for step in range(140))


def test_batches_that_come_twice_from_some_step_on() -> None:
    (said,) = found(cut(8 * (step if step < 100 else 100 + (step - 100) // 2)) for step in range(150))
    assert "comes 2 times in a row" in said.message and 128 < said.step <= 136


@pytest.mark.parametrize("size", [70, 100, 149])
def test_a_long_epoch_that_comes_again(size: int) -> None:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    (said,) = found(cut(8 * order[step % size]) for step in range(2 * size))
    assert said.where == "epochs" and size + 7 <= said.step <= size + (17 if size < LATER - 8 else WIDE + 18)
    assert f"the order of {size} batches" in said.message and f"came again at {size} steps" in said.evidence
    in_order = DataLoader(TensorDataset(MANY[: 8 * size], torch.arange(8 * size) % 3), batch_size=8)
    assert not found(pair for _ in range(2) for pair in in_order)


def looks(pairs: Iterable[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps in which a number is taken of the batch."""
    taken: list[int] = []
    steps = iter(range(10_000))
    now = [0]

    def counted(batch: Tensor) -> Tensor | None:
        taken.append(now[0])
        return fingerprint.of_batch(batch)

    def counting() -> Iterator[tuple[Tensor, Tensor]]:
        for pair in pairs:
            now[0] = next(steps)
            yield pair

    monkeypatch.setattr(repeats, "of_batch", counted)
    assert not found(counting())
    return taken


def quiet(steps: int) -> list[int]:
    """The steps in which a number is taken while nothing comes again: two more after each look at the outputs."""
    looked = {s + k for s in (64, 128, 256) for k in range(3)}
    return [s for s in range(steps) if s < SETTLED or cadence.asked(s) or s in looked]


def test_from_step_64_on_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = looks((cut(8 * step) for step in range(200)), monkeypatch)
    assert taken == quiet(200)


def test_a_suspicion_that_comes_to_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    once = looks((cut(0 if step == 80 else 8 * step) for step in range(250)), monkeypatch)
    assert once == sorted({*quiet(250), 81, 82})  # two more, and the pace is what it was
    order = torch.randint(20, (250,), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = looks((cut(8 * k) for k in order), monkeypatch)  # with replacement: something comes again at every look
    assert len(drawn) < len(quiet(250)) + 60
    in_order = looks((pair for _ in range(12) for pair in loader(num_workers=0)), monkeypatch)
    assert in_order == quiet(96)  # one judgement of an order that is meant is enough


# -- whose batch it is ------------------------------------------------------------------------------------------------


def test_loaders_and_iterators_of_others_are_alive() -> None:
    others = [loader(shuffle=shuffle) for shuffle in (False, True)]
    alive = [iter(other) for other in others]
    assert not found((X[:8].clone(), Y[:8]) for _ in range(12))  # gradient descent on eight rows
    data = loader()
    assert not found(pair for _ in range(3) for pair in data)
    (said,) = found(epochs([0, 0, 0]))
    assert said.where == "epochs"
    assert [len(next(iterator)[0]) for iterator in alive] == [8, 8]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_for_something_else_goes_on_with_the_steps(shuffle: bool) -> None:
    other = DataLoader(TensorDataset(X.flip(0), Y), batch_size=8, shuffle=shuffle)

    def pairs(own: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(other)
        for step, pair in enumerate(own):
            if step % 8 == 0:
                iterator = iter(other)
            next(iterator), next(iter(other))
            yield pair

    assert not found(pairs((X[:8].clone(), Y[:8]) for _ in range(30)))
    assert not found(pairs(pair for _ in range(3) for pair in loader()))
    seeded = (p for _ in range(3) for p in loader(shuffle=True, generator=torch.Generator().manual_seed(0)))
    assert [v.where for v in found(pairs(seeded))] == ["epochs"]


def test_a_batch_that_is_copied_anew_for_each_of_several_steps() -> None:
    assert not found((x.clone(), y) for x, y in loader() for _ in range(3))
    assert not found((x.clone(), y) for x, y in long() for _ in range(2))


def test_a_batch_that_is_cast_on_its_way() -> None:
    data = DataLoader(TensorDataset((8 * X).to(torch.int16), Y), batch_size=8)
    (said,) = found((x / 8, y) for x, y in (next(iter(data)) for _ in range(12)))
    assert said.step == 3 and "of a loader that has 8" in said.message


class Stopped(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)


def test_a_data_set_that_does_not_look_at_its_index() -> None:
    (said,) = found(DataLoader(Stopped(X, Y), batch_size=8))
    assert said.step == 2 and "of a loader that has 8" in said.message and "the iterator goes on" in said.evidence


def test_batches_that_differ_where_the_number_does_not_look() -> None:
    def sparse() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(40):
            x = torch.zeros(8, 6000)
            x[:, 0::2] = 1.0 if step % 2 == 3 else 0.0
            x[step % 8, 1 + step] = 1.0
            yield x, Y[:8]

    assert not found(sparse(), nn.Linear(6000, 3))


def test_the_iterators_are_as_they_were() -> None:
    plain = _BaseDataLoaderIter.__next__
    data, seen = loader(), []

    def pairs() -> Iterator[Any]:
        for _ in range(12):
            seen.append(_BaseDataLoaderIter.__next__ is plain)
            yield next(iter(data))

    assert found(pairs()) and seen[:2] == [True, True] and not all(seen)
    assert _BaseDataLoaderIter.__next__ is plain
    with pytest.raises(StopIteration):
        iterator = iter(data)
        for _ in range(9):
            next(iterator)


def test_listening_stops_where_the_listener_is_gone() -> None:
    plain = _BaseDataLoaderIter.__next__
    first, second = draws.Draws(), draws.Draws()
    first.listen()
    second.listen()
    iterator = iter(loader())
    x, _ = next(iterator)
    level, (drawn,) = first.of(x)
    assert (level, drawn.number, drawn.of, drawn.shuffled) == (draws.SAME, 1, 8, False) and second.any
    assert first.of(x[:, :3])[0] == draws.SAME and first.of(x.clone())[0] == draws.ALIKE
    first.turn()
    assert first.of(x.clone()) == (draws.OTHER, ()) and first.of(x)[0] == draws.SAME and not first.any
    first.leave()
    assert _BaseDataLoaderIter.__next__ is not plain
    del second
    next(iterator)
    assert _BaseDataLoaderIter.__next__ is plain


def test_the_number_sees_every_column() -> None:
    """A first column of equal tokens does not make batches equal, whatever their shape."""
    for shape in ((4096, 16), (64, 1024), (3, 5), (1024, 15), (2048, 32)):
        first, second = torch.randint(9, shape), torch.randint(9, shape)
        first[:, 0] = second[:, 0] = 1
        a, b, again = (fingerprint.of_batch(t) for t in (first, second, first.clone()))
        assert a is not None and b is not None and again is not None
        assert a.dtype is torch.float32 and float(a) == float(again) != float(b)
    assert fingerprint.of_batch(torch.zeros(0, 3)) is None
    assert fingerprint.of_batch(torch.zeros(2, 2, dtype=torch.complex64)) is None
    turned = X.t()
    assert float(fingerprint.of_batch(turned)) == float(fingerprint.of_batch(turned.contiguous()))  # type: ignore[arg-type]


def test_a_watched_run_is_the_same_bit_for_bit() -> None:
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(model.parameters())
        guards = watch(model, optimizer, policy="observe") if watched else None
        for step in range(20):
            x, y = next(iter(loader()))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if guards is not None:
                guards.log(loss=torch.tensor(float(step)), val_loss=0.5)
        if guards is not None:
            guards.finish()
        ends.append([*model.state_dict().values(), torch.rand(2), torch.tensor(np.random.rand())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
