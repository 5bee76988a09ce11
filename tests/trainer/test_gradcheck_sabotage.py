"""Each formula made wrong in turn, in the reference or in the trainer's own modules: gradcheck ends with 1 and names the part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from karat.core.formulas import attention as scores
from karat.trainer.cli import main
from karat.trainer.models import attention as own_attention
from karat.trainer.models import feedforward as own_feedforward
from karat.trainer.models import normalization as own_normalization
from karat.trainer.models import transformer as own_transformer
from karat.trainer.objectives import next_token
from karat.trainer.reference import activation, attention, embedding, linear, model, normalization, rotary, softmax
from karat.trainer.reference.arrays import Array


class Sabotage(NamedTuple):
    """What is replaced by what, and the words that the verdict must have."""

    place: Any
    name: str
    wrong: Any
    at_fault: str
    says: str = ""


def fault(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """gradcheck's exit code, the parts at fault, and all that it wrote."""
    code = main(["gradcheck", "--length", "3"])
    out = capsys.readouterr().out
    verdict = out.splitlines()[-1]
    return code, verdict.removeprefix("VIOLATED: at fault: "), out


def halves(x: Array, table: Array) -> Array:
    """The other layout: coordinate i turned with i + K / 2."""
    a, b = np.split(x, 2, axis=-1)
    cosine, sine = table[..., 0], table[..., 1]
    return np.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1)


def rms_without_division(dy: Array, x: Array, gain: Array, epsilon: float = 1e-5) -> normalization.NormGradient:
    inverse = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return normalization.NormGradient(dy * gain * inverse, (dy * x * inverse).reshape(-1, len(gain)).sum(0), 0 * gain)


def last_token_only(dx: Array, tokens: np.ndarray[Any, np.dtype[np.int64]], weight: Array) -> Array:
    gradient = np.zeros_like(weight)
    gradient[tokens.reshape(-1)] += dx.reshape(-1, dx.shape[-1])
    return gradient


def layer_norm_with(**changes: Any) -> Callable[..., normalization.NormGradient]:
    right = normalization.layer_norm_backward

    def wrong(dy: Array, x: Array, gain: Array, epsilon: float = 1e-5) -> normalization.NormGradient:
        n, inverse = normalization.standardized(x, changes.get("epsilon", epsilon))
        g = dy * gain
        mean = g.mean(-1, keepdims=True) if changes.get("mean", True) else 0
        spread = n * (g * n).mean(-1, keepdims=True) if changes.get("spread", True) else 0
        return right(dy, x, gain, epsilon)._replace(x=inverse * (g - mean - spread))

    return wrong


def attend_with(**factors: float) -> Callable[..., attention.AttendGradient]:
    right = attention.attend_backward

    def wrong(*given: Any) -> attention.AttendGradient:
        gradient = right(*given)
        return gradient._replace(**{name: factor * getattr(gradient, name) for name, factor in factors.items()})

    return wrong


def tanh_gelu(x: Array) -> Array:
    y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


