"""The CPU-friendly architecture: its table of three configurations, recomputed cell by cell.

N = V·d + T·d + L (4d^2 + 2·d·d_ff + 4d) + 2d with tied embeddings, learned positions and two-parameter norms; biases add
L (5d + d_ff). Forward: 2·B·T·(L (4d^2 + 2·d·d_ff) + V·d) + L·4·B·T^2·d operations, training three times that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import z3

from karat.proofs.ledger.decimals import agrees, percent, show
from karat.proofs.ledger.record import EXACT, FORMULA, Z3, Checker, Document, Entry, Finding, decided, left_open
from karat.proofs.ledger.solving import valid

BATCH, SEQUENCE, HEADS = 8, 128, 4
TOKENS = BATCH * SEQUENCE


@dataclass(frozen=True)
class Config:
    """A row of the table; vocabulary in thousands as printed, read as 1024 or as 1000."""

    name: str
    layers: int
    d: int
    d_ff: int
    thousands: int
    params: str
    memory: str
    extra: str
    flops: str
    activations: str

    @property
    def vocabulary(self) -> int:
        return 1024 * self.thousands


ROWS = (
    Config("Nano", 2, 128, 512, 2, "~0.67M", "~2.7", "~8.1", "~2.8", "~6"),
    Config("Micro", 4, 256, 1024, 4, "~4.28M", "~17.1", "~51.3", "~20.9", "~25"),
    Config("Mini", 6, 384, 1536, 8, "~13.8M", "~55.3", "~165.9", "~68.9", "~57"),
)
WRONG = {"params": ("~0.72M", "~4.23M", "~14.8M"), "memory": ("~3.7", "~16.9", "~56.3"),
         "extra": ("~9.1", "~50.8", "~175.9"), "flops": ("~4.4", "~27.4", "~88.2"),
         "activations": ("~29", "~92", "~197")}  # fmt: skip


def parameters(c: Config, vocabulary: int, biases: bool) -> int:
    """How many weights, with or without biases."""
    block = 4 * c.d * c.d + 2 * c.d * c.d_ff + 4 * c.d + (5 * c.d + c.d_ff if biases else 0)
    return vocabulary * c.d + SEQUENCE * c.d + c.layers * block + 2 * c.d


def readings(c: Config) -> Iterator[int]:
    """The weights under every reading of the row: 2k as 2048 or 2000, without and with biases."""
    for vocabulary, biases in itertools.product((c.vocabulary, 1000 * c.thousands), (False, True)):
        yield parameters(c, vocabulary, biases)


def linear_flops(c: Config) -> int:
    """Operations of the blocks' matrices, forward."""
    return 2 * TOKENS * c.layers * (4 * c.d * c.d + 2 * c.d * c.d_ff)


def attention_flops(c: Config, sequence: int = SEQUENCE) -> int:
    """Operations of scores and weighted sums, forward."""
    return c.layers * 4 * BATCH * sequence * sequence * c.d


def head_flops(c: Config) -> int:
    """Operations of the vocabulary head, forward."""
    return 2 * TOKENS * c.vocabulary * c.d


def kept_bytes(c: Config) -> int:
    """Bytes that the backward pass reads: 16 values of width d per token and layer, attention weights, logits, in fp32.

    The 16: input and output of both norms (4), q, k, v (3), the heads' output (1), d_ff before and after (8).
    """
    per_layer = TOKENS * (8 * c.d + 2 * c.d_ff) + BATCH * HEADS * SEQUENCE * SEQUENCE
    return 4 * (c.layers * per_layer + TOKENS * c.vocabulary)


def _any_reading(c: Config, per_weight: Fraction, unit: str) -> Checker:
    """The cell agrees with some reading of its row."""

    def check(stated: str) -> Finding:
        values = [count * per_weight for count in readings(c)]
        holds = any(agrees(stated, value) for value in values)
        span = f"{show(min(values), 4)} to {show(max(values), 4)} by reading"
        return Finding(holds, f"{show(values[0], 4)} {unit}".strip(), span)

    return check


def _flops(c: Config) -> Checker:
    def check(stated: str) -> Finding:
        true = Fraction(3 * (linear_flops(c) + attention_flops(c) + head_flops(c)), 10**9)
        without = Fraction(3 * (linear_flops(c) + attention_flops(c)), 10**9)
        note = f"without the vocabulary head: {show(without, 4)}; the head is {percent(1 - without / true)}"
        return Finding(agrees(stated, true), f"{show(true, 4)} GFLOPs", note)

    return check


def _activations(c: Config) -> Checker:
    """A rough number is right within a factor of two."""

    def check(stated: str) -> Finding:
        claimed, kept = Fraction(stated.lstrip("~")), Fraction(kept_bytes(c), 10**6)
        six = Fraction(4 * 6 * c.layers * TOKENS * c.d, 10**6)
        note = f"more than twice as much; six values of width d per token and layer would be {show(six, 3)}"
        holds = claimed / 2 <= kept <= 2 * claimed
        return Finding(holds, f"{show(kept, 3)} MB", "" if holds else note)

    return check


