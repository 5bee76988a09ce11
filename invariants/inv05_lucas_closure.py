"""INV-5 lucas-closure: phi^(2n) + phi^(-2n) is the Lucas number L_2n, an integer, for all n; the gain in force closes so.

Claim: a double g that is phi^(2m) correctly rounded has |g + 1/g - L_2m| <= 2^-53 g, and a double a few ulps off has not.
So the identity, true of numbers, becomes a check of the number in force: the gain of the attention scores.
Why it matters: an even golden power that was typed from memory (2.618) is no longer one, and nothing says so.
Source: the seed's INV-5. Its reading, that closure protects GF16 arithmetic, is wrong: see LIMITS and INV-5.only-phi.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core.formulas import lucas
from karat.core.golden import PHI, Golden
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Checked, Exact, Exhaustive, Formula, Identity, Obligation
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Closure:
    """The declared even golden power phi^(2m), m >= 1. (At m = 0 the two roots meet and the check would be a loose one.)"""

    m: int = 1

    @functools.cached_property
    def closes_to(self) -> int:
        """L_2m."""
        return lucas.lucas(2 * self.m)


def margin(values: Mapping[str, Any], declared: Closure, ops: Ops = FLOAT) -> Number:
    """2^-53 g^2 - |g^2 - L_2m g + 1|, exactly, of the gain in force as a Fraction; negative when it does not close."""
    return lucas.closure_margin(values["gain"], declared.closes_to, ops)


def next_power_sum(trace: Number, a: Number, b: Number) -> Number:
    """u^(n+1) + u^(-n-1) from the two sums before it, for u + 1/u = trace: the recurrence of any unit, golden or not."""
    return trace * b - a


DEFAULT = Closure()
CONJUGATE = PHI.conjugate()
LARGEST = 200
SILVER = (2, 6, 34, 198, 1154)
"""u^n + u^-n for u = (1 + sqrt 2)^2, n = 0..4."""


def closes(gain: float, m: int) -> bool:
    """Whether a double is phi^(2m) as far as closure can tell; only for m >= 1."""
    return m >= 1 and not INVARIANT.judge({"gain": Fraction(gain)}, Closure(m)).violated


def _step(v: Any, next_pair: Any) -> Any:
    """(p + q, p·phi - q/phi) is the pair (L_2n, L_2n+1) for p = phi^2n, q = phi^-2n; two steps on, p·phi^2 and q·phi^-2."""
    even, odd = v.p + v.q, v.p * PHI + v.q * CONJUGATE
    middle = next_pair(even, odd)
    last = next_pair(middle[0], middle[1])
    p, q = v.p * PHI**2, v.q * PHI**-2
    return [middle[0] == odd, last[0] == p + q, last[1] == p * PHI + q * CONJUGATE]


def _pair(v: Any, next_pair: Any) -> Any:
    first, second = next_pair(v.a, v.b)
    return [first == v.b, second == v.a + v.b]


def _closed(number: Any) -> Checked:
    """Exactly in Q(sqrt 5): phi^n + conjugate^n, and phi^2n + phi^-2n, for n = 0..LARGEST; an int; no L_(-1)."""
    for n in range(LARGEST + 1):
        if PHI**n + CONJUGATE**n != number(n) or type(number(n)) is not int:
            return Checked(n, f"L_{n} = {number(n)!r}")
        if PHI ** (2 * n) + PHI ** (-2 * n) != number(2 * n):
            return Checked(n, f"phi^{2 * n} + phi^-{2 * n} is not {number(2 * n)}")
    try:
        number(-1)
    except ValueError:
        return Checked(2 * LARGEST + 3)
    return Checked(0, "n = -1 is not refused")


def _powers_add(n: int) -> int:
    """What one gets from phi^n + phi^-n, rounded: right for even n alone."""
    return round(float(PHI**n + PHI**-n))


def _any_unit(sympy: Any, ops: Any, following: Any) -> Any:
    """For every unit u, and p = u^n, q = u^-n: the recurrence gives the next sum."""
    p, q, u = sympy.symbols("p q u", nonzero=True)
    return following(u + 1 / u, p + q, p * u + q / u) - (p * u**2 + q / u**2)


def _sums_are_integers(trace: Fraction) -> bool:
    """Whether u^n + u^-n is an integer for n = 0..50, where u + 1/u = trace."""
    a, b = Fraction(2), Fraction(trace)
    for _ in range(50):
        if b.denominator != 1:
            return False
        a, b = b, next_power_sum(trace, a, b)
    return True


def _silver(following: Any) -> Checked:
    """(1 + sqrt 2)^2n = x + y·sqrt 2 exactly; with its inverse x - y·sqrt 2 the sum is 2x: 2, 6, 34, 198, …"""
    x, y, a, b = 1, 0, *SILVER[:2]
    for n in range(LARGEST):
        if a != 2 * x or x * x - 2 * y * y != 1 or (n < len(SILVER) and a != SILVER[n]):
            return Checked(n, f"(1 + sqrt 2)^{2 * n} gives {2 * x}, the recurrence {a}")
        x, y = 3 * x + 4 * y, 2 * x + 3 * y  # times (1 + sqrt 2)^2 = 3 + 2 sqrt 2
        a, b = b, following(6, a, b)
    return Checked(LARGEST)


def _product(v: Any, distance: Any) -> Any:
    """closes_to = u + w with u·w = 1: the margin is 2^-53 g^2 - |(g - u)(g - w)|."""
    value = distance({"gain": v.g}, SimpleNamespace(closes_to=v.u + v.w), v.ops)
    return value == Fraction(1, 2**53) * v.g * v.g - v.ops.absolute((v.g - v.u) * (v.g - v.w))


def _inverse(v: Any) -> dict[str, Any]:
    return {"w = 1/u": v.u * v.w == 1}


def _rounded(v: Any) -> dict[str, Any]:
    gap = Fraction(1, 2**53) * v.g
    return _inverse(v) | {
        "w > 0": v.w > 0,
        "w <= g": v.w <= v.g,
        "g is u correctly rounded": (v.g - v.u <= gap) & (v.u - v.g <= gap),
    }


def _accepted(v: Any, distance: Any) -> Any:
    return distance({"gain": v.g}, SimpleNamespace(closes_to=v.u + v.w), v.ops) >= 0


def _sample_rounded(random: Random) -> dict[str, Any]:
    u = Fraction(random.randint(1000, 50_000), 1000)
    g = u * (1 + Fraction(random.randint(-9, 9), 10 * 2**53))
    return {"u": u, "w": 1 / u, "g": g}


def _doubles_near(distance: Any) -> Checked:
    """phi^2m correctly rounded is accepted, doubles three ulps off are not, for m = 1..150; nor 1, 2.618 and -phi^2."""
    cases = 0
    for m in range(1, 151):
        declared, g = Closure(m), float(PHI ** (2 * m))
        if not distance({"gain": Fraction(g)}, declared) >= 0:
            return Checked(cases, f"phi^{2 * m} as a double, {g!r}, is not accepted")
        for ulps in (-1000, -3, 3, 1000):
            if distance({"gain": Fraction(g + ulps * math.ulp(g))}, declared) >= 0:
                return Checked(cases, f"{ulps} ulps beside phi^{2 * m} is accepted")
        cases += 5
    for wrong in (1.0, 2.618, 0.0, -float(PHI**2), float(PHI), float(PHI**4)):
        if distance({"gain": Fraction(wrong)}, DEFAULT) >= 0:
            return Checked(cases, f"{wrong} is accepted as phi^2")
        cases += 1
    return Checked(cases)


def _generous(values: Mapping[str, Any], declared: Closure) -> Number:
    return margin(values, declared) + Fraction(1, 2**40)


def _strict(values: Mapping[str, Any], declared: Closure) -> Number:
    return margin(values, declared) - Fraction(1, 2**53) * values["gain"] ** 2


def _declared_sum(declared: Any) -> Checked:
    for m in range(1, 101):
        if PHI ** (2 * m) + PHI ** (-2 * m) != declared(m).closes_to:
            return Checked(m, f"Closure({m}).closes_to = {declared(m).closes_to}")
    return Checked(100)


OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-5.step", "if the running pair is (L_2n, L_2n+1) = (p + q, p·phi - q/phi) with p = phi^2n and q = phi^-2n, "
            "two steps give the same for 2n + 2: the induction step of closure, for all n", (lucas.next_pair,),
            variables={"p": "real", "q": "real"}, show=_step,
            sample=lambda random: {"p": Fraction(random.randint(1, 99), 7), "q": Fraction(random.randint(1, 99), 70)}),
    Exact("INV-5.base", "at n = 0, where p = q = 1, that pair is (2, 1), where the recurrence starts", (lucas.lucas,),
          show=lambda pair: (Golden(1) + 1, PHI + CONJUGATE) == pair == (lucas.lucas(0), lucas.lucas(1)),
          at=lucas.START, not_at=((1, 1), (0, 1))),
    Exact("INV-5.conjugate", "phi times its conjugate is -1, so the conjugate's even powers are phi^-2n", (),
          show=lambda value: value == PHI * CONJUGATE and CONJUGATE == -(PHI**-1), at=-1, not_at=(1, 0)),
    Formula("INV-5.pair", "a step of the recurrence is (a, b) -> (b, a + b), so integers give integers", (lucas.next_pair,),
            variables={"a": "int", "b": "int"}, show=_pair,
            sample=lambda random: {"a": random.randint(-99, 99), "b": random.randint(-99, 99)}),
    Exhaustive("INV-5.exact", "phi^n + conjugate^n = L_n and phi^2n + phi^-2n = L_2n, an int, exactly in Q(sqrt 5) for "
               f"n = 0..{LARGEST}", (lucas.lucas,), check=_closed, rivals={"phi^n + phi^-n": (_powers_add,)}),
    Formula("INV-5.margin", "the guard's margin is 2^-53 g^2 - |(g - phi^2m)(g - phi^-2m)|, for every unit in place of phi^2m",
            (margin,), variables={"g": "real", "u": "real", "w": "real"}, given=_inverse, show=_product,
            sample=_sample_rounded),
    Formula("INV-5.accepts", "whatever unit u > 0 the gain g is the correctly rounded double of, the guard accepts it: "
            "|g + 1/g - u - 1/u| <= 2^-53 g", (margin,), variables={"g": "real", "u": "real", "w": "real"}, given=_rounded,
            show=_accepted, sample=_sample_rounded),
    Exhaustive("INV-5.doubles", "of the doubles around phi^2m the nearest is accepted and those three ulps off are not, for "
               "m = 1..150, decided exactly", (margin,), check=_doubles_near,
               rivals={"a slack of 2^-40": (_generous,), "no slack": (_strict,)}),
    Exhaustive("INV-5.declared", "the declared sum is phi^2m + phi^-2m, for m = 1..100", (Closure,), check=_declared_sum,
               rivals={"L_m": (lambda m: SimpleNamespace(closes_to=lucas.lucas(m)),)}),
    Identity("INV-5.any-unit", "u^n + u^-n follows the recurrence of u + 1/u for every unit u: where u + 1/u is an integer, so "
             "are all of them", (next_power_sum,), show=_any_unit),
    Exhaustive("INV-5.silver", "(1 + sqrt 2)^2n + (1 + sqrt 2)^-2n is an integer, 2, 6, 34, 198, …: exactly in Q(sqrt 2) for "
               f"n < {LARGEST}", (next_power_sum,), check=_silver,
               rivals={"the golden recurrence": (lambda trace, a, b: 3 * b - a,)}),
    Exact("INV-5.only-phi", "of all units u > 1, phi^2 (u + 1/u = 3) alone has u^n + u^-n an integer for every n, as the seed "
          "has it", (next_power_sum,), show=lambda trace: trace == 3 or not _sums_are_integers(trace), at=Fraction(6),
          not_at=(Fraction(3), Fraction(7, 2)), must_fail=True),
)  # fmt: skip


def bounds(declared: Closure) -> tuple[Bound, ...]:
    """The identity as cited."""
    power = PHI ** (2 * declared.m)
    return (
        Bound("gain", f"phi^{2 * declared.m} = {power}", power.decimal()),
        Bound("sum", f"L_{2 * declared.m}", str(declared.closes_to)),
        Bound("rounding", "2^-53 of the gain", f"{float(lucas.HALF_ULP):.6g}"),
    )


def required(declared: Closure) -> str:
    """The condition as one line."""
    return f"|g + 1/g - L_{2 * declared.m}| <= 2^-53 g, exactly   L_{2 * declared.m} = {declared.closes_to}"


def _gain(g: float) -> dict[str, Any]:
    return {"gain": Fraction(g)}


_NEAREST = float(PHI**2)

INVARIANT = Invariant(
    id="INV-5",
    slug="lucas-closure",
    statement="phi^(2n) + phi^(-2n) = L_2n, an integer, for all n; the even golden power in force closes to its own, but for "
    "its rounding.",
    why="A golden power typed from memory, or changed by a later line, is no longer one, and nothing says so.",
    unit="",
    sources=("the seed's INV-5, proved for all n", "Lucas numbers: E. Lucas 1878"),
    limits=(
        "Closure says nothing of GF16: integers of the field have no bearing on how a 16-bit float rounds (that is INV-3).",
        "phi is not alone in this: every unit whose trace is an integer closes, 1 + sqrt 2 among them.",
        "phi^-2m closes to the same sum: that the gain is the larger of the two is INV-9's matter.",
        "On duty only where the declared gain is an even golden power phi^2m, m >= 1.",
    ),
    phases=(Phase.START, Phase.BEFORE_STEP, Phase.FINISH),
    quantities=(
        Quantity("gain", "g", "", "the gain of the attention scores in force, the double as an exact fraction"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {"gain": st.one_of(st.integers(-4, 4).map(lambda k: Fraction(_NEAREST + k * 2.0**-51)), st.fractions(-5, 5))}
    ),
    holds=(
        Witness(_gain(_NEAREST), "phi^2, correctly rounded"),
        Witness(_gain(float(PHI**-2)), "phi^-2, which closes to the same sum"),
    ),
    violates=(
        Witness(_gain(2.618), "phi^2 typed from memory"),
        Witness(_gain(_NEAREST + 3 * math.ulp(_NEAREST)), "three ulps off"),
        Witness(_gain(float(PHI)), "an odd power"),
        Witness(_gain(0.0), "no gain"),
    ),
)
