"""proofs/coq/Constants.v: the constants of the running code for Coq, written from the code and compared with it.

python -m karat.invariants.coq_constants --write
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from karat.core.errors import KaratError
from karat.core.formulas import anchors, gf16, halving, lucas
from karat.core.golden import Golden
from karat.core.report import write_text
from karat.invariants import inv02_asha_threshold as inv02
from karat.invariants import inv04_nca_entropy_band as inv04
from karat.invariants import inv06_ema_decay as inv06
from karat.invariants import inv07_victory_gate as inv07
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import inv09_qk_gain as inv09

FOLDER = Path(__file__).parents[1] / "proofs" / "coq"
FILE = "Constants"


def constants() -> dict[str, tuple[str, Any]]:
    """Name in Coq -> (where it stands in the code, its exact value)."""
    return {
        "alpha_phi": ("core.formulas.anchors.ALPHA_PHI", anchors.ALPHA_PHI),
        "furthest": ("core.formulas.anchors.FURTHEST", anchors.FURTHEST),
        "lucas_start": ("core.formulas.lucas.START", lucas.START),
        "half_ulp": ("core.formulas.lucas.HALF_ULP", lucas.HALF_ULP),
        "gf16_infinity_code": ("core.formulas.gf16.INFINITY_CODE", gf16.INFINITY_CODE),
        "gf16_max_finite": ("core.formulas.gf16.MAX_FINITE", gf16.MAX_FINITE),
        "gf16_overflow": ("core.formulas.gf16.OVERFLOW", gf16.OVERFLOW),
        "gf16_min_normal": ("core.formulas.gf16.MIN_NORMAL", gf16.MIN_NORMAL),
        "gf16_unit_roundoff": ("core.formulas.gf16.UNIT_ROUNDOFF", gf16.UNIT_ROUNDOFF),
        "eta": ("core.formulas.halving.ETA", halving.ETA),
        "certificate_threshold": ("invariants.inv02_asha_threshold", inv02.Certificate().threshold),
        "certificate_target": ("invariants.inv02_asha_threshold", inv02.Certificate().target),
        "certificate_gap": ("invariants.inv02_asha_threshold", inv02.Certificate().gap),
        "entropy_states": ("invariants.inv04_nca_entropy_band.STATES", inv04.STATES),
        "entropy_low": ("invariants.inv04_nca_entropy_band", inv04.DEFAULT.low),
        "entropy_high": ("invariants.inv04_nca_entropy_band", inv04.DEFAULT.high),
        "ema_start": ("invariants.inv06_ema_decay", inv06.DEFAULT.start),
        "ema_end": ("invariants.inv06_ema_decay", inv06.DEFAULT.end),
        "victory_target": ("invariants.inv07_victory_gate", inv07.DEFAULT.target),
        "victory_largest_alpha": ("invariants.inv07_victory_gate.LARGEST_ALPHA", inv07.LARGEST_ALPHA),
        "victory_alpha": ("invariants.inv07_victory_gate", inv07.DEFAULT.alpha),
        "band_n": ("invariants.inv08_lr_band", inv08.DEFAULT.n),
        "qk_gain_low": ("invariants.inv09_qk_gain.DEFAULT.ends[0]", Fraction(inv09.DEFAULT.ends[0])),
        "qk_gain_high": ("invariants.inv09_qk_gain.DEFAULT.ends[1]", Fraction(inv09.DEFAULT.ends[1])),
        "band_k": ("invariants.inv08_lr_band", inv08.DEFAULT.k),
    }


def term(value: Any) -> tuple[str, str]:
    """(type, term) of a constant: int, Fraction, Golden (the pair of its coefficients), or a tuple of ints."""
    if isinstance(value, int):
        return "Z", f"{value}" if value >= 0 else f"({value})"
    if isinstance(value, Fraction):
        return "Q", f"{value.numerator} # {value.denominator}"
    if isinstance(value, Golden):
        a, b = value.rational, value.golden
        return "Q * Q", f"({a.numerator} # {a.denominator}, {b.numerator} # {b.denominator})"
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
        return " * ".join(["Z"] * len(value)), f"({', '.join(map(str, value))})%Z"
    raise TypeError(f"{value!r} is no exact constant: an int, Fraction, Golden or tuple of ints")


def text() -> str:
    """The file."""
    lines = [
        "(** The constants of the running code, as exact numbers: written by invariants/coq_constants.py, not by hand.",
        "    A golden number a + b phi is the pair (a, b). *)",
        "",
        "Require Import ZArith QArith.",
        "",
    ]
    for name, (where, value) in constants().items():
        kind, written = term(value)
        lines.append(f"Definition {name} : {kind} := {written}.  (* {where} *)")
    return "\n".join(lines) + "\n"


def differences(folder: Path = FOLDER) -> dict[str, tuple[str, str]]:
    """Constant -> (as the Coq file has it, as the code has it) where the two are not the same; empty when all are."""
    try:
        held = (folder / f"{FILE}.v").read_text(encoding="utf-8")
    except OSError:
        held = ""
    pattern = re.compile(r"^Definition (\w+) : [^:]+ := (.*)\.\s+\(\*.*\*\)$", re.M)
    now, was = dict(pattern.findall(text())), dict(pattern.findall(held))
    found = {
        name: (was.get(name, "missing"), now.get(name, "missing"))
        for name in {*now, *was}
        if now.get(name) != was.get(name)
    }
    if not found and held != text():
        return {"the file": ("other text", "what the generator writes")}
    return dict(sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the file, or writes it."""
    parser = argparse.ArgumentParser(
        prog="python -m karat.invariants.coq_constants", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--write", action="store_true", help=f"write proofs/coq/{FILE}.v; without it, print it")
    options = parser.parse_args(arguments)
    try:
        if options.write:
            write_text(FOLDER / f"{FILE}.v", text())
        else:
            print(text(), end="")
    except KaratError as error:
        print(f"coq_constants: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
