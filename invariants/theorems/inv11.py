"""INV-11's theorems in Coq: doubly stochastic matrices of any size n, at any depth.

The obligations of the invariant decide sizes up to 4 or 8 and given counts; the theorems say the same of every n and of
every number of matrices. Norms and the predicate are notions of the theorems; the formulas are the running ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import birkhoff
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.ops import FLOAT
from karat.invariants import inv11_mhc_doubly_stochastic as inv11

Rows = list[list[Fraction]]
Values = Mapping[str, Any]

_MATRIX = "map (map parts) (matrix (K := on_Q) (Z.to_nat {n}) (%s))"
_AT = "(at_places (K := on_Q) {%s})"


def _number(random: Random) -> Fraction:
    return Fraction(random.randint(-4, 4), random.choice([1, 1, 2, 3]))


def _rows(random: Random, height: int, width: int) -> Rows:
    return [[_number(random) for _ in range(width)] for _ in range(height)]


def _mixed(random: Random, n: int) -> Rows:
    """Doubly stochastic: a few random permutation matrices, one of them alone now and then."""
    weights = [Fraction(random.randint(1, 5)) for _ in range(random.choice([1, 2, 3]))]
    matrix = [[Fraction(0)] * n for _ in range(n)]
    for weight in weights:
        order = random.sample(range(n), n)
        for i in range(n):
            matrix[i][order[i]] += weight / sum(weights)
    return matrix


def _square(random: Random, n: int) -> Rows:
    """Doubly stochastic, or nearly, or anything: so that each kind of defect is the largest one at some point."""
    kind = random.randrange(3)
    if kind == 0:
        return _rows(random, n, n)
    matrix = _mixed(random, n)
    if kind == 1:
        matrix[random.randrange(n)][random.randrange(n)] += Fraction(random.randint(-3, 3), 2)
    return matrix


def _size(random: Random) -> int:
    return random.randint(1, 4)


def _one(random: Random) -> dict[str, Any]:
    n = _size(random)
    return {"n": n, "a": _square(random, n)}


def _vectors(random: Random) -> dict[str, Any]:
    return (values := _one(random)) | {"x": [_number(random) for _ in range(values["n"])]}


def _shapes(random: Random) -> dict[str, Any]:
    p, k, q = (_size(random) for _ in range(3))
    return {"p": p, "k": k, "q": q, "a": _rows(random, p, k), "b": _rows(random, k, q)}


def _divisible(random: Random) -> dict[str, Any]:
    """Entries >= 0 with a diagonal > 0: no row or column sums to 0."""
    n = _size(random)
    return {"n": n, "a": [[Fraction(random.randint(int(i == j), 6)) for j in range(n)] for i in range(n)]}


def _stack(random: Random) -> dict[str, Any]:
    n = random.randint(1, 3)
    first, *rest = (_square(random, n) for _ in range(random.randint(1, 3)))
    return {"n": n, "first": first, "rest": rest}


def _bounds(random: Random) -> dict[str, Any]:
    names = ("spread", "tolerance_residual", "tolerance_gain", "tolerance_spread")
    return {name: Fraction(random.randint(0, 5), 2) for name in names}


def _distances(random: Random) -> dict[str, Any]:
    names = ("residual", "gain", "spread", "most_gain", "tolerance_residual", "tolerance_spread")
    return {name: Fraction(random.randint(0, 4), 2) for name in names}


def _count(random: Random) -> dict[str, Any]:
    return {"count": random.randint(1, 9), "gain": Fraction(random.randint(0, 9), 4), "residual": _number(random)}


def _order(random: Random) -> dict[str, Any]:
    n = _size(random)
    return {"n": n, "order": random.sample(range(n), n)}


def _weights(random: Random) -> dict[str, Any]:
    n = _size(random)
    return {"n": n, "weights": [Fraction(random.randint(0, 9), 9) for _ in birkhoff.permutations(n)]}


def _running_product(v: Values) -> Any:
    return functools.reduce(lambda below, above: birkhoff.matmul(above, below), [v["first"], *v["rest"]])


def _running_margin(v: Values) -> Any:
    tolerance = inv11.Tolerance(v["tolerance_residual"], v["tolerance_gain"], v["tolerance_spread"])
    return inv11.margin({"matrices": [v["first"], *v["rest"]], "spread": v["spread"]}, tolerance)


def _running_bound(v: Values) -> Any:
    tolerance = inv11.Tolerance(residual=v["tolerance_residual"], spread=v["tolerance_spread"])
    return inv11.nearest_bound(v["residual"], v["gain"], v["spread"], v["most_gain"], tolerance, FLOAT)


def _permutation_matrix(order: Sequence[int]) -> Any:
    """The running mixture with its whole weight on one permutation."""
    chosen = [Fraction(int(list(p) == order)) for p in birkhoff.permutations(len(order))]
    return birkhoff.mixture(chosen, len(order))


def _on_q(definition: str, file: str = "INV11_mhc_doubly_stochastic") -> str:
    return f"{file}.{definition} (K := on_Q)"


_MATRICES, _NORMS, _GUARD, _SINKHORN, _PERMUTATIONS = (
    f"INV11_{part}" for part in ("mhc_doubly_stochastic", "norms", "guard", "sinkhorn", "permutations")
)
_REST = "(map (at_places (K := on_Q)) {rest})"

MATMUL = Counterpart(
    f"{_MATRICES}.matmul", birkhoff.matmul,
    "map (fun i => map parts (vector (K := on_Q) (Z.to_nat {q}) "
    f"({_on_q('matmul')} (Z.to_nat {{k}}) {_AT % 'a'} {_AT % 'b'} i))) (seq 0 (Z.to_nat {{p}}))",
    _shapes, run=lambda v: birkhoff.matmul(v["a"], v["b"]),
)  # fmt: skip
APPLY = Counterpart(
    f"{_MATRICES}.apply", birkhoff.apply,
    "map parts (vector (K := on_Q) (Z.to_nat {n}) "
    f"({_on_q('apply')} (Z.to_nat {{n}}) {_AT % 'a'} (at_place (K := on_Q) {{x}})))",
    _vectors, run=lambda v: birkhoff.apply(v["a"], v["x"]),
)  # fmt: skip
RESIDUAL = Counterpart(
    f"{_MATRICES}.residual", birkhoff.residual, f"parts ({_on_q('residual')} (Z.to_nat {{n}}) {_AT % 'a'})",
    _one, run=lambda v: birkhoff.residual(v["a"]),
)  # fmt: skip
GAIN = Counterpart(
    f"{_MATRICES}.gain", birkhoff.gain, f"parts ({_on_q('gain')} (Z.to_nat {{n}}) {_AT % 'a'})",
    _one, run=lambda v: birkhoff.gain(v["a"]),
)  # fmt: skip
SINKHORN = Counterpart(
    f"{_MATRICES}.sinkhorn_step", birkhoff.sinkhorn_step,
    _MATRIX % f"{_on_q('sinkhorn_step')} (Z.to_nat {{n}}) {_AT % 'a'}",
    _divisible, run=lambda v: birkhoff.sinkhorn_step(v["a"]),
)  # fmt: skip
COMPOSITE = Counterpart(
    f"{_MATRICES}.composite", birkhoff.matmul,
    _MATRIX % f"{_on_q('composite')} (Z.to_nat {{n}}) {_AT % 'first'} {_REST}",
    _stack, run=_running_product,
)  # fmt: skip
GAIN_TOLERANCE = Counterpart(
    f"{_MATRICES}.gain_tolerance", inv11.gain_tolerance,
    f"parts ({_on_q('gain_tolerance')} (Z.to_nat {{count}}) {{gain}} {{residual}})",
    _count, run=lambda v: inv11.gain_tolerance(v["count"], inv11.Tolerance(gain=v["gain"], residual=v["residual"])),
)  # fmt: skip
NEAREST_BOUND = Counterpart(
    f"{_MATRICES}.nearest_bound", inv11.nearest_bound,
    f"parts ({_on_q('nearest_bound')} {{residual}} {{gain}} {{spread}} {{most_gain}}"
    " {tolerance_residual} {tolerance_spread})",
    _distances, run=_running_bound,
)  # fmt: skip
MARGIN = Counterpart(
    f"{_MATRICES}.margin", inv11.margin,
    f"parts ({_on_q('margin')} (Z.to_nat {{n}}) {_AT % 'first'} {_REST} {{spread}}"
    " {tolerance_residual} {tolerance_gain} {tolerance_spread})",
    lambda random: _stack(random) | _bounds(random), run=_running_margin,
)  # fmt: skip
PERMUTATION_MATRIX = Counterpart(
    f"{_MATRICES}.permutation_matrix", birkhoff.mixture,
    _MATRIX % f"{_on_q('permutation_matrix')} (fun i => nth i (map Z.to_nat {{order}}) O)",
    _order, run=lambda v: _permutation_matrix(v["order"]),
)  # fmt: skip
PERMUTATIONS = Counterpart(
    f"{_PERMUTATIONS}.permutations", birkhoff.permutations,
    "map (map Z.of_nat) (INV11_permutations.permutations (Z.to_nat {n}))",
    lambda random: {"n": random.randint(0, 5)}, run=lambda v: [list(p) for p in birkhoff.permutations(v["n"])], points=20,
)  # fmt: skip
MIXTURE = Counterpart(
    f"{_PERMUTATIONS}.mixture", birkhoff.mixture,
    _MATRIX % f"{_on_q('mixture', _PERMUTATIONS)} (Z.to_nat {{n}}) {{weights}}",
    _weights, run=lambda v: birkhoff.mixture(v["weights"], v["n"]), points=60,
)  # fmt: skip

_MARGIN = (inv11.margin, inv11.nearest_bound, inv11.gain_tolerance)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-11.coq-product", "the product of two doubly stochastic n by n matrices is doubly stochastic, for every n",
            (birkhoff.matmul,), file=_MATRICES, theorem="product_doubly_stochastic", counterparts=(MATMUL,)),
    Theorem("INV-11.coq-convex", "a mixture of any number of doubly stochastic n by n matrices, with weights >= 0 that "
            "sum to 1, is doubly stochastic", (), file=_MATRICES, theorem="mixture_doubly_stochastic"),
    Theorem("INV-11.coq-blend", "t A + (1 - t) B is doubly stochastic for doubly stochastic n by n matrices A and B "
            "and 0 <= t <= 1", (), file=_MATRICES, theorem="blend_doubly_stochastic"),
    Theorem("INV-11.coq-depth", "the product of any number >= 1 of doubly stochastic n by n matrices is doubly "
            "stochastic, for every n", (birkhoff.matmul,), file=_MATRICES, theorem="composite_doubly_stochastic",
            counterparts=(COMPOSITE,)),
    Theorem("INV-11.coq-order", "to apply the product of any number >= 1 of n by n matrices is to apply them one after "
            "the other, the first first", (birkhoff.matmul, birkhoff.apply), file=_MATRICES,
            theorem="composite_applies_in_order", counterparts=(COMPOSITE, APPLY)),
    Theorem("INV-11.coq-permutation", "the matrix of a permutation of 0 to n - 1 is doubly stochastic, for every n",
            (birkhoff.mixture,), file=_MATRICES, theorem="permutation_doubly_stochastic",
            counterparts=(PERMUTATION_MATRIX,)),
    Theorem("INV-11.coq-permutations", "the permutations that run are all of 0 to n - 1 in lexicographic order, n! in "
            "number, for every n", (birkhoff.permutations,), file=_PERMUTATIONS, theorem="permutations_in_order",
            counterparts=(PERMUTATIONS,)),
    Theorem("INV-11.coq-mixture", "the running mixture of the n! permutation matrices is doubly stochastic for every n "
            "and all n! weights >= 0 that sum to 1", (birkhoff.mixture, birkhoff.permutations), file=_PERMUTATIONS,
            theorem="permutation_mixture_doubly_stochastic", counterparts=(MIXTURE, PERMUTATIONS)),
    Theorem("INV-11.coq-gain-norms", "no n by n matrix increases the infinity norm, the 1-norm or the 2-norm of a "
            "vector by more than the factor of its running gain, for every n >= 1", (birkhoff.apply, birkhoff.gain),
            file=_NORMS, theorem="gain_bounds_norms", counterparts=(APPLY, GAIN)),
    Theorem("INV-11.coq-gain-1", "the running gain of a doubly stochastic n by n matrix is 1, for every n >= 1",
            (birkhoff.gain,), file=_NORMS, theorem="gain_of_doubly_stochastic", counterparts=(GAIN,)),
    Theorem("INV-11.coq-norms", "a doubly stochastic matrix of any size increases neither the infinity norm nor the "
            "1-norm nor the 2-norm of any vector", (birkhoff.apply,), file=_NORMS, theorem="apply_increases_no_norm",
            counterparts=(APPLY,)),
    Theorem("INV-11.coq-nonexpansive", "a doubly stochastic matrix of any size moves no two vectors further apart in "
            "the infinity norm, the 1-norm or the 2-norm", (birkhoff.apply,), file=_NORMS,
            theorem="apply_is_nonexpansive", counterparts=(APPLY,)),
    Theorem("INV-11.coq-depth-norms", "the product of any number >= 1 of doubly stochastic n by n matrices increases "
            "neither the infinity norm nor the 1-norm nor the 2-norm of any vector", (birkhoff.apply, birkhoff.matmul),
            file=_NORMS, theorem="composite_increases_no_norm", counterparts=(APPLY, COMPOSITE)),
    Theorem("INV-11.coq-sum", "a doubly stochastic matrix keeps the sum over the streams, and streams that are equal as "
            "they are", (birkhoff.apply,), file=_NORMS, theorem="apply_keeps_the_sum", counterparts=(APPLY,)),
    Theorem("INV-11.coq-residual-bound", "the running residual is the least bound of |row sum - 1|, |column sum - 1| and "
            "-entry, for every n >= 1", (birkhoff.residual,), file=_GUARD, theorem="residual_bound",
            counterparts=(RESIDUAL,)),
    Theorem("INV-11.coq-residual-sign", "the running residual is >= 0, for every n by n matrix with n >= 1",
            (birkhoff.residual,), file=_GUARD, theorem="residual_nonneg", counterparts=(RESIDUAL,)),
    Theorem("INV-11.coq-residual-zero", "the running residual is 0 exactly where the matrix is doubly stochastic, for "
            "every n >= 1", (birkhoff.residual,), file=_GUARD, theorem="residual_zero", counterparts=(RESIDUAL,)),
    Theorem("INV-11.coq-gain-product", "the running gain of a product of n by n matrices is at most the product of "
            "their gains, for every n >= 1", (birkhoff.gain, birkhoff.matmul), file=_GUARD, theorem="gain_of_product",
            counterparts=(GAIN, MATMUL)),
    Theorem("INV-11.coq-gain-residual", "an n by n matrix, n >= 1, whose running residual is at most r has a running "
            "gain of at most 1 + (2n + 1) r", (birkhoff.gain, birkhoff.residual), file=_GUARD,
            theorem="gain_within_residual", counterparts=(GAIN, RESIDUAL)),
    Theorem("INV-11.coq-gain-tolerance", "for n >= 1, r >= 0 and any number >= 1 of n by n matrices with entries >= 0, "
            "residuals <= r and number · r <= 1, the gain of the product is within the tolerance of the guard",
            (birkhoff.gain, birkhoff.residual, inv11.gain_tolerance), file=_GUARD, theorem="gain_within_tolerance",
            counterparts=(GAIN, RESIDUAL, COMPOSITE, GAIN_TOLERANCE)),
    Theorem("INV-11.coq-margin", "over the reals the margin is >= 0 exactly where all residuals, the product's gain "
            "and the spread are within their bounds, for any number >= 1 of n by n matrices, n >= 1", _MARGIN,
            file=_GUARD, theorem="margin_accepts",
            counterparts=(MARGIN, NEAREST_BOUND, RESIDUAL, GAIN, COMPOSITE, GAIN_TOLERANCE)),
    Theorem("INV-11.coq-margin-accepts", "over the reals, with a residual tolerance >= 0, the margin accepts any "
            "number >= 1 of doubly stochastic n by n matrices with enough spread, n >= 1", _MARGIN, file=_GUARD,
            theorem="margin_of_doubly_stochastic", counterparts=(MARGIN, NEAREST_BOUND, GAIN_TOLERANCE)),
    Theorem("INV-11.coq-sinkhorn", "after one Sinkhorn step on an n by n matrix with entries > 0 the columns sum to 1, for "
            "every n", (birkhoff.sinkhorn_step,), file=_SINKHORN, theorem="sinkhorn_columns", counterparts=(SINKHORN,)),
    Theorem("INV-11.coq-sinkhorn-rows", "there is a 2 by 2 matrix with entries > 0 whose rows do not sum to 1 after a Sinkhorn "
            "step",
            (birkhoff.sinkhorn_step,), file=_SINKHORN, theorem="sinkhorn_rows_may_miss", counterparts=(SINKHORN,)),
    Theorem("INV-11.coq-sinkhorn-fixed", "of matrices with entries > 0 a Sinkhorn step leaves exactly the doubly "
            "stochastic ones as they are, for every n", (birkhoff.sinkhorn_step,), file=_SINKHORN,
            theorem="sinkhorn_fixed_points", counterparts=(SINKHORN,)),
)  # fmt: skip
