"""The public sources of the IGLA race: the GF16 format, masks and moving averages, the victory gate, its proofs."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import z3

from karat.core.bounds import Exact, less_equal
from karat.core.formulas import gf16
from karat.core.golden import PHI, Golden
from karat.proofs.ledger.decimals import Number, agrees, exactly, number, read, show
from karat.proofs.ledger.igla_results import best, student_p
from karat.proofs.ledger.record import COUNT, EXACT, FORMULA, STATISTICS, Z3, Checker, Finding, decided
from karat.proofs.ledger.solving import valid

LR_CONVERGENCE = {"phi_pos": "Qed", "sqrt5_sq": "Qed", "phi_lb": "Qed", "phi_ub": "Qed", "phi_cube": "Qed",
                  "alpha_phi_lb": "Admitted", "alpha_phi_ub": "Admitted", "lr_champion_in_safe_range": "Qed",
                  "alpha_phi_pos": "Qed"}  # fmt: skip
"""How each statement of the file ends, in the version that the issue calls proven."""
QUANTISED = {128: (Fraction("3.2182"), Fraction("2.877")), 384: (Fraction("3.268"), Fraction("2.568"))}
"""Width -> best BPB with GF16 and with float32, from the result files: 4-gram at 128, 7-gram at 384."""


def _code(stated: tuple[Fraction | float, int]) -> Finding:
    value, code = stated
    right = gf16.encode(value)
    return Finding(gf16.decode(code) == value, f"0x{code:04X} is {_shown(code)}; {_shown(right)} is 0x{right:04X}")


def _shown(code: int) -> str:
    value = gf16.decode(code)
    return show(value) if isinstance(value, Fraction) else str(value)


def _range(stated: tuple[str, str]) -> Finding:
    """The range with the bias 15 of that file, whose largest exponent field is 62 and which has no subnormals."""
    least, most = Fraction(1, 2**14), Fraction(2) ** 47 * (2 - Fraction(1, 512))
    holds = agrees(stated[0], least) and agrees(stated[1], most)
    return Finding(holds, f"{show(float(least), 3)} to {show(float(most), 3)}", "with bias 15; with the format's 31 it is "
                   f"{show(float(gf16.MIN_NORMAL), 3)} to {show(float(gf16.MAX_FINITE), 3)}")  # fmt: skip


def phi_distance(exponent: int, mantissa: int) -> Golden:
    """|mantissa/(exponent + mantissa) - 1/phi|, as section 3 of the specification has it."""
    return abs(Fraction(mantissa, exponent + mantissa) - 1 / PHI)


def _smallest_distance(stated: tuple[int, int]) -> Finding:
    splits = [(e, 15 - e) for e in range(1, 15)]
    closest = min(splits, key=lambda split: float(phi_distance(*split)))
    distance = show(phi_distance(*closest), 3)
    return Finding(closest == stated, f"{closest[0]}:{closest[1]} is closest, {distance}", "of the 14 splits of 15 bits; that "
                   "closeness to 1/phi does any good is not shown")  # fmt: skip


def relative_error() -> Fraction:
    """The largest relative error of rounding a normal value: over the midpoints of one binade, whose pattern repeats."""
    ends = [gf16.decode(0x3E00 + k) for k in range(513)]
    exact = [x for x in ends if isinstance(x, Fraction)]
    return max((b - a) / 2 / ((a + b) / 2) for a, b in itertools.pairwise(exact))


def _relative_error(stated: Golden) -> Finding:
    worst = relative_error()
    return Finding(bool(worst <= stated), f"at most {show(float(worst), 4)}",
                   f"{show(float(stated) / float(worst), 2)} times less; for every width of a model")  # fmt: skip


def total_error(width: int) -> float:
    """The source's own formula, 0.0557/d · sqrt d."""
    return 0.0557 / width * math.sqrt(width)


def _unsafe_below(stated: tuple[int, Exact]) -> Finding:
    error, bound = total_error(stated[0]), stated[1]
    side = "<" if less_equal(Fraction(error), bound) else ">"
    return Finding(less_equal(bound, Fraction(error)), f"{show(error, 4)} {side} {show(bound, 4)}", "by its own formula, "
                   "0.0557/sqrt d")  # fmt: skip


def _safe_from(stated: int) -> Finding:
    """The bound 0.0557 from this width on (the formula falls with d); vacuous when every smaller width but 1 has it too."""
    holds = total_error(stated) < 0.0557
    below = [d for d in range(2, stated) if total_error(d) >= 0.0557]
    note = f"{stated} plays no part: the formula is 0.0557/sqrt d"
    return Finding(holds, "it is from d = 2 on" if holds else "", note if holds else "", vacuous=holds and not below)


def _closed(stated: int) -> Finding:
    x, y = z3.Reals("x y")
    inside = [z3.And(v >= -stated, v <= stated) for v in (x, y, x + y, x - y, x * y)]
    holds = valid(z3.Implies(z3.And(*inside[:2]), z3.And(*inside[2:])))
    return Finding(holds, "" if holds else f"{show(stated)} + {show(stated)} = {show(2 * stated)}")


