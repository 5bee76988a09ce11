"""What compiled Coq files prove, asked of the compiler from a file of ours, and compared with what is pinned.

The audited files are required, not imported: no notation, tactic or name of theirs is in force when their statements are
printed, and nothing that they print themselves is read. Each answer stands behind a marker that is drawn anew each time. A
statement is compared whole, with everything implicit printed, and so is every definition of the project that it rests on.
That a theorem's hypotheses can hold is asked of Coq too: the theorem's own type with the conclusion False must be refuted
by the values that the lemma `<theorem>_satisfiable` gives.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from karat.core.report import write_text
from karat.invariants.coq_sources import FOLDER, closure, pinned_path, source, without_comments
from karat.proofs.coq_build import BUILD, Toolchain, run_coq
from karat.proofs.coq_text import Assumptions, assumptions_of, definition_of, flat, statement_of

PRELUDE = """Require Import Reals List ZArith QArith.
{required}
Set Printing Width 100000. Set Printing Depth 100000.
Ltac without_conclusion T :=
  lazymatch T with
  | forall x : ?A, @?B x =>
      let v := fresh "v" in
      let r := constr:(fun v : A => ltac:(let b := eval cbv beta in (B v) in let r := without_conclusion b in exact r)) in
      lazymatch r with fun x => @?C x => let c := constr:(forall x : A, C x) in let c := eval cbv beta in c in constr:(c) end
  | _ => constr:(False)
  end.
Ltac some A :=
  lazymatch A with
  | nat => constr:(O) | Z => constr:(Z0) | positive => constr:(xH) | Q => constr:(Qmake Z0 xH) | bool => constr:(true)
  | R => constr:(IZR Z0) | list ?B => constr:(@nil B)
  | prod ?B ?C => let b := some B in let c := some C in constr:((b, c))
  | _ -> ?B => let b := some B in constr:(fun _ : ltac:(lazymatch A with ?D -> _ => exact D end) => b)
  | _ => let B := eval hnf in A in lazymatch B with A => fail | _ => some B end
  end.
Ltac apart H :=
  lazymatch type of H with
  | False => exact H
  | forall x : ?A, _ =>
      let s := type of A in
      lazymatch s with
      | Prop => fail "a premise"
      | _ => let a := some A in specialize (H a); cbv beta in H; apart H
      end
  end.
Ltac together H C :=
  lazymatch type of H with
  | False => exact H
  | forall x : ?A, _ =>
      let s := type of A in
      let w := fresh in let rest := fresh in
      lazymatch s with
      | Prop => first [ destruct C as [w rest]; specialize (H w); cbv beta in H; together H rest
                      | specialize (H C); cbv beta in H; apart H ]
      | _ => destruct C as [w rest]; specialize (H w); cbv beta in H; together H rest
      end
  end.
Ltac premises theorem companion :=
  let T := type of theorem in
  let T := eval cbv zeta in T in
  let P := without_conclusion T in
  first [ assert (P -> False) by (let H := fresh in intro H; apart H); idtac "none"
        | assert (P -> False) by (let H := fresh in let K := fresh in intro H; pose proof companion as K; together H K);
          idtac "shown"
        | idtac "NOT shown" ].
