"""No output depends on a later input: the gradient is exactly zero, and no bit of an earlier output changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.trainer.reference import attention, model, rotary
from karat.trainer.reference.arrays import Array
from karat.trainer.reference.model import Shape

D, HEADS, F, V, LAYERS = 8, 2, 12, 7, 2
LAYER_NORM = Shape(LAYERS, HEADS, activation="swiglu", gain=1.3)
RMS_NORM = Shape(LAYERS, HEADS, norm="rms", positions="learned", activation="gelu")
SHAPES = pytest.mark.parametrize("shape", [LAYER_NORM, RMS_NORM], ids=["rope", "learned"])
lengths = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def weights_of(random: np.random.Generator, shape: Shape, context: int) -> dict[str, Array]:
    """A model's weights, all drawn."""
    sizes = {"embedding": (V, D), "final_norm": (D,), "positions": (context, D)}
    for layer in range(shape.n_layers):
        block = dict.fromkeys(("query", "key", "value", "out"), (D, D)) | {"up": (F, D), "gate": (F, D), "down": (D, F)}
        block |= {"norm_attention": (D,), "norm_feed_forward": (D,)}  # type: ignore[dict-item]
        sizes |= {f"blocks.{layer}.{name}": size for name, size in block.items()}
    return {name: random.standard_normal(size) for name, size in sizes.items()}


@given(lengths, seeds, st.data())
def test_attention_has_no_gradient_by_what_comes_later(length: int, seed: int, data: st.DataObject) -> None:
    random, t = np.random.default_rng(seed), data.draw(st.integers(0, length - 1))
    x, dy = random.standard_normal((2, length, D)), np.zeros((2, length, D))
    dy[:, t] = random.standard_normal((2, D))
    weights = {name: random.standard_normal((D, D)) for name in ("query", "key", "value", "out")}
    table, mask = rotary.rotary_table(length, D // HEADS, 1e4), attention.causal_mask(length)
    dx, gradients = attention.multi_head_backward(dy, x, weights, HEADS, 1.5, table, mask)
    assert not dx[:, t + 1 :].any()
    assert dx[:, : t + 1].all()
    assert (t > 0) == bool(gradients["query"].any()) == bool(gradients["key"].any())


@SHAPES
@given(lengths, seeds, st.data())
def test_a_block_has_no_gradient_by_what_comes_later(shape: Shape, length: int, seed: int, data: st.DataObject) -> None:
    random, t = np.random.default_rng(seed), data.draw(st.integers(0, length - 1))
    block = model.of_block(weights_of(random, shape, length), 1)
    x, dy = random.standard_normal((2, length, D)), np.zeros((2, length, D))
    dy[:, t] = random.standard_normal((2, D))
    table = rotary.rotary_table(length, D // HEADS, shape.theta) if shape.positions == "rope" else None
    dx, _ = model.block_backward(dy, x, block, shape, table)
    assert not dx[:, t + 1 :].any() and dx[:, : t + 1].any()


@SHAPES
@given(st.integers(2, 6), seeds, st.data())
def test_later_tokens_change_no_bit_of_earlier_logits(
    shape: Shape, length: int, seed: int, data: st.DataObject
) -> None:
    random, t = np.random.default_rng(seed), data.draw(st.integers(0, length - 2))
    weights = weights_of(random, shape, length)
    tokens = random.integers(0, V, (1, length))
    changed = tokens.copy()
    changed[:, t + 1 :] = (tokens[:, t + 1 :] + random.integers(1, V)) % V
    before, after = (model.logits(these, weights, shape) for these in (tokens, changed))
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    assert not np.array_equal(before[:, t + 1 :], after[:, t + 1 :])
