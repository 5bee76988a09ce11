"""The engines never call a claim proved that is false, empty, undecided or about another function."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from karat.core.evidence import Evidence, Grade
from karat.core.formulas import birkhoff
from karat.core.obligation import (
    BitLaw,
    Checked,
    Exact,
    Exhaustive,
    FloatLaw,
    Formula,
    Goal,
    Identity,
    Obligation,
    Property,
)
from karat.proofs import discipline, worker
from karat.proofs.engines import budget
from karat.proofs.worker import decide, decide_all


def in_unit(v: Any) -> dict[str, Any]:
    return {"0 <= x": v.x >= 0, "x <= 1": v.x <= 1}


def unit(random: Random) -> dict[str, Any]:
    return {"x": Fraction(random.randint(0, 10), 10)}


def square(x: Any) -> Any:
    return x * x


def formula(**changes: Any) -> Formula:
    base: dict[str, Any] = {
        "variables": {"x": "real"}, "given": in_unit, "show": lambda v, f: f(v.x) <= v.x, "sample": unit,
    }  # fmt: skip
    return Formula("INV-8.test", "x^2 <= x on [0, 1]", (square,), **{**base, **changes})


def graded(obligation: Obligation) -> Grade:
    return decide(obligation).grade


def test_a_theorem_is_proved_with_all_its_checks() -> None:
    evidence = decide(formula())
    assert evidence.grade is Grade.PROVED and evidence.expected
    assert set(evidence.checks) == {
        "hypotheses satisfiable", "paths", "not a tautology", "hypotheses needed", "translation validated",
    }  # fmt: skip
    assert (
        evidence.checks["hypotheses needed"] == "needed: 0 <= x; x <= 1"
        and "witness x = " in evidence.checks["hypotheses satisfiable"]
    )


def test_contradictory_hypotheses_are_vacuous() -> None:
    def impossible(v: Any) -> dict[str, Any]:
        return in_unit(v) | {"x > 2": v.x > 2}

    def show(v: Any, f: Any) -> Any:
        return f(v.x) == 77

    assert graded(formula(given=impossible, show=show, must_fail=True)) is Grade.VACUOUS
    assert graded(formula(given=impossible, show=show)) is Grade.VACUOUS


def test_a_tautology_is_vacuous() -> None:
    assert graded(formula(show=lambda v, f: v.x <= 2)) is Grade.VACUOUS
    assert graded(formula(show=lambda v, f: (f(v.x) >= 0) | (f(v.x) < 0) | (v.x >= 0))) is Grade.VACUOUS


def test_a_false_claim_is_refuted_on_the_running_function() -> None:
    evidence = decide(formula(show=lambda v, f: f(v.x) != Fraction(1, 9)))
    assert evidence.grade is Grade.REFUTED and evidence.counterexample is not None
    assert evidence.counterexample.reproduced and evidence.counterexample.values["x"].startswith("1/3")


def test_a_claim_that_was_to_fail_and_holds_is_not_expected() -> None:
    evidence = decide(formula(must_fail=True))
    assert evidence.grade is Grade.PROVED and not evidence.expected


def test_a_claim_false_at_a_sample_needs_no_solver() -> None:
    evidence = decide(formula(show=lambda v, f: f(v.x) < v.x))
    assert evidence.grade is Grade.REFUTED and evidence.detail == "fails on a sample"


def test_undecided_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RLIMIT", 1)
    evidence = decide(formula(show=lambda v, f: f(f(v.x)) * f(v.x) + v.x * (1 - v.x) * f(v.x) <= v.x))
    assert evidence.grade is Grade.UNKNOWN and not evidence.expected


def test_a_reachable_division_by_zero_is_refuted() -> None:
    def reciprocal(x: Any) -> Any:
        return 1 / (x - Fraction(1, 3))

    obligation = dataclasses.replace(formula(show=lambda v, f: f(v.x) * 0 == 0), about=(reciprocal,))
    evidence = decide(obligation)
    assert evidence.grade is Grade.REFUTED and evidence.counterexample is not None
    assert "ZeroDivisionError" in evidence.counterexample.note


def test_hypotheses_that_are_withheld_do_not_help() -> None:
    assert graded(formula(show=lambda v, f: Goal(f(v.x) <= v.x, ("0 <= x", "x <= 1")))) is Grade.PROVED
    evidence = decide(formula(show=lambda v, f: Goal(f(v.x) <= v.x, ("0 <= x",))))
    assert evidence.grade is Grade.UNKNOWN  # the model is not a counterexample: it breaks x <= 1


def test_samples_outside_the_hypotheses_are_an_error() -> None:
    evidence = decide(formula(sample=lambda random: {"x": Fraction(2)}))
    assert evidence.grade is Grade.ERROR and "does not satisfy the hypothesis" in evidence.detail


def test_translation_validation_finds_a_symbolic_reading_that_differs() -> None:
    def two_faced(x: Any) -> Any:
        return x * x if "numerator" in dir(x) else x * x * x

    evidence = decide(dataclasses.replace(formula(), about=(two_faced,)))
    assert evidence.grade is Grade.ERROR and "explored" in evidence.detail


def in_band(x: Any) -> Any:
    return (x >= 1.5) & (x <= 2.5)


def not_out_of_band(x: Any) -> Any:
    return ((x < 1.5) | (x > 2.5)) == False  # noqa: E712 - symbolic too


@pytest.mark.parametrize(("guard", "over_doubles"), [(in_band, Grade.PROVED), (not_out_of_band, Grade.REFUTED)])
def test_a_guard_that_accepts_nan_is_right_over_the_reals_and_refuted_over_doubles(
    guard: Any, over_doubles: Grade
) -> None:
    reals = Formula("INV-8.test", "", (guard,), variables={"x": "real"}, sample=unit,
                    show=lambda v, f: f(v.x) == in_band(v.x))  # fmt: skip
    doubles = FloatLaw("INV-8.test", "", (guard,), variables=("x",), sample=lambda r: {"x": r.uniform(0, 3)},
                       show=lambda v, f: f(v.x) == in_band(v.x))  # fmt: skip
    assert graded(reals) is Grade.PROVED
    evidence = decide(doubles)
    assert evidence.grade is over_doubles
    if over_doubles is Grade.REFUTED:
        assert evidence.counterexample is not None and evidence.counterexample.values["x"] == "nan"


def test_float_law_finds_the_rounding_that_the_reals_do_not_have() -> None:
    def there_and_back(x: Any, y: Any) -> Any:
        return (x + y) - y

    law = FloatLaw("INV-8.test", "", (there_and_back,), variables=("x", "y"),
                   given=lambda v: {"unit": (v.x >= 0.0) & (v.x <= 1.0) & (v.y >= 0.0) & (v.y <= 1.0)},
                   show=lambda v, f: f(v.x, v.y) == v.x, sample=lambda r: {"x": 0.5, "y": 0.25})  # fmt: skip
    evidence = decide(law)
    assert (
        evidence.grade is Grade.REFUTED and evidence.counterexample is not None and evidence.counterexample.reproduced
    )


def test_exact_must_tell_values_apart() -> None:
    good = Exact("INV-8.test", "", (), show=lambda x: x > 1, at=2, not_at=(0,))
    assert graded(good) is Grade.PROVED
    assert graded(dataclasses.replace(good, not_at=(3,))) is Grade.VACUOUS
    assert graded(dataclasses.replace(good, not_at=())) is Grade.VACUOUS
    assert graded(dataclasses.replace(good, at=0, not_at=(-1,))) is Grade.REFUTED


def test_exhaustive_must_notice_its_rivals() -> None:
    def check(f: Any) -> Checked:
        bad = next((k for k in range(10) if f(k) != k * k), None)
        return Checked(10, None if bad is None else f"{bad}")

    good = Exhaustive("INV-8.test", "", (square,), check=check, rivals={"cube": (lambda x: x**3,)})
    assert graded(good) is Grade.PROVED
    assert graded(dataclasses.replace(good, rivals={"same": (square,)})) is Grade.VACUOUS
    assert graded(dataclasses.replace(good, rivals={})) is Grade.VACUOUS
    assert graded(dataclasses.replace(good, about=(lambda x: -x,))) is Grade.REFUTED
    assert graded(dataclasses.replace(good, check=lambda f: Checked(0))) is Grade.VACUOUS


def test_property_is_tested_never_proved() -> None:
    good = Property("INV-8.test", "", (square,), strategy=lambda st: st.integers(), holds=lambda x, f: f(x) >= x,
                    rivals={"negation": (lambda x: -x,)}, examples=50)  # fmt: skip
    evidence = decide(good)
    assert evidence.grade is Grade.TESTED and evidence.detail == "50 examples, derandomised"
    assert graded(dataclasses.replace(good, rivals={"same": (square,)})) is Grade.VACUOUS
    wrong = decide(dataclasses.replace(good, holds=lambda x, f: f(x) < 1000))
    assert wrong.grade is Grade.REFUTED and wrong.counterexample is not None
    assert wrong.counterexample.values["value"] == "32"  # shrunk


def test_identity_expands_to_zero_or_is_refuted() -> None:
    def associative(sympy: Any, ops: Any, matmul: Any) -> Any:
        a, b, c = ([[sympy.Symbol(f"{n}{i}{j}") for j in range(2)] for i in range(2)] for n in "abc")
        left, right = matmul(matmul(a, b, ops), c, ops), matmul(a, matmul(b, c, ops), ops)
        return [left[i][j] - right[i][j] for i in range(2) for j in range(2)]

    good = Identity("INV-11.test", "", (birkhoff.matmul,), show=associative)
    assert graded(good) is Grade.PROVED
    assert graded(dataclasses.replace(good, show=lambda s, o, f: [s.Symbol("x") - s.Symbol("x")])) is Grade.VACUOUS
    assert graded(dataclasses.replace(good, show=lambda s, o, f: [s.Symbol("x")])) is Grade.REFUTED


def test_bit_law() -> None:
    def halve(bits: Any, ops: Any) -> Any:
        return bits >> 1

    good = BitLaw("INV-3.test", "", (halve,), variables={"bits": 16}, show=lambda v, z3, f: f(v.bits, v.ops).e * 2
                  + (v.bits.e & 1) == v.bits.e, run=lambda v, f: f(v.bits, v.ops),
                  sample=lambda r: {"bits": r.getrandbits(16)})  # fmt: skip
    assert graded(good) is Grade.PROVED
    assert graded(dataclasses.replace(good, about=(lambda bits, ops: bits >> 2,))) is Grade.REFUTED
    assert (
        graded(dataclasses.replace(good, show=lambda v, z3, f: f(v.bits, v.ops).e == f(v.bits, v.ops).e))
        is Grade.VACUOUS
    )


def test_bit_law_in_a_wide_lane_between_calls_and_of_truth_values() -> None:
    def double(a: Any, ops: Any) -> Any:
        return a + a

    def top(a: Any, ops: Any) -> Any:
        return a > 0xFFFFFFFF

    law = BitLaw("INV-3.test", "", (double,), variables={"a": 32, "b": 32}, lane=64, sample=lambda r: {"a": 5, "b": 7},
                 show=lambda v, z3, f: f(v.a, v.ops).e == v.a.e * 2, run=lambda v, f: f(v.a, v.ops))  # fmt: skip
    assert graded(law) is Grade.PROVED
    wraps = dataclasses.replace(law, show=lambda v, z3, f: top(f(v.a, v.ops), v.ops).e == (v.a.e > 0x7FFFFFFF))
    assert graded(wraps) is Grade.PROVED  # in a lane of 32 bits the sum wraps around
    assert graded(dataclasses.replace(wraps, lane=32)) is Grade.REFUTED
    between = dataclasses.replace(law, show=lambda v, z3, f: f(v.a + v.b, v.ops) == f(v.a, v.ops) + f(v.b, v.ops))
    assert graded(between) is Grade.PROVED  # not vacuous: an arbitrary function is not additive
    assert graded(dataclasses.replace(between, show=lambda v, z3, f: f(v.a, v.ops) == f(v.a, v.ops))) is Grade.VACUOUS
    truth = dataclasses.replace(law, about=(top,), show=lambda v, z3, f: z3.Not(f(v.a, v.ops).e),
                                run=lambda v, f: v.ops.where(f(v.a, v.ops), 1, v.ops.constant(0, v.a)))  # fmt: skip
    assert graded(truth) is Grade.PROVED
    assert graded(dataclasses.replace(truth, show=lambda v, z3, f: f(v.a, v.ops))) is Grade.REFUTED


def test_products_in_hypothesis_and_claim_are_not_the_same_unknown() -> None:
    def product(a: Any, b: Any) -> Any:
        return a * b

    law = FloatLaw("INV-8.test", "", (product,), variables=tuple("xyabc"), sample=lambda r: dict.fromkeys("xyabc", 0.5),
                   given=lambda v: {"bounded": v.x * v.y <= v.c}, show=lambda v, f: f(v.a, v.b) <= v.c)  # fmt: skip
    assert graded(law) is not Grade.PROVED


def test_hypotheses_that_branch_are_refused() -> None:
    law = BitLaw("INV-3.test", "", (square,), variables={"bits": 16}, given=lambda v: {"either": v.bits < 10 or v.bits > 100},
                 show=lambda v, z3, f: f(v.bits).e < 20, run=lambda v, f: f(v.bits), sample=lambda r: {"bits": 3})  # fmt: skip
    assert graded(law) is Grade.ERROR


def test_a_formula_that_looks_at_types_is_refused() -> None:
    with pytest.raises(ValueError, match="isinstance"):
        discipline.check_tree("f", "Call(func=Name(id='isinstance'))", discipline.FORBIDDEN)
    assert graded(formula(variables={"phi": "real"}, given=lambda v: {}, show=lambda v, f: f(v.phi) >= 0,
                          sample=lambda r: {"phi": Fraction(1)})) is Grade.ERROR  # fmt: skip


def test_logarithms_are_not_forced() -> None:
    def power(sympy: Any, ops: Any, f: Any) -> Any:
        x = sympy.Symbol("x", real=True)
        return [f(ops, x) - 2 * sympy.log(x)]

    obligation = Identity("INV-4.test", "ln x^2 = 2 ln x for all real x", (lambda ops, x: ops.log(x * x),), show=power)
    assert graded(obligation) is not Grade.PROVED


def test_an_engine_that_raises_is_an_error() -> None:
    def broken(v: Any, f: Any) -> Any:
        raise KeyError("broken")

    evidence = decide(formula(show=broken))
    assert evidence.grade is Grade.ERROR and "KeyError" in evidence.detail and not evidence.expected


def collect(obligations: list[Obligation]) -> dict[str, Evidence]:
    return {o.id: e for o, e in decide_all(obligations, 2)}


def test_obligations_are_decided_in_processes_of_their_own() -> None:
    wanted = [o for i in worker.invariants() for o in i.obligations if o.id in ("INV-2.sufficient", "INV-8.champion")]
    found = collect(wanted)
    assert {e.grade for e in found.values()} == {Grade.PROVED} and len(found) == 2


def test_the_watchdog_ends_an_obligation_and_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WATCHDOG_SECONDS", 0.05)
    slow = next(o for i in worker.invariants() for o in i.obligations if o.id == "INV-8.returned")
    evidence = collect([slow])["INV-8.returned"]
    assert evidence.grade is Grade.UNKNOWN and "watchdog" in evidence.detail and not evidence.expected


def test_a_process_that_dies_is_an_error() -> None:
    stray = Exact("INV-8.not-in-the-catalogue", "", (), show=lambda x: True, at=math.pi, not_at=())
    evidence = collect([stray])["INV-8.not-in-the-catalogue"]
    assert evidence.grade is Grade.ERROR and "ended with code" in evidence.detail
