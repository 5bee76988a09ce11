"""The parts of the reference on values that are known, on extreme ones, and on what must be refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.trainer.reference import activation, attention, embedding, linear, model, normalization, rotary, softmax
from karat.trainer.reference.arrays import Array
from karat.trainer.reference.model import Shape

FAR = np.array([-1e300, -745.0, -40.0, 0.0, 40.0, 745.0, 1e300])


def test_the_reference_runs_where_torch_is_not_installed() -> None:
    block = "import sys; sys.modules['torch'] = None; sys.modules['scipy'] = None; import karat.trainer.reference.model"
    assert subprocess.run([sys.executable, "-c", block]).returncode == 0


def test_extreme_numbers_neither_overflow_nor_become_nan() -> None:
    p = softmax.softmax(FAR)
    assert p[-1] == 1 and not p[:-1].any()
    assert np.isfinite(softmax.softmax_backward(np.ones(7), p)).all()
    assert float(softmax.cross_entropy(1e4 * np.eye(3), np.array([1, 2, 0]))) == 1e4
    assert float(softmax.cross_entropy(1e4 * np.eye(3), np.array([0, 1, 2]))) == 0
    np.testing.assert_array_equal(activation.sigmoid(FAR)[[0, 3, 6]], [0, 0.5, 1])
    ones = np.ones(5)
    x = FAR[1:-1]
    for value in (activation.swiglu(x, ones), *activation.swiglu_backward(ones, x, ones), activation.gelu(x)):
        assert np.isfinite(value).all()
    assert np.isfinite(activation.gelu_backward(ones, x)).all()
    assert np.isfinite(normalization.layer_norm_backward(ones, np.zeros(5), ones).x).all()


def test_gelu_is_by_the_error_function() -> None:
    x = np.linspace(-4, 4, 33)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(activation.gelu(x), exact, rtol=0, atol=2e-15)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.abs(activation.gelu(x) - tanh).max() > 1e-4


def test_cross_entropy_of_even_logits_is_ln_vocabulary() -> None:
    assert float(softmax.cross_entropy(np.zeros((4, 7)), np.arange(4))) == pytest.approx(math.log(7), rel=1e-15)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_scores_after_the_rotation_depend_on_the_distance_alone(seed: int, i: int, j: int, shift: int) -> None:
    random = np.random.default_rng(seed)
    q, k = random.standard_normal(8), random.standard_normal(8)
    table = rotary.rotary_table(64, 8, 1e4)

    def turned(x: Array, position: int) -> Array:
        return rotary.rotate(x[None], table[position : position + 1])[0]

    near, far = turned(q, i) @ turned(k, j), turned(q, i + shift) @ turned(k, j + shift)
    assert near == pytest.approx(far, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(
        rotary.rotate_backward(turned(q, i)[None], table[i : i + 1])[0], q, rtol=0, atol=1e-15 * 8
    )


def test_the_pairs_of_the_rotation_are_neighbours() -> None:
    quarter = np.array([[[0.0, 1.0], [1.0, 0.0]]])  # the first pair by 90 degrees, the second not at all
    np.testing.assert_array_equal(rotary.rotate(np.array([[1.0, 2.0, 3.0, 4.0]]), quarter), [[-2.0, 1.0, 3.0, 4.0]])


def test_heads_are_split_and_joined_without_loss() -> None:
    x = np.arange(48.0).reshape(2, 3, 8)
    assert np.array_equal(attention.join_heads(attention.split_heads(x, 4)), x)
    assert np.array_equal(attention.split_heads(x, 2)[1, 1, 2], x[1, 2, 4:])


def test_a_token_that_occurs_twice_gets_both_gradients() -> None:
    gradient = embedding.embed_backward(np.array([[1.0, 2.0], [10.0, 20.0]]), np.array([1, 1]), np.zeros((3, 2)))
    np.testing.assert_array_equal(gradient, [[0, 0], [11, 22], [0, 0]])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_index_outside_the_vocabulary_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"tokens must be in 0\.\.2, got {min(0, wrong)}\.\.{max(0, wrong)}"):
        embedding.embed(np.array([0, wrong]), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.2"):
        softmax.cross_entropy(np.zeros((2, 3)), np.array([0, wrong]))


def test_more_tokens_than_learned_positions_are_refused() -> None:
    weights = {"embedding": np.ones((3, 2)), "positions": np.ones((2, 2)), "final_norm": np.ones(2)}
    with pytest.raises(ValueError, match="3 tokens, and 2 learned positions"):
        model.logits(np.zeros((1, 3), dtype=np.int64), weights, Shape(0, 1, positions="learned"))


def test_the_gradient_by_the_loss_is_linear() -> None:
    weights = {"embedding": np.random.default_rng(0).standard_normal((3, 2)), "final_norm": np.ones(2)}
    shape, tokens = Shape(0, 1), np.array([[0, 1, 2]])
    _, tape = model.forward(tokens, tokens[:, ::-1], weights, shape)
    once, twice = model.backward(tape, weights, shape), model.backward(tape, weights, shape, 2.0)
    assert once.keys() == weights.keys()
    assert once["embedding"].any() and np.array_equal(twice["embedding"], 2 * once["embedding"])


def test_without_a_table_the_model_makes_its_own() -> None:
    random = np.random.default_rng(2)
    shape, tokens = Shape(1, 2, theta=50.0, activation="gelu"), random.integers(0, 5, (2, 4))
    names = ("query", "key", "value", "out", "up", "down")
    weights = {f"blocks.0.{name}": random.standard_normal((8, 8)) for name in names}
    weights |= {f"blocks.0.norm_{name}": random.standard_normal(8) for name in ("attention", "feed_forward")}
    weights |= {"embedding": random.standard_normal((5, 8)), "final_norm": np.ones(8)}
    given = model.logits(tokens, weights, shape, rotary.rotary_table(4, 4, 50.0))
    np.testing.assert_array_equal(model.logits(tokens, weights, shape), given)
    assert not np.allclose(model.logits(tokens, weights, shape, rotary.rotary_table(4, 4, 1e4)), given)


def test_a_step_against_the_gradient_lowers_the_loss_of_a_line() -> None:
    random = np.random.default_rng(1)
    x, wanted = random.standard_normal((20, 3)), random.standard_normal((2, 3))
    weight = np.zeros((2, 3))
    for _ in range(200):
        error = linear.linear(x, weight) - linear.linear(x, wanted)
        weight -= 0.02 * linear.linear_backward(error, x, weight).weight
    np.testing.assert_allclose(weight, wanted, atol=1e-3)
