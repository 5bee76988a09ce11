"""Theorems in Coq judged: compiled, audited, compared with what is pinned and with the running functions.

A theorem is PROVED when its file and all that it requires compile, contain nothing that could add an axiom, and are about
the constants of the code; the compiler, asked from a separate file, says that the theorem rests on the axioms of the
standard reals alone; its statement, and every definition in it, is the pinned one; its hypotheses are shown to hold
together somewhere; and every definition that stands for a running function gives what that function gives.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from karat.core.evidence import Counterexample, Evidence, Grade
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.provenance import qualified_name
from karat.invariants.coq_constants import differences
from karat.invariants.coq_sources import CONSTANTS, FOLDER, closure, pinned, source, uses
from karat.proofs.coq_audit import NO_PREMISE, SHOWN, Audit, Statement, audit, defined, difference, mentions, write_pins
from karat.proofs.coq_binding import compare, tie
from karat.proofs.coq_build import BUILD, INSTALL, Compiled, Toolchain, alone, compile_all, toolchain
from karat.proofs.coq_text import forbidden
from karat.proofs.exploration import Outcome
from karat.proofs.worker import evidence

ACCEPT = "make accept-coq ID="


def unavailable() -> Outcome:
    """The outcome of a theorem where there is no Coq."""
    return Outcome(Grade.UNAVAILABLE, f"Coq is not installed; to have this theorem checked: {INSTALL}")


def theorems_of(obligations: Iterable[Obligation]) -> list[Theorem]:
    """Those of the obligations that are theorems in Coq."""
    return [obligation for obligation in obligations if isinstance(obligation, Theorem)]


def full_name(theorem: Theorem) -> str:
    """`INV08_lr_band.wsd_never_rises`."""
    return f"{theorem.file}.{theorem.theorem}"


@dataclass(frozen=True)
class Findings:
    """All that is needed to judge theorems."""

    compiled: Mapping[str, Compiled]
    forbidden: Mapping[str, list[str]]
    audit: Audit
    pinned: Mapping[str, Mapping[str, str]]
    unreadable: Mapping[str, str]
    constants: Mapping[str, tuple[str, str]]
    drift: Mapping[str, str]
    version: str


def check(
    theorems: Sequence[Theorem], jobs: int, folder: Path = FOLDER, build: Path = BUILD, tool: Toolchain | None = None
) -> dict[str, Outcome]:
    """Obligation id -> outcome, for all of them."""
    tool = tool or toolchain()
    if tool is None:
        constants = differences(folder)
        return {theorem.id: _stale_constant(theorem, constants, folder) or unavailable() for theorem in theorems}
    with alone(build):
        findings = inquire(theorems, jobs, tool, folder, build)
    return {theorem.id: judge(theorem, findings, folder) for theorem in theorems}


def theorem_evidence(theorems: Sequence[Theorem], jobs: int) -> Iterator[tuple[Obligation, Evidence]]:
    """The theorems with the evidence for each; seconds are those of its whole file."""
    if theorems:
        outcomes = check(theorems, jobs)
        for theorem in theorems:
            seconds = outcomes[theorem.id].checks.pop("seconds", "0")
            yield theorem, evidence(theorem, outcomes[theorem.id], float(seconds))


def inquire(theorems: Sequence[Theorem], jobs: int, tool: Toolchain, folder: Path, build: Path) -> Findings:
    """Compiles, asks the compiler, and computes the definitions at their points."""
    files = list(dict.fromkeys(theorem.file for theorem in theorems))
    compiled = compile_all(files, tool, jobs, folder, build)
    sound = {theorem.file for theorem in theorems if not compiled[theorem.file].failure}
    asked = [theorem for theorem in theorems if theorem.file in sound]
    pins, unreadable = _pins(files, folder)
    names = list(dict.fromkeys(full_name(theorem) for theorem in asked))
    carrier = defined("Carrier", folder) if any(theorem.counterparts for theorem in asked) else []
    definitions = [name for name in (*pins, *carrier) if name not in names and name.split(".", 1)[0] in compiled
                   and not compiled[name.split(".", 1)[0]].failure and not _is_theorem(name, folder)]  # fmt: skip
    found = audit(names, definitions, tool, jobs, folder, build) if names else Audit({}, {}, {})
    counterparts = {tie(one): one for theorem in asked for one in theorem.counterparts}
    usable = [one for one in counterparts.values() if one.definition.split(".", 1)[0] in compiled
              and not compiled[one.definition.split(".", 1)[0]].failure]  # fmt: skip
    return Findings(
        compiled=compiled,
        forbidden={name: _forbidden(name, folder) for name in compiled},
        audit=found,
        pinned=pins,
        unreadable=unreadable,
        constants=differences(folder),
        drift=compare(usable, tool, jobs, build),
        version=tool.version,
    )


def _is_theorem(name: str, folder: Path) -> bool:
    file, short = name.split(".", 1)
    try:
        text = source(file, folder)
    except OSError:
        return False
    return re.search(rf"(?:Theorem|Lemma|Corollary|Proposition|Fact)\s+{re.escape(short)}(?![\w'])", text) is not None


def _pins(files: Sequence[str], folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    pins: dict[str, dict[str, str]] = {}
    unreadable: dict[str, str] = {}
    for name in dict.fromkeys(other for file in files for other in closure(file, folder)):
        try:
            pins |= pinned(name, folder)
        except (ValueError, tomllib.TOMLDecodeError) as error:
            unreadable[name] = str(error)
    return pins, unreadable


def _forbidden(file: str, folder: Path) -> list[str]:
    try:
        return forbidden(source(file, folder))
    except OSError:
        return []


def judge(theorem: Theorem, findings: Findings, folder: Path = FOLDER) -> Outcome:
    """The outcome for one theorem: the first thing that is not as it must be, or PROVED with what was checked."""
    files = closure(theorem.file, folder)
    for file in files:
        if findings.forbidden.get(file):
            return Outcome(Grade.ERROR, f"proofs/coq/{file}.v contains what it may not: {findings.forbidden[file][0]}")
    if stale := _stale_constant(theorem, findings.constants, folder):
        return stale
    compiled = findings.compiled[theorem.file]
    if compiled.without_library:
        return Outcome(Grade.UNAVAILABLE, f"a library of Coq's is not installed: {INSTALL}")
    if compiled.failure:
        return Outcome(Grade.ERROR, f"proofs/coq/{theorem.file}.v: {compiled.failure}")
    name = full_name(theorem)
    if name in findings.audit.failures:
        return Outcome(Grade.ERROR, findings.audit.failures[name])
    statement = findings.audit.theorems[name]
    if re.search(r"(?:^|, |-> |in )True$", statement.text):
        return Outcome(Grade.VACUOUS, "its conclusion is True")
    if statement.axioms.refused:
        return Outcome(Grade.ERROR, f"rests on more than the standard reals: {'; '.join(statement.axioms.refused)}")
    if statement.premises not in (NO_PREMISE, SHOWN):
        return Outcome(
            Grade.VACUOUS,
            f"its hypotheses are not shown to hold together anywhere: {theorem.file}.v needs a lemma "
            f"{theorem.theorem}_satisfiable that says so (each forall an exists, each premise a conjunct, in that order)",
        )
    rests_on = _closure_of(statement, findings.audit)
    if changed := _not_pinned(theorem, name, rests_on, findings):
        return Outcome(Grade.ERROR, changed)
    if drifted := _drifted(theorem, rests_on, findings):
        return Outcome(Grade.ERROR, drifted)
    return _proved(theorem, statement, findings)


def _stale_constant(theorem: Theorem, constants: Mapping[str, tuple[str, str]], folder: Path) -> Outcome | None:
    files = closure(theorem.file, folder)
    for constant, (was, now) in constants.items():
        used = [file for file in files if file != CONSTANTS and uses(constant, file, folder)]
        if used or (constant == "the file" and CONSTANTS in files):
            where = ", ".join(f"proofs/coq/{file}.v" for file in used) or "proofs/coq/Constants.v"
            return Outcome(
                Grade.REFUTED,
                f"{where} proves it for {constant} = {was}, the code has {now}: python -m karat.invariants.coq_constants "
                "--write, then mend the proofs",
                Counterexample(values={constant: now}, reproduced=True, note=f"proofs/coq/Constants.v has {was}"),
            )
    return None


def _closure_of(statement: Statement, audit: Audit) -> dict[str, Statement]:
    """Every definition of the project that a statement rests on."""
    found: dict[str, Statement] = {}
    waiting = sorted(statement.names)
    while waiting:
        name = waiting.pop()
        if name not in found and name in audit.definitions:
            found[name] = audit.definitions[name]
            waiting += sorted(audit.definitions[name].names)
    return found


def _not_pinned(theorem: Theorem, name: str, rests_on: Mapping[str, Statement], findings: Findings) -> str:
    """What is not as it is pinned, or nothing."""
    accept = f"after a look at it, {ACCEPT}{theorem.invariant}"
    for file, why in findings.unreadable.items():
        if file in {theorem.file, *(n.split(".", 1)[0] for n in rests_on)}:
            return f"proofs/coq/expected/{file}.toml cannot be read: {why}"
    tied = _of_terms(theorem, findings)
    for one, now in {name: findings.audit.theorems[name], **rests_on, **tied}.items():
        was = findings.pinned.get(one, {})
        if not was:
            return f"{one} is pinned nowhere; {accept}"
        if was.get("complete") != now.complete:
            return f"{difference(one, was.get('text', ''), now.text)}\n  if that is what is meant: {accept}"
    missing = [n for n in sorted(_mentioned(rests_on, findings.audit.theorems[name])) if n in findings.audit.failures]
    return findings.audit.failures[missing[0]] if missing else ""


def _of_terms(theorem: Theorem, findings: Findings) -> dict[str, Statement]:
    """The definitions with which counterparts are computed: the carriers, and what the terms name."""
    if not theorem.counterparts:
        return {}
    named = frozenset().union(*(mentions(one.term, findings.compiled) for one in theorem.counterparts))
    known = findings.audit.definitions
    return {name: known[name] for name in known if name.startswith("Carrier.") or name in named}


def _mentioned(rests_on: Mapping[str, Statement], statement: Statement) -> set[str]:
    return set(statement.names).union(*(one.names for one in rests_on.values())) if rests_on else set(statement.names)


def _drifted(theorem: Theorem, rests_on: Mapping[str, Statement], findings: Findings) -> str:
    for one in theorem.counterparts:
        if one.definition not in rests_on:
            return f"it is said that {tie(one)}, but the statement does not rest on it"
        if tie(one) not in findings.drift:
            return f"it is said that {tie(one)}, and the two were not compared"
        if findings.drift[tie(one)]:
            return f"{one.definition} is NOT {qualified_name(one.function)}: {findings.drift[tie(one)]}"
    return ""


def _proved(theorem: Theorem, statement: Statement, findings: Findings) -> Outcome:
    axioms = ", ".join(name.rsplit(".", 1)[-1] for name in statement.axioms.axioms) or "none"
    points = sum(one.points for one in theorem.counterparts)
    tied = f", {points} points" if points else ""
    number = len(statement.axioms.axioms)
    outcome = Outcome(Grade.PROVED, f"{number} axioms of the standard reals{tied}" if number else f"no axioms{tied}")
    outcome.checks = {
        "Coq": findings.version,
        "theorem": f"{full_name(theorem)} : {statement.text}",
        "axioms": axioms,
        "hypotheses satisfiable": "it has none"
        if statement.premises == NO_PREMISE
        else f"{full_name(theorem)}_satisfiable",
        "stands for": _counterparts(theorem.counterparts)
        or "nothing that runs: a fact of the reals, the format or constants",
        "seconds": f"{findings.compiled[theorem.file].seconds}",
    }
    return outcome


def _counterparts(counterparts: Sequence[Counterpart]) -> str:
    return "; ".join(f"{tie(one)} at {one.points} points" for one in counterparts)


def accept(
    theorems: Sequence[Theorem], jobs: int, folder: Path = FOLDER, build: Path = BUILD
) -> tuple[list[str], bool]:
    """Pins the statements as they are now: (what changed, whether all could be pinned)."""
    tool = toolchain()
    if tool is None:
        return [f"Coq is not installed: {INSTALL}"], False
    with alone(build):
        return _accept(theorems, tool, jobs, folder, build)


def _accept(
    theorems: Sequence[Theorem], tool: Toolchain, jobs: int, folder: Path, build: Path
) -> tuple[list[str], bool]:
    compiled = compile_all(list(dict.fromkeys(t.file for t in theorems)), tool, jobs, folder, build)
    broken = [f"{file}.v: {one.failure}" for file, one in compiled.items() if one.failure]
    if broken:
        return broken, False
    tied = {name for theorem in theorems for one in theorem.counterparts for name in mentions(one.term, compiled)}
    if tied:
        tied |= set(defined("Carrier", folder))
    found = audit(list(dict.fromkeys(map(full_name, theorems))), tied, tool, jobs, folder, build)
    statements = {**found.theorems, **found.definitions}
    told = list(found.failures.values())
    before: dict[str, dict[str, str]] = {}
    for file in sorted({name.split(".", 1)[0] for name in statements}):
        try:
            before |= pinned(file, folder)
        except ValueError as error:
            told.append(f"{file}.toml could not be read and is written anew: {error}")
    for name, now in sorted(statements.items()):
        if before.get(name, {}).get("complete") != now.complete:
            told.append(difference(name, before.get(name, {}).get("text", ""), now.text))
    own = {theorem.file for theorem in theorems}
    kept = {  # what other theorems of shared files rest on stays
        name: Statement(entry.get("text", ""), entry.get("complete", ""))
        for name, entry in before.items()
        if name not in statements and name.split(".", 1)[0] not in own
    }
    gone = [name for name in before if name not in statements and name.split(".", 1)[0] in own]
    told += [f"{name}: no longer pinned, nothing rests on it" for name in gone]
    if not found.failures:
        write_pins(kept | statements, folder)
    return told, not found.failures
