"""Activations, feed-forward sublayers, the tied embedding, and whole transformers, as cases."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from karat.trainer.gradcheck import own, plain
from karat.trainer.gradcheck.case import FF_WIDTH, HEADS, LAYERS, VOCAB, WIDTH, Arrays, Case, Draw, Own, Tensors
from karat.trainer.gradcheck.parts import table_of
from karat.trainer.models.feedforward import squared_relu
from karat.trainer.reference import activation, embedding, feedforward, model, normalization
from karat.trainer.reference.arrays import Array
from karat.trainer.reference.feedforward import Kind
from karat.trainer.reference.model import Shape

FEED_FORWARD = "models/feedforward.py"
TRANSFORMER = "models/transformer.py Transformer"
SHAPES = (
    ("LayerNorm, RoPE, ReLU²", Shape(LAYERS, HEADS, activation="relu2")),
    ("LayerNorm, RoPE, SwiGLU", Shape(LAYERS, HEADS, activation="swiglu")),
    ("RMSNorm, learned positions, GELU", Shape(LAYERS, HEADS, norm="rms", positions="learned", activation="gelu")),
)
"""The transformers that are compared; the trainer has the first two."""


def composites(seed: int, length: int) -> list[Case]:
    """All of them, smallest first."""
    return [
        *_activations(seed, length),
        *(_feed_forward(seed, length, kind) for kind in ("relu2", "gelu", "swiglu")),
        _tied_embedding(seed, length),
        *(_model(seed, length, name, shape) for name, shape in SHAPES),
    ]


def _activations(seed: int, length: int) -> list[Case]:
    x = {name: Draw(seed, name, length).hidden(FF_WIDTH) for name in ("relu2", "gelu", "gate", "up")}
    return [
        Case(
            "relu2",
            {"x": x["relu2"]},
            lambda a: activation.squared_relu(a["x"]),
            lambda dy, a: {"x": activation.squared_relu_backward(dy, a["x"])},
            lambda t: F.relu(t["x"]) ** 2,
            Own(f"{FEED_FORWARD} squared_relu", lambda t: squared_relu(t["x"])),
        ),
        Case(
            "gelu",
            {"x": x["gelu"]},
            lambda a: activation.gelu(a["x"]),
            lambda dy, a: {"x": activation.gelu_backward(dy, a["x"])},
            lambda t: F.gelu(t["x"], approximate="none"),
        ),
        Case(
            "swiglu",
            {name: x[name] for name in ("gate", "up")},
            lambda a: activation.swiglu(a["gate"], a["up"]),
            lambda dy, a: activation.swiglu_backward(dy, a["gate"], a["up"])._asdict(),
            lambda t: F.silu(t["gate"]) * t["up"],
        ),
    ]


def _feed_forward(seed: int, length: int, kind: Kind) -> Case:
    draw = Draw(seed, f"feed-forward {kind}", length)
    shape = Shape(LAYERS, HEADS, activation=kind)

    def backward(dy: Array, a: Arrays) -> Arrays:
        dx, gradients = feedforward.feed_forward_backward(dy, a["x"], a, kind)
        return {"x": dx, **gradients}

    return Case(
        f"feed-forward {kind}",
        {"x": draw.hidden(), **_feed_forward_weights(draw, kind)},
        lambda a: feedforward.feed_forward(a["x"], a, kind),
        backward,
        lambda t: plain.feed_forward(t["x"], t, kind),
        None if kind == "gelu" else Own(f"{FEED_FORWARD} FeedForward", lambda t: own.feed_forward(t, shape)),
        contains=("linear", kind),
    )


def _feed_forward_weights(draw: Draw, kind: Kind) -> dict[str, Array]:
    weights = {"up": draw.weight(FF_WIDTH, WIDTH), "down": draw.weight(WIDTH, FF_WIDTH)}
    return weights | {"gate": draw.weight(FF_WIDTH, WIDTH)} if kind == "swiglu" else weights


def _tied_embedding(seed: int, length: int) -> Case:
    """Tokens to logits through the one weight twice, a LayerNorm between."""
    draw = Draw(seed, "tied embedding", length)
    tokens = draw.tokens()
    at = torch.from_numpy(tokens)

    def hidden(a: Arrays) -> tuple[Array, Array]:
        x = embedding.embed(tokens, a["embedding"])
        return x, normalization.layer_norm(x, a["final_norm"])

    def backward(dy: Array, a: Arrays) -> Arrays:
        x, normed = hidden(a)
        dnormed, by_head = embedding.tied_head_backward(dy, normed, a["embedding"])
        norm = normalization.layer_norm_backward(dnormed, x, a["final_norm"])
        by_tokens = embedding.embed_backward(norm.x, tokens, a["embedding"])
        return {"embedding": by_head + by_tokens, "final_norm": norm.gain}

    def by_torch(t: Tensors) -> Tensor:
        x = F.embedding(at, t["embedding"])
        normed = F.layer_norm(x, (WIDTH,), t["final_norm"], None, normalization.EPSILON)
        return F.linear(normed, t["embedding"])

    return Case(
        "tied embedding",
        {"embedding": draw.normal(VOCAB, WIDTH), "final_norm": draw.gain(WIDTH)},
        lambda a: embedding.tied_head(hidden(a)[1], a["embedding"]),
        backward,
        by_torch,
        Own(f"{TRANSFORMER}, no blocks", lambda t: own.head(t, at)),
        contains=("linear", "layer-norm"),
    )


def _model(seed: int, length: int, name: str, shape: Shape) -> Case:
    draw, table = Draw(seed, name, length), table_of(length)
    tokens, targets = draw.tokens(), np.roll(draw.tokens(), 1, axis=0)
    inputs, labels, turns = torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(table)
    norm = "layer-norm" if shape.norm == "layer" else "rms-norm"
    position = ("rope", "rotary table") if shape.positions == "rope" else ()
    attention = ("attention", "causal attention", "softmax")

    def backward(dy: Array, a: Arrays) -> Arrays:
        _, tape = model.forward(tokens, targets, a, shape, table)
        return model.backward(tape, a, shape, dy)

    return Case(
        f"transformer ({name})",
        _model_weights(draw, shape, length),
        lambda a: model.forward(tokens, targets, a, shape, table)[0],
        backward,
        lambda t: plain.model_loss(inputs, labels, t, shape, turns),
        Own(TRANSFORMER, lambda t: own.model_loss(t, inputs, labels, shape)),
        contains=("linear", "cross-entropy", norm, *position, *attention, shape.activation,
                  f"feed-forward {shape.activation}", "tied embedding"),
    )  # fmt: skip


def _model_weights(draw: Draw, shape: Shape, length: int) -> dict[str, Array]:
    """Weights of a size at which every part of the model matters; those of no two layers are alike."""
    weights = {"embedding": draw.normal(VOCAB, WIDTH), "final_norm": draw.gain(WIDTH) / WIDTH**0.5}
    if shape.positions == "learned":
        weights["positions"] = draw.normal(length + 2, WIDTH)
    for layer in range(shape.n_layers):
        block = {name: draw.weight(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
        block |= {"norm_attention": draw.gain(WIDTH), "norm_feed_forward": draw.gain(WIDTH)}
        block |= _feed_forward_weights(draw, shape.activation)
        weights |= {f"blocks.{layer}.{name}": value for name, value in block.items()}
    return weights