def _near_integers(stated: frozenset[int]) -> Finding:
    """The n of 0..16 for which 2^n - phi^-2n is an integer."""
    found = frozenset(n for n in range(17) if (2**n - PHI ** (-2 * n)).golden == 0)
    return Finding(
        found == stated, "only n = " + ", ".join(map(str, sorted(found))), f"2 - phi^-2 = {show(2 - PHI**-2)}"
    )


def _penalty(width: int, shown: str) -> Checker:
    def check(stated: str) -> Finding:
        quantised, single = QUANTISED[width]
        return Finding(
            agrees(stated, quantised - single), f"+{show(quantised - single, 2)} BPB at d_model = {width}", shown
        )

    return check


def _free_of_loss(stated: int) -> Finding:
    """Whether GF16 costs less at every recorded width from the stated one on than it does below."""
    losses = {width: a - b for width, (a, b) in QUANTISED.items()}
    safe = [loss for width, loss in losses.items() if width >= stated]
    unsafe = [loss for width, loss in losses.items() if width < stated]
    holds = not safe or not unsafe or max(safe) < min(unsafe)
    return Finding(
        holds,
        ", ".join(f"+{show(loss, 2)} BPB at {width}" for width, loss in losses.items()),
        "one run of each, 4-gram and 7-gram",
    )


