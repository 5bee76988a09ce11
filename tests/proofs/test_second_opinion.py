"""The second opinion: what is recorded is what Z3 was asked, a contradiction is an error, silence is neither."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import z3
from rich.console import Console

from karat.core.evidence import Grade
from karat.core.obligation import FloatLaw, Formula, Obligation
from karat.proofs import cvc5_solver, second_opinion
from karat.proofs import queries as queries_module
from karat.proofs.cvc5_solver import Answer, Solver
from karat.proofs.engines.budget import Budget
from karat.proofs.queries import Query, query, recording, smtlib
from karat.proofs.second_opinion import (
    AGREED,
    DISAGREED,
    NONE,
    REFUSED,
    Opinion,
    exit_code,
    main,
    recorded,
    replay,
    summary,
    verdict,
)
from karat.proofs.worker import decide, invariants

x, y = z3.Real("x"), z3.Real("y")


def obligation(name: str) -> Obligation:
    return next(o for i in invariants() for o in i.obligations if o.id == name)


ONE_PER_ENGINE = ("INV-10.keep", "INV-2.nan", "INV-3.encoder", "INV-4.range")


@pytest.fixture(scope="module")
def real() -> dict[str, list[Query]]:
    """The queries of a theorem, a law of float64, a law of bits and a theorem with ln and x ln x."""
    found = {}
    for name in ONE_PER_ENGINE:
        with recording() as queries:
            decide(obligation(name))
        found[name] = queries
    return found


def ask(queries: Sequence[Query], folder: Path, seconds: float = 20) -> Opinion:
    with Solver(seconds) as solver:
        return replay(obligation("INV-2.nan"), queries, solver, folder)


@pytest.mark.parametrize("name", ONE_PER_ENGINE)
def test_the_recorded_text_gives_z3s_answer_again(real: dict[str, list[Query]], name: str) -> None:
    assert {"hypotheses", "goal", "arbitrary function"} <= {q.purpose for q in real[name]}
    for q in real[name]:
        solver = z3.Solver()
        solver.add(z3.parse_smt2_string(q.text))
        assert q.faithful and str(solver.check()) == q.answer and q.text.endswith("(check-sat)\n")


def test_cvc5_confirms_real_obligations(real: dict[str, list[Query]], tmp_path: Path) -> None:
    opinion = ask([q for name in ONE_PER_ENGINE for q in real[name]], tmp_path)
    assert {r.z3 for r in opinion.replays} == {"sat", "unsat"}
    assert opinion.count(AGREED) == len(opinion.replays) and exit_code([opinion]) == 0
    assert all((tmp_path / r.file).read_text(encoding="utf-8").startswith("; INV-2.nan") for r in opinion.replays)


def test_a_contradiction_is_an_error(real: dict[str, list[Query]], tmp_path: Path) -> None:
    other = {"sat": "unsat", "unsat": "sat"}
    for place, honest in enumerate(real["INV-2.nan"]):
        queries = list(real["INV-2.nan"])
        queries[place] = honest.model_copy(update={"answer": other[honest.answer]})
        opinion = ask(queries, tmp_path)
        assert [r.verdict for r in opinion.replays].count(DISAGREED) == 1
        assert opinion.replays[place].verdict == DISAGREED and opinion.error
        assert exit_code([opinion]) == 2 and "1 disagreed" in summary([opinion])


def test_a_text_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = query("goal", [x * x < 0], "unsat")
    assert honest.faithful and verdict(honest, Answer("unsat", "", 0)) == AGREED
    monkeypatch.setattr(queries_module, "smtlib", lambda _: smtlib([x * x < -1]))
    wrong = query("goal", [x * x < 0], "unsat")
    assert not wrong.faithful and verdict(wrong, Answer("unsat", "", 0)) == REFUSED


def test_a_text_that_cvc5_cannot_read_is_refused(tmp_path: Path) -> None:
    unknown_function = Query(purpose="goal", text="(set-logic ALL)\n(assert (foo 1))\n(check-sat)\n", answer="unsat")
    opinion = ask([unknown_function, query("goal", [x < x], "unsat")], tmp_path)
    assert [r.verdict for r in opinion.replays] == [REFUSED, AGREED] and exit_code([opinion]) == 2


def factoring(answer: str) -> Query:
    """Two factors of a 62-bit product of primes: no solver finds them in a second."""
    a, b = z3.BitVecs("a b", 64)
    product = 1_500_450_271 * 2_860_486_313
    small = [z3.ULT(a, 2**32), z3.ULT(b, 2**32), z3.UGT(a, 1), z3.UGT(b, 1)]
    return query("goal", [a * b == product, *small], answer)


def test_a_query_that_takes_too_long_is_no_opinion(tmp_path: Path) -> None:
    opinion = ask([factoring("sat"), query("goal", [x < x], "unsat")], tmp_path, seconds=0.6)
    assert [r.verdict for r in opinion.replays] == [NONE, AGREED]
    assert opinion.replays[0].seconds < 8 and exit_code([opinion]) == 0
    assert exit_code([opinion.model_copy(update={"replays": opinion.replays[:1]})]) == 2  # nothing is confirmed


def test_the_watchdog_ends_what_the_solvers_own_limit_does_not(tmp_path: Path) -> None:
    with Solver(600, grace=-149.5) as solver:  # the limit never comes, the watchdog does after half a second
        opinion = replay(obligation("INV-2.nan"), [factoring("unsat")], solver, tmp_path)
    assert opinion.replays[0].verdict == NONE and "watchdog" in opinion.replays[0].how


def test_unknown_is_never_agreement() -> None:
    q = query("goal", [x * x < 0], "unknown")
    assert verdict(q, Answer("unsat", "", 0)) == NONE and verdict(q, Answer("none", "", 0)) == NONE


def test_an_obligation_without_queries_is_an_error() -> None:
    stray = FloatLaw("INV-8.not-in-the-catalogue", "", (), variables=(), show=lambda v: True, sample=lambda r: {})
    assert recorded(stray) == []
    opinion = Opinion(obligation=stray.id, engine=stray.engine, replays=(), note="no query could be recorded")
    assert exit_code([opinion]) == 2


def test_an_irrational_witness_is_found_by_coverings() -> None:
    with Solver(3) as solver:
        answer = solver.answer(query("hypotheses", [x * x == 2, x > 0], "sat").text)
    assert (answer.result, answer.how) == ("sat", "coverings")


def test_a_witness_of_z3_confirms_or_contradicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvc5_solver, "STRATEGIES", {})  # the witness is asked last: here it is all there is
    check = z3.Solver()
    check.add(x == z3.Q(1, 3), y == -2)
    assert str(check.check()) == "sat"
    q = query("hypotheses", [x + y < 0], "sat", check.model())
    assert set(q.witness) == {"(= x (/ 1.0 3.0))", "(= y (- 2.0))"}
    with Solver(10) as solver:
        assert verdict(q, solver.answer(q.text, q.witness)) == AGREED
        wrong = solver.answer(q.text, ("(= x 3.0)", "(= y (- 2.0))"))
    assert wrong.how == "at Z3's witness" and verdict(q, wrong) == DISAGREED


def test_an_irrational_value_is_left_out_of_the_witness() -> None:
    check = z3.Solver()
    check.add(x * x == 2, y == 1)
    assert str(check.check()) == "sat"
    assert query("hypotheses", [x * x == 2, y == 1], "sat", check.model()).witness == ("(= y 1.0)",)


def test_what_is_z3s_alone_is_translated() -> None:
    bits = z3.BitVec("bits", 32)
    value = z3.fpBVToFP(bits, z3.Float32())
    back = z3.fpToIEEEBV(value)
    for claim, expected in ((z3.Or(z3.fpIsNaN(value), back == bits), "unsat"), (back == bits + 1, "sat")):
        q = query("goal", [z3.Not(claim)], expected)
        assert q.faithful and "to_ieee" not in q.text
        with Solver(10) as solver:
            assert solver.answer(q.text).result == expected


def test_every_query_of_a_budget_is_recorded_and_nothing_outside() -> None:
    def _complete(budget: Budget) -> Any:
        return budget.check(x > 1, x < 0)

    def _a_new_check(budget: Budget) -> Any:
        return next(budget.check(x > place) for place in (1,))

    with recording() as queries:
        assert _complete(Budget(None))[0] == "unsat" and _a_new_check(Budget(None))[0] == "sat"
        Budget("QF_FP").check(x > 1, purpose="divisor")
    assert [(q.purpose, q.answer) for q in queries][:2] == [("completeness", "unsat"), ("a new check", "sat")]
    assert queries[2].purpose == "divisor"
    Budget(None).check(x > 1)
    assert len(queries) == 3


def test_completeness_is_asked_when_only_one_path_is_left() -> None:
    def beyond(x: Any) -> Any:
        return x * 0 if x > 2 else x

    law = Formula("INV-8.test", "", (beyond,), variables={"x": "real"}, given=lambda v: {"x <= 1": v.x <= 1},
                  show=lambda v, f: f(v.x) == v.x, sample=lambda r: {"x": Fraction(1, 2)})  # fmt: skip
    with recording() as queries:
        evidence = decide(law)
    assert evidence.grade is Grade.PROVED and evidence.checks["paths"] == "1, complete"
    assert [q.answer for q in queries if q.purpose == "completeness"] == ["unsat"]


def test_names_of_arbitrary_results_do_not_depend_on_the_process() -> None:
    q = query("goal", [z3.Real("arbitrary!140123456789!1") > z3.Real("arbitrary!140123450000!1")], "sat")
    assert "140123" not in q.text and "arbitrary!0!1" in q.text and "arbitrary!1!1" in q.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "invariants", lambda: [i for i in invariants() if i.id == "INV-900"])
    (tmp_path / "smt2").mkdir()
    (tmp_path / "smt2" / "INV-900.guard-99.smt2").write_text("of an earlier run")
    assert main(["--out", str(tmp_path), "--jobs", "1"]) == 0
    report = json.loads((tmp_path / "second-opinion.json").read_text(encoding="utf-8"))
    total = sum(report["counts"].values())
    assert report["counts"] == {AGREED: total} and total > 3 and report["by_purpose"]["goal"][AGREED] > 0
    assert len(list((tmp_path / "smt2").iterdir())) == total
    assert f"{total} of {total} queries confirmed (100.0%)" in capsys.readouterr().out
    assert main(["--only", "INV-77", "--out", str(tmp_path)]) == 2


def test_the_table_names_what_is_not_confirmed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    opinion = ask([query("goal", [x < x], "sat")], tmp_path)
    second_opinion.show([opinion], Console(width=170))
    assert "DISAGREED   INV-2.nan-1.smt2, goal: Z3 sat, cvc5 unsat" in capsys.readouterr().out
