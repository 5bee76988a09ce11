"""The mutation score: every mutant of a running function must be refuted by some proof, or be shown equivalent.

A mutant is KILLED when an obligation that rests on the function is refuted (or vacuous) for it, or when the function
or its symbolic reading raises. An obligation that merely becomes undecided kills nothing. What survives all of them is
EQUIVALENT when Z3 shows that it returns what the original does on every domain that an obligation about it declares,
which is asked before the laws of several doubles; else it SURVIVED.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from karat.core.evidence import Grade, MutantRecord, MutantState
from karat.core.invariant import Invariant
from karat.core.obligation import BitLaw, FloatLaw, Formula, Identity, Obligation, Theorem
from karat.core.provenance import definitions
from karat.proofs.engines import ENGINES
from karat.proofs.equivalence import equivalent
from karat.proofs.exploration import Failure, run_on_numbers, samples
from karat.proofs.mutants import FORMULAS, Rebound, Source

SECONDS = 10.0
"""Of this process's own time, for an obligation about a mutant of which nothing else is known; else six times what it took
to prove. A check on numbers that does not end in it is found out; a solver that does not end finds nothing out."""


class _TooLong(Exception):
    """The clock has run out."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def ring(signum: int, frame: Any) -> None:
        raise _TooLong

    old = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


def _rests_on(obligation: Obligation) -> set[str]:
    """The functions that an obligation reads: those it is about and those that its claim calls."""
    functions = [f for f in obligation.about if isinstance(f, FunctionType)]
    functions += [
        f
        for part in ("show", "check", "check_block", "holds", "run")
        if isinstance(f := getattr(obligation, part, None), FunctionType)
    ]
    return {name for f in functions for name in definitions(f)}


def targets(invariants: Sequence[Invariant]) -> dict[str, frozenset[str]]:
    """Module -> names of the running functions in it: formulas that a proof reads, margins and what they call."""
    found: set[str] = set()
    for invariant in invariants:
        own = invariant.margin.__module__
        found |= {n for n in definitions(invariant.margin) if n.startswith((FORMULAS, f"{own}."))}
        for obligation in invariant.obligations:
            if not obligation.must_fail and not isinstance(obligation, Theorem):
                about = [f for f in obligation.about if callable(f)]
                found |= {n for f in about for n in definitions(f) if n.startswith(FORMULAS)}
    modules: dict[str, set[str]] = {"karat.core.verdict": {"accepts"}}
    for name in found:
        module, function = name.rsplit(".", 1)
        if isinstance(getattr(sys.modules.get(module), function, None), FunctionType):
            modules.setdefault(module, set()).add(function)
    return {module: frozenset(functions) for module, functions in sorted(modules.items())}


CLAIM_PARTS = ("show", "given", "check", "check_block", "holds", "run", "sample")


def about_changed(obligation: Obligation, rebound: Callable[[Any], Any]) -> Obligation:
    """The obligation about the changed functions, wherever it or its claim calls them."""
    parts = {
        name: rebound(function)
        for name in CLAIM_PARTS
        if isinstance(function := getattr(obligation, name, None), FunctionType)
    }
    return dataclasses.replace(obligation, about=tuple(rebound(f) for f in obligation.about), **parts)


def _verdict(obligation: Obligation, seconds: float) -> str:
    """Why an obligation about a mutant is refuted; empty when it holds or stays undecided."""
    try:
        with _within(seconds):
            outcome = ENGINES[type(obligation)](obligation, thorough=False)
    except _TooLong:
        return "" if isinstance(obligation, (Formula, FloatLaw, BitLaw, Identity)) else "does not end"
    except Exception as error:
        return f"raises {type(error).__name__}"
    if outcome.grade in (Grade.REFUTED, Grade.VACUOUS):
        return outcome.grade.name.lower()
    return ""


