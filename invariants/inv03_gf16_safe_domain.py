"""INV-3 gf16-safe-domain: every tensor that goes through GF16 lies where its rounding error is bounded.

Claim: rounding x to GF16 errs by at most 2^-10 |x| for 2^-30 <= |x| < 2^31 (2 - 2^-10) and by at most 2^-40 below, so
a tensor whose largest magnitude is in [2^-30, 4 290 772 992] (or which is all zero) is changed by at most 2^-10 of
that magnitude anywhere. Shown here too: the arithmetic of the format (gf16_laws.py, gf16_sweeps.py) and the codec that
it is held against (gf16_reference.py).
Why it matters: beyond the range weights become infinite; below it they become coarse, then zero, without a word.
Source: the seed's INV-3. Its d_model >= 256 is a policy that nothing derives, and its "+3.21 BPB penalty" is an
absolute value copied as a difference; the policy is kept as a policy, see POLICY.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np

from karat.core import verdict
from karat.core.array_ops import ARRAY
from karat.core.formulas import gf16
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import BitLaw, Checked, Exhaustive, FloatLaw, Formula, Obligation, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops
from karat.invariants import gf16_laws, gf16_reference, gf16_sweeps
from karat.invariants.gf16_reference import numbers

POLICY_D_MODEL = 256
"""The seed's rule: GF16 only with d_model >= 256. A policy: no theorem here or there depends on it."""

LARGEST, SMALLEST = float(gf16.MAX_FINITE), float(gf16.MIN_NORMAL)  # both exact in float64


@dataclass(frozen=True)
class Domain:
    """The safe domain of a tensor's largest magnitude. It follows from the format: nothing to choose."""

    low: float = SMALLEST
    high: float = LARGEST


def margin(values: Mapping[str, Any], domain: Domain, ops: Ops = FLOAT) -> Number:
    """min(high - a, a - low) for the largest magnitude a; high when the tensor is all zero. Negative outside."""
    a = values["absmax"]
    return ops.where(a == 0, domain.high, ops.minimum(domain.high - a, a - domain.low))


DEFAULT = Domain()
_SIGNLESS = 0x7FFFFFFF
QUIET_NAN = 0x7FC00000
"""The float32 bits, without sign, that every NaN becomes."""
_ROUND, _CODE = gf16.round_magnitude_bits, gf16.code_of_magnitude_bits
_OF_CODE = gf16.magnitude_bits_of_code


def _float32(z3: Any, bits: Any) -> Any:
    return z3.fpBVToFP(bits, z3.Float32())


def _encoder_is_rounding(v: Any, z3: Any, code_of: Any) -> Any:
    x = _float32(z3, v.bits.e)
    code = z3.Concat(z3.Extract(31, 31, v.bits.e), z3.Extract(14, 0, code_of(v.bits & _SIGNLESS, v.ops).e))
    correct = z3.fpToIEEEBV(z3.fpFPToFP(z3.RNE(), x, z3.FPSort(6, 10)))
    return z3.If(z3.fpIsNaN(x), z3.Extract(14, 0, code) == gf16.NAN_CODE, code == correct)


def _rounding_is_rounding(v: Any, z3: Any, rounded: Any) -> Any:
    x = _float32(z3, v.bits.e)
    bits = rounded(v.bits & _SIGNLESS, v.ops).e
    ours = _float32(z3, bits | (v.bits.e & 0x80000000))
    correct = z3.fpFPToFP(z3.RNE(), z3.fpFPToFP(z3.RNE(), x, z3.FPSort(6, 10)), z3.Float32())
    return z3.If(z3.fpIsNaN(x), bits == QUIET_NAN, ours == correct)


def _decoder_is_exact(v: Any, z3: Any, bits_of: Any) -> Any:
    bits = bits_of(v.code, v.ops).e
    ours = _float32(z3, bits)
    value = z3.fpFPToFP(z3.RNE(), z3.fpBVToFP(z3.Extract(15, 0, v.code.e), z3.FPSort(6, 10)), z3.Float32())
    return z3.If(z3.fpIsNaN(value), bits == QUIET_NAN, ours == value)


