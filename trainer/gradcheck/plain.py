"""The second opinion: the same parts in plain torch functions, written another way where torch has no function of the name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from karat.trainer.reference.model import Shape


def rotate(x: Tensor, table_TK2: Tensor) -> Tensor:
    """(..., T, K): each neighbouring pair times the 2 x 2 matrix of its position."""
    cosine, sine = table_TK2.unbind(-1)
    turns = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    return torch.einsum("tpij,...tpj->...tpi", turns, x.reshape(*x.shape[:-1], -1, 2)).flatten(-2)


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """(T, K / 2, 2) in float64: the cosine and sine of the powers of one complex number a pair."""
    angles = [[position / theta ** (pair / head_dim) for pair in range(0, head_dim, 2)] for position in range(length)]
    turns = torch.polar(
        torch.ones(length, head_dim // 2, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
    )
    return torch.view_as_real(turns)


def attend(q: Tensor, k: Tensor, v: Tensor, gain: Tensor | float, mask: Tensor) -> Tensor:
    """softmax of gain q.k / sqrt(K), hidden keys filled with -inf, times v."""
    scores = torch.einsum("...ik,...jk->...ij", q, k) * gain / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def multi_head(
    x: Tensor, weights: Mapping[str, Tensor], heads: int, gain: Tensor | float, table: Tensor | None
) -> Tensor:
    """(B, T, D) -> (B, T, D), causal."""
    q, k, v = (F.linear(x, weights[n]).view(*x.shape[:2], heads, -1).transpose(1, 2) for n in ("query", "key", "value"))
    if table is not None:
        q, k = rotate(q, table), rotate(k, table)
    length = x.shape[1]
    mixed = attend(q, k, v, gain, torch.ones(length, length, dtype=torch.bool).tril())
    return F.linear(mixed.transpose(1, 2).flatten(2), weights["out"])


def feed_forward(x: Tensor, weights: Mapping[str, Tensor], kind: str) -> Tensor:
    """relu(up x)^2, gelu(up x) or silu(gate x) up x, through down."""
    up = F.linear(x, weights["up"])
    if kind == "swiglu":
        return F.linear(F.silu(F.linear(x, weights["gate"])) * up, weights["down"])
    return F.linear(F.relu(up).square() if kind == "relu2" else F.gelu(up), weights["down"])


def norm(x: Tensor, gain: Tensor, shape: Shape) -> Tensor:
    """torch's own layer_norm or rms_norm."""
    if shape.norm == "layer":
        return F.layer_norm(x, gain.shape, gain, None, shape.epsilon)
    return F.rms_norm(x, list(gain.shape), gain, shape.epsilon)


def model_loss(tokens: Tensor, targets: Tensor, weights: Mapping[str, Tensor], shape: Shape, table: Tensor) -> Tensor:
    """The whole transformer's mean cross-entropy in nats; the table is used where positions are rotary."""
    x = F.embedding(tokens, weights["embedding"])
    if shape.positions == "learned":
        x = x + weights["positions"][: tokens.shape[1]]
    turns = table if shape.positions == "rope" else None
    for layer in range(shape.n_layers):
        block = {name.split(".")[-1]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        x = x + multi_head(norm(x, block["norm_attention"], shape), block, shape.n_heads, shape.gain, turns)
        x = x + feed_forward(norm(x, block["norm_feed_forward"], shape), block, shape.activation)
    logits = F.linear(norm(x, weights["final_norm"], shape), weights["embedding"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
