"""Queries decided by the sign of a difference: the same answers as with the bits, and none where the sign does not do."""

from __future__ import annotations

from typing import Any

import pytest
import z3

from karat.proofs.engines import differences
from karat.proofs.engines.budget import Budget
from karat.proofs.engines.differences import Differences, lemma, sign_of_difference

X, Y, LOW, HIGH = (z3.FP(name, z3.Float64()) for name in ("x", "y", "low", "high"))
ZERO = z3.FPVal(0.0, z3.Float64())


def _minus(a: Any, b: Any) -> Any:
    return z3.fpSub(z3.RNE(), a, b)


def _ask(*assertions: Any) -> tuple[str, Any]:
    return Budget("QF_FP").ask(*assertions)


def _accepted() -> Any:
    above, below = _minus(X, LOW), _minus(HIGH, X)
    return z3.And(z3.fpGEQ(above, ZERO), z3.fpGEQ(below, ZERO))


FINITE = z3.And(z3.Not(z3.fpIsInf(LOW)), z3.Not(z3.fpIsInf(HIGH)))
INSIDE = z3.And(z3.fpLEQ(LOW, X), z3.fpLEQ(X, HIGH))


def test_the_lemma_holds_for_all_doubles() -> None:
    assert _ask(z3.Not(lemma()))[0] == "unsat"


def test_the_lemma_is_not_true_of_any_double() -> None:
    assert _ask(z3.Not(sign_of_difference(z3.FP("any", z3.Float64()), X, Y)))[0] == "sat"


@pytest.mark.parametrize(
    ("assertions", "answer"),
    [
        ((_accepted(), z3.Not(INSIDE)), "unsat"),
        ((FINITE, INSIDE, z3.Not(_accepted())), "unsat"),
        ((INSIDE, z3.Not(_accepted())), "sat"),  # infinite ends: inf - inf is NaN
        ((_accepted(), z3.Not(z3.fpLT(LOW, X))), "sat"),  # `<` for `<=`
        ((_accepted(), z3.fpIsNaN(X)), "unsat"),
    ],
)
def test_a_guard_is_decided_as_with_the_bits(assertions: tuple[Any, ...], answer: str) -> None:
    found = Differences().by_sign(assertions, _ask)
    assert found is not None and found[0] == answer == _ask(*assertions)[0]
    if answer == "sat":
        values = [(name, found[1].eval(name, model_completion=True)) for name in (X, LOW, HIGH)]
        assert z3.is_true(z3.simplify(z3.substitute(z3.And(*assertions), *values)))


def test_what_depends_on_more_than_the_sign_is_decided_with_the_bits() -> None:
    one = z3.FPVal(1.0, z3.Float64())
    assertions = (z3.fpGT(X, one), z3.fpGT(Y, one), z3.fpEQ(_minus(X, Y), z3.FPVal(1e-300, z3.Float64())))
    # the sign allows a difference of 1e-300, the bits do not: doubles above 1 are 2^-52 apart
    assert Differences().by_sign(assertions, _ask) is None
    assert Budget("QF_FP").check(*assertions)[0] == "unsat"


def test_without_the_lemma_nothing_is_decided_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_SHOWN", [])
    monkeypatch.setattr(differences, "lemma", lambda: z3.fpGT(_minus(X, Y), ZERO))  # false: not every difference is
    assert Differences().by_sign((_accepted(), z3.Not(INSIDE)), _ask) is None
    assert differences._SHOWN == [False]


def test_a_few_differences_from_constants_are_left_to_the_bits() -> None:
    half = z3.FPVal(0.5, z3.Float64())
    assert Differences().by_sign((z3.fpGEQ(_minus(X, half), ZERO), z3.fpLT(X, half)), _ask) is None


def test_equal_signs_of_zero_are_told_apart() -> None:
    """A model with -0.0 is a model with -0.0."""
    assertions = (z3.fpIsNegative(X), z3.fpIsZero(X), z3.fpGEQ(_minus(X, Y), ZERO), z3.fpGEQ(_minus(Y, X), ZERO))
    found = Differences().by_sign(assertions, _ask)
    assert found is not None and found[0] == "sat"
    assert z3.is_true(z3.simplify(z3.fpIsNegative(found[1][X])))
