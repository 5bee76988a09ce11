"""One obligation, decided in a process of its own: a fresh solver state each time, and a watchdog that can end it.

A fresh process makes the result independent of what was proved before it, so that two runs agree; and a solver that
ignores its resource limit is killed by the clock, which counts as UNKNOWN.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from karat.core.evidence import Evidence, Grade
from karat.core.invariant import Invariant
from karat.core.obligation import (
    BitLaw,
    Exact,
    Exhaustive,
    FloatLaw,
    Formula,
    Identity,
    Obligation,
    Property,
    Sweep,
)
from karat.invariants import template
from karat.invariants.catalogue import catalogue
from karat.invariants.standing import fingerprints
from karat.proofs.engines.bits_engine import prove_bit_law
from karat.proofs.engines.exact_engine import decide_exact, decide_exhaustive
from karat.proofs.engines.hypothesis_engine import fuzz
from karat.proofs.engines.sweep_engine import sweep
from karat.proofs.engines.sympy_engine import prove_identity
from karat.proofs.engines.z3_engine import prove_float_law, prove_formula
from karat.proofs.exploration import Outcome

WATCHDOG_SECONDS = 120.0
SLOW_WATCHDOG_SECONDS = 4 * 3600.0

ENGINES: dict[type[Obligation], Callable[[Any], Outcome]] = {
    Formula: prove_formula,
    FloatLaw: prove_float_law,
    BitLaw: prove_bit_law,
    Identity: prove_identity,
    Exact: decide_exact,
    Exhaustive: decide_exhaustive,
    Property: fuzz,
    Sweep: sweep,
}


def decide(obligation: Obligation) -> Evidence:
    """Runs the engine; an exception in it is ERROR, never a proof."""
    start = time.perf_counter()
    try:
        outcome = ENGINES[type(obligation)](obligation)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome = Outcome(Grade.ERROR, f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")
    return evidence(obligation, outcome, time.perf_counter() - start)


def evidence(obligation: Obligation, outcome: Outcome, seconds: float) -> Evidence:
    """The evidence that an outcome is for an obligation."""
    found = outcome.counterexample
    if obligation.must_fail:
        expected = outcome.grade is Grade.REFUTED and found is not None and found.reproduced
    else:
        expected = outcome.grade in (Grade.PROVED, Grade.TESTED)
    return Evidence(
        obligation=obligation.id,
        invariant=obligation.invariant,
        claim=obligation.claim,
        kind=obligation.kind,
        engine=obligation.engine,
        grade=outcome.grade,
        must_fail=obligation.must_fail,
        expected=expected,
        detail=outcome.detail,
        counterexample=found,
        checks=outcome.checks,
        assumes=outcome.assumes,
        about=fingerprints(obligation),
        seconds=round(seconds, 3),
        rlimit=outcome.rlimit,
    )


def invariants() -> tuple[Invariant, ...]:
    """What is verified: the catalogue, and the template, which must stay true to be worth copying."""
    return (*catalogue(), template.INVARIANT)


def _child(obligation_id: str, pipe: Connection) -> None:
    obligation = next(o for i in invariants() for o in i.obligations if o.id == obligation_id)
    pipe.send(decide(obligation).model_dump_json())
    pipe.close()


def decide_all(
    obligations: list[Obligation], jobs: int, watchdog: float = WATCHDOG_SECONDS
) -> Iterator[tuple[Obligation, Evidence]]:
    """Decides obligations in `jobs` processes at a time; yields each when it is done. A slow one has hours, not `watchdog`."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["karat.proofs.worker"])
    waiting = list(reversed(obligations))
    running: dict[Connection, tuple[Obligation, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            obligation = waiting.pop()
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(obligation.id, send), daemon=True)  # type: ignore[attr-defined]
            process.start()
            send.close()
            running[receive] = (obligation, process, time.perf_counter())
        ready = wait(list(running), timeout=0.2)
        for pipe in list(running):
            obligation, process, start = running[pipe]
            late = time.perf_counter() - start > (SLOW_WATCHDOG_SECONDS if obligation.slow else watchdog)
            if pipe not in ready and not late:
                continue
            yield obligation, _result(obligation, pipe, process, pipe in ready, time.perf_counter() - start)
            del running[pipe]


def _result(obligation: Obligation, pipe: Connection, process: Any, ready: bool, seconds: float) -> Evidence:
    try:
        if ready:
            return Evidence.model_validate_json(pipe.recv())
        outcome = Outcome(Grade.UNKNOWN, f"ended by the watchdog after {seconds:.0f} s")
    except EOFError:
        process.join()
        outcome = Outcome(Grade.ERROR, f"the process ended with code {process.exitcode} and no result")
    finally:
        pipe.close()
        process.kill()
        process.join()
    return evidence(obligation, outcome, seconds)
