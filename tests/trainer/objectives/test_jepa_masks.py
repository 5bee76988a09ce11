"""Masks hide exactly the declared share in whole spans; the seed's sampler, held to the same, does not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from karat.core.errors import ConfigError
from karat.trainer.objectives.jepa_masks import Spans

Mask = npt.NDArray[np.bool_]


def runs(row: Mask) -> list[int]:
    """Lengths of the runs of masked tokens, from left to right."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
    return [int(n) for n in edges[1::2] - edges[::2]]


def faults(mask: Mask, ratio: float, low: int, high: int) -> list[str]:
    """What is wrong with a mask: rows with another count than round(ratio · length), runs outside [low, high]."""
    due = round(ratio * mask.shape[1])
    found = [f"{int(row.sum())} masked, {due} declared" for row in mask if int(row.sum()) != due]
    return found + [f"a run of {n}" for row in mask for n in runs(row) if not low <= n <= high]


def seeds_sampler(length: int, seed: int) -> Mask:
    """The seed's: two spans of 3 to 9 tokens anywhere, overlaps allowed; its ratio of 0.30 appears nowhere."""
    random, row = Random(seed), np.zeros(length, np.bool_)
    for _ in range(2):
        span = random.randint(3, 9)
        start = random.randrange(length - span)
        row[start : start + span] = True
    return row[None]


def without_ratio(length: int, seed: int) -> Mask:
    """Spans that are whole and apart, of another share than declared."""
    return Spans(0.15, 3, 9).masks(1, length, seed=seed, step=0)


def touching(length: int, seed: int) -> Mask:
    """The declared share in one piece."""
    row = np.zeros(length, np.bool_)
    row[seed % 3 : seed % 3 + round(0.3 * length)] = True
    return row[None]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 200), st.floats(0.01, 0.95), st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
)  # fmt: skip
def test_every_row_has_exactly_the_declared_share_in_whole_spans(
    length: int, ratio: float, low: int, wider: int, seed: int, step: int
) -> None:
    spans = Spans(ratio, low, low + wider)
    try:
        mask = spans.masks(5, length, seed=seed, step=step)
    except ConfigError:
        assume(False)
    assert mask.shape == (5, length)
    assert faults(mask, ratio, low, low + wider) == []


@pytest.mark.parametrize("length", [10, 32, 64, 100, 128, 1000])
def test_the_default_masks_thirty_percent(length: int) -> None:
    mask = Spans(0.3, 3, 9).masks(64, length, seed=1, step=0)
    assert faults(mask, 0.3, 3, 9) == [] and int(mask.sum()) == 64 * round(0.3 * length)


@pytest.mark.parametrize("broken", [seeds_sampler, without_ratio, touching])
def test_broken_samplers_are_found_out(broken: Callable[[int, int], Mask]) -> None:
    assert all(faults(broken(100, seed), 0.3, 3, 9) for seed in range(200))


def test_the_seeds_sampler_never_passes_eighteen_percent() -> None:
    shares = [float(seeds_sampler(100, seed).mean()) for seed in range(2000)]
    assert max(shares) <= 0.18 < 0.3 and min(shares) < 0.06


def possible_by_search(masked: int, length: int, low: int, high: int) -> bool:
    """Whether some number of spans makes up `masked` with a visible token between two: all numbers tried."""
    return any(k * low <= masked <= k * high and k - 1 <= length - masked for k in range(1, length + 1))


def test_exactly_the_impossible_combinations_are_refused() -> None:
    seen = {True: 0, False: 0}
    for length in range(1, 18):
        for masked in range(length + 1):
            for low, high in ((1, 1), (2, 2), (3, 3), (3, 9), (5, 6), (1, 30)):
                spans = Spans(masked / length, low, high)
                assert round(spans.ratio * length) == masked
                possible = 0 < masked < length and possible_by_search(masked, length, low, high)
                seen[possible] += 1
                if possible:
                    assert faults(spans.masks(2, length, seed=0, step=0), spans.ratio, low, high) == []
                else:
                    with pytest.raises(ConfigError):
                        spans.masks(2, length, seed=0, step=0)
    assert min(seen.values()) > 200


def test_the_refusal_names_a_ratio_that_works() -> None:
    with pytest.raises(ConfigError, match=r"ratio of 0\.3 on 8 tokens is 2 tokens") as caught:
        Spans(0.3, 3, 9).plan(8)
    assert caught.value.next_step.startswith("jepa.ratio=0.375 masks 3 of 8")
    assert Spans(0.375, 3, 9).plan(8).masked == 3
    with pytest.raises(ConfigError, match="is 3 tokens") as caught:
        Spans(0.999, 3, 9).plan(3)
    assert "model.context=4 or more" in caught.value.next_step


def test_equal_seed_and_step_give_equal_masks_whatever_else_is_drawn() -> None:
    spans = Spans(0.3, 3, 9)
    first = spans.masks(4, 64, seed=7, step=11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    torch.rand(3), np.random.rand(3)
    assert np.array_equal(spans.masks(4, 64, seed=7, step=11), first)
    assert np.array_equal(spans.masks(9, 64, seed=7, step=11)[:4], first)
    torch.set_rng_state(states[0])
    spans.masks(4, 64, seed=8, step=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    others = [spans.masks(4, 64, seed=s, step=t) for s, t in ((7, 12), (8, 11), (11, 7))]
    assert not any(np.array_equal(first, other) for other in others)
    assert len({row.tobytes() for row in spans.masks(32, 64, seed=7, step=11)}) > 30


def test_drawing_masks_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Spans(0.3, 3, 9).masks(8, 64, seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_every_length_and_every_place_comes_up() -> None:
    masks = np.concatenate([Spans(0.3, 3, 9).masks(64, 64, seed=0, step=step) for step in range(40)])
    lengths = np.bincount([n for row in masks for n in runs(row)], minlength=10)
    assert (lengths[3:10] > 0.04 * lengths.sum()).all() and lengths[:3].sum() == 0
    shares = masks.mean(0)
    assert (np.abs(shares[9:-9] - 0.31) < 0.06).all() and (shares > 0.03).all()
    assert np.abs(shares - shares[::-1]).max() < 0.06  # no end is preferred
