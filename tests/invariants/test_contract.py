"""The contract that every invariant of the catalogue keeps, the template included: one test, all entries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karat.core.errors import KaratError
from karat.core.invariant import Invariant, Witness
from karat.core.observation import Phase
from karat.core.ops import FLOAT
from karat.core.policy import Policy
from karat.core.verdict import accepts
from karat.invariants import template
from karat.invariants.catalogue import BUILT_IN, catalogue, checked, find
from karat.invariants.runtime.monitor import Monitor, Stopped, message
from karat.invariants.runtime.probes import Reading
from karat.invariants.runtime.torch_ops import TORCH

ALL = (*catalogue(), template.INVARIANT)  # plug-ins that are installed here too
each = pytest.mark.parametrize("invariant", ALL, ids=lambda i: i.id)
HOLDS = [(i, w) for i in ALL for w in i.holds]
VIOLATES = [(i, w) for i in ALL for w in i.violates]
named = {"ids": lambda x: x.id if isinstance(x, Invariant) else x.why.replace(" ", "-")[:30]}


@each
def test_record_is_complete(invariant: Invariant) -> None:
    texts = (invariant.statement, invariant.why, *invariant.sources, *invariant.limits)
    assert all(len(text) > 8 for text in texts) and invariant.limits and invariant.sources
    assert invariant.holds and invariant.violates and invariant.obligations and invariant.phases
    assert invariant.bounds(invariant.parameters) and invariant.required(invariant.parameters)
    about = [f for o in invariant.obligations for f in o.about]
    shown = [f for f in about if f is invariant.margin or f.__name__ in invariant.margin.__code__.co_names]
    assert shown, "no obligation is about the margin that the guard computes, nor about what it calls"


@pytest.mark.parametrize(("invariant", "witness"), HOLDS, **named)  # type: ignore[arg-type]
def test_witnesses_that_hold(invariant: Invariant, witness: Witness) -> None:
    assert not invariant.judge(witness.values).violated


@pytest.mark.parametrize(("invariant", "witness"), VIOLATES, **named)  # type: ignore[arg-type]
def test_witnesses_that_violate(invariant: Invariant, witness: Witness) -> None:
    assert invariant.judge(witness.values).violated


def replaced(value: Any, odd: float) -> Any:
    """The value with its first number replaced."""
    if isinstance(value, list):
        return [replaced(value[0], odd), *value[1:]]
    return odd


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@each
def test_anything_not_finite_violates(invariant: Invariant, odd: float) -> None:
    for quantity in invariant.quantities:
        values = dict(invariant.holds[0].values)
        values[quantity.name] = replaced(values[quantity.name], odd)
        verdict = invariant.judge(values)
        assert verdict.violated and quantity.name in verdict.reason


@each
def test_a_missing_observation_is_an_error(invariant: Invariant) -> None:
    with pytest.raises(KeyError, match="which the probe did not give"):
        invariant.judge({})


def as_tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [as_tensors(item) for item in value]
    return value if isinstance(value, Fraction) else torch.tensor(value, dtype=torch.float64)


@each
def test_torch_and_float_agree(invariant: Invariant) -> None:
    @settings(suppress_health_check=list(HealthCheck))
    @given(invariant.strategy(st))
    def agree(values: Mapping[str, Any]) -> None:
        plain = invariant.margin(values, invariant.parameters, FLOAT)
        tensor = invariant.margin({k: as_tensors(v) for k, v in values.items()}, invariant.parameters, TORCH)
        a, b = float(plain), float(tensor)
        assert accepts(a) == accepts(b)
        assert a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-15)

    agree()


@each
def test_fuzz_finds_both_sides_of_the_boundary(invariant: Invariant) -> None:
    seen: set[bool] = set()

    @settings(max_examples=400, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(invariant.strategy(st))
    def visit(values: Mapping[str, Any]) -> None:
        seen.add(invariant.judge(values).violated)

    visit()
    assert seen == {True, False}


def last_that_holds(invariant: Invariant, name: str, good: float, bad: float) -> tuple[float, float]:
    """Neighbouring doubles between good, which holds, and bad, which does not, where the verdict turns."""
    base = dict(invariant.holds[0].values)
    while math.nextafter(good, bad) != bad:
        middle = good + (bad - good) / 2
        middle = math.nextafter(good, bad) if middle in (good, bad) else middle
        if invariant.judge({**base, name: middle}).violated:
            bad = middle
        else:
            good = middle
    return good, bad


@each
def test_the_boundary_that_fuzzing_finds_is_where_the_margin_is_zero(invariant: Invariant) -> None:
    base = dict(invariant.holds[0].values)
    found = 0
    for quantity in invariant.quantities:
        good = base[quantity.name]
        if not isinstance(good, float):
            continue
        beyond: list[float] = []

        @settings(max_examples=300, derandomize=True, database=None)
        @given(st.floats(-1e12, 1e12))
        def search(x: float) -> None:
            if invariant.judge({**base, quantity.name: x}).violated:  # noqa: B023 - called in this turn of the loop
                beyond.append(x)  # noqa: B023

        search()
        for bad in (
            max((x for x in beyond if x < good), default=None),
            min((x for x in beyond if x > good), default=None),
        ):
            if bad is None:
                continue
            inside, outside = last_that_holds(invariant, quantity.name, good, bad)
            at = invariant.judge({**base, quantity.name: inside}).margin
            past = invariant.judge({**base, quantity.name: outside}).margin
            assert at >= 0 > past and at - past <= 4 * math.ulp(max(abs(inside), abs(outside), 1e-300)) + 1e-21
            found += 1
    exact_only = all(isinstance(base[q.name], Fraction) or q.shape or q.name == "loss" for q in invariant.quantities)
    assert found or exact_only


def reading(invariant: Invariant, witness: Witness) -> Reading:
    return Reading(invariant.id, "a witness", {}, lambda numbers: witness.values)


@pytest.mark.parametrize(("invariant", "witness"), VIOLATES, **named)  # type: ignore[arg-type]
def test_each_violating_witness_stops_a_running_monitor(invariant: Invariant, witness: Witness) -> None:
    rows: list[Mapping[str, Any]] = []

    class Sink:
        def write(self, row: Mapping[str, Any]) -> None:
            rows.append(row)

    monitor = Monitor.of([(invariant, invariant.parameters)], Policy.STRICT, ledger=Sink())
    monitor.check(Phase.BEFORE_STEP, 6, [reading(invariant, invariant.holds[0])])
    with pytest.raises(Stopped) as stopped:
        monitor.check(Phase.BEFORE_STEP, 7, [reading(invariant, witness)])
    text = str(stopped.value)
    assert text.startswith(f"{invariant.id} {invariant.slug} violated at step 7 (before the step; strict)")
    assert invariant.required(invariant.parameters) in text and "previous" in text
    assert f"trainer explain {invariant.id}" in text
    assert [row["event"] for row in rows] == ["violation"] and rows[0]["step"] == 7
    assert text == message(monitor.violations[0])


@each
def test_observed_text_names_every_scalar(invariant: Invariant) -> None:
    text = invariant.observed(invariant.holds[0].values)
    for quantity in invariant.quantities:
        if not quantity.shape:
            assert f"{quantity.symbol} = " in text


def test_catalogue_is_ordered_and_unique() -> None:
    assert [i.id for i in catalogue()][:12] == [f"INV-{n}" for n in range(1, 13)]
    with pytest.raises(KaratError, match=r"INV-1.* is defined twice"):
        checked((*BUILT_IN, BUILT_IN[0]))


@pytest.mark.parametrize("name", ["INV-8", "inv-8", "lr-band", "LR-BAND"])
def test_find(name: str) -> None:
    assert find(name).id == "INV-8"


def test_find_offers_the_nearest() -> None:
    with pytest.raises(KaratError, match="did you mean INV-8"):
        find("INV8")


def test_an_obligation_is_named_after_its_invariant() -> None:
    first, second = BUILT_IN[0], BUILT_IN[1]
    with pytest.raises(ValueError, match="not named after"):
        type(first)(**{**vars(first), "obligations": second.obligations})
