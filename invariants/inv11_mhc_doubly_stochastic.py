"""INV-11 mhc-doubly-stochastic: residual mixing neither amplifies nor loses anything, at any depth.

Claim: every residual mixing matrix is doubly stochastic within the tolerance; so is the product through depth, whose
gain is at most 1 + eps; and the streams that are mixed do not stay identical.
Why it matters: an unconstrained product of mixing matrices grows by orders of magnitude in depth; and with a symmetric
start the streams stay equal for ever, so that the mixing does nothing while everything looks healthy.
Source: mHC-lite, Yang and Gao 2026, arXiv 2601.05732; Birkhoff 1946. The seed's own run had the identical streams.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core import verdict
from karat.core.formulas import birkhoff
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import (
    Checked,
    Exhaustive,
    FloatLaw,
    Formula,
    Goal,
    Identity,
    Obligation,
    Property,
    implies,
)
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Tolerance:
    """residual: of each matrix, float32 sums of 24 weights; gain: of the product; spread: least relative difference."""

    residual: float = 1e-6
    gain: float = 1e-5
    spread: float = 1e-6


def gain_tolerance(count: int, tolerance: Tolerance) -> float:
    """How far above 1 the gain of a product of `count` matrices may be: at least what their residuals allow.

    Row sums of at most 1 + r each give a product of at most (1 + r)^count; 2·count·r is above that for count·r <= 1.
    """
    return max(tolerance.gain, 2 * count * tolerance.residual)


def nearest_bound(
    residual: Number, gain: Number, spread: Number, most_gain: Number, tolerance: Tolerance, ops: Ops
) -> Number:
    """The least of the three distances to their bounds; negative when one is crossed."""
    loosest = ops.minimum(tolerance.residual - residual, most_gain - gain)
    return ops.minimum(loosest, spread - tolerance.spread)


def margin(values: Mapping[str, Any], tolerance: Tolerance, ops: Ops = FLOAT) -> Number:
    """nearest_bound of the worst matrix residual, the product's gain and the streams' spread; no unit."""
    matrices = values["matrices"]
    product = matrices[0]
    worst = birkhoff.residual(matrices[0], ops)
    for matrix in matrices[1:]:
        product = birkhoff.matmul(matrix, product, ops)
        worst = ops.maximum(birkhoff.residual(matrix, ops), worst)
    most_gain = 1 + gain_tolerance(len(matrices), tolerance)
    return nearest_bound(worst, birkhoff.gain(product, ops), values["spread"], most_gain, tolerance, ops)


DEFAULT = Tolerance()


def _names(prefix: str, n: int) -> list[list[str]]:
    return [[f"{prefix}{i}{j}" for j in range(n)] for i in range(n)]


def _matrix(v: Any, prefix: str, n: int) -> list[list[Any]]:
    return [[getattr(v, name) for name in row] for row in _names(prefix, n)]


def _vector(v: Any, prefix: str, n: int) -> list[Any]:
    return [getattr(v, f"{prefix}{i}") for i in range(n)]


def _reals(*names: Any) -> dict[str, str]:
    flat = itertools.chain.from_iterable(x if isinstance(x, list) else [x] for x in names)
    return {name: "real" for part in flat for name in (part if isinstance(part, list) else [part])}


def _all(conditions: list[Any]) -> Any:
    return reduce(lambda a, b: a & b, conditions)


def _total(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0])


def _doubly_stochastic(a: list[list[Any]], name: str = "M") -> dict[str, Any]:
    return {
        f"{name} >= 0": _all([x >= 0 for row in a for x in row]),
        f"rows of {name} sum to 1": _all([_total(row) == 1 for row in a]),
        f"columns of {name} sum to 1": _all([_total(list(column)) == 1 for column in zip(*a, strict=True)]),
    }


def _random_mixture(random: Random, n: int) -> list[list[Fraction]]:
    weights = [Fraction(random.randint(0, 9)) for _ in birkhoff.permutations(n)]
    weights[random.randrange(len(weights))] += 1
    return birkhoff.mixture([w / sum(weights) for w in weights], n)


def _named(prefix: str, matrix: list[list[Any]]) -> dict[str, Any]:
    return {f"{prefix}{i}{j}": x for i, row in enumerate(matrix) for j, x in enumerate(row)}


def _small_mixture(random: Random, n: int) -> list[list[Fraction]]:
    """A doubly stochastic matrix of any size from a few random permutations (n! of them would be too many)."""
    weights = [Fraction(random.randint(1, 9)) for _ in range(4)]
    matrix = [[Fraction(0)] * n for _ in range(n)]
    for weight in weights:
        order = random.sample(range(n), n)
        for i in range(n):
            matrix[i][order[i]] += weight / sum(weights)
    return matrix


# -- mixtures --


def _mixture(n: int) -> Formula:
    weights = [f"w{k}" for k in range(math.factorial(n))]

    def given(v: Any) -> dict[str, Any]:
        w = [getattr(v, name) for name in weights]
        return {"weights >= 0": _all([x >= 0 for x in w]), "weights sum to 1": _total(w) == 1}

    def show(v: Any, mixture: Any) -> Any:
        m = mixture([getattr(v, name) for name in weights], n, v.ops)
        return list(_doubly_stochastic(m).values())

    def sample(random: Random) -> dict[str, Any]:
        w = [Fraction(random.randint(0, 9)) for _ in weights]
        w[0] += 1
        return {name: x / sum(w) for name, x in zip(weights, w, strict=True)}

    return Formula(f"INV-11.mixture-{n}", f"a convex combination of the {len(weights)} permutation matrices of S{n} is "
                   "doubly stochastic, for all weights", (birkhoff.mixture,), variables=_reals(weights), given=given,
                   show=show, sample=sample)  # fmt: skip


# -- products --


def _product(n: int) -> Formula:
    """A row of A B needs that row of A and B; a column needs A and that column of B. Any n by n product follows."""
    rows, columns = [f"r{k}" for k in range(n)], [f"c{k}" for k in range(n)]

    def given(v: Any) -> dict[str, Any]:
        r, c = _vector(v, "r", n), _vector(v, "c", n)
        return _doubly_stochastic(_matrix(v, "m", n)) | {
            "the row is >= 0": _all([x >= 0 for x in r]),
            "the row sums to 1": _total(r) == 1,
            "the column is >= 0": _all([x >= 0 for x in c]),
            "the column sums to 1": _total(c) == 1,
        }

    def show(v: Any, matmul: Any) -> Any:
        m = _matrix(v, "m", n)
        row = matmul([_vector(v, "r", n)], m, v.ops)[0]
        column = [entry for (entry,) in matmul(m, [[x] for x in _vector(v, "c", n)], v.ops)]
        return [
            Goal(_total(row) == 1, ("the row sums to 1", "rows of M sum to 1")),
            Goal(_total(column) == 1, ("the column sums to 1", "columns of M sum to 1")),
            *(Goal(x >= 0, ("the row is >= 0", "M >= 0")) for x in row),
            *(Goal(x >= 0, ("the column is >= 0", "M >= 0")) for x in column),
        ]

    def sample(random: Random) -> dict[str, Any]:
        other = _small_mixture(random, n)
        return _named("m", _small_mixture(random, n)) | dict(zip(rows, other[0], strict=True)) | dict(
            zip(columns, [row[0] for row in other], strict=True))  # fmt: skip

    return Formula(f"INV-11.product-{n}", f"the product of two doubly stochastic {n}x{n} matrices is doubly stochastic",
                   (birkhoff.matmul,), variables=_reals(_names("m", n), rows, columns), given=given, show=show,
                   sample=sample)  # fmt: skip


# -- norms --

N = 4
_M = _names("m", N)
_X = [f"x{k}" for k in range(N)]
_U = [f"u{k}" for k in range(N)]


def _infinity_given(v: Any) -> dict[str, Any]:
    needed = _doubly_stochastic(_matrix(v, "m", N))
    return {label: needed[label] for label in ("M >= 0", "rows of M sum to 1")} | {
        "|x| <= c": _all([(-v.c <= x) & (x <= v.c) for x in _vector(v, "x", N)])
    }


def _infinity_norm(v: Any, apply: Any) -> Any:
    return [(-v.c <= y) & (y <= v.c) for y in apply(_matrix(v, "m", N), _vector(v, "x", N), v.ops)]


def _sample_norm(random: Random) -> dict[str, Any]:
    x = [Fraction(random.randint(-50, 50), 10) for _ in range(N)]
    return _named("m", _random_mixture(random, N)) | dict(zip(_X, x, strict=True)) | {
        "c": max(map(abs, x)), **{u: abs(value) for u, value in zip(_U, x, strict=True)}}  # fmt: skip


def _one_given(v: Any) -> dict[str, Any]:
    x, u = _vector(v, "x", N), _vector(v, "u", N)
    needed = _doubly_stochastic(_matrix(v, "m", N))
    return {label: needed[label] for label in ("M >= 0", "columns of M sum to 1")} | {
        "|x| <= u": _all([(-u[k] <= x[k]) & (x[k] <= u[k]) for k in range(N)])
    }


def _one_norm(v: Any, apply: Any) -> Any:
    """|y_i| <= (M u)_i for u >= |x|, and the sum of M u is the sum of u: so sum |y| <= sum |x| at u = |x|."""
    m, u = _matrix(v, "m", N), _vector(v, "u", N)
    image, bound = apply(m, _vector(v, "x", N), v.ops), apply(m, u, v.ops)
    each = ("M >= 0", "|x| <= u")
    return [
        *(Goal((-b <= y) & (y <= b), each) for y, b in zip(image, bound, strict=True)),
        Goal(_total(bound) == _total(u), ("columns of M sum to 1",)),
    ]


def _two_norm(sympy: Any, ops: Any, matmul: Any, apply: Any) -> Any:
    """x'x - (Mx)'(Mx) = 1/2 sum_ij S_ij (x_i - x_j)^2 with S = M'M, when S has row sums 1: a sum of squares, S >= 0."""
    m = [[sympy.Symbol(name) for name in row] for row in _M]
    x = [sympy.Symbol(name) for name in _X]
    s = matmul([list(column) for column in zip(*m, strict=True)], m, ops)
    y = apply(m, x, ops)
    squares = sum(s[i][j] * (x[i] - x[j]) ** 2 for i in range(N) for j in range(N)) / 2
    row_sums = sum((sum(s[i]) - 1) * x[i] ** 2 for i in range(N))
    return [sum(z * z for z in x) - sum(z * z for z in y) - squares + row_sums]