def _half_an_ulp(v: Any, z3: Any, rounded: Any) -> Any:
    """In the normal range the float32 bits move by at most 2^13, half a GF16 ulp, and by at most 2^-10 of the significand.

    Within a binade bits count units in the last place; a move up into the next binade ends at its first number.
    """
    moved = rounded(v.bits, v.ops).e - v.bits.e
    significand = (v.bits.e & 0x7FFFFF) | 0x800000
    relative = z3.And(moved << 10 <= significand, -moved << 10 <= significand)
    return z3.And(moved <= 1 << 13, moved >= -(1 << 13), relative)


def _run_magnitude(v: Any, function: Any) -> Any:
    return function(v.bits & _SIGNLESS, v.ops)


def _sample_bits(random: Random) -> dict[str, int]:
    exponent = random.choice([random.randint(0, 255), random.randint(80, 100), random.randint(155, 160)])
    return {"bits": random.getrandbits(1) << 31 | exponent << 23 | random.getrandbits(23)}


def _sample_normal(random: Random) -> dict[str, int]:
    return {"bits": random.randint(97, 157) << 23 | random.getrandbits(23)}


def _normal_range(v: Any) -> dict[str, Any]:
    """2^-30 <= x < OVERFLOW: float32 exponent field 97, up to 158 with a significand below the overflow point."""
    return {"normal": (v.bits >= 97 << 23) & (v.bits < (158 << 23 | 0x7FE000))}


def _codec_agrees(encode_bits: Any, decode_bits: Any) -> Checked:
    """All codes without sign through the running codec on NumPy lanes, and the middles, against the format's numbers."""
    every = np.arange(1 << 15, dtype=np.int32)
    values = numbers()[: 1 << 15].astype(np.float32)
    decoded = decode_bits(every, ARRAY).astype(np.uint32).view(np.float32)
    wrong = ~((decoded == values) | (np.isnan(decoded) & np.isnan(values)))
    if wrong.any():
        code = int(wrong.argmax())
        return Checked(0, f"code {code:#06x} is decoded {decoded[code]!r}, exactly {values[code]!r}")
    finite, below = numbers()[: gf16.INFINITY_CODE], every[: gf16.INFINITY_CODE]
    middle = np.append((finite[:-1] + finite[1:]) / 2, float(gf16.OVERFLOW)).astype(np.float32)  # exactly: 11 bits
    points = {
        "a number": (values, np.where(every > gf16.INFINITY_CODE, gf16.NAN_CODE, every)),
        "a middle": (middle, below + below % 2),
        "below a middle": (np.nextafter(middle, np.float32(0)), below),
        "above a middle": (np.nextafter(middle, np.float32(np.inf)), below + 1),
    }
    for what, (inputs, expected) in points.items():
        encoded = encode_bits(inputs.view(np.int32), ARRAY)
        if (encoded != expected).any():
            k = int((encoded != expected).argmax())
            return Checked(0, f"{inputs[k]!r}, {what}, is encoded {int(encoded[k]):#06x}, not {int(expected[k]):#06x}")
    return Checked(2 * len(values) + 3 * len(middle))


def _relative_error(decode_bits: Any) -> Checked:
    """Steps and numbers are doubles of few bits: the comparison is exact."""
    codes = np.arange(512, gf16.INFINITY_CODE + 1, dtype=np.int32)
    value = decode_bits(codes, ARRAY).astype(np.uint32).view(np.float32).astype(np.float64)
    value[-1] = 2 * float(gf16.OVERFLOW) - value[-2]  # where the next number would be
    wrong = np.diff(value) / 2 > float(gf16.UNIT_ROUNDOFF) * value[:-1]
    if wrong.any():
        return Checked(0, f"half the step above {value[int(wrong.argmax())]!r} is more than 2^-10 of it")
    return Checked(len(wrong))


def _coarser(code: Any, ops: Any) -> Any:
    return gf16.magnitude_bits_of_code(code & ~1, ops)


def _truncate(magnitude: Any, ops: Any) -> Any:
    return (magnitude >> 14) << 14


def _truncating_code(magnitude: Any, ops: Any) -> Any:
    return gf16.code_of_magnitude_bits(_truncate(magnitude, ops), ops)


