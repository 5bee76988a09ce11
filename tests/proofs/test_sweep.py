"""Sweeps: a sample is TESTED, all blocks are PROVED, an ended sweep goes on, and nothing else is green."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from karat.core.evidence import Grade
from karat.core.obligation import Checked, Sweep
from karat.core.report import ProofLock
from karat.invariants import standing
from karat.invariants.catalogue import find
from karat.proofs import verify, worker
from karat.proofs.engines import sweep_engine
from karat.proofs.engines.sweep_engine import Record, sweep
from karat.proofs.exploration import Outcome
from karat.proofs.worker import decide, decide_all

BLOCKS = 200
CHECKED: list[int] = []


def square(x: int) -> int:
    return x * x


def wrong_at_777(x: int) -> int:
    return x * x + (x == 777)


def twice(x: int) -> int:
    return 2 * x


def check_block(block: int, function: Any) -> Checked:
    """Ten numbers a block: the square of each."""
    if function is not twice:
        CHECKED.append(block)
    wrong = [x for x in range(10 * block, 10 * block + 10) if function(x) != x**2]
    return Checked(10, f"the square of {wrong[0]} is {function(wrong[0])}" if wrong else None)


def squares(**changes: Any) -> Sweep:
    base: dict[str, Any] = {
        "blocks": BLOCKS, "check_block": check_block, "rivals": {"twice": (twice,)}, "sample_blocks": 20, "seed": 1,
    }  # fmt: skip
    about = changes.pop("about", (square,))
    return Sweep("INV-3.squares", "squares are squares", about, **{**base, **changes})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweep_engine, "FOLDER", tmp_path)
    CHECKED.clear()
    return tmp_path


def test_the_sample_is_tested_with_number_and_seed() -> None:
    evidence = decide(squares())
    assert evidence.grade is Grade.TESTED and evidence.expected
    assert evidence.detail == "200 cases: 20 of 200 blocks, seed 1"
    drawn = list(CHECKED)
    assert len(set(drawn)) == 20
    CHECKED.clear()
    sweep(squares())
    assert drawn == CHECKED
    CHECKED.clear()
    sweep(squares(seed=2))
    assert set(drawn) != set(CHECKED)


def test_all_blocks_are_proved_and_leave_no_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_engine, "RECORD_SECONDS", 0.0)
    outcome = sweep(squares(slow=True))
    assert outcome.grade is Grade.PROVED and outcome.detail == "all 2,000 cases, 200 blocks"
    assert sorted(CHECKED) == list(range(BLOCKS)) and not list(folder.iterdir())


def test_a_failure_is_refuted_with_its_case() -> None:
    evidence = decide(squares(slow=True, about=(wrong_at_777,)))
    assert evidence.grade is Grade.REFUTED and evidence.counterexample is not None
    assert evidence.counterexample.values == {"block": "77"} and evidence.counterexample.reproduced
    assert evidence.counterexample.note == "the square of 777 is 603730"
    assert decide(squares(about=(twice,))).grade is Grade.REFUTED


def test_a_function_that_raises_is_refuted() -> None:
    def raises(x: int) -> int:
        return 1 // (x - x)

    evidence = decide(squares(about=(raises,)))
    assert evidence.grade is Grade.REFUTED and "ZeroDivisionError" in evidence.detail


@pytest.mark.parametrize("rivals", [{}, {"the same": (square,)}, {"found": (twice,), "rare": (wrong_at_777,)}])
@pytest.mark.parametrize("slow", [False, True])
def test_a_rival_that_is_not_noticed_is_vacuous(rivals: Any, slow: bool) -> None:
    assert 77 not in _sample(squares())
    outcome = sweep(squares(rivals=rivals, slow=slow))
    assert outcome.grade is Grade.VACUOUS and "does not notice" in outcome.detail


def _sample(obligation: Sweep) -> list[int]:
    before = list(CHECKED)
    CHECKED.clear()
    sweep(dataclasses.replace(obligation, slow=False))
    drawn = list(CHECKED)
    CHECKED[:] = before
    return drawn


def test_no_case_is_vacuous() -> None:
    outcome = sweep(squares(check_block=lambda block, function: Checked(0)))
    assert outcome.grade is Grade.VACUOUS and outcome.detail == "no case was checked"


def slowly(block: int, function: Any) -> Checked:
    time.sleep(0.01)
    return check_block(block, function)


def run_slowly(folder: Path) -> None:
    sweep_engine.FOLDER, sweep_engine.RECORD_SECONDS = folder, 0.05
    sweep(squares(check_block=slowly, slow=True, blocks=20_000))


def test_a_sweep_that_was_killed_goes_on_where_it_was(folder: Path) -> None:
    obligation = squares(check_block=slowly, slow=True, blocks=20_000)
    record = Record.of(obligation)
    process = multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Process(
        target=run_slowly, args=(folder,)
    )
    process.start()
    deadline = time.monotonic() + 60
    while record.read(20_000) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    finished, cases = record.read(20_000)
    assert 0 < finished < 20_000 and cases == 10 * finished
    record.write(19_990, 199_900)  # as if it had come further, so that the test ends soon
    outcome = sweep(obligation)
    assert outcome.grade is Grade.PROVED and outcome.detail == "all 200,000 cases, 20,000 blocks"
    assert "19,990" in outcome.checks["resumed"] and set(CHECKED) >= set(range(19_990, 20_000))
    assert len(CHECKED) < 1_000  # the rest and the sample, which is checked whatever a record says


def test_a_record_is_of_one_function_one_check_and_one_statement() -> None:
    base = Record.of(squares(slow=True))
    assert base == Record.of(squares(slow=True))
    for other in (squares(slow=True, about=(twice,)), squares(slow=True, check_block=slowly),
                  squares(slow=True, blocks=BLOCKS + 1)):  # fmt: skip
        assert Record.of(other).path != base.path


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"finished": 150}', '{"key": "0", "finished": 150, "cases": 1500}',
     '{"key": KEY, "finished": 201, "cases": 2010}', '{"key": KEY, "finished": -1, "cases": 10}',
     '{"key": KEY, "finished": 150, "cases": 3}', '{"key": KEY, "finished": "x", "cases": 10}'],
)  # fmt: skip
def test_a_record_that_cannot_be_believed_starts_again(text: str) -> None:
    obligation = squares(slow=True)
    record = Record.of(obligation)
    record.path.write_text(text.replace("KEY", json.dumps(record.key)))
    assert record.read(BLOCKS) == (0, 0)
    assert sweep(obligation).grade is Grade.PROVED and sorted(CHECKED) == list(range(BLOCKS))


def test_a_record_that_can_be_believed_is() -> None:
    record = Record.of(squares(slow=True))
    record.write(150, 1500)
    assert record.read(BLOCKS) == (150, 1500) and sweep(squares(slow=True)).grade is Grade.PROVED
    assert set(CHECKED) >= set(range(150, BLOCKS)) and len(set(CHECKED)) < BLOCKS


def test_the_watchdog_gives_a_slow_obligation_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = next(o for i in worker.invariants() for o in i.obligations if o.id == "INV-3.to-float64")
    jobs: list[worker.Job] = []
    monkeypatch.setattr(worker, "run_jobs", lambda given, processes: jobs.extend(given) or iter(()))
    for obligation in (quick, dataclasses.replace(quick, slow=True)):
        assert list(decide_all([obligation], 1)) == []
    assert [job.seconds for job in jobs] == [worker.WATCHDOG_SECONDS, worker.SLOW_WATCHDOG_SECONDS]


def lock_of(ids: set[str], kept: ProofLock | None = None) -> ProofLock:
    """A lock of INV-3 with the named obligations, as they are now, and what is kept of the lock before."""
    invariant = find("INV-3")
    evidence = [
        worker.evidence(o, Outcome(Grade.REFUTED if o.must_fail else Grade.PROVED), 0.0)
        for o in invariant.obligations
        if o.id in ids
    ]
    return verify.lock_of(evidence, [], kept, {})


def test_a_slow_proof_stays_in_the_lock_while_its_fingerprints_hold() -> None:
    obligations = find("INV-3").obligations
    slow = {o.id for o in obligations if o.slow}
    assert slow == {"INV-3.add", "INV-3.add-all", "INV-3.mul-all"}
    quick = {o.id for o in obligations} - slow
    before = lock_of({o.id for o in obligations})
    assert lock_of(quick, before).proofs == before.proofs and not slow & set(lock_of(quick).proofs["INV-3"])
    stale = before.proofs["INV-3"]["INV-3.add"].model_copy(update={"about": {"core.formulas.gf16_arithmetic.add": "0"}})
    before.proofs["INV-3"]["INV-3.add"] = stale
    assert "INV-3.add" not in lock_of(quick, before).proofs["INV-3"]
    assert "INV-3.add-all" in lock_of(quick, before).proofs["INV-3"]


def test_a_slow_obligation_is_not_demanded_but_its_stale_proof_counts() -> None:
    obligations = find("INV-3").obligations
    lock = lock_of({o.id for o in obligations if not o.slow})
    status = standing.standing(find("INV-3"), lock)
    assert status.current and status.shown == sum(not o.slow and not o.must_fail for o in obligations)
    assert not standing.standing(find("INV-3"), lock_of({o.id for o in obligations if o.slow})).current
    whole = lock_of({o.id for o in obligations})
    assert standing.standing(find("INV-3"), whole).shown == status.shown + 3
    whole.proofs["INV-3"]["INV-3.add"] = whole.proofs["INV-3"]["INV-3.add"].model_copy(update={"grade": "UNKNOWN"})
    assert not standing.standing(find("INV-3"), whole).current


def test_verify_leaves_slow_obligations_to_the_slow_tier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def nothing(obligations: list[Any], *others: Any) -> tuple[list[Any], list[Any]]:
        asked.append({o.id for o in obligations})
        return [], []

    monkeypatch.setattr(verify, "verify", nothing)
    for extra in ([], ["--slow"]):
        verify.main(["--only", "INV-3", "--out", str(tmp_path), *extra])
    assert asked[1] - asked[0] == {"INV-3.add", "INV-3.add-all", "INV-3.mul-all"} and asked[0] < asked[1]
