"""Reading Coq: what a source may not contain, and what the compiler prints of theorems, axioms and values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from karat.invariants.coq_sources import without_comments

ALLOWED_AXIOMS = {
    "ClassicalDedekindReals.sig_not_dec": "forall P : Prop, {~ ~ P} + {~ P}",
    "ClassicalDedekindReals.sig_forall_dec": "forall P : nat -> Prop, "
    "(forall n : nat, {P n} + {~ P n}) -> {n : nat | ~ P n} + {forall n : nat, P n}",
    "FunctionalExtensionality.functional_extensionality_dep": "forall (A : Type) (B : A -> Type) "
    "(f g : forall x : A, B x), (forall x : A, f x = g x) -> f = g",
    "Classical_Prop.classic": r"forall P : Prop, P \/ ~ P",
}
"""The axioms on which Coq's standard reals rest, and what each says."""

_FORBIDDEN = {
    "Admitted": "an unfinished proof",
    "admit": "an unfinished proof",
    "give_up": "an unfinished proof",
    "Axioms?": "an axiom of its own",
    "Parameters?": "an axiom of its own",
    "Conjectures?": "an axiom of its own",
    r"Unset\s+(?:Guard|Positivity|Universe)\s+Checking": "a check of the kernel switched off",
    r"bypass_check": "a check of the kernel switched off",
    r"Set\s+(?:Definitional\s+UIP|Allow\s+StrictProp)": "a stronger logic",
    r"Declare\s+ML\s+Module": "code in the compiler",
    r"Load|Redirect|Drop|Cd|Add\s+(?:Rec\s+)?(?:LoadPath|ML\s+Path)|Extraction": "a command that reaches outside the file",
    r"Rewrite\s+Rules?|Symbols?": "rewrite rules, which are axioms",
    r"Primitive|Register": "a primitive of the kernel",
    r"Module|Include": "a module, whose definitions could not be pinned one by one",
}
_STANDARD = r"Require\s+(?:(?:Import|Export)\s+)?(?!Karat\b)[\w'.]+(?:\s+(?!Karat\b)[\w'.]+)*"
_SENTENCE = re.compile(
    rf"(?:From\s+Karat\s+Require\s+(?:(?:Import|Export)\s+)?[\w'\s]+|(?:From\s+(?!Karat\b)[\w'.]+\s+)?{_STANDARD})\Z"
)
"""The ways in which a file may require others."""
_ASSUMED = re.compile(r"(?<![\w'.])(Hypothes[ie]s|Variables?|Context)(?![\w'])")
_SCOPE = re.compile(r"(?<![\w'.])(Section|End)\s+[\w']+\s*\.")


def forbidden(text: str) -> list[str]:
    """What a source contains that may not be in it, each with its line."""
    plain = without_comments(text)
    found = []
    for pattern, why in _FORBIDDEN.items():
        for match in re.finditer(rf"(?<![\w'.])(?:{pattern})(?![\w'])", plain):
            found.append(f"line {_line(plain, match.start())}: {flat(match[0])}: {why}")
    for match in re.finditer(r"(?<![\w'.])(?:Require|Karat)(?![\w'])", plain):
        start = max((m.end() for m in re.finditer(r"\.\s", plain[: match.start()])), default=0)
        sentence = re.split(r"\.(?=\s|\Z)", plain[start:])[0].strip()
        if not _SENTENCE.match(sentence):
            found.append(
                f"line {_line(plain, match.start())}: {flat(sentence)[:80]}: a way to require that is not followed"
            )
    depth = 0
    for match in sorted((*_ASSUMED.finditer(plain), *_SCOPE.finditer(plain)), key=lambda m: m.start()):
        if match[1] in ("Section", "End"):
            depth += 1 if match[1] == "Section" else -1
        elif depth < 1:
            found.append(f"line {_line(plain, match.start())}: {match[1]} outside a section: an axiom of its own")
    return found


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def flat(text: str) -> str:
    """On one line, with single spaces."""
    return " ".join(text.split())