def _measures(v: Any, residual: Any, gain: Any) -> Any:
    m = _matrix(v, "m", 2)
    halved = [[x / 2 for x in row] for row in m]
    return [residual(m, v.ops) == 0, gain(m, v.ops) == 1, gain(halved, v.ops) == Fraction(1, 2)]


def _residual_is(v: Any, residual: Any, gain: Any) -> Any:
    """Of any matrix: the residual is the largest of its defects, the gain the largest absolute row or column sum."""
    m = _matrix(v, "m", 2)
    rows, columns = [row[0] + row[1] for row in m], [m[0][j] + m[1][j] for j in range(2)]
    defects = [s - 1 for s in (*rows, *columns)] + [1 - s for s in (*rows, *columns)] + [-x for row in m for x in row]
    sizes = [v.ops.absolute(a) + v.ops.absolute(b) for a, b in (*m, (m[0][0], m[1][0]), (m[0][1], m[1][1]))]
    r, g = residual(m, v.ops), gain(m, v.ops)
    return [
        r >= 0, *(r >= d for d in defects), _any([r == 0, *(r == d for d in defects)]),
        *(g >= size for size in sizes), _any([g == size for size in sizes]),
    ]  # fmt: skip


def _any(conditions: list[Any]) -> Any:
    return reduce(lambda a, b: a | b, conditions)


