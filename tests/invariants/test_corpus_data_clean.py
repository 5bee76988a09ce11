"""The loops of the guards' benchmark run, are deterministic, and differ from their clean twins; nothing judges here."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from corpus.loops import clean
from corpus.loops.case import Clean
from corpus.loops.recorder import Recorders

AT_MOST = 3.0
"""Process CPU seconds of one loop, with room for a slow machine; on a fast one each takes well under a second."""

each_clean = pytest.mark.parametrize("loop", clean.CLEAN, ids=lambda loop: loop.name)


def recorded(run: Callable[[Recorders], None]) -> Recorders:
    """What a loop did, under a stand-in that judges nothing."""
    made = Recorders()
    run(made)
    return made


def test_every_loop_has_a_name_of_its_own_and_says_what_it_does() -> None:
    names = [loop.name for loop in clean.CLEAN]
    assert len(names) == len(set(names)) >= 32
    assert all(len(loop.about.split()) >= 5 for loop in clean.CLEAN)


@each_clean
def test_a_clean_loop_trains_to_its_end_within_its_time(loop: Clean) -> None:
    began = time.process_time()
    made = recorded(loop.run)
    assert made.steps >= 10
    assert all(value == value for recorder in made.made for value in recorder.digests), "a parameter is not a number"
    assert time.process_time() - began < AT_MOST
    moved = [recorder for recorder in made.made if len(set(recorder.digests)) > 1]
    assert moved, "no parameter ever moved"


@each_clean
def test_a_clean_loop_does_the_same_again(loop: Clean) -> None:
    torch.manual_seed(123)
    first = recorded(loop.run)
    torch.manual_seed(321)
    assert recorded(loop.run).trace() == first.trace()
