"""Finite domains too large for every day: a sample in the ordinary tier, every block in the slow one, resumable.

How far a slow sweep has come is recorded in FOLDER every few seconds, in a file named after all that the obligation
rests on: its functions, its check, its statement, NumPy's version. So a sweep that was ended goes on where it was, and a
change of any of them starts it again. A sweep that is through leaves no record: asked again, it does all the work again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import Checked, Function, Sweep
from karat.core.provenance import digest, environment
from karat.core.report import write_text
from karat.invariants.standing import fingerprints
from karat.proofs.exploration import Outcome

FOLDER = Path("build/verify")
RECORD_SECONDS = 5.0
TELL_SECONDS = 30.0


def sweep(obligation: Sweep, *, thorough: bool = True) -> Outcome:
    """TESTED on the sample, or PROVED on all blocks when the obligation is slow; REFUTED at the first failing block."""
    sample = Random(obligation.seed).sample(range(obligation.blocks), min(obligation.sample_blocks, obligation.blocks))
    record = Record.of(obligation)
    start, cases = record.read(obligation.blocks) if obligation.slow else (0, 0)
    results = _sweep(obligation, record, start, cases) if obligation.slow else _sampled(obligation, sample)
    if obligation.slow and start:  # a record says how far a sweep came; the sample is checked whatever it says
        for number, checked in _sampled(obligation, sample):
            if checked.failure is not None:
                witness = Counterexample(values={"block": str(number)}, reproduced=True, note=checked.failure)
                return Outcome(Grade.REFUTED, checked.failure, witness)
    for number, checked in results:
        if checked.failure is not None:
            witness = Counterexample(values={"block": str(number)}, reproduced=True, note=checked.failure)
            return Outcome(Grade.REFUTED, checked.failure, witness)
        cases += checked.cases
    if cases < 1:
        return Outcome(Grade.VACUOUS, "no case was checked")
    if not thorough:
        return Outcome(Grade.TESTED, f"{cases:,} cases")
    missed = [name for name, rival in obligation.rivals.items() if not _found_out(obligation, rival, sample)]
    if missed or not obligation.rivals:
        return Outcome(Grade.VACUOUS, f"the sample does not notice: {', '.join(missed) or 'no rival is given'}")
    checks = {"not a tautology": "the sample fails for " + ", ".join(obligation.rivals)}
    if not obligation.slow:
        drawn = f"{len(sample):,} of {obligation.blocks:,} blocks, seed {obligation.seed}"
        return Outcome(Grade.TESTED, f"{cases:,} cases: {drawn}", None, checks)
    if start:
        checks["resumed"] = f"blocks before {start:,} were checked by a sweep that was ended"
    record.path.unlink(missing_ok=True)
    return Outcome(Grade.PROVED, f"all {cases:,} cases, {obligation.blocks:,} blocks", None, checks)


def _check(obligation: Sweep, functions: tuple[Function, ...], block: int) -> Checked:
    try:
        return obligation.check_block(block, *functions)
    except (ArithmeticError, ValueError) as error:
        return Checked(0, f"raises {type(error).__name__}: {error}")


def _found_out(obligation: Sweep, rival: tuple[Function, ...], sample: list[int]) -> bool:
    return any(_check(obligation, rival, block).failure is not None for block in sample)


def _sampled(obligation: Sweep, sample: list[int]) -> Iterator[tuple[int, Checked]]:
    for block in sample:
        yield block, _check(obligation, obligation.about, block)


def _sweep(obligation: Sweep, record: Record, start: int, cases: int) -> Iterator[tuple[int, Checked]]:
    """Every block from start on, in order, on all processors; records how far it has come, and tells it."""
    written = told = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter while it computes

        def check(block: int) -> Checked:
            return _check(obligation, obligation.about, block)

        for block, checked in enumerate(_in_order(pool, check, range(start, obligation.blocks)), start):
            yield block, checked
            cases += checked.cases
            now = time.monotonic()
            if now - written >= RECORD_SECONDS:
                record.write(block + 1, cases)
                written = now
            if now - told >= TELL_SECONDS:
                print(f"{obligation.id}: {block + 1:,} of {obligation.blocks:,} blocks", file=sys.stderr, flush=True)
                told = now


def _in_order(pool: ThreadPoolExecutor, check: Callable[[int], Checked], blocks: Iterable[int]) -> Iterator[Checked]:
    """pool.map with a few blocks under way instead of all."""
    waiting = iter(blocks)
    under_way = [pool.submit(check, block) for block in islice(waiting, 4 * (os.cpu_count() or 1))]
    while under_way:
        yield under_way.pop(0).result()
        under_way.extend(pool.submit(check, block) for block in islice(waiting, 1))


@dataclass(frozen=True)
class Record:
    """How far a slow sweep has come, in a file named after what it rests on. The key is taken once, at the start."""

    name: str
    key: str

    @staticmethod
    def of(obligation: Sweep) -> Record:
        return Record(obligation.id, digest([fingerprints(obligation), environment(("numpy",))]))

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}-{self.key[:16]}.json"

    def write(self, finished: int, cases: int) -> None:
        """Blocks 0 to finished - 1 hold, which were so many cases."""
        write_text(self.path, json.dumps({"key": self.key, "finished": finished, "cases": cases}) + "\n")

    def read(self, blocks: int) -> tuple[int, int]:
        """(blocks finished, cases in them); (0, 0) without a record that can be read as one of this sweep."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            finished, cases = int(record["finished"]), int(record["cases"])
            whole = record["key"] == self.key and 0 <= finished <= blocks and cases >= finished
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0
        return (finished, cases) if whole else (0, 0)