def _sample_matrix(random: Random) -> dict[str, Any]:
    return {name: Fraction(random.randint(-20, 20), 10) for row in _names("m", 2) for name in row}


def _margin_shape(v: Any, distance: Any) -> Any:
    """Two matrices: the margin is nearest_bound of the worse residual, the product's gain and the spread."""
    m, k = _matrix(v, "m", 2), _matrix(v, "k", 2)
    ours = distance({"matrices": [m, k], "spread": v.spread}, DEFAULT, v.ops)
    worst = v.ops.maximum(birkhoff.residual(k, v.ops), birkhoff.residual(m, v.ops))
    gain = birkhoff.gain(birkhoff.matmul(k, m, v.ops), v.ops)
    return ours == nearest_bound(worst, gain, v.spread, 1 + DEFAULT.gain, DEFAULT, v.ops)


def _sample_margin(random: Random) -> dict[str, Any]:
    """Doubly stochastic pairs, and pairs that are far from it: there every part of the margin is the least one."""
    pair = [_random_mixture(random, 2), _random_mixture(random, 2)]
    if random.random() < 0.5:
        pair = [[[Fraction(random.randint(0, 4)) for _ in range(2)] for _ in range(2)] for _ in range(2)]
    return _named("m", pair[0]) | _named("k", pair[1]) | {"spread": Fraction(random.randint(0, 9), 10)}


