"""The layers up to attention: each part of the reference, its inputs, and what it is compared with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from karat.trainer.gradcheck import own, plain
from karat.trainer.gradcheck.case import (
    FF_WIDTH,
    HEAD,
    HEADS,
    LAYERS,
    SEQUENCES,
    VOCAB,
    WIDTH,
    Arrays,
    Case,
    Draw,
    Own,
    Tensors,
)
from karat.trainer.models import attention as trainers_attention
from karat.trainer.objectives.next_token import head_loss
from karat.trainer.reference import attention, linear, normalization, rotary, softmax
from karat.trainer.reference.arrays import Array, Mask
from karat.trainer.reference.model import Shape

THETA = Shape(LAYERS, HEADS).theta
FLOAT32 = 2.0**-24
"""What rounding to float32 moves a number of size 1 by, at most; the trainer's rotary table is float32."""
TABLE_LENGTH = 64
MODELS, NORMS, NEXT_TOKEN = "models/attention.py", "models/normalization.py", "objectives/next_token.py"


def layers(seed: int, length: int) -> list[Case]:
    """The layers up to attention, smallest first."""
    makers = (_linear, _softmax, _cross_entropy, _layer_norm, _rms_norm, _table, _rope, _causal, _masked, _multi_head)
    return [make(seed, length) for make in makers]


def table_of(length: int) -> Array:
    """The trainer's rotary table, as doubles."""
    table: Array = trainers_attention.rotary_table(length, HEAD, THETA).double().numpy()
    return table


def _linear(seed: int, length: int) -> Case:
    draw = Draw(seed, "linear", length)
    return Case(
        "linear",
        {"x": draw.hidden(), "weight": draw.weight(FF_WIDTH, WIDTH), "bias": draw.normal(FF_WIDTH)},
        lambda a: linear.linear(a["x"], a["weight"], a["bias"]),
        lambda dy, a: linear.linear_backward(dy, a["x"], a["weight"])._asdict(),
        lambda t: F.linear(t["x"], t["weight"], t["bias"]),
        Own("models/gf16_linear.py GF16Linear", lambda t: own.linear(t) + t["bias"]),
    )


def _softmax(seed: int, length: int) -> Case:
    draw = Draw(seed, "softmax", length)
    return Case(
        "softmax",
        {"x": draw.normal(SEQUENCES, length, VOCAB, std=2.0)},
        lambda a: softmax.softmax(a["x"]),
        lambda dy, a: {"x": softmax.softmax_backward(dy, softmax.softmax(a["x"]))},
        lambda t: t["x"].softmax(-1),
    )


def _cross_entropy(seed: int, length: int) -> Case:
    draw = Draw(seed, "cross-entropy", length)
    targets = draw.tokens().reshape(-1)
    wanted = torch.from_numpy(targets)
    return Case(
        "cross-entropy",
        {"logits": draw.normal(targets.size, VOCAB, std=2.0)},
        lambda a: softmax.cross_entropy(a["logits"], targets),
        lambda dy, a: {"logits": softmax.cross_entropy_backward(dy, a["logits"], targets)},
        lambda t: F.cross_entropy(t["logits"], wanted),
        Own(f"{NEXT_TOKEN} head_loss", lambda t: head_loss(t["logits"], torch.eye(VOCAB).double(), wanted)),
    )


def _layer_norm(seed: int, length: int) -> Case:
    draw = Draw(seed, "layer-norm", length)
    return Case(
        "layer-norm",
        {"x": draw.hidden(), "gain": draw.gain(WIDTH), "bias": draw.normal(WIDTH)},
        lambda a: normalization.layer_norm(a["x"], a["gain"], a["bias"]),
        lambda dy, a: normalization.layer_norm_backward(dy, a["x"], a["gain"])._asdict(),
        lambda t: F.layer_norm(t["x"], t["gain"].shape, t["gain"], t["bias"], normalization.EPSILON),
        Own(f"{NORMS} Norm", lambda t: own.norm(t) + t["bias"]),
    )


