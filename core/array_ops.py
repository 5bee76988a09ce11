"""The arithmetic protocol of karat.core.ops on NumPy arrays: the same formulas, element by element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from karat.core.ops import Number, add_up


class ArrayOps:
    """The interpreter on arrays (and Python numbers mixed in). Agrees with FloatOps on every finite input."""

    def where(self, condition: Any, yes: Number, no: Number) -> Number:
        return np.where(condition, yes, no)

    def minimum(self, a: Number, b: Number) -> Number:
        return np.where((a < b) | (a != a), a, b)

    def maximum(self, a: Number, b: Number) -> Number:
        return np.where((a > b) | (a != a), a, b)

    def absolute(self, x: Number) -> Number:
        return np.abs(x)

    def sum(self, terms: Iterable[Number]) -> Number:
        return add_up(terms)

    def exp(self, x: Number) -> Number:
        return np.exp(x)

    def log(self, x: Number) -> Number:
        return np.log(x)

    def xlogx(self, x: Number) -> Number:
        return x * np.log(np.where(x == 0, 1.0, x))

    def cospi(self, x: Number) -> Number:
        return np.cos(np.pi * x)

    def constant(self, value: float, like: Number) -> Number:
        return np.full_like(like, value)


ARRAY = ArrayOps()