def _gain_tolerance(v: Any, tolerance_of: Any) -> Any:
    allowed, needed = tolerance_of(v.count, SimpleNamespace(gain=v.gain, residual=v.residual)), 2 * v.count * v.residual
    return [allowed >= v.gain, allowed >= needed, (allowed == v.gain) | (allowed == needed)]


def _covers_product(tolerance_of: Any) -> Checked:
    for count in range(1, 1025):
        r = Fraction(1, count)
        if (1 + r) ** count - 1 > tolerance_of(count, SimpleNamespace(gain=Fraction(0), residual=r)):
            return Checked(count, f"count {count}, residual {r}")
    return Checked(1024)


def _matmul_is(matmul: Any) -> Checked:
    """Entries that are all different, so that no exchange of them goes unseen."""
    cases = 0
    for m, k, n in itertools.product(range(1, 4), repeat=3):
        a = [[Fraction(7 * i + 3 * j + 1) for j in range(k)] for i in range(m)]
        b = [[Fraction(5 * i - 11 * j + 2) for j in range(n)] for i in range(k)]
        exact = [[sum((a[i][t] * b[t][j] for t in range(k)), Fraction(0)) for j in range(n)] for i in range(m)]
        if matmul(a, b) != exact:
            return Checked(cases, f"{a} times {b} gives {matmul(a, b)}")
        cases += 1
    return Checked(cases)


def _refuses_weights(mixture: Any) -> Checked:
    cases = 0
    for n in (1, 2, 3):
        for count in range(8):
            if count == math.factorial(n):
                continue
            try:
                mixture([Fraction(1)] * count, n)
            except ValueError:
                cases += 1
            else:
                return Checked(cases, f"{count} weights for n = {n} are taken")
    return Checked(cases)


def _sinkhorn_is(sinkhorn: Any) -> Checked:
    cases = 0
    for matrix in ([[1, 2], [3, 5]], [[1, 2, 4], [3, 5, 1], [2, 2, 7]]):
        n = range(len(matrix))
        rows = [[Fraction(matrix[i][j], sum(matrix[i])) for j in n] for i in n]
        exact = [[rows[i][j] / sum(rows[t][j] for t in n) for j in n] for i in n]
        found = sinkhorn([[Fraction(x) for x in row] for row in matrix])
        if found != exact:
            return Checked(cases, f"from {matrix}: {found}")
        cases += 1
    return Checked(cases)