def _rms_norm(seed: int, length: int) -> Case:
    draw, names = Draw(seed, "rms-norm", length), ("x", "gain")
    return Case(
        "rms-norm",
        {"x": draw.hidden(), "gain": draw.gain(WIDTH)},
        lambda a: normalization.rms_norm(a["x"], a["gain"]),
        lambda dy, a: dict(zip(names, normalization.rms_norm_backward(dy, a["x"], a["gain"])[:2], strict=True)),
        lambda t: F.rms_norm(t["x"], list(t["gain"].shape), t["gain"], normalization.EPSILON),
        Own(f"{NORMS} Norm, rmsnorm", lambda t: own.norm(t, "rmsnorm")),
    )


def _table(seed: int, length: int) -> Case:
    """No gradient; the trainer's table is float32."""
    return Case(
        "rotary table",
        {},
        lambda a: rotary.rotary_table(TABLE_LENGTH, HEAD, THETA),
        lambda dy, a: {},
        lambda t: plain.rotary_table(TABLE_LENGTH, HEAD, THETA),
        Own(
            f"{MODELS} rotary_table",
            lambda t: trainers_attention.rotary_table(TABLE_LENGTH, HEAD, THETA).double(),
            limit=FLOAT32,
        ),
    )


def _rope(seed: int, length: int) -> Case:
    draw, table = Draw(seed, "rope", length), table_of(length + 3)[3:]  # position 0 alone would not turn anything
    turns = torch.from_numpy(table)

    def trainers(t: Tensors) -> Tensor:
        """Its layout is (B, T, groups, H, K)."""
        return trainers_attention.rotate(t["x"].transpose(1, 2)[:, :, None].contiguous(), turns)[:, :, 0].transpose(
            1, 2
        )

    return Case(
        "rope",
        {"x": draw.normal(SEQUENCES, HEADS, length, HEAD)},
        lambda a: rotary.rotate(a["x"], table),
        lambda dy, a: {"x": rotary.rotate_backward(dy, table)},
        lambda t: plain.rotate(t["x"], turns),
        Own(f"{MODELS} rotate", trainers),
    )


def _causal(seed: int, length: int) -> Case:
    return _attend("causal attention", seed, length, attention.causal_mask(length))


def _masked(seed: int, length: int) -> Case:
    return _attend("masked attention", seed, length, Draw(seed, "mask", length).mask())


def _attend(part: str, seed: int, length: int, mask: Mask) -> Case:
    """q, k, v of every head to the mixed values, under a mask; torch's fused function has no gradient by the gain."""
    draw, seen = Draw(seed, part, length), torch.from_numpy(mask)
    inputs = {name: draw.normal(SEQUENCES, HEADS, length, HEAD) for name in ("q", "k", "v")}

    def backward(dy: Array, a: Arrays) -> Arrays:
        _, p = attention.attend(a["q"], a["k"], a["v"], a["gain"], mask)
        return attention.attend_backward(dy, a["q"], a["k"], a["v"], a["gain"], p)._asdict()

    return Case(
        part,
        inputs | {"gain": np.asarray(draw.score_gain())},
        lambda a: attention.attend(a["q"], a["k"], a["v"], a["gain"], mask)[0],
        backward,
        lambda t: plain.attend(t["q"], t["k"], t["v"], t["gain"], seen),
        contains=("softmax",),
    )


def _multi_head(seed: int, length: int) -> Case:
    draw, table, mask = Draw(seed, "attention", length), table_of(length), attention.causal_mask(length)
    turns, gain = torch.from_numpy(table), draw.score_gain()
    weights = {name: draw.weight(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}

    def backward(dy: Array, a: Arrays) -> Arrays:
        dx, gradients = attention.multi_head_backward(dy, a["x"], a, HEADS, a["gain"], table, mask)
        return {"x": dx, **gradients}

    return Case(
        "attention",
        {"x": draw.hidden(), "gain": np.asarray(gain), **weights},
        lambda a: attention.multi_head(a["x"], a, HEADS, a["gain"], table, mask),
        backward,
        lambda t: plain.multi_head(t["x"], t, HEADS, t["gain"], turns),
        Own(f"{MODELS} Attention", lambda t: own.attention(t, gain, length), frozenset({"gain"})),
        contains=("linear", "softmax", "rope", "causal attention"),
    )