def statement_of(printed: str) -> str:
    """The type that `Check` prints, on one line; ValueError when it printed something else."""
    match = re.match(r"\s*\S+\s+:\s(.*)\Z", printed, re.S)
    if not match:
        raise ValueError(f"not what Check prints: {printed[:80]!r}")
    return flat(match[1])


def definition_of(printed: str) -> str:
    """What `Print` prints of a definition, on one line, without its argument scopes."""
    return flat(re.split(r"\n\n?Arguments ", printed)[0])


@dataclass(frozen=True)
class Assumptions:
    """What a theorem rests on: axioms with what each says, and whatever else the compiler names."""

    axioms: dict[str, str]
    unsafe: tuple[str, ...]

    @property
    def refused(self) -> list[str]:
        """Axioms that are none of the standard reals', or say something else; and switched-off checks."""
        wrong = [
            f"axiom {name} : {says}" if name not in ALLOWED_AXIOMS else f"axiom {name} says {says}"
            for name, says in self.axioms.items()
            if ALLOWED_AXIOMS.get(name) != says
        ]
        return [*wrong, *self.unsafe]


def assumptions_of(printed: str) -> Assumptions:
    """What `Print Assumptions` printed. Continuation lines are indented; a name may stand alone on its line."""
    text = printed.strip()
    if text == "Closed under the global context":
        return Assumptions({}, ())
    lines = printed.strip("\n").split("\n")
    if not lines or lines[0].strip() != "Axioms:":
        return Assumptions({}, (f"not understood: {flat(printed)[:200]}",))
    entries: list[str] = []
    for line in lines[1:]:
        if line[:1].isspace() and entries:
            entries[-1] += " " + line
        elif line.strip():
            entries.append(line)
    axioms: dict[str, str] = {}
    unsafe = []
    for entry in map(flat, entries):
        match = re.match(r"([\w'.]+)\s+:\s(.*)\Z", entry)
        if match:
            axioms[match[1]] = match[2]
        else:  # "… is assumed to be guarded", "… relies on an unsafe hierarchy", or something new
            unsafe.append(entry)
    return Assumptions(axioms, tuple(unsafe))


_TOKEN = re.compile(r"\s*(-?\d+|true|false|Some|None|nil|::|[()\[\];,#]|\S)")


def value_of(printed: str) -> Any:
    """The Python value of what `Eval` printed: integers, truth values, tuples and lists of them; ValueError for others."""
    text = re.sub(r"%\w+", "", printed)
    match = re.match(r"\s*=\s(.*?)\n?\s+:\s[^\n]*(?:\n\s+.*)?\Z", text, re.S)
    if not match:
        raise ValueError(f"not what Eval prints: {printed[:80]!r}")
    tokens = _TOKEN.findall(match[1])
    value, rest = _read(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"not read to its end: {' '.join(tokens[rest:])[:80]!r}")
    return value


def _read(tokens: list[str], place: int) -> tuple[Any, int]:
    """A value and the place after it; `a :: b :: nil` and `[a; b]` are both lists."""
    value, place = _read_one(tokens, place)
    if tokens[place : place + 1] == ["::"]:
        rest, place = _read(tokens, place + 1)
        if not isinstance(rest, list):
            raise ValueError(f"a list that ends in {rest!r}")
        return [value, *rest], place
    return value, place


def _read_one(tokens: list[str], place: int) -> tuple[Any, int]:
    if place >= len(tokens):
        raise ValueError("ends too soon")
    token = tokens[place]
    if token in ("[", "("):
        end, separator = ("]", ";") if token == "[" else (")", ",")
        items, place = [], place + 1
        while tokens[place : place + 1] != [end]:
            item, place = _read(tokens, place)
            items.append(item)
            if tokens[place : place + 1] == [separator]:
                place += 1
            elif tokens[place : place + 1] != [end]:
                raise ValueError(f"{' '.join(tokens[place : place + 3])!r} where {separator} or {end} should be")
        if token == "[":
            return items, place + 1
        return (items[0] if len(items) == 1 else tuple(items)), place + 1
    if token in ("true", "false"):
        return token == "true", place + 1
    if token == "nil":
        return [], place + 1
    if re.fullmatch(r"-?\d+", token):
        return int(token), place + 1
    raise ValueError(f"cannot read {token!r}")