def _square(n: int, seed: int) -> list[list[Fraction]]:
    """Entries of both signs, no two alike: an entry, row or column that is left out shows."""
    return [[Fraction((-1) ** (i + j + seed) * (n * i + j + 2 + seed), 7) for j in range(n)] for i in range(n)]


def _planted(n: int) -> list[list[list[Fraction]]]:
    """The identity with one defect, at every place and of either sign."""
    found = []
    for i, j, size in itertools.product(range(n), range(n), (Fraction(3), Fraction(-3))):
        matrix = [[Fraction(int(r == c)) for c in range(n)] for r in range(n)]
        matrix[i][j] += size
        found.append(matrix)
    return found


def _sizes_are(residual: Any, gain: Any, apply: Any) -> Checked:
    """residual, gain and apply by their definitions: n = 1..6, every place of a defect."""
    cases = 0
    for n in range(1, 7):
        for m in (*_planted(n), _square(n, 0), _square(n, 1)):
            columns = [list(column) for column in zip(*m, strict=True)]
            defects = [abs(sum(line) - 1) for line in (*m, *columns)] + [-x for row in m for x in row]
            x = [Fraction(3 * k + 1, 5) for k in range(n)]
            image = [sum((row[k] * x[k] for k in range(n)), Fraction(0)) for row in m]
            largest = max(sum(map(abs, line)) for line in (*m, *columns))
            if (residual(m), gain(m), apply(m, x)) != (max(defects), largest, image):
                return Checked(cases, f"{m}: residual {residual(m)}, gain {gain(m)}, image {apply(m, x)}")
            cases += 1
    return Checked(cases)


def _mixture_is(mixture: Any, permutations: Any) -> Checked:
    """Entry (i, j) adds up the weights of the permutations that send i to j; the first permutation is the identity."""
    cases = 0
    for n in range(1, 5):
        orders = permutations(n)
        if orders[0] != tuple(range(n)) or sorted(orders) != list(orders) or len(set(orders)) != math.factorial(n):
            return Checked(cases, f"permutations({n}) = {orders}")
        weights = [Fraction(2**k) for k in range(len(orders))]
        exact = [[sum((w for w, s in zip(weights, orders, strict=True) if s[i] == j), Fraction(0)) for j in range(n)]
                 for i in range(n)]  # fmt: skip
        if mixture(weights, n) != exact:
            return Checked(cases, f"mixture({weights}, {n}) = {mixture(weights, n)}")
        cases += 1
    return Checked(cases)


def _every_matrix_counts(distance: Any) -> Checked:
    """Up to five 4x4 matrices, the bad one at every place: the margin is nearest_bound of the worst, in their order."""
    cases = 0
    good = [[Fraction(int(i == j)) for j in range(N)] for i in range(N)]
    for count in range(1, 6):
        for place, bad in itertools.product(range(count), (_square(N, 0), _square(N, 1), _planted(N)[5])):
            matrices = [bad if k == place else _small_mixture(Random(k), N) if k % 2 else good for k in range(count)]
            product = reduce(lambda below, above: birkhoff.matmul(above, below), matrices)
            exact = nearest_bound(max(map(birkhoff.residual, matrices)), birkhoff.gain(product), 1,
                                  1 + gain_tolerance(count, DEFAULT), DEFAULT, FLOAT)  # fmt: skip
            found = distance({"matrices": matrices, "spread": 1}, DEFAULT, FLOAT)
            if found != exact or found >= 0:
                return Checked(cases, f"{count} matrices, the bad one at place {place}: {found}, not {exact}")
            cases += 1
    return Checked(cases)


def _first_only(values: Any, tolerance: Any, ops: Any) -> Any:
    return margin({**values, "matrices": values["matrices"][:1]}, tolerance, ops)


# -- Sinkhorn --

_S = _names("s", 2)


def _positive(v: Any) -> dict[str, Any]:
    return {"positive": _all([x > 0 for row in _matrix(v, "s", 2) for x in row])}