"""
"""The last tactic says whether a theorem's premises can hold: replaces its conclusion by False, and derives False from
that, without a premise at values of plain types, or at those of the companion."""
NO_PREMISE, SHOWN, NOT_SHOWN = "none", "shown", "NOT shown"


@dataclass(frozen=True)
class Statement:
    """A theorem or definition as the compiler prints it. text: to be read; complete: digest of the text with nothing left
    out; names: the project's definitions in it; premises: of a theorem; axioms: of all theorems of its file together, with the
    lemmas that show their hypotheses satisfiable (asking for each alone takes the compiler ten times as long)."""

    text: str
    complete: str
    names: frozenset[str] = frozenset()
    axioms: Assumptions = field(default_factory=lambda: Assumptions({}, ()))
    premises: str = NO_PREMISE


@dataclass(frozen=True)
class Audit:
    """What the compiler says: of theorems, of definitions, and of each theorem that it says nothing about, why."""

    theorems: Mapping[str, Statement]
    definitions: Mapping[str, Statement]
    failures: Mapping[str, str]


def states(text: str, name: str) -> bool:
    """Whether a Coq text states a theorem or lemma of this name."""
    stated = rf"(?<![\w'.])(?:Theorem|Lemma|Corollary|Proposition|Fact)\s+{re.escape(name)}(?![\w'])"
    return re.search(stated, without_comments(text)) is not None


def audit(
    theorems: Sequence[str], definitions: Iterable[str], tool: Toolchain, jobs: int, folder: Path = FOLDER,
    build: Path = BUILD,
) -> Audit:  # fmt: skip
    """Asks the compiler about theorems, `INV08_lr_band.wsd_never_rises`, and about definitions, and then about every other
    definition of the project that these rest on; `jobs` questions at a time."""
    failures: dict[str, str] = {}
    present = []
    for name in theorems:
        file, theorem = name.split(".", 1)
        if states(_text(file, folder), theorem):
            present.append(name)
        else:
            failures[name] = f"{file}.v states no theorem {theorem}"
    inquiry = Inquiry(tool, folder, build, {}, failures)
    parts = [[name for name in present if name.split(".", 1)[0] in files] for files in _shares(present, jobs)]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        list(pool.map(lambda numbered: inquiry.ask(numbered[1], [], f"Karat_audit_{numbered[0]}"), enumerate(parts)))
    found = dict(inquiry.found)
    asked: set[str] = set(found)
    while wanted := sorted({*definitions, *_mentioned(inquiry.found.values())} - asked):
        asked |= set(wanted)
        inquiry.ask([], wanted, "Karat_audit_definitions")
        definitions = ()
    known = {name: statement for name, statement in inquiry.found.items() if name not in found}
    return Audit(found, known, failures)


def _text(file: str, folder: Path) -> str:
    try:
        return source(file, folder)
    except OSError:
        return ""


def defined(file: str, folder: Path) -> list[str]:
    """Every definition, fixpoint and record of a file."""
    pattern = r"(?m)^\s*(?:Definition|Fixpoint|Record|Inductive)\s+([\w']+)"
    return [f"{file}.{name}" for name in re.findall(pattern, without_comments(_text(file, folder)))]


def _shares(theorems: Sequence[str], jobs: int) -> list[set[str]]:
    """The files of the theorems in `jobs` shares with about as many theorems each."""
    shares: list[tuple[int, set[str]]] = [(0, set()) for _ in range(max(1, jobs))]
    counts = Counter(name.split(".", 1)[0] for name in theorems)
    for file, count in counts.most_common():
        k = min(range(len(shares)), key=lambda place: shares[place][0])
        shares[k] = (shares[k][0] + count, shares[k][1] | {file})
    return [files for _, files in shares]


def _mentioned(statements: Iterable[Statement]) -> set[str]:
    return {name for statement in statements for name in statement.names}


@dataclass(frozen=True)
class Inquiry:
    """Questions to the compiler, with what was found and what was refused so far."""

    tool: Toolchain
    folder: Path
    build: Path
    found: dict[str, Statement]
    failures: dict[str, str]

    def ask(self, theorems: Sequence[str], definitions: Sequence[str], called: str) -> None:
        """One question about all of them; when the compiler refuses it, the halves, down to the one that it refuses."""
        names = [*theorems, *definitions]
        if not names:
            return
        nonce = secrets.token_hex(16)
        files = sorted({name.split(".", 1)[0] for name in names})
        write_text(self.build / f"{called}.v", _question(theorems, definitions, files, nonce, self.folder))
        output, failure, _ = run_coq(self.tool, self.build, called)
        if failure and len(names) > 1:
            middle = len(names) // 2
            for part in (names[:middle], names[middle:]):
                self.ask([n for n in part if n in theorems], [n for n in part if n in definitions], called)
            return
        if failure:
            self.failures[names[0]] = f"the audit of {names[0]} fails: {failure}"
            return
        answers = _answers(output, nonce)
        refused = {file for (kind, file), text in answers.items() if kind == "axioms" and assumptions_of(text).refused}
        suspects = [name for name in theorems if name.split(".", 1)[0] in refused] if len(theorems) > 1 else []
        projects = sorted({other for file in files for other in closure(file, self.folder)})
        for name in (name for name in names if name not in suspects):
            try:
                self.found[name] = _statement(name, name in theorems, answers, projects)
            except (KeyError, ValueError) as error:
                self.failures[name] = f"the compiler's answer about {name} cannot be read: {error}"
        for name in suspects:  # some theorem of its file rests on more than it may: which?
            self.ask([name], [], called)


def _question(
    theorems: Sequence[str], definitions: Sequence[str], files: Sequence[str], nonce: str, folder: Path
) -> str:
    lines = [PRELUDE.format(required=f"From Karat Require {' '.join(files)}.")]

    def marker(kind: str, name: str) -> None:
        lines.append(f'Goal True. idtac "{nonce} {kind} {name}". Abort.')

    for name in theorems:
        marker("text", name)
        lines.append(f"Check @{name}.")
        marker("complete", name)
        lines.append(f"Set Printing All. Check @{name}. Unset Printing All.")
        file, theorem = name.split(".", 1)
        companion = states(source(file, folder), f"{theorem}_satisfiable")
        marker("premises", name)
        lines.append(f"Goal True. premises @{name} {f'@{name}_satisfiable' if companion else 'I'}. Abort.")
        marker("sort", name)
        lines.append(f"Goal True. let T := type of @{name} in let s := type of T in idtac s. Abort.")
    for place, file in enumerate(files):
        stated = [name for name in theorems if name.startswith(f"{file}.")]
        text = source(file, folder)
        stated += [f"{name}_satisfiable" for name in stated if states(text, f"{name.split('.', 1)[1]}_satisfiable")]
        if stated:
            lines.append(f"Definition karat_{place} := ({', '.join(f'@{name}' for name in stated)}).")
            marker("axioms", file)
            lines.append(f"Print Assumptions karat_{place}.")
    for name in definitions:
        marker("text", name)
        lines.append(f"Print {name}.")
        marker("complete", name)
        lines.append(f"Set Printing All. Print {name}. Unset Printing All.")
    marker("end", "of the audit")
    return "\n".join(lines) + "\n"


def _answers(output: str, nonce: str) -> dict[tuple[str, str], str]:
    """(kind, name) -> what the compiler printed between this marker and the next."""
    parts = re.split(rf"(?m)^{nonce} (\w+) (.*)$", output)
    return {(parts[k], parts[k + 1]): parts[k + 2].strip("\n") for k in range(1, len(parts) - 2, 3)}


def mentions(text: str, projects: Iterable[str]) -> frozenset[str]:
    """The project's names in a text, `INV08_lr_band.wsd`, with or without the prefix that tells them from a library's."""
    found = re.finditer(rf"(?<![\w'.])(?:Karat\.)?((?:{'|'.join(sorted(projects))})\.[\w']+)", text)
    return frozenset(match[1] for match in found)


def _statement(name: str, theorem: bool, answers: Mapping[tuple[str, str], str], projects: Sequence[str]) -> Statement:
    read = statement_of if theorem else definition_of
    text, complete = read(answers["text", name]), read(answers["complete", name])
    mentioned = mentions(complete, projects)
    digest = hashlib.sha256(complete.encode()).hexdigest()
    if not theorem:
        return Statement(text, digest, mentioned - {name})
    if (sort := flat(answers["sort", name])) != "Prop":
        raise ValueError(f"it is no proposition, but of sort {sort}")
    axioms = assumptions_of(answers["axioms", name.split(".", 1)[0]])
    return Statement(text, digest, mentioned - {name}, axioms, flat(answers["premises", name]))


# -- what is pinned ---------------------------------------------------------------------------------------------------


def write_pins(statements: Mapping[str, Statement], folder: Path = FOLDER) -> list[Path]:
    """Pins these statements: a record for each file that states one of them, in the order of names."""
    written = []
    for file in sorted({name.split(".", 1)[0] for name in statements}):
        here = {name.split(".", 1)[1]: s for name, s in sorted(statements.items()) if name.startswith(f"{file}.")}
        lines = [f"# What {file}.v states, as the compiler prints it; complete: SHA-256 with nothing left implicit."]
        for name, statement in here.items():
            quoted = statement.text.replace("\\", "\\\\").replace('"', '\\"')
            lines += ["", f'["{name}"]', f'text = "{quoted}"', f'complete = "{statement.complete}"']
        path = pinned_path(file, folder)
        write_text(path, "\n".join(lines) + "\n")
        written.append(path)
    return written


def difference(name: str, was: str, now: str) -> str:
    """A statement as it was pinned and as it is, told apart word by word."""
    if not was:
        return f"{name}: new\n  + {now}"
    changes = [w for w in difflib.ndiff(was.split(), now.split()) if w[0] in "+-"]
    words = " ".join(w[0] + w[2:] for w in changes) or "only what is left implicit"
    return f"{name}:\n  was {was}\n  is  {now}\n  changed: {words}"
