"""The structure-over-scale post: error ratios of float16, prices, triangle inequalities, the scale of a discrepancy.

Arithmetic in float16 and float32 is done element by element in a fixed order, on fixed inputs: no matrix product, whose
order of summation differs between machines.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
import z3

from karat.core.golden import PHI
from karat.proofs.ledger.decimals import agrees, number, percent, read, show
from karat.proofs.ledger.record import COUNT, EXACT, FORMULA, Z3, Document, Finding, decided, left_open
from karat.proofs.ledger.solving import valid

PILLARS = ("FP32 precision preservation", "sparse cognitive architectures", "developmental curriculum training",
           "continuous belt-fed data ingestion", "hardware-native optimization", "thermodynamic governance",
           "open-standard compute")  # fmt: skip
FAMILIES = ("Mixture of Attentions", "Qemma", "SAGI", "DiscoverLM")
SINGLE, COMPOUNDED = 5810, 23225


def unit_roundoff_quotient() -> Fraction:
    """The worst relative rounding error of float16 over that of float32."""
    return Fraction(float(np.finfo(np.float16).eps)) / Fraction(float(np.finfo(np.float32).eps))


def rounding_ratio(x: Any) -> Any:
    """The error of rounding x to float16 over that of rounding it to float32; x a float64 or an array of them."""
    wide = np.asarray(x, dtype=np.float64)
    half = np.abs(wide.astype(np.float16).astype(np.float64) - wide)
    single = np.abs(wide.astype(np.float32).astype(np.float64) - wide)
    return half / single


def witness(stated: str) -> str | None:
    """The first square root of 2..200,000 whose rounding shows the stated ratio; None when there is none."""
    low, high = (float(end) for end in read(stated))
    n = np.arange(2, 200_001)
    n = n[np.sqrt(n) % 1 != 0]  # the root of a square is exact in both formats
    ratio = rounding_ratio(np.sqrt(n))
    hits = n[(ratio >= low) & (ratio <= high)]
    return f"sqrt {hits[0]}" if len(hits) else None


def _single_operation(stated: str) -> Finding:
    """TRUE for the quotient of the formats; VACUOUS when some rounding shows the ratio, and a tenth and ten times it too."""
    quotient, ratio = unit_roundoff_quotient(), int(stated.replace(",", ""))
    found = witness(stated)
    tenth, tenfold = (witness(f"~{value}") for value in (ratio // 10, ratio * 10))
    some = ", ".join(f"{name} {show(round(float(rounding_ratio(x))))}"
                     for name, x in (("e", math.e), ("sqrt 2", math.sqrt(2)), ("1/3", 1 / 3), ("1/10", 0.1)))  # fmt: skip
    holds = agrees(stated, quotient)
    return Finding(
        holds or found is not None,
        f"the formats' unit roundoffs differ by {show(quotient)} = 2^13; rounding {found} shows {stated}",
        f"no operation is named, and single roundings show any ratio: {some}; {tenth} a tenth of it, {tenfold} ten times it",
        vacuous=not holds and None not in (found, tenth, tenfold),
    )


def sequential_dot_ratio(length: int, rows: int = 256) -> float:
    """Root-mean-square error of `rows` dot products in float16 over float32, each summed from left to right."""
    i = np.arange(rows * length, dtype=np.float64).reshape(length, rows)
    a, b = (np.modf((i + 1) * step)[0] - 0.5 for step in (float(PHI), math.sqrt(2)))
    exact = np.zeros(rows)
    totals: dict[Any, Any] = {kind: np.zeros(rows, kind) for kind in (np.float16, np.float32)}
    for x, y in zip(a, b, strict=True):
        exact = exact + x * y
        for kind in totals:
            totals[kind] = (totals[kind] + x.astype(kind) * y.astype(kind)).astype(kind)
    half, single = (math.fsum((totals[kind].astype(np.float64) - exact) ** 2) for kind in (np.float16, np.float32))
    return math.sqrt(half / single)


def power_ratio(base: float, times: int) -> float:
    """Error of 1 multiplied `times` times by base, in float16 over float32."""
    half, single = np.float16(1), np.float32(1)
    for _ in range(times):
        half, single = np.float16(half * np.float16(base)), np.float32(single * np.float32(base))
    exact = Fraction(base) ** times
    return float(abs(Fraction(float(half)) - exact) / abs(Fraction(float(single)) - exact))


def _compounding() -> str:
    dots = [sequential_dot_ratio(n) for n in (16, 128, 1024)]
    powers = [power_ratio(1.1, n) for n in (12, 24, 100)]
    return (
        f"23,225/5,810 = {show(Fraction(COMPOUNDED, SINGLE), 4)}; dot products of length 16, 128, 1024, both formats summed "
        f"in sequence: {', '.join(show(round(d / 100) * 100) for d in dots)}; 1.1 to the power 12, 24, 100, no "
        f"network: {', '.join(show(round(p / 100) * 100) for p in powers)}; one rounding, of {witness('23,225')}: 23,225"
    )


def triangle(power: int) -> bool:
    """Whether |a - c|^power <= |a - b|^power + |b - c|^power for all real a, b, c."""
    a, b, c = z3.Reals("a b c")

    def distance(x: Any, y: Any) -> Any:
        away = z3.If(x >= y, x - y, y - x)
        return away if power == 1 else away * away

    return valid(distance(a, c) <= distance(a, b) + distance(b, c))


def _triangle_inequality(stated: int) -> Finding:
    points = (0, 1, 2)
    direct = abs(points[0] - points[2]) ** stated
    way = abs(points[0] - points[1]) ** stated + abs(points[1] - points[2]) ** stated
    return Finding(triangle(stated), f"points 0, 1, 2 on a line: {direct} against {way}")


def _penalty_binds(stated: int) -> Finding:
    """The penalty max(0, d(a,c) - d(a,b) - d(b,c)) can be positive only where the inequality can fail."""
    never = triangle(stated)
    text = "0 for all points" if never else "positive at 0, 1, 2"
    return Finding(True, f"the penalty is {text}", "shown on a line; in any dimension it is Minkowski's", vacuous=never)


def _cosine_distance(stated: int) -> Finding:
    """1 - cos between (1,0), (1,1), (0,1), to a power of its square root: 1 against 2 (1 - 1/sqrt 2)^(stated/2)."""
    near = 1 - 1 / sympy.sqrt(2)
    way = 2 * near ** sympy.Rational(stated, 2)
    holds = bool(way >= 1)
    return Finding(holds, f"at 0, 45, 90 degrees: 1 against {show(float(way), 3)}")


def _discrepancy(stated: tuple[int, int]) -> Finding:
    """E[D^2] of N independent uniform points in d dimensions from Warnock's formula, integrated exactly."""
    x, y = sympy.symbols("x y")
    square = sympy.integrate(1 - x**2, (x, 0, 1))
    same = sympy.integrate(1 - x, (x, 0, 1))
    two = 2 * sympy.integrate(1 - x, (y, 0, x), (x, 0, 1))  # max(x, y) = x on one half
    cases = holds = 0
    for n in range(1, 13):
        for d in range(1, 9):
            mean = (
                sympy.Rational(1, 3) ** d
                - sympy.Rational(2) ** (1 - d) * square**d
                + (n * same**d + n * (n - 1) * two**d) / sympy.Integer(n) ** 2
            )
            formula = (sympy.Rational(1, stated[0]) ** d - sympy.Rational(1, stated[1]) ** d) / n
            cases, holds = cases + 1, holds + int(mean == formula)
    return Finding(cases == holds, f"{holds} of {cases} cases, N = 1..12 and d = 1..8")