def _ramp(shape: str, t: float) -> float:
    """From 0 to 1, on a line or along half a cosine."""
    return {"linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2}[shape]


def _ema(stated: str) -> Finding:
    """The source ramps from 0.996 to 1 over 30,000 steps; compared with both shapes at 13 points."""
    steps = range(0, 30_001, 2_500)
    source = [Fraction("0.996") + Fraction("0.004") * Fraction(step, 30_000) for step in steps]
    values = [0.996 + 0.004 * _ramp(stated, step / 30_000) for step in steps]
    holds = all(abs(float(a) - b) < 1e-9 for a, b in zip(source, values, strict=True))
    quarter = 0.996 + 0.004 * _ramp("cosine", 0.25)
    return Finding(holds, f"linear: {show(float(source[3]))} at step 7,500", f"a cosine has {show(quarter)} there")


def _mask(stated: str) -> Finding:
    """Two spans of 3 to 9 positions of 100: the shares that a mask can reach."""
    least, most = Fraction(3, 100), Fraction(2 * 9, 100)
    return Finding(read(stated)[0] <= most and least <= read(stated)[1], f"at most {show(most)}", "two spans of 3 to 9 of 100 "
                   f"positions, its own example; the trainer masks two spans of 3 of 59: {show(Fraction(6, 59), 2)}")  # fmt: skip


def _floor(stated: Golden) -> Finding:
    return Finding(
        bool(best() >= stated), f"{show(best())} is below {show(stated)}", "if the issue's table of results is right"
    )


def _effect(stated: str) -> Finding:
    return Finding(Fraction(stated) == Fraction("1.5") - Fraction("0.05"), "1.5 - 0.05 = " + show(Fraction("1.45")))


def _baseline(stated: str) -> Finding:
    """The gate subtracts BPB_VICTORY_TARGET, 1.5, from the mean; the pre-registered baseline is another constant."""
    sample, used = ("1.49", "1.48", "1.47"), "1.5"
    registered, tested = (show(student_p(sample, mean), 2) for mean in ("1.55", used))
    return Finding(Fraction(stated) == Fraction(used), f"its code tests against {used}: 1.49, 1.48, 1.47 have p = {tested}, "
                   f"against 1.55 p = {registered}", "one sample, two degrees of freedom: not the two-sample test of Welch "
                   "that it is called")  # fmt: skip


def _admitted(stated: int) -> Finding:
    admitted = [name for name, end in LR_CONVERGENCE.items() if end == "Admitted"]
    return Finding(
        len(admitted) == stated, f"{len(admitted)}: {', '.join(admitted)}", "both statements are true: C-003S.54"
    )


def _tautology(stated: int) -> Finding:
    """l2 < l1 -> l2 < l1 - stated; vacuous when the conclusion is the hypothesis."""
    before, after = z3.Reals("l1 l2")
    hypothesis, conclusion = z3.simplify(after < before), z3.simplify(after < before - stated)
    same = z3.eq(hypothesis, conclusion)
    holds = valid(z3.Implies(hypothesis, conclusion))
    return Finding(holds, "its conclusion is its hypothesis" if same else "", vacuous=holds and same)


def _between(value: Golden) -> Checker:
    def check(stated: tuple[str, str]) -> Finding:
        holds = less_equal(Fraction(stated[0]), value) and less_equal(value, Fraction(stated[1]))
        return Finding(holds, show(value, 6), "admitted there without a proof")

    return check


def _of(value: Number) -> Checker:
    return number(lambda: value)


SPEC, GATE = "zig-golden-float, GF16 specification of 31 March 2026", "trios-trainer-igla, victory gate"
PHD, SAFE = "trios, PhD theorems on GF16 precision", "trios, gf16_safe_domain.v"
MACHINE = (
    decided("C-003S.34", "The EMA decay follows a cosine", "IGLA race issue, INV-6; trios-trainer-igla, ema.rs", FORMULA, _ema,
            "cosine", "linear"),
    decided("C-003S.35", "JEPA masks a share of 0.30", "IGLA race issue, JEPA-T; trios-trainer-igla, masking.rs", COUNT, _mask,
            "0.30", "0.15"),
    decided("C-003S.36", "The smallest subnormal is ~4.7e-10", f"{SPEC}, since corrected", EXACT, _of(float(gf16.MIN_SUBNORMAL)),
            "~4.7e-10", "~1.8e-12"),
    decided("C-003S.37", "GF16 reaches ~4.3e9", SPEC, EXACT, _of(gf16.MAX_FINITE), "~4.3e9", "~6.5e4"),
    decided("C-003S.38", "1.0 is 0x3C00", f"{SPEC}, test vectors, since corrected", EXACT, _code, (Fraction(1), 0x3C00),
            (Fraction(1), 0x3E00)),
    decided("C-003S.39", "Infinity is 0x7C00", f"{SPEC}, test vectors, since corrected", EXACT, _code, (math.inf, 0x7C00),
            (math.inf, 0x7E00)),
    decided("C-003S.40", "The codec used in training covers 4.66e-5 to 6.55e4", "trios-trainer-igla, gf16.rs", EXACT, _range,
            ("4.66e-5", "6.55e4"), ("6.10e-5", "2.81e14")),
    decided("C-003S.41", "GF16's 6:9 split has the phi-distance 0.049", f"{SPEC}, abstract, by its section 3", EXACT,
            number(lambda: phi_distance(6, 9), "|6/9 - 1/phi| is 0.049: another definition"), "0.049", "0.018"),
    decided("C-003S.42", "6:9 has the smallest phi-distance of any 16-bit split", SPEC, COUNT, _smallest_distance, (6, 9),
            (5, 10)),
    decided("C-003S.43", "GF16's relative rounding error is at most phi^-6 = 0.0557", PHD, COUNT, _relative_error, PHI**-6,
            PHI**-16),
    decided("C-003S.44", "At d_model = 255 the GF16 error reaches phi^-6", f"{SAFE}, inv3_falsification_at_255", FORMULA,
            _unsafe_below, (255, PHI**-6), (255, Fraction("0.003"))),
    decided("C-003S.45", "From d_model = 256 on the GF16 error is below 0.0557", SAFE, COUNT, _safe_from, 256, 1),
    decided("C-003S.46", "[-65504, 65504] is closed under +, - and ×", f"{PHD}, gf16_algebraically_consistent", Z3, _closed,
            65504, 0),
    decided("C-003S.47", "2^n - phi^-2n is an integer for all n <= 16", f"{PHD}, lucas_closure_gf16_range", COUNT, _near_integers,
            frozenset(range(17)), frozenset({0})),
    decided("C-003S.48", "256 - phi^-10 = 256 (admitted)", "trinity-clara, gf16_precision.v", EXACT,
            exactly(lambda: 256 - PHI**-10), 256, 256 - PHI**-10),
    decided("C-003S.49", "GF16 with d_model < 256 costs +3.21 BPB", "IGLA race issue, L-R9; trios, result files", EXACT,
            _penalty(128, "3.2182 is the BPB itself, not a difference"), "3.21", "0.34"),
    decided("C-003S.50", "From d_model = 256 on GF16 costs less than below", "IGLA race issue, L-R9; trios, result files", EXACT,
            _free_of_loss, 256, 100),
    decided("C-003S.51", "No BPB is below the architecture's floor 2 + phi^-2 = 2.382", "trios, issue 441", EXACT, _floor,
            2 + PHI**-2, Golden(2)),
    decided("C-003S.52", "The baseline 1.55 is the target 1.5 less the effect 0.05", GATE, EXACT, _effect, "1.55", "1.45"),
    decided("C-003S.53", "lr_convergence.v is proven, with 0 Admitted", "IGLA race issue, Coq invariants; the file itself", COUNT,
            _admitted, 0, 2),
    decided("C-003S.54", "0.11803 < alpha_phi < 0.11804", "trinity-clara, lr_convergence.v", EXACT, _between(PHI**-3 / 2),
            ("0.11803", "0.11804"), ("0.11804", "0.11805")),
    decided("C-003S.55", "bpb_decreases_with_real_gradient: l2 < l1 -> l2 < l1", "trinity-clara, lr_convergence.v, latest", Z3,
            _tautology, 0, 1),
    decided("C-003S.56", "The victory gate tests three seeds against the baseline 1.55", GATE, STATISTICS, _baseline,
            "1.55", "1.5"),
)  # fmt: skip
