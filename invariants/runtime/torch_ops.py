"""The arithmetic protocol of karat.core.ops on torch tensors: the same formulas, element by element, with gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from karat.core.ops import Number, add_up


class TorchOps:
    """The interpreter on tensors (and Python numbers mixed in). Agrees with FloatOps on every finite input."""

    def where(self, condition: Any, yes: Number, no: Number) -> Number:
        if isinstance(condition, bool):
            return yes if condition else no
        if not (isinstance(yes, torch.Tensor) or isinstance(no, torch.Tensor)):
            raise TypeError("where needs a tensor on one side: torch would make float32 of two numbers; use constant()")
        return torch.where(condition, yes, no)

    def minimum(self, a: Number, b: Number) -> Number:
        return self.where((a < b) | (a != a), a, b)

    def maximum(self, a: Number, b: Number) -> Number:
        return self.where((a > b) | (a != a), a, b)

    def absolute(self, x: Number) -> Number:
        return abs(x)

    def sum(self, terms: Iterable[Number]) -> Number:
        return add_up(terms)

    def exp(self, x: Number) -> Number:
        return torch.exp(torch.as_tensor(x))

    def log(self, x: Number) -> Number:
        return torch.log(torch.as_tensor(x))

    def xlogx(self, x: Number) -> Number:
        return torch.xlogy(x, x)

    def cospi(self, x: Number) -> Number:
        return torch.cos(math.pi * torch.as_tensor(x))

    def constant(self, value: float, like: Number) -> Number:
        return torch.full_like(like, value) if isinstance(like, torch.Tensor) else value


TORCH = TorchOps()
