"""Gradients that are cleared for a part of the model only, from a step on in which one parameter alone is followed."""

from __future__ import annotations

import pytest
from corpus.loops.fresh import zero_grad_of_a_part
from corpus.watched import watched


@pytest.mark.parametrize(("first", "latest"), [(70, 80), (100, 108)])
def test_what_is_left_of_the_rest_is_seen_at_a_turn(first: int, latest: int) -> None:
    found = watched(lambda attach: zero_grad_of_a_part(attach, True, 140, first))
    (said,) = [v for v in found if v.slug == "gradient-fresh"]
    assert said.severity == "FAIL" and first <= said.step <= latest
    assert "zero_grad() is missing, or is of a part of the model" in said.observed


def test_where_all_are_cleared_nothing_is_said() -> None:
    assert watched(lambda attach: zero_grad_of_a_part(attach, False, 140)) == []
