"""Jobs, each in a process of its own: a fresh solver state, memory that it cannot exceed, a watchdog that can end it.

A fresh process makes a result independent of what was proved before it, so that two runs agree; and a solver that
ignores its resource limit is killed by the clock, which counts as UNKNOWN.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from karat.core.evidence import Evidence, Grade, MutantRecord, MutantState
from karat.core.invariant import Invariant
from karat.core.obligation import Obligation
from karat.invariants import template
from karat.invariants.catalogue import catalogue
from karat.invariants.standing import fingerprints
from karat.proofs.engines import ENGINES
from karat.proofs.exploration import Outcome
from karat.proofs.mutants import Source
from karat.proofs.mutation import Trial, heavy, judge
from karat.proofs.reach import traced

WATCHDOG_SECONDS, SLOW_WATCHDOG_SECONDS = 120.0, 4 * 3600.0
MEMORY_BYTES = 8 << 30
"""Address space of a job: a mutant whose list grows for ever ends in a MemoryError, not in a dead machine."""

PRELOADED = ["karat.proofs.worker", "karat.proofs.plugin_locks", "karat.proofs.cache", "rich.progress", "rich.table"]
"""Imported once by the process that jobs are forked from: what a job, and the command that it comes from, imports."""


def decide(obligation: Obligation) -> Evidence:
    """Runs the engine; an exception in it is ERROR, never a proof."""
    start = time.perf_counter()
    with traced() as lines:
        try:
            outcome = ENGINES[type(obligation)](obligation)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = Outcome(Grade.ERROR, f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")
    found = evidence(obligation, outcome, time.perf_counter() - start)
    return found.model_copy(update={"reach": {name: tuple(sorted(ran)) for name, ran in sorted(lines.items())}})


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
        slow=obligation.slow,
        demanded=obligation.demanded or outcome.grade is not Grade.UNAVAILABLE,
    )


def invariants() -> tuple[Invariant, ...]:
    """What is verified: the catalogue, and the template, which must stay true to be worth copying."""
    return (*catalogue(), template.INVARIANT)


@dataclass(frozen=True)
class Job:
    """An obligation to decide, by id, or a trial of mutants to judge. seconds: when the watchdog ends it."""

    obligation_id: str = ""
    trial: Trial | None = None
    seconds: float = WATCHDOG_SECONDS


def _child(job: Job, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    known = {o.id: o for i in invariants() for o in i.obligations}
    if job.trial is not None:
        pipe.send([record.model_dump(mode="json") for record in judge(job.trial, known)])
    else:
        pipe.send(decide(known[job.obligation_id]).model_dump(mode="json"))
    pipe.close()


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any, str]]:
    """(job, its result or None, why there is none), each when it is done, `processes` at a time."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    waiting = list(reversed(jobs))
    running: dict[Connection, tuple[Job, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            job = waiting.pop()
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, send), daemon=True)  # type: ignore[attr-defined]
            process.start()
            send.close()
            running[receive] = (job, process, time.perf_counter())
        ready = wait(list(running), timeout=0.2)
        for pipe in list(running):
            job, process, start = running[pipe]
            late = time.perf_counter() - start > job.seconds
            if pipe in ready or late:
                yield job, *_result(pipe, process, pipe in ready, job.seconds)
                del running[pipe]


def _result(pipe: Connection, process: Any, ready: bool, seconds: float) -> tuple[Any, str]:
    try:
        if ready:
            return pipe.recv(), ""
        return None, f"ended by the watchdog after {seconds:.0f} s"
    except EOFError:
        process.join()
        return None, f"the process ended with code {process.exitcode} and no result"
    finally:
        pipe.close()
        process.kill()
        process.join()


def decide_all(obligations: Sequence[Obligation], processes: int) -> Iterator[tuple[Obligation, Evidence]]:
    """Decides obligations, `processes` at a time; yields each when it is done."""
    known = {o.id: o for o in obligations}
    longest_first = sorted(obligations, key=lambda o: not heavy(o))  # so that no processor waits for another at the end
    jobs = [Job(o.id, seconds=SLOW_WATCHDOG_SECONDS if o.slow else WATCHDOG_SECONDS) for o in longest_first]
    for job, result, why in run_jobs(jobs, processes):
        obligation = known[job.obligation_id]
        if result is not None:
            yield obligation, Evidence.model_validate(result)
        else:
            grade = Grade.UNKNOWN if "watchdog" in why else Grade.ERROR
            yield obligation, evidence(obligation, Outcome(grade, why), job.seconds)


def judge_all(trials: Sequence[Trial], processes: int) -> Iterator[tuple[Trial, list[MutantRecord]]]:
    """Judges mutants, `processes` trials at a time. A trial that gave no result leaves its mutants SURVIVED: nothing
    was shown of them."""
    longest_first = sorted(trials, key=lambda trial: -sum(len(against.dear) for against in trial.mutants))
    jobs = [Job(trial=trial, seconds=5 * WATCHDOG_SECONDS) for trial in longest_first]
    for job, result, why in run_jobs(jobs, processes):
        trial = job.trial
        if trial is None:
            continue
        if result is not None:
            yield trial, [MutantRecord.model_validate(row) for row in result]
        else:
            source = Source(sys.modules[trial.module], trial.functions)
            mutants = [source.mutants[against.place] for against in trial.mutants]
            yield (
                trial,
                [
                    MutantRecord(
                        function=m.function, where=m.where, change=m.change, state=MutantState.SURVIVED, by=why
                    )
                    for m in mutants
                ],
            )