def _half_up_code(magnitude: Any, ops: Any) -> Any:
    return gf16.code_of_magnitude_bits(magnitude + (magnitude & 0x2000), ops)


def _bias_off(code: Any, ops: Any) -> Any:
    return gf16.magnitude_bits_of_code(code, ops) + (1 << 23)


def _tensor_bound(v: Any, distance: Any) -> Any:
    inside = distance({"absmax": v.absmax}, DEFAULT, v.ops) >= 0
    low, high = Fraction(SMALLEST), Fraction(LARGEST)
    bounded = (v.absmax == 0) | ((v.absmax >= low) & (v.error <= gf16.UNIT_ROUNDOFF * v.absmax))
    return [inside == ((v.absmax == 0) | ((low <= v.absmax) & (v.absmax <= high))), implies(inside, bounded)]


def _element(v: Any) -> dict[str, Any]:
    floor = gf16.UNIT_ROUNDOFF * gf16.MIN_NORMAL
    return {
        "an element": (v.x >= 0) & (v.x <= v.absmax),
        "its rounding error": (v.error <= gf16.UNIT_ROUNDOFF * v.x) | (v.error <= floor),
    }


def _sample_element(random: Random) -> dict[str, Any]:
    absmax = Fraction(random.randint(1, 10**6), 10 ** random.randint(0, 16))
    x = absmax * Fraction(random.randint(0, 100), 100)
    return {"absmax": absmax, "x": x, "error": x * gf16.UNIT_ROUNDOFF * Fraction(random.randint(0, 100), 100)}


def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    accepted = accepts(distance({"absmax": v.a}, DEFAULT, v.ops))
    return accepted == ((v.a == 0.0) | ((v.a >= SMALLEST) & (v.a <= LARGEST)))


_WRONG = {"truncation": (_truncating_code, _OF_CODE), "ties away from even": (_half_up_code, _OF_CODE),
          "bias off by one": (_CODE, _bias_off)}  # fmt: skip


def _constants(decode: Any, encode: Any) -> Checked:
    """The constants that the domain is made of, against the codec: what the guard accepts is what does not overflow."""
    facts = {
        "MAX_FINITE is the largest code": decode(0x7DFF) == gf16.MAX_FINITE == Fraction(LARGEST),
        "MIN_NORMAL is the first normal code": decode(0x0200) == gf16.MIN_NORMAL == Fraction(SMALLEST),
        "MIN_SUBNORMAL is the first code": decode(0x0001) == gf16.MIN_SUBNORMAL,
        "MAX_FINITE does not overflow": encode(gf16.MAX_FINITE) == 0x7DFF,
        "OVERFLOW does": encode(gf16.OVERFLOW) == gf16.INFINITY_CODE,
        "just below it does not": encode(gf16.OVERFLOW - Fraction(1, 2**60)) == 0x7DFF,
        "the domain": (DEFAULT.low, DEFAULT.high) == (SMALLEST, LARGEST),
    }
    return Checked(len(facts), next((fact for fact, holds in facts.items() if not holds), None))