@dataclass(frozen=True)
class Against:
    """One mutant by its place in its module, and the ids of the obligations to hold against it, the cheapest first.

    `quick` are decided before it is asked whether the mutant is equivalent, `dear` after: laws of several doubles, whatever
    the clock says, so that the answer is the same on every machine.
    """

    place: int
    quick: tuple[str, ...]
    dear: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """Some mutants of one module."""

    module: str
    functions: frozenset[str]
    mutants: tuple[Against, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Obligation id -> how long it took to prove."""


def heavy(obligation: Obligation) -> bool:
    """Whether it takes seconds: a law of several doubles."""
    return isinstance(obligation, FloatLaw) and len(obligation.variables) > 1


def trials(
    chosen: Sequence[Invariant], everything: Sequence[Invariant], seconds: Mapping[str, float], size: int = 20
) -> list[Trial]:
    """The mutants of every function that the chosen invariants run, in groups, and what of everything to hold against
    them. seconds: how long each obligation took to prove."""
    obligations = [o for i in everything for o in i.obligations if o.demanded and not o.must_fail]
    obligations.sort(key=lambda o: seconds.get(o.id, 0.0))
    reads = {o.id: _rests_on(o) for o in obligations}
    about = {
        o.id: {f"{f.__module__}.{f.__name__}" for f in o.about if isinstance(f, FunctionType)} for o in obligations
    }
    heavies = {o.id for o in obligations if heavy(o)}
    groups = []
    for module, functions in targets(chosen).items():
        wanted = []
        for mutant in Source(sys.modules[module], functions).mutants:
            changed = functions if mutant.of_module else {mutant.function.rsplit(".", 1)[1]}
            names = {f"{module}.{name}" for name in changed}
            ids = [o.id for o in obligations if names & reads[o.id]]
            ids.sort(key=lambda id_: not names & about[id_])  # those about the function itself first
            dear = [id_ for id_ in ids if id_ in heavies]
            wanted.append(Against(mutant.place, tuple(id_ for id_ in ids if id_ not in dear), tuple(dear)))
        for k in range(0, len(wanted), size):
            part = tuple(wanted[k : k + size])
            used = {id_ for against in part for id_ in (*against.quick, *against.dear)}
            groups.append(Trial(module, functions, part, {id_: seconds[id_] for id_ in sorted(used) if id_ in seconds}))
    return groups


def judge(trial: Trial, obligations: Mapping[str, Obligation]) -> list[MutantRecord]:
    """What becomes of the mutants of a trial. First in line is what costs least for what it has found out so far."""
    source = Source(sys.modules[trial.module], trial.functions)
    records: list[MutantRecord] = []
    kills: Counter[str] = Counter()
    for against in trial.mutants:
        place = {id_: k for k, id_ in enumerate(against.quick)}
        cost = {id_: trial.seconds.get(id_, 0.0) + 0.02 + 0.01 * place[id_] for id_ in against.quick}
        quick = sorted(against.quick, key=lambda id_: cost[id_] / (1 + kills[id_]))
        record = _judge_one(
            source,
            against.place,
            [obligations[id_] for id_ in quick],
            [obligations[id_] for id_ in against.dear],
            {id_: max(0.5, 6 * taken) for id_, taken in trial.seconds.items()},
        )
        records.append(record)
        if record.state is MutantState.KILLED:
            kills[record.by.split(":")[0]] += 1
    return records


def _judge_one(
    source: Source, place: int, quick: Sequence[Obligation], dear: Sequence[Obligation], limits: Mapping[str, float]
) -> MutantRecord:
    """First numbers alone, then the quick obligations, then whether it is equivalent, then the dear ones."""
    mutant, changed = source.mutants[place], source.build(place)
    rebound = Rebound(changed)
    everything = [*quick, *dear]

    def record(state: MutantState, by: str) -> MutantRecord:
        about = tuple(sorted({o.invariant for o in everything}))
        return MutantRecord(
            function=mutant.function, where=mutant.where, change=mutant.change, state=state, by=by, invariants=about
        )

    warnings.simplefilter("ignore")  # what a mutant divides by is its own affair
    about_mutant = {o.id: about_changed(o, rebound) for o in everything}
    for obligation in everything:
        if _fails_on_samples(about_mutant[obligation.id]):
            return record(MutantState.KILLED, f"{obligation.id}: fails on a sample")
    for obligation in quick:
        if why := _verdict(about_mutant[obligation.id], limits.get(obligation.id, SECONDS)):
            return record(MutantState.KILLED, f"{obligation.id}: {why}")
    why = ""
    with suppress(_TooLong), _within(6 * SECONDS):
        ways = [equivalent(everything, changed, name, rebound) for name in source.changed_functions(place, changed)]
        why = "; ".join(dict.fromkeys(ways)) if all(ways) else ""  # every function that reads a changed constant
    if why:
        return record(MutantState.EQUIVALENT, why)
    for obligation in dear:
        if why := _verdict(about_mutant[obligation.id], max(SECONDS, limits.get(obligation.id, SECONDS))):
            return record(MutantState.KILLED, f"{obligation.id}: {why}")
    return record(MutantState.SURVIVED, "")


def _fails_on_samples(obligation: Obligation) -> bool:
    """Whether a theorem's claim, run on the numbers of its samples, is false on one. What raises is left to the engine."""
    if not isinstance(obligation, (Formula, FloatLaw)):
        return False
    try:
        with _within(SECONDS):
            for point in samples(obligation):
                run_on_numbers(obligation, point)
    except Failure:
        return True
    except Exception:
        return False
    return False