def _columns(v: Any, sinkhorn: Any) -> Any:
    after = sinkhorn(_matrix(v, "s", 2), v.ops)
    return [after[0][j] + after[1][j] == 1 for j in range(2)]


def _rows(v: Any, sinkhorn: Any) -> Any:
    after = sinkhorn(_matrix(v, "s", 2), v.ops)
    return after[0][0] + after[0][1] == 1


def _sample_positive(random: Random) -> dict[str, Any]:
    return {name: Fraction(random.randint(1, 20)) for row in _S for name in row}


def _never_arrives(sinkhorn: Any) -> Checked:
    """Exact fractions: after each of five steps the rows of a 2x2 and a 3x3 matrix still do not sum to 1."""
    cases = 0
    for matrix in ([[1, 2], [3, 5]], [[1, 2, 4], [3, 5, 1], [2, 2, 7]]):
        current = [[Fraction(x) for x in row] for row in matrix]
        for step in range(1, 6 if len(matrix) == 2 else 4):
            current = sinkhorn(current)
            if birkhoff.residual(current) == 0:
                return Checked(cases, f"exactly doubly stochastic after {step} steps from {matrix}")
            cases += 1
    return Checked(cases)


def _average(matrix: Any, ops: Ops = FLOAT) -> Any:
    return [[Fraction(1, len(matrix))] * len(matrix) for _ in matrix]


# -- float --


def _guard(v: Any, bound: Any, accepts: Any) -> Any:
    """Accepted -> within all three tolerances and no NaN; and the other way round for finite values."""
    accepted = accepts(bound(v.residual, v.gain, v.spread, v.most_gain, DEFAULT, v.ops))
    inside = (v.residual <= DEFAULT.residual) & (v.gain <= v.most_gain) & (v.spread >= DEFAULT.spread)
    finite = (v.residual > -math.inf) & (v.gain > -math.inf) & (v.spread < math.inf)
    return [implies(accepted, inside), implies(inside & finite, accepted)]


def _softmax_mixture_is_close(logits: list[float], mixture: Any) -> bool:
    top = max(logits)
    exponentials = [math.exp(x - top) for x in logits]
    matrix = mixture([x / sum(exponentials) for x in exponentials], N)
    return bool(birkhoff.residual(matrix) <= 24 * 2.0**-52)


def _forgets_one(weights: Any, n: int) -> Any:
    return birkhoff.mixture([*weights[:-1], 0.0], n)