OBLIGATIONS: tuple[Obligation, ...] = (
    Exhaustive("INV-3.constants", "the ends of the domain are the largest number and the smallest normal one of the codec, "
               "and nothing inside overflows", (gf16.decode, gf16.encode), check=_constants,
               rivals={"bias 30": (lambda code: 2 * gf16.decode(code), gf16.encode)}),
    BitLaw("INV-3.encoder", "the running encoder is IEEE rounding to FPSort(6, 10), nearest, ties to even: every float32, "
           "subnormals, infinities and NaN included", (_CODE,), variables={"bits": 32},
           show=_encoder_is_rounding, run=_run_magnitude, sample=_sample_bits),
    BitLaw("INV-3.rounding", "the rounding that the trainer applies to its weights is encoding and decoding again: every "
           "float32", (_ROUND,), variables={"bits": 32}, show=_rounding_is_rounding, run=_run_magnitude,
           sample=_sample_bits),
    BitLaw("INV-3.decoder", "the running decoder gives the exact value of every code", (_OF_CODE,),
           variables={"code": 15}, show=_decoder_is_exact, run=lambda v, f: f(v.code, v.ops),
           sample=lambda random: {"code": random.getrandbits(15)}),
    BitLaw("INV-3.half-ulp", "rounding moves a float32 of the normal range by at most half a GF16 ulp and 2^-10 of its "
           "size: every one of them", (_ROUND,), variables={"bits": 31}, given=_normal_range, show=_half_an_ulp,
           run=_run_magnitude, sample=_sample_normal),
    Exhaustive("INV-3.codec", "the NumPy codec is the format: every code without sign there and back, every middle between "
               "two numbers (ties to even) and its float32 neighbours", (_CODE, _OF_CODE), check=_codec_agrees,
               rivals=_WRONG),
    Exhaustive("INV-3.relative-error", "half the step from every normal number to the next is at most 2^-10 of it: so errs "
               "any real number that is rounded to the nearest", (_OF_CODE,), check=_relative_error,
               rivals={"a bit of the fraction dropped": (_coarser,)}),
    Formula("INV-3.tensor", "inside the domain every element of a tensor errs by at most 2^-10 of the largest", (margin,),
            variables={"absmax": "real", "x": "real", "error": "real"}, given=_element, show=_tensor_bound,
            sample=_sample_element),
    FloatLaw("INV-3.guard", "the guard accepts a double iff it is 0 or in the domain: for all doubles, NaN and infinities "
             "too", (margin, verdict.accepts), variables=("a",), show=_guard,
             sample=lambda random: {"a": random.choice([random.uniform(0, 9e9), 1e-12, 0.0, math.nan, math.inf])}),
    *gf16_reference.OBLIGATIONS,
    *gf16_laws.OBLIGATIONS,
    *gf16_sweeps.OBLIGATIONS,
)  # fmt: skip


def bounds(domain: Domain) -> tuple[Bound, ...]:
    """The domain as cited."""
    return (
        Bound("lower", "2^-30, the smallest normal number", f"{domain.low:.10g}"),
        Bound("upper", "2^31 (2 - 2^-9), the largest number", f"{domain.high:.10g}"),
        Bound("relative error", "2^-10 for normal values", "0.0009765625"),
        Bound(
            "policy", f"d_model >= {POLICY_D_MODEL}: a policy of the seed, which nothing proves", str(POLICY_D_MODEL)
        ),
    )


def required(domain: Domain) -> str:
    """The condition as one line."""
    return f"2^-30 <= max|x| <= 2^31 (2 - 2^-9), or all zero   [{domain.low:.6g}, {domain.high:.10g}]"


INVARIANT = Invariant(
    id="INV-3",
    slug="gf16-safe-domain",
    statement="Every tensor that goes through GF16 has its largest magnitude in [2^-30, 2^31 (2 - 2^-9)] or is all zero.",
    why="Beyond the range weights become infinite, below it they vanish; training goes on in both cases.",
    unit="",
    sources=("the seed's INV-3, with the claim replaced by one about rounding", "1-6-9 format: IBM DLFloat, 2019"),
    limits=(
        "The bound is on each rounding, not on what training with rounded weights loses in quality.",
        "Small elements of a tensor may be subnormal: their error is bounded by the tensor's largest, not by their own size.",
        f"d_model >= {POLICY_D_MODEL} is a policy of the seed: reported, not enforced, and nothing proves it.",
    ),
    phases=(Phase.BEFORE_STEP,),
    quantities=(Quantity("absmax", "max|w|", "", "the largest magnitude in the worst tensor that goes through GF16"),),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {"absmax": st.one_of(st.floats(0, 1e10), st.floats(0, 1e-8), st.floats())}
    ),
    holds=(
        Witness({"absmax": 0.02}, "an ordinary weight matrix"),
        Witness({"absmax": LARGEST}, "the largest number"),
        Witness({"absmax": SMALLEST}, "the smallest normal number"),
        Witness({"absmax": 0.0}, "all zero: exact"),
    ),
    violates=(
        Witness({"absmax": math.nextafter(LARGEST, math.inf)}, "one double above the largest number"),
        Witness({"absmax": math.nextafter(SMALLEST, 0)}, "a tensor of subnormals only"),
        Witness({"absmax": 1e10}, "weights that round to infinity"),
    ),
)