def _counted(things: tuple[str, ...]) -> Any:
    return lambda stated: Finding(stated == len(things), f"{len(things)}: {', '.join(things)}")


def _head_share() -> str:
    vocabulary, width, total = 50257, 512, 52_720_000
    return (
        f"top 2 of 4 is {percent(Fraction(2, 4))} of the experts in one published configuration; a full vocabulary head "
        f"alone is {percent(Fraction(vocabulary * width, total))} of the 52.72M-parameter model"
    )


POST, CARDS = "abstract", "model cards of the post's models"
ENTRIES = (
    decided("C-001.01", "The models span four architecture families", POST, COUNT, _counted(FAMILIES), 4, 5),
    decided("C-001.02", "The methodology has seven pillars", POST, COUNT, _counted(PILLARS), 7, 6),
    decided("C-001.03", "$24 for 15 models is $1.60 per model", f"{POST}; title of the paper", EXACT,
            number(lambda: Fraction(24, 15), "", "dollars per model"), "1.60", "1.50"),
    decided("C-001.04", "FP16 has 5,810 times the single-operation error of FP32", f"{POST}, pillar 1", FORMULA,
            _single_operation, "5,810", "8,192"),
    left_open("C-001.05", "FP16 has a compounding error ratio of 23,225 at network depth", f"{POST}, pillar 1",
              "no experiment is described: neither operands, nor order of summation, nor network", _compounding),
    left_open("C-001.06", "0.02-7% of parameters activate per token", f"{POST}, pillar 2",
              "no count per model is published", _head_share),
    decided("C-001.07", "The squared distance of metric attention satisfies the triangle inequality", f"{CARDS}; {POST}", Z3,
            _triangle_inequality, 2, 1),
    decided("C-001.08", "A regulariser enforces the triangle inequality of the Euclidean distance", f"{CARDS}; {POST}", Z3,
            _penalty_binds, 1, 2),
    decided("C-001.09", "The cosine distance 1 - cos satisfies the triangle inequality", f"{CARDS}; {POST}", EXACT,
            _cosine_distance, 2, 1),
    decided("C-001.10", "L2-star discrepancy has a scale: N independent uniform points in d dimensions have the mean square "
            "(2^-d - 3^-d)/N", "what pillar 6 would need", EXACT, _discrepancy, (2, 3), (2, 4)),
    left_open("C-001.11", "Emergent temperature is grounded in L2-star discrepancy", f"{POST}, pillar 6",
              "no definition of the temperature is published"),
    left_open("C-001.12", "CPU training at FP32 is orders of magnitude more capable per dollar than GPU training", POST,
              "no capability is measured, and no GPU run is priced"),
    left_open("C-001.13", "For sub-2B models CPU training produces more capable models at a fraction of the cost", POST,
              "no comparison is published"),
    left_open("C-001.14", "Sparse activation matches CPU branching rather than GPU SIMD", f"{POST}, pillar 2",
              "pillar 7 computes with AVX2 SIMD; no measurement of either is published"),
    left_open("C-001.15", "Continuous ingestion eliminates truncation waste", f"{POST}, pillar 4",
              "no share of truncated tokens is given"),
)  # fmt: skip

DOCUMENT = Document(
    "C-001",
    "The structure-over-scale post",
    "The abstract of a paper on training small models on CPU. Only the abstract was available; its models' public cards say "
    "which distances are meant.",
    ENTRIES,
)