OBLIGATIONS: tuple[Obligation, ...] = (
    *(_mixture(n) for n in (2, 3, 4)),
    *(_product(n) for n in range(2, 9)),
    Formula("INV-11.norm-infinity", "a 4x4 matrix with entries >= 0 and row sums 1 does not increase the infinity "
            "norm",
            (birkhoff.apply,), variables=_reals(_M, _X, "c"), given=_infinity_given, show=_infinity_norm,
            sample=_sample_norm),
    Formula("INV-11.norm-1", "nor, with column sums 1, the 1-norm", (birkhoff.apply,), variables=_reals(_M, _X, _U),
            given=_one_given, show=_one_norm, sample=_sample_norm),
    Identity("INV-11.norm-2", "nor, doubly stochastic, the 2-norm: x'x - (Mx)'(Mx) is a sum of squares with the weights of M'M",
             (birkhoff.matmul, birkhoff.apply), show=_two_norm),
    Formula("INV-11.measures", "of a doubly stochastic 2x2 matrix the running residual is 0 and the running gain is "
            "1, of half of it 1/2",
            (birkhoff.residual, birkhoff.gain), variables=_reals(_names("m", 2)),
            given=lambda v: _doubly_stochastic(_matrix(v, "m", 2)), show=_measures,
            sample=lambda random: _named("m", _random_mixture(random, 2))),
    Formula("INV-11.residual", "of any 2x2 matrix the running residual is the largest of |row sum - 1|, |column sum - 1| "
            "and -entry, and the running gain the largest absolute row or column sum",
            (birkhoff.residual, birkhoff.gain), variables=_reals(_names("m", 2)), show=_residual_is,
            sample=_sample_matrix),
    Formula("INV-11.margin", "the guard's margin is the least distance to a bound of the worst residual, the gain of the "
            "product and the spread", (margin,), variables=_reals(_names("m", 2), _names("k", 2), "spread"),
            show=_margin_shape, sample=_sample_margin),
    Formula("INV-11.gain-tolerance", "the gain may be above 1 by the larger of the declared tolerance and 2 · count · residual",
            (gain_tolerance,), variables={"count": "int", "gain": "real", "residual": "real"}, show=_gain_tolerance,
            sample=lambda random: {"count": random.randint(1, 9), "gain": Fraction(random.randint(0, 9), 100),
                                   "residual": Fraction(random.randint(0, 9), 1000)}),
    Exhaustive("INV-11.gain-bound", "2 · count · residual covers what the residuals allow, (1 + r)^count - 1, for count · r <= 1 "
               "and up to 1024 matrices: it is convex in r, and holds at both ends", (gain_tolerance,), check=_covers_product,
               rivals={"without the factor 2": (lambda count, declared: count * declared.residual,)}),
    Exhaustive("INV-11.matmul", "the product has the entries of the definition, for every shape up to 3x3 by 3x3",
               (birkhoff.matmul,), check=_matmul_is, rivals={"transposed": (lambda a, b: birkhoff.matmul(b, a),)}),
    Exhaustive("INV-11.sizes", "residual, gain and image are those of the definitions: n = 1..6, a defect at every place",
               (birkhoff.residual, birkhoff.gain, birkhoff.apply), check=_sizes_are,
               rivals={"gain for residual": (birkhoff.gain, birkhoff.gain, birkhoff.apply)}),
    Exhaustive("INV-11.mixture-is", "entry (i, j) of a mixture is the weight of what sends i to j, and the first permutation is "
               "the identity: n = 1..4", (birkhoff.mixture, birkhoff.permutations), check=_mixture_is,
               rivals={"transposed": (lambda w, n: [list(c) for c in zip(*birkhoff.mixture(w, n), strict=True)],
                                      birkhoff.permutations)}),
    Exhaustive("INV-11.every-matrix", "one bad matrix at any place among up to five is seen by the margin", (margin,),
               check=_every_matrix_counts, rivals={"the first matrix only": (_first_only,)}),
    Exhaustive("INV-11.weights", "a mixture refuses any number of weights but n!", (birkhoff.mixture,), check=_refuses_weights,
               rivals={"takes what it gets": (lambda weights, n: weights,)}),
    Exhaustive("INV-11.sinkhorn", "a Sinkhorn step divides rows by their sums, then columns by theirs: 2x2 and 3x3 matrices "
               "of exact fractions", (birkhoff.sinkhorn_step,), check=_sinkhorn_is, rivals={"averaging": (_average,)}),
    Formula("INV-11.sinkhorn-columns", "after a Sinkhorn step the columns sum to 1", (birkhoff.sinkhorn_step,),
            variables=_reals(_S), given=_positive, show=_columns, sample=_sample_positive),
    Formula("INV-11.sinkhorn-rows", "after a Sinkhorn step the rows sum to 1 as well", (birkhoff.sinkhorn_step,),
            variables=_reals(_S), given=_positive, show=_rows, sample=_sample_positive, must_fail=True),
    Exhaustive("INV-11.sinkhorn-steps", "two given matrices are not exactly doubly stochastic after any of the first "
               "Sinkhorn steps, in exact fractions", (birkhoff.sinkhorn_step,), check=_never_arrives,
               rivals={"averaging": (_average,)}),
    FloatLaw("INV-11.guard", "the guard accepts residual, gain and spread only within tolerance, never a NaN, and all "
             "finite ones that are: for all doubles", (nearest_bound, verdict.accepts),
             variables=("residual", "gain", "spread", "most_gain"), show=_guard,
             given=lambda v: {"a finite tolerance": (v.most_gain >= 1.0) & (v.most_gain < math.inf)},
             sample=lambda random: {"residual": random.choice([1e-8, 1e-3, math.nan]),
                                    "gain": random.choice([1.0, 1.1, math.inf]), "spread": random.random(),
                                    "most_gain": 1 + DEFAULT.gain}),
    Property("INV-11.softmax", "a float64 mixture by softmax weights has residual at most 24 ulp", (birkhoff.mixture,),
             strategy=lambda st: st.lists(st.floats(-30, 30), min_size=24, max_size=24),
             holds=_softmax_mixture_is_close, rivals={"drops a weight": (_forgets_one,)}, examples=300),
)  # fmt: skip


