"""Doubly stochastic matrices: mixtures of permutation matrices, products, residuals, one Sinkhorn step.

A matrix is a list of n rows of n numbers; a number may be an array, so that many matrices are handled at once. By
Birkhoff and von Neumann every mixture of permutation matrices with weights >= 0 that sum to 1 is doubly stochastic,
exactly; Sinkhorn normalisation reaches that only in the limit. Source: mHC-lite, Yang and Gao 2026, arXiv 2601.05732.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from karat.core.ops import FLOAT, Number, Ops

Matrix = Sequence[Sequence[Number]]


def permutations(n: int) -> tuple[tuple[int, ...], ...]:
    """All n! permutations in lexicographic order; the first is the identity. Row i of P_s has its 1 in column s[i]."""
    return tuple(itertools.permutations(range(n)))


def mixture(weights: Sequence[Number], n: int, ops: Ops = FLOAT) -> list[list[Number]]:
    """sum_k weights[k] · P_k over the n! permutations: doubly stochastic if the weights are >= 0 and sum to 1."""
    perms = permutations(n)
    if len(weights) != len(perms):
        raise ValueError(f"a mixture for n = {n} takes {len(perms)} weights, got {len(weights)}")
    return [
        [ops.sum(w for w, perm in zip(weights, perms, strict=False) if perm[i] == j) for j in range(n)]
        for i in range(n)
    ]


def matmul(a: Matrix, b: Matrix, ops: Ops = FLOAT) -> list[list[Number]]:
    """The matrix product a b."""
    columns = list(zip(*b, strict=True))
    return [[ops.sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a]


def apply(a: Matrix, x: Sequence[Number], ops: Ops = FLOAT) -> list[Number]:
    """The product of a matrix and a vector."""
    return [ops.sum(entry * value for entry, value in zip(row, x, strict=True)) for row in a]


def residual(a: Matrix, ops: Ops = FLOAT) -> Number:
    """How far a is from doubly stochastic: the largest of |row sum - 1|, |column sum - 1| and -entry; >= 0."""
    n = len(a)
    defects: list[Number] = []
    for i in range(n):
        defects.append(ops.absolute(ops.sum(a[i]) - 1))
        defects.append(ops.absolute(ops.sum(a[j][i] for j in range(n)) - 1))
        defects.extend(-entry for entry in a[i])
    return functools.reduce(ops.maximum, defects)


def gain(a: Matrix, ops: Ops = FLOAT) -> Number:
    """The larger of the infinity norm and the 1-norm: the largest absolute row or column sum."""
    n = len(a)
    rows = [ops.sum(ops.absolute(entry) for entry in row) for row in a]
    columns = [ops.sum(ops.absolute(a[j][i]) for j in range(n)) for i in range(n)]
    return functools.reduce(ops.maximum, [*rows, *columns])


def sinkhorn_step(a: Matrix, ops: Ops = FLOAT) -> list[list[Number]]:
    """Rows divided by their sums, then columns by theirs: columns sum to 1, rows only in the limit of many steps."""
    n = len(a)
    rows = [[a[i][j] / ops.sum(a[i]) for j in range(n)] for i in range(n)]
    sums = [ops.sum(rows[i][j] for i in range(n)) for j in range(n)]
    return [[rows[i][j] / sums[j] for j in range(n)] for i in range(n)]
