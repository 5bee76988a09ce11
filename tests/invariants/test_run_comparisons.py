"""RUN-42, 45 and 46 on logs, curves and reports: what is equal, what is one, what a prune rule loses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from karat.core.errors import KaratError
from karat.core.formulas.halving import keep
from karat.invariants.run import pruning
from karat.invariants.run.comparisons import independent_seeds, prune_rule, resume_parity
from karat.invariants.runtime import independent, watch
from karat.invariants.runtime.watching.report import WatchReport

CURVES = {
    "a": [3.0, 2.0, 1.8, 1.7],
    "b": [2.5, 2.4, 2.3, 2.2],
    "late": [4.0, 3.9, 1.5, 1.0],
    "c": [2.8, 2.6, 2.5, 2.4],
}


def test_losses_after_a_resume() -> None:
    straight = {k: 1.0 / (k + 1) for k in range(10)}
    assert resume_parity(straight, {k: straight[k] for k in range(5, 10)}).word == "ok"
    off = resume_parity(straight, {5: straight[5], 6: math.nextafter(straight[6], 1), 7: 0.5})
    assert (off.word, off.id, off.slug, off.where) == ("FAIL", "RUN-42", "resume", "step 6")
    assert "2 of 3 steps differ" in off.message
    assert resume_parity({1: 1.0}, {1: 1.0 + 1e-9}, tolerance=1e-6).word == "ok"
    assert resume_parity({1: math.nan}, {1: math.nan}).word == "ok"
    assert resume_parity({1: math.nan}, {1: 1.0}).word == "FAIL"
    assert resume_parity({1: 1.0}, {2: 1.0}).word == "not decided"


def test_logs_that_are_one() -> None:
    runs = {"x": [3.0, 2.0, 1.0, 0.5], "y": [3.0, 2.0, 1.0], "z": [3.0, 2.0, 1.5]}
    one = independent_seeds(runs)
    assert (one.word, one.slug, one.where) == ("FAIL", "seeds", "x and y")
    assert independent_seeds({"x": runs["x"], "z": runs["z"]}).word == "ok"
    assert independent_seeds({"x": [0.0] * 9, "y": [0.0] * 9}).word == "ok"  # says nothing of seeds
    assert independent_seeds({"x": runs["x"]}).word == independent_seeds({"x": [1.0], "y": [1.0]}).word == "not decided"


def report(seed: int, data: int, forward: bool = True) -> WatchReport:
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, policy="observe") as guards:
        for k in range(2):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * data + k))
            optimizer.zero_grad()
            (model(x) if forward else x @ model.weight.T).square().mean().backward()
            optimizer.step()
    return guards.finish()


def test_reports_of_runs_that_are_one() -> None:
    same = independent([report(0, 0), report(1, 1), report(0, 0)])
    assert (same.word, same.where) == ("FAIL", "1 and 3") and "the same first batch" in same.message
    assert independent([report(0, 0), report(0, 1)]).word == "WARN"
    assert independent([report(0, 0), report(1, 0), report(2, 0)]).word == "ok"
    assert independent([report(0, 0, forward=False), report(0, 0, forward=False)]).word == "WARN"
    assert independent([report(0, 0)]).word == "not decided"


def median(*rows: int, sign: float = 1.0) -> Callable[[Sequence[float], Sequence[Sequence[float]]], bool]:
    return lambda own, others: (
        len(own) in rows and sign * own[-1] > statistics.median(sign * c[len(own) - 1] for c in others)
    )


def test_a_rule_that_stops_the_best() -> None:
    lost = prune_rule(median(1), CURVES)
    assert (lost.word, lost.id, lost.slug, lost.where) == ("FAIL", "RUN-46", "prune", "late")
    assert "late, which ends best at 1, is stopped at row 1 with 4: b ends 1.2 higher" in lost.message
    assert "2 of 4 stopped; late, which ends best, is kept" in prune_rule(median(3), CURVES).message
    assert "stopped at row 3 with 1.5" in prune_rule(median(3, sign=-1.0), CURVES).message
    assert prune_rule(median(1), CURVES, lost=1.2 + 1e-9).word == "ok"
    assert "none survives (4 of 4 stopped)" in prune_rule(median(1, 2, 3), CURVES).message
    assert prune_rule(lambda own, others: True, CURVES).word == "FAIL"
    with pytest.raises(KaratError, match="no curves"):
        prune_rule(median(1), {})


def test_the_threshold_rule_and_its_gap() -> None:
    assert pruning.largest_gap(CURVES, (1, 2)) == 3.0
    declared = pruning.certified(CURVES, (1, 2), threshold=4.0, target=1.0, gap=3.0)
    assert declared.word == "ok" and "certificate +0" in declared.message
    tight = pruning.certified(CURVES, (1, 2), threshold=3.5, target=1.0, gap=3.0)
    assert tight.word == "FAIL" and "the best stopped" in tight.message
    wrong = pruning.certified(CURVES, (1, 2), threshold=4.0, target=1.0, gap=2.0)
    assert wrong.word == "FAIL" and "largest gap 3 where 2 is declared" in wrong.message


def test_a_loss_that_is_no_number_is_stopped_and_last() -> None:
    curves = {"nan": [1.0, math.nan, math.nan], "ok": [2.0, 2.0, 2.0]}
    found = pruning.replay(pruning.threshold_rule(3.0, (2,)), curves)
    assert found.stopped == {"nan": 2} and found.best == "ok" and found.lost == 0.0


def test_halving_keeps_a_third() -> None:
    found = pruning.replay(pruning.halving_rule((2,)), CURVES)
    assert len(CURVES) - len(found.stopped) == keep(len(CURVES)) == 1 and found.survivor == "a"


curves = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.lists(st.floats(0, 8), min_size=4, max_size=4), min_size=1, max_size=6
)


@given(curves, st.floats(0, 4), st.floats(0, 2))
def test_a_certified_threshold_never_loses_a_trial_that_reaches_the_target(
    drawn: dict[str, list[float]], target: float, slack: float
) -> None:
    """INV-2's theorem, on the replay: with the gap that the curves show, and a threshold that it certifies."""
    gap = pruning.largest_gap(drawn, (1, 2))
    threshold = math.nextafter(target + gap, math.inf) + slack + 1e-9
    found = pruning.replay(pruning.threshold_rule(threshold, (1, 2)), drawn)
    assert not [name for name in found.stopped if drawn[name][-1] <= target]


@given(curves)
def test_a_rule_that_stops_nobody_loses_nothing(drawn: dict[str, list[float]]) -> None:
    assert prune_rule(lambda own, others: False, drawn).word == "ok"