CROSS, SOFT, LINEAR = softmax.cross_entropy_backward, softmax.softmax, linear.linear_backward
HEAD, TRI, SWIGLU = embedding.tied_head_backward, np.tri, activation.swiglu_backward
BACKWARD = "the reference's backward is not that of its forward"
FORWARD = "the forward passes differ"
REFERENCE = {
    "softmax without the sum": Sabotage(
        softmax, "softmax_backward", lambda dp, p: p * dp, "softmax", f"softmax: x: plain torch|{BACKWARD}"
    ),
    "cross-entropy not over the rows": Sabotage(
        softmax, "cross_entropy_backward", lambda d, x, t: CROSS(d, x, t) * len(t), "cross-entropy", BACKWARD
    ),
    "cross-entropy without the target": Sabotage(
        softmax, "cross_entropy_backward", lambda d, x, t: d * SOFT(x) / len(t), "cross-entropy", BACKWARD
    ),
    "rope turned the same way": Sabotage(rotary, "rotate_backward", rotary.rotate, "rope", BACKWARD),
    "rope of halves": Sabotage(rotary, "rotate", halves, "rope", FORWARD),
    "rope table in degrees of another base": Sabotage(
        rotary, "rotary_table", lambda t, k, theta: rotary_table_of(t, k, theta / 2), "rotary table", FORWARD
    ),
    "layer norm without the mean": Sabotage(
        normalization, "layer_norm_backward", layer_norm_with(mean=False), "layer-norm", "layer-norm: x"
    ),
    "layer norm without the variance": Sabotage(
        normalization, "layer_norm_backward", layer_norm_with(spread=False), "layer-norm", "layer-norm: x"
    ),
    "layer norm without epsilon": Sabotage(
        normalization, "layer_norm_backward", layer_norm_with(epsilon=0), "layer-norm", "layer-norm: x"
    ),
    "rms norm that forgets what it divides by": Sabotage(
        normalization, "rms_norm_backward", rms_without_division, "rms-norm", "rms-norm: x"
    ),
    "mask after the softmax": Sabotage(
        softmax, "masked_softmax", lambda x, mask: SOFT(x) * mask, "causal attention, masked attention", FORWARD
    ),
    "no 1 / sqrt(d) at all": Sabotage(
        attention, "score_scale", lambda gain, d: np.asarray(gain), "causal attention, masked attention", FORWARD
    ),
    "no gain": Sabotage(
        attention, "score_scale", lambda g, d: np.asarray(1 / d**0.5), "causal attention, masked attention", FORWARD
    ),
    "no 1 / sqrt(d) in the gradient by q": Sabotage(
        attention, "attend_backward", attend_with(q=2), "causal attention, masked attention", "causal attention: q:"
    ),
    "gradients of q and k exchanged in sign": Sabotage(
        attention, "attend_backward", attend_with(k=-1), "causal attention, masked attention", "causal attention: k:"
    ),
    "a mask that shows the next token": Sabotage(
        attention, "causal_mask", lambda n: TRI(n, k=1, dtype=np.bool_), "attention", "attention: output"
    ),
    "relu squared without the 2": Sabotage(
        activation, "squared_relu_backward", lambda dy, x: np.maximum(x, 0) * dy, "relu2", BACKWARD
    ),
    "gelu by tanh": Sabotage(activation, "gelu", tanh_gelu, "gelu", FORWARD),
    "gelu's gradient without the density": Sabotage(
        activation, "gelu_backward", lambda dy, x: activation.normal_cdf(x) * dy, "gelu", BACKWARD
    ),
    "swiglu with the sigmoid for silu's derivative": Sabotage(
        activation, "swiglu_backward",
        lambda dy, gate, up: SWIGLU(dy, gate, up)._replace(gate=dy * up * activation.sigmoid(gate)),
        "swiglu", "swiglu: gate",
    ),
    "bias over one row": Sabotage(
        linear, "linear_backward", lambda dy, x, w: LINEAR(dy, x, w)._replace(bias=dy[0, 0]), "linear", "linear: bias"
    ),
    "embedding by assignment": Sabotage(
        embedding, "embed_backward", last_token_only, "tied embedding", "tied embedding: embedding"
    ),
    "the head's share of the tied weight left out": Sabotage(
        embedding, "tied_head_backward", lambda d, h, w: (HEAD(d, h, w)[0], 0 * w), "tied embedding", BACKWARD
    ),
}  # fmt: skip


