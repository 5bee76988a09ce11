"""The trainer's own modules as functions of named float64 tensors: the very classes that train, with weights put in from outside.

The modules are made as a run makes them and converted by .double(). Their rotary table stays what it is, the doubles of its
float32 numbers; the reference is given the same, and the table itself is compared by a part of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from karat.trainer.gradcheck.case import FF_WIDTH, HEADS, LAYERS, VOCAB, WIDTH, Tensors
from karat.trainer.models.attention import Attention
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.feedforward import FeedForward
from karat.trainer.models.gf16_linear import GF16Linear
from karat.trainer.models.normalization import Norm
from karat.trainer.models.transformer import Output, Transformer
from karat.trainer.objectives.next_token import head_loss
from karat.trainer.reference.model import Shape

PACKED = ("query", "key", "value")


def config_of(shape: Shape, context: int) -> ModelConfig:
    """The trainer's configuration of that shape: plain residual, no GF16, whose roundings have no gradient to compare."""
    return ModelConfig(
        vocab=VOCAB, d_model=WIDTH, n_layers=shape.n_layers, n_heads=shape.n_heads, context=context, d_ff=FF_WIDTH,
        norm="layernorm" if shape.norm == "layer" else "rmsnorm", positions=shape.positions,
        activation=shape.activation, qk_gain=shape.gain, rope_theta=shape.theta, streams=1, gf16=False, nca=False,
    )  # fmt: skip


def linear(t: Tensors) -> Tensor:
    """GF16Linear without the rounding: the map under every feed-forward weight."""
    y: Tensor = _call(GF16Linear(WIDTH, FF_WIDTH, gf16=False), {"weight": t["weight"]}, t["x"])
    return y


def norm(t: Tensors, kind: Literal["layernorm", "rmsnorm"] = "layernorm") -> Tensor:
    """Norm: LayerNorm or RMSNorm with a gain."""
    y: Tensor = _call(Norm(WIDTH, kind=kind), {"gain": t["gain"]}, t["x"])
    return y


def attention(t: Tensors, gain: float, context: int) -> Tensor:
    """Attention, with query, key and value packed as the module keeps them."""
    module = Attention(config_of(Shape(LAYERS, HEADS, gain=gain), context))
    y: Tensor = _call(module, {"qkv.weight": torch.cat([t[name] for name in PACKED]), "out.weight": t["out"]}, t["x"])
    return y


def feed_forward(t: Tensors, shape: Shape) -> Tensor:
    """FeedForward with ReLU^2 or SwiGLU."""
    weights = {f"{name}.weight": t[name] for name in ("up", "down", "gate") if name in t}
    y: Tensor = _call(FeedForward(config_of(shape, 1)), weights, t["x"])
    return y


def head(t: Tensors, tokens: Tensor) -> Tensor:
    """The transformer's embedding under a Norm and its tied head, without a block between them."""
    module = Transformer(config_of(Shape(1, HEADS), tokens.shape[1]))
    module.sublayers = nn.ModuleList()
    weights = {"embedding.weight": t["embedding"], "final_norm.gain": t["final_norm"]}
    return _logits(module, weights, tokens)


def model_loss(t: Tensors, tokens: Tensor, targets: Tensor, shape: Shape) -> Tensor:
    """Transformer, then head_loss: what a step of a run without auxiliary objective minimises."""
    module = Transformer(config_of(shape, tokens.shape[1]))
    output: Output = _call(module, _transformer_weights(t, shape.n_layers), tokens)
    return head_loss(output.hidden_BTD, output.head_VD, targets)


def _transformer_weights(t: Tensors, n_layers: int) -> dict[str, Tensor]:
    """The reference's weights under the names of Transformer's parameters."""
    named = {"embedding.weight": t["embedding"], "final_norm.gain": t["final_norm"]}
    if "positions" in t:
        named["positions_TD"] = t["positions"]
    for layer in range(n_layers):
        block = {name.split(".")[-1]: w for name, w in t.items() if name.startswith(f"blocks.{layer}.")}
        first, second = f"sublayers.{2 * layer}", f"sublayers.{2 * layer + 1}"
        named |= {
            f"{first}.norm.gain": block["norm_attention"],
            f"{first}.body.qkv.weight": torch.cat([block[name] for name in PACKED]),
            f"{first}.body.out.weight": block["out"],
            f"{second}.norm.gain": block["norm_feed_forward"],
        }
        named |= {f"{second}.body.{name}.weight": block[name] for name in ("up", "down", "gate") if name in block}
    return named


def _logits(module: nn.Module, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    output: Output = _call(module, weights, tokens)
    return output.logits_BTV


def _call(module: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Any:
    """What the module gives with these as its parameters, which must be all of them and no others."""
    different = {name for name, _ in module.named_parameters()} ^ weights.keys()
    if different:
        raise ValueError(
            f"{type(module).__name__} and its comparison do not have these parameters both: {sorted(different)}"
        )
    return functional_call(module.double(), dict(weights), (x,))
