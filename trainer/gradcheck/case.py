"""A part of the reference with the inputs it is tried on, and the torch functions that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from karat.trainer.gradcheck.compare import LIMITS, OWN
from karat.trainer.reference.arrays import Array, Indices, Mask

Arrays = Mapping[str, Array]
Tensors = Mapping[str, Tensor]
SEQUENCES, WIDTH, HEADS, FF_WIDTH, VOCAB, LAYERS = 2, 8, 2, 12, 7, 2
HEAD = WIDTH // HEADS


class Own(NamedTuple):
    """The trainer's own counterpart: where it is, what it computes, the inputs that it holds as constants, the error allowed."""

    place: str
    function: Callable[[Tensors], Tensor]
    constants: frozenset[str] = frozenset()
    limit: float = LIMITS[OWN]


@dataclass(frozen=True)
class Case:
    """One part on one set of inputs. Every input is differentiated by; what is not (tokens, masks) is in the functions."""

    part: str
    inputs: Arrays
    forward: Callable[[Arrays], Array]
    backward: Callable[[Array, Arrays], Arrays]
    """From the gradient by the output, and the inputs, to the gradient by every input, under its name."""
    torch: Callable[[Tensors], Tensor]
    own: Own | None = None
    contains: tuple[str, ...] = ()
    """The parts that it is made of: where one of those fails, this one follows."""


class Draw:
    """Random numbers of one part: they depend on the seed and the part's name, not on the other parts."""

    def __init__(self, seed: int, part: str, length: int) -> None:
        self._random = np.random.default_rng([seed, *part.encode()])
        self.length = length

    def normal(self, *shape: int, std: float = 1.0) -> Array:
        """Independent normal numbers."""
        return std * self._random.standard_normal(shape)

    def weight(self, d_out: int, d_in: int) -> Array:
        """A matrix whose products keep the size of what it is given."""
        return self.normal(d_out, d_in, std=d_in**-0.5)

    def gain(self, size: int) -> Array:
        """Gains about 1, no two alike."""
        return 1 + self.normal(size, std=0.3)

    def hidden(self, width: int = WIDTH) -> Array:
        """(B, T, width), with a mean that is not zero."""
        return 0.3 + self.normal(SEQUENCES, self.length, width)

    def score_gain(self) -> float:
        """A gain of the scores in [0.5, 2.5]."""
        return float(self._random.uniform(0.5, 2.5))

    def tokens(self) -> Indices:
        """(B, T) tokens: neighbours differ (attention among equal ones mixes nothing), and most occur in both sequences."""
        first = np.resize(self._random.permutation(VOCAB), self.length)
        return np.stack([np.roll(first, shift) for shift in range(SEQUENCES)])

    def mask(self) -> Mask:
        """(T, T), about half of it True; the first query sees all keys, the last one, every other at least one."""
        mask = self._random.random((self.length, self.length)) < 0.5
        seen = self._random.integers(0, self.length, self.length)
        mask[-1], mask[np.arange(self.length), seen] = False, True
        mask[0] = True
        return mask