def rotary_table_of(length: int, head_dim: int, theta: float) -> Array:
    angle = np.outer(np.arange(length), theta ** (-np.arange(0, head_dim, 2) / head_dim))
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@pytest.mark.parametrize("case", REFERENCE.values(), ids=REFERENCE.keys())
def test_a_wrong_formula_of_the_reference(
    case: Sabotage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(case.place, case.name, case.wrong)
    code, at_fault, out = fault(capsys)
    assert (code, at_fault) == (1, case.at_fault), out
    assert all(words in out for words in case.says.split("|"))


BLOCK_BACKWARD, OF_BLOCK = model.block_backward, model.of_block
TRANSFORMERS = ("LayerNorm, RoPE, ReLU²", "LayerNorm, RoPE, SwiGLU", "RMSNorm, learned positions, GELU")


def whole_models_fail(capsys: pytest.CaptureFixture[str], tensor: str) -> None:
    code, at_fault, out = fault(capsys)
    assert code == 1
    assert at_fault == ", ".join(f"transformer ({name})" for name in TRANSFORMERS)
    assert f"transformer ({TRANSFORMERS[0]}): {tensor}" in out


def test_a_second_layer_whose_backward_takes_the_weights_of_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = model.backward

    def wrong(tape: model.Tape, weights: model.Weights, *rest: Any) -> dict[str, Array]:
        with monkeypatch.context() as inside:
            inside.setattr(model, "of_block", lambda w, layer: OF_BLOCK(w, 0))
            return right(tape, weights, *rest)

    monkeypatch.setattr(model, "backward", wrong)
    whole_models_fail(capsys, "blocks.1.query")


def test_a_second_layer_whose_forward_takes_the_weights_of_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed's: forward read the first layer's query, key, value and out, backward the second's own."""
    right = model.forward

    def wrong(*given: Any) -> tuple[Array, model.Tape]:
        with monkeypatch.context() as inside:
            inside.setattr(model, "of_block", lambda w, layer: OF_BLOCK(w, 0))
            return right(*given)

    monkeypatch.setattr(model, "forward", wrong)
    whole_models_fail(capsys, "output")


def test_a_residual_that_gives_nothing_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(dy: Array, *rest: Any) -> tuple[Array, dict[str, Array]]:
        dx, gradients = BLOCK_BACKWARD(dy, *rest)
        return dx - dy, gradients

    monkeypatch.setattr(model, "block_backward", wrong)
    whole_models_fail(capsys, "blocks.0.query")


def test_a_number_that_is_not_finite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(softmax, "softmax_backward", lambda dp, p: np.full_like(p, np.nan))
    code, at_fault, out = fault(capsys)
    assert (code, at_fault) == (1, "softmax") and "plain torch nan > 1.0e-09" in out


def test_a_reference_that_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(activation, "gelu_backward", lambda dy, x: dy @ x)
    code, at_fault, out = fault(capsys)
    assert (code, at_fault) == (1, "gelu")
    assert "FAILED gelu: output: the reference: ValueError: matmul" in out and "the reference raises" in out


ATTEND, TORCH_LINEAR = own_attention.F.scaled_dot_product_attention, torch.nn.functional.linear
ROTATE, ATTENTION = own_attention.rotate, own_attention.Attention.forward


def one_by_one(self: own_attention.Attention, x_BTD: Tensor) -> Tensor:
    """The seed's call: each token as a sequence of length one, so that q, k and the gain have no effect."""
    return ATTENTION(self, x_BTD.reshape(-1, 1, x_BTD.shape[-1])).view_as(x_BTD)


def detached_query(self: own_attention.Attention, x_BTD: Tensor) -> Tensor:
    with torch.no_grad():
        query, _, _ = self.qkv.weight.chunk(3)
    weight = torch.cat([query, *self.qkv.weight.chunk(3)[1:]])
    other = nn.Module.__new__(own_attention.Attention)
    nn.Module.__init__(other)
    other.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_")})
    other.table_TK2, other._seen, other.out = self.table_TK2, None, self.out
    other.qkv = lambda x: TORCH_LINEAR(x, weight)  # type: ignore[assignment]
    return ATTENTION(other, x_BTD)


def halves_of_torch(x: Tensor, table: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    turns = table[:, None, None]
    cosine, sine = turns[..., 0], turns[..., 1]
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def in_place_of_relu(ctx: Any, *gradients: Tensor) -> Tensor:
    return gradients[0] * ctx.saved_tensors[0]


def not_over_the_rows(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    made = iter([gradients[0] * saved for saved in ctx.saved_tensors])
    return (*(next(made) if wanted else None for wanted in ctx.needs_input_grad[:2]), None)


def leaking(*args: Tensor, is_causal: bool, scale: float) -> Tensor:
    return ATTEND(*args, is_causal=False, scale=scale)


class Functions:
    """torch.nn.functional with some of its functions replaced, for one module alone."""

    def __init__(self, **replaced: Any) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)


OWN = {
    "a gradient of relu squared without the 2": Sabotage(
        own_feedforward._SquaredReLU, "backward", staticmethod(in_place_of_relu), "relu2"
    ),
    "a cross-entropy that is not over the rows": Sabotage(
        next_token._HeadLoss, "backward", staticmethod(not_over_the_rows), "cross-entropy"
    ),
    "attention called with sequence length one": Sabotage(
        own_attention.Attention, "forward", one_by_one, "attention", "attention: query"
    ),
    "a query without gradient": Sabotage(
        own_attention.Attention, "forward", detached_query, "attention", "attention: query"
    ),
    "attention to the future": Sabotage(
        own_attention, "F", Functions(scaled_dot_product_attention=leaking), "attention"
    ),
    "scores without the gain": Sabotage(scores, "score_scale", lambda gain, root: 1 / root, "attention"),
    "scores without the root": Sabotage(scores, "score_scale", lambda gain, root: gain, "attention"),
    "rotation of halves": Sabotage(own_attention, "rotate", halves_of_torch, "rope", "rope: output"),
    "another epsilon": Sabotage(own_normalization, "EPSILON", 1e-6, "layer-norm"),
    "gelu for silu": Sabotage(
        own_feedforward, "F", Functions(silu=torch.nn.functional.gelu), "feed-forward swiglu"
    ),
    "a head that gives its weight no gradient": Sabotage(
        own_transformer, "F", Functions(linear=lambda h, w: TORCH_LINEAR(h, w.detach())), "tied embedding"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN.values(), ids=OWN.keys())
def test_a_wrong_module_of_the_trainer(
    case: Sabotage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(case.place, case.name, case.wrong)
    code, at_fault, out = fault(capsys)
    assert (code, at_fault) == (1, case.at_fault), out
    assert case.says in out
    assert "the trainer's module stands alone" in out
