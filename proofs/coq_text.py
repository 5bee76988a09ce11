"""Reading Coq: what a source may not contain, and what the compiler prints of theorems, axioms and values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

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
}
_ASSUMED = re.compile(r"(?<![\w'.])(Hypothes[ie]s|Variables?|Context)(?![\w'])")
_SCOPE = re.compile(r"(?<![\w'.])(Section|Module(?:\s+Type)?|End)\s+([\w']+)([^.]*)\.")


def without_comments(text: str) -> str:
    """A Coq text without comments (they nest) and without the contents of strings."""
    kept: list[str] = []
    depth = place = 0
    while place < len(text):
        two = text[place : place + 2]
        if two == "(*":
            depth, place = depth + 1, place + 2
        elif two == "*)" and depth:
            depth, place = depth - 1, place + 2
            kept.append(" ")
        elif text[place] == '"':
            end = text.find('"', place + 1)
            place = len(text) if end < 0 else end + 1
            kept.append('""' if not depth else "")
        else:
            kept.append(text[place] if not depth or text[place] == "\n" else "")
            place += 1
    return "".join(kept)


def forbidden(text: str) -> list[str]:
    """What a source contains that may not be in it, each with its line."""
    plain = without_comments(text)
    found = []
    for pattern, why in _FORBIDDEN.items():
        for match in re.finditer(rf"(?<![\w'.])(?:{pattern})(?![\w'])", plain):
            found.append(f"line {plain.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}: {why}")
    places = [(m.start(), m) for m in (*_ASSUMED.finditer(plain), *_SCOPE.finditer(plain))]
    kinds: list[str] = []
    for start, match in sorted(places, key=lambda item: item[0]):
        word = match[1].split()[0]
        if word in ("Section", "Module"):
            if word == "Section" or ":=" not in (match[3] if match.lastindex and match.lastindex >= 3 else ""):
                kinds.append(word)
        elif word == "End":
            kinds = kinds[:-1]
        elif "Section" not in kinds:
            found.append(f"line {plain.count(chr(10), 0, start) + 1}: {word} outside a section: an axiom of its own")
    return found


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
