"""INV-5 in Coq: closure of the even golden powers for every n, and what the guard's margin measures over the reals."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import lucas
from karat.core.golden import PHI
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.invariants import inv05_lucas_closure


def _pair_point(random: Random) -> dict[str, Any]:
    return {"a": random.randint(-99, 99), "b": random.randint(-99, 99)}


def _trace_point(random: Random) -> dict[str, Any]:
    return _pair_point(random) | {"trace": random.randint(-9, 9)}


def _margin_point(random: Random) -> dict[str, Any]:
    """Small fractions, exact reciprocals u + 1/u, and fractions a few parts in 2^53 off."""
    g = Fraction(random.randint(-9, 9), random.randint(1, 4))
    if random.random() < 0.5 or g == 0:
        return {"g": g, "closes_to": Fraction(random.randint(-9, 9), 2)}
    return {"g": g * (1 + Fraction(random.randint(-3, 3), 2**53)), "closes_to": g + 1 / g}


def _declared_point(random: Random) -> dict[str, Any]:
    """Doubles around phi^2m, a typed one, and small fractions."""
    m = random.randint(1, 12)
    near = Fraction(float(PHI ** (2 * m))) * (1 + Fraction(random.randint(-4, 4), 2**53))
    return {"g": random.choice([near, Fraction(2618, 1000), Fraction(random.randint(-9, 9), 3)]), "m": m}


_FILE = "INV05_lucas_closure"
_PAIR = Counterpart("INV05_lucas_closure.next_pair", lucas.next_pair, "INV05_lucas_closure.next_pair ({a}, {b})",
                    _pair_point, run=lambda v: lucas.next_pair(**v))  # fmt: skip
_LUCAS = Counterpart("INV05_lucas_closure.lucas", lucas.lucas, "INV05_lucas_closure.lucas (Z.to_nat {n})",
                     lambda random: {"n": random.randint(0, 120)}, run=lambda v: lucas.lucas(**v))  # fmt: skip
_NEXT_SUM = Counterpart("INV05_lucas_closure.next_power_sum", inv05_lucas_closure.next_power_sum,
                        "INV05_lucas_closure.next_power_sum {trace} {a} {b}", _trace_point,
                        run=lambda v: inv05_lucas_closure.next_power_sum(**v))  # fmt: skip
_MARGIN = Counterpart("INV05_lucas_closure.closure_margin", lucas.closure_margin,
                      "parts (INV05_lucas_closure.closure_margin (K := on_Q) {g} {closes_to})", _margin_point,
                      run=lambda v: lucas.closure_margin(**v))  # fmt: skip
_GUARD = Counterpart("INV05_lucas_closure.closure_margin", inv05_lucas_closure.margin,
                     "parts (INV05_lucas_closure.closure_margin (K := on_Q) {g} "
                     "(of_Z (INV05_lucas_closure.lucas (Z.to_nat (2 * {m})))))", _declared_point,
                     run=lambda v: inv05_lucas_closure.margin({"gain": v["g"]}, inv05_lucas_closure.Closure(v["m"])))  # fmt: skip

_GUARDED = (lucas.closure_margin, inv05_lucas_closure.margin)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-5.coq-binet", "phi^n + conjugate^n = L_n for every integer n >= 0, L_n by the running recurrence from "
            "(2, 1)", (lucas.lucas, lucas.next_pair), file=_FILE, theorem="powers_add_to_lucas",
            counterparts=(_PAIR, _LUCAS)),
    Theorem("INV-5.coq-closure", "phi^2n + phi^-2n = L_2n, an integer, for every integer n >= 0",
            (lucas.lucas, lucas.next_pair), file=_FILE, theorem="even_powers_close", counterparts=(_PAIR, _LUCAS)),
    Theorem("INV-5.coq-phi-itself", "phi + 1/phi is no integer: phi itself does not close", (), file=_FILE,
            theorem="phi_itself_does_not_close"),
    Theorem("INV-5.coq-any-unit", "for every real u other than 0 with u + 1/u an integer, u^n + u^-n is the integer "
            "that the recurrence gives from (2, u + 1/u), for every integer n >= 0",
            (inv05_lucas_closure.next_power_sum,), file=_FILE, theorem="any_unit_closes", counterparts=(_NEXT_SUM,)),
    Theorem("INV-5.coq-silver", "(1 + sqrt 2)^n + (1 - sqrt 2)^n is an integer for every integer n >= 0", (),
            file=_FILE, theorem="silver_powers_add"),
    Theorem("INV-5.coq-not-alone", "some u > 1 other than phi^2 has u^n + u^-n an integer for every integer n >= 0: "
            "phi^2 is not alone in it, contrary to the seed", (), file=_FILE, theorem="phi_is_not_alone"),
    Theorem("INV-5.coq-margin-sign", "the closure margin is >= 0 iff |g^2 - closes_to·g + 1| <= 2^-53 g^2, for all reals",
            (lucas.closure_margin,), file=_FILE, theorem="closure_margin_sign", counterparts=(_MARGIN,)),
    Theorem("INV-5.coq-margin-relative", "for every real g > 0 the closure margin is >= 0 iff |g + 1/g - closes_to| <= 2^-53 g",
            (lucas.closure_margin,), file=_FILE, theorem="closure_margin_relative", counterparts=(_MARGIN,)),
    Theorem("INV-5.coq-margin-factors", "with closes_to = u + 1/u the closure margin is 2^-53 g^2 - |(g - u)(g - 1/u)|, for all "
            "reals g and every u but 0", (lucas.closure_margin,), file=_FILE, theorem="closure_margin_factors",
            counterparts=(_MARGIN,)),
    Theorem("INV-5.coq-guard", "the guard's margin is 2^-53 g^2 - |(g - phi^2m)(g - phi^-2m)|, for every real g and "
            "every integer m >= 0", _GUARDED, file=_FILE, theorem="golden_margin",
            counterparts=(_PAIR, _LUCAS, _MARGIN, _GUARD)),
    Theorem("INV-5.coq-rounded", "for every real u > 0 and every g >= 1/u within 2^-53 g of u, the closure margin with "
            "closes_to = u + 1/u is >= 0: the guard accepts g", _GUARDED, file=_FILE, theorem="rounded_is_accepted",
            counterparts=(_MARGIN, _GUARD)),
)  # fmt: skip
