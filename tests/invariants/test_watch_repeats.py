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

from karat.core.report import Violation
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching import fingerprint

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