def _cells() -> Iterator[Entry]:
    kinds = (("params", "{} parameters", "Params"), ("memory", "{} MB of parameters", "Param mem"),
             ("extra", "{} MB of gradients and Adam state", "Extra (grads+Adam)"),
             ("flops", "{} GFLOPs per training step", "Train FLOPs/step"),
             ("activations", "{} MB of activations, roughly", "footnote, activation memory"))  # fmt: skip
    numbers = itertools.count(1)
    for kind, sentence, column in kinds:
        for c, wrong in zip(ROWS, WRONG[kind], strict=True):
            check = {"params": _any_reading(c, Fraction(1), ""), "memory": _any_reading(c, Fraction(4, 10**6), "MB"),
                     "extra": _any_reading(c, Fraction(12, 10**6), "MB"), "flops": _flops(c),
                     "activations": _activations(c)}[kind]  # fmt: skip
            stated = getattr(c, kind)
            text = (
                f"{c.name} has {sentence.format(stated)}"
                if kind != "flops"
                else f"{c.name} takes {stated} GFLOPs per training step"
            )
            where = f"table, {c.name}, {column}" if kind != "activations" else f"table, {column}, {c.name}"
            yield decided(f"C-002.{next(numbers):02}", text, where, FORMULA, check, stated, wrong)


def _quadratic(stated: int) -> Finding:
    """Doubling T multiplies the operations of attention by 2^stated, in every row."""
    factors = {Fraction(attention_flops(c, 2 * SEQUENCE), attention_flops(c)) for c in ROWS}
    shares = [attention_flops(c) / (attention_flops(c) + linear_flops(c) + head_flops(c)) for c in ROWS]
    note = (
        f"at T = 128 scores and sums are {', '.join(percent(s) for s in shares)} of the forward pass of the three rows"
    )
    return Finding(factors == {Fraction(2**stated)}, f"twice T, {show(max(factors))} times the work", note)


def _stable_softmax(stated: str) -> Finding:
    """After subtracting an entry of x no exponent is above 0, for all x of three entries."""
    x = z3.Reals("x0 x1 x2")
    most = z3.If(x[0] >= x[1], z3.If(x[0] >= x[2], x[0], x[2]), z3.If(x[1] >= x[2], x[1], x[2]))
    least = z3.If(x[0] <= x[1], z3.If(x[0] <= x[2], x[0], x[2]), z3.If(x[1] <= x[2], x[1], x[2]))
    shift: Any = {"max": most, "min": least}[stated]
    holds = valid(z3.And(*[entry - shift <= 0 for entry in x]))
    return Finding(
        holds, "no exponent above 0" if holds else "exponents without bound", "exp cannot overflow" if holds else ""
    )


def _ratio(stated: int) -> Finding:
    ratios = {Fraction(c.d_ff, c.d) for c in ROWS}
    return Finding(ratios == {Fraction(stated)}, ", ".join(map(show, sorted(ratios))) + " in every row")


def _three_times(stated: int) -> Finding:
    """The printed memories of gradients and Adam against those of the parameters, up to their rounding."""
    ratios = [Fraction(c.extra.lstrip("~")) / Fraction(c.memory.lstrip("~")) for c in ROWS]
    return Finding(all(abs(r - stated) < Fraction(1, 20) for r in ratios), ", ".join(show(r, 3) for r in ratios))


def _budget() -> str:
    nano, micro = (3 * (linear_flops(c) + attention_flops(c) + head_flops(c)) / 1e9 for c in ROWS[:2])
    return f"at 100 GFLOP/s a step takes {show(nano / 100, 2)} s (Nano), {show(micro / 100, 2)} s (Micro)"


ENTRIES = (
    *_cells(),
    decided("C-002.16", "Gradients and Adam take three times the memory of the parameters", "table", EXACT, _three_times, 3, 2),
    decided("C-002.17", "The MLP is 4 x d_model wide", "make it CPU-friendly; table", EXACT, _ratio, 4, 3),
    decided("C-002.18", "Attention is O(T^2)", "make it CPU-friendly", FORMULA, _quadratic, 2, 1),
    decided("C-002.19", "Softmax of x - max(x) is numerically stable", "make it CPU-friendly, numerics", Z3, _stable_softmax,
            "max", "min"),
    left_open("C-002.20", "Nano and Micro overfit 50-100 examples in minutes, not hours", "below the table",
              "depends on the machine and on the examples", _budget),
    left_open("C-002.21", "These budgets are totally doable on an 8-16-core desktop", "below the table",
              "no measure of doable is given", _budget),
    left_open("C-002.22", "Dropout just slows learning on tiny data", "make it CPU-friendly", "no experiment is reported"),
    left_open("C-002.23", "T >= 512, layers >= 8, d_model >= 512 or 100k tokens call for a GPU", "when you'll want a GPU",
              "advice: nothing follows or fails to follow from it"),
)  # fmt: skip

DOCUMENT = Document(
    "C-002",
    "The CPU-friendly architecture",
    "A guide with a table of three configurations, at batch 8 and sequence 128. The guide calls its numbers order-of-magnitude; "
    "the verdicts here are on the printed digits, and for the activations, called rough, on a factor of two.",
    ENTRIES,
)
