"""The carriers: what they follow, what they refuse, and the traps that plain Z3 terms fall into."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import z3

from karat.core.formulas import schedule
from karat.core.golden import PHI
from karat.proofs.evaluate import evaluate
from karat.proofs.machine_carriers import BitSym, DoubleSym
from karat.proofs.real_carrier import RealSym, SymbolicOps, lift
from karat.proofs.symbolic import Concretised, Explorer, PathBudget, SBool

x, y = RealSym(z3.Real("x")), RealSym(z3.Real("y"))


def proved(claim: Any, *given: Any) -> bool:
    solver = z3.Solver()
    solver.add(*given, z3.Not(claim))
    return bool(solver.check() == z3.unsat)


def test_builtin_min_max_if_and_chains_fork_completely() -> None:
    def function() -> Any:
        top = max(x, y)
        return top if 0 <= top < 5 else min(x, 3)

    paths = Explorer([]).run(function)
    assert proved(z3.Or(*[z3.And(*p.condition) for p in paths]))
    for a, b in ((Fraction(1), Fraction(4)), (Fraction(7), Fraction(2)), (Fraction(-3), Fraction(-1))):
        taken = [p for p in paths if all(evaluate(c, {"x": a, "y": b}) for c in p.condition)]
        top = max(a, b)
        assert len(taken) == 1 and evaluate(lift(taken[0].value), {"x": a, "y": b}) == (
            top if 0 <= top < 5 else min(a, 3)
        )


def test_infeasible_sides_are_not_taken() -> None:
    assert len(Explorer([x.e > 2]).run(lambda: schedule.clamp(x, 0, 1))) == 1
    assert len(Explorer([]).run(lambda: schedule.clamp(x, 0, 1))) == 3


def test_a_float_is_lifted_by_its_binary_value() -> None:
    term = Explorer([]).run(lambda: lift(0.1))[0].value
    assert evaluate(term, {}) == Fraction(0.1) != Fraction(1, 10)


def test_a_golden_is_lifted_with_its_minimal_polynomial() -> None:
    explorer = Explorer([])
    square = explorer.run(lambda: x * PHI * PHI)[0].value
    assert proved(square.e == x.e * (1 + z3.Real("phi")), *explorer.axioms.values())


def test_equality_is_a_condition_not_identity() -> None:
    paths = Explorer([]).run(lambda: 1 if x == y else 2)
    assert sorted(p.value for p in paths) == [1, 2]


@pytest.mark.parametrize(
    "use", [float, int, hash, round, lambda s: f"{s:.2f}", lambda s: [1, 2, 3][s], lambda s: {s: 1}, math.exp]
)
def test_what_cannot_be_followed_is_refused(use: Any) -> None:
    with pytest.raises((Concretised, TypeError)):
        Explorer([]).run(lambda: use(x))


def test_a_condition_outside_an_exploration_is_refused() -> None:
    with pytest.raises(Concretised, match="outside an exploration"):
        bool(x < 1)


def test_division_notes_its_divisor() -> None:
    path = Explorer([]).run(lambda: x / (y - 1))[0]
    assert len(path.divisors) == 1 and proved(path.divisors[0][1] == y.e - 1)
    assert not Explorer([]).run(lambda: x / Fraction(1, 3))[0].divisors


def test_floor_division_rounds_down_as_python_does() -> None:
    n = RealSym(z3.Int("n"))
    term = Explorer([]).run(lambda: n // 3)[0].value.e
    assert [evaluate(term, {"n": k}) for k in (-4, -1, 0, 2, 7)] == [k // 3 for k in (-4, -1, 0, 2, 7)]
    with pytest.raises(Concretised):
        Explorer([]).run(lambda: n // -3)


def test_path_budget() -> None:
    def many() -> int:
        return sum(bool(RealSym(z3.Real(f"v{k}")) > 0) for k in range(12))

    with pytest.raises(PathBudget):
        Explorer([]).run(many)


def test_doubles_are_doubles() -> None:
    a = DoubleSym(z3.FP("a", z3.Float64()))
    nan_is_equal = Explorer([]).run(lambda: a == a)[0].value
    assert not proved(nan_is_equal.e)  # NaN is not
    rounded = Explorer([]).run(lambda: (DoubleSym(a.lift(1e16)) + 1) == 1e16)[0].value
    assert proved(rounded.e)
    with pytest.raises(Concretised):
        a.lift(2**53 + 1)


def test_products_of_doubles_may_be_anything() -> None:
    a = DoubleSym(z3.FP("a", z3.Float64()))
    explorer = Explorer([])
    product = explorer.run(lambda: a * 2)[0].value
    assert not proved(product.e == (a + a).e) and "any double" in " ".join(explorer.assumed)


def test_bits_wrap_and_shift_as_int32_does() -> None:
    b = BitSym(z3.BitVecVal(0x7FFFFFFF, 32))
    assert z3.simplify((b + 1).e).as_signed_long() == -(2**31)
    assert z3.simplify(((b + 1) >> 4).e).as_signed_long() == -(2**27)


def test_truth_values() -> None:
    p, q = SBool(z3.Bool("p")), SBool(z3.Bool("q"))
    assert proved(((p & q).implies(p)).e) and proved((p | ~p).e) and proved(((p == True) == p).e)  # noqa: E712
    assert proved((True & p == p).e)
    with pytest.raises(Concretised):
        SBool.lift(1)


def test_where_and_logarithms() -> None:
    explorer, ops = Explorer([]), SymbolicOps()
    value = explorer.run(lambda: ops.log(Fraction(1, 9)) + ops.log(9))[0].value
    assert proved(value.e == 0, *explorer.axioms.values())
    high = explorer.run(lambda: ops.log(9) < Fraction(22, 10))[0].value
    assert proved(high.e, *explorer.axioms.values())
    assert len(Explorer([]).run(lambda: ops.minimum(x, y))) == 1