def bounds(tolerance: Tolerance) -> tuple[Bound, ...]:
    """The tolerances as cited."""
    return (
        Bound("residual", "max |row sum - 1|, |column sum - 1|, -entry", f"<= {tolerance.residual:g}"),
        Bound(
            "gain",
            "largest absolute row or column sum of the product",
            f"<= 1 + max({tolerance.gain:g}, 2 · count · residual)",
        ),
        Bound("spread", "largest relative difference between streams", f">= {tolerance.spread:g}"),
    )


def required(tolerance: Tolerance) -> str:
    """The condition as one line."""
    return (
        f"residual <= {tolerance.residual:g}, gain of the product <= 1 + {tolerance.gain:g}, spread of the streams >= "
        f"{tolerance.spread:g}"
    )


_IDENTITY = [[1.0 if i == j else 0.0 for j in range(N)] for i in range(N)]
_FLAT = [[0.25] * N for _ in range(N)]
_LEAKS = [[0.25] * N for _ in range(3)] + [[0.25, 0.25, 0.25, 0.2499]]
_NEGATIVE = [[1.1, -0.1, 0.0, 0.0], [-0.1, 1.1, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]

INVARIANT = Invariant(
    id="INV-11",
    slug="mhc-doubly-stochastic",
    statement="Every residual mixing matrix is doubly stochastic within tolerance, the gain of their product is at most "
    "1 + eps, and the streams are not identical.",
    why="An unconstrained product amplifies with depth; identical streams make the mixing a no-op for ever.",
    unit="",
    sources=("mHC-lite: Yang and Gao 2026, arXiv 2601.05732", "Birkhoff 1946"),
    limits=(
        "Only the residual path is constrained: what the sublayers add to the streams is not.",
        "The tolerance is a bound on float32 rounding, measured (3.3e-7 at worst), not proved for every order of summation.",
        "The spread is taken on one sequence of the batch; streams that differ may still carry the same information.",
    ),
    phases=(Phase.BEFORE_STEP,),
    quantities=(
        Quantity("matrices", "M", "", "the mixing matrices in the order of depth", ("S", "n", "n")),
        Quantity("spread", "spread", "", "largest difference between two streams at the last layer, relative to their size"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {
            "matrices": st.lists(
                st.sampled_from([_IDENTITY, _FLAT, _LEAKS, _NEGATIVE]).map(lambda m: [list(row) for row in m]),
                min_size=1, max_size=4,
            ),
            "spread": st.one_of(st.floats(0, 2), st.floats()),
        }
    ),
    holds=(
        Witness({"matrices": [_IDENTITY, _FLAT], "spread": 0.5}, "identity and averaging"),
        Witness({"matrices": [_IDENTITY], "spread": 1e-6}, "streams just apart"),
    ),
    violates=(
        Witness({"matrices": [_IDENTITY, _LEAKS], "spread": 0.5}, "a row that sums to 0.9999"),
        Witness({"matrices": [_NEGATIVE], "spread": 0.5}, "sums of 1 with negative entries"),
        Witness({"matrices": [_FLAT], "spread": 0.0}, "identical streams"),
    ),
)  # fmt: skip
