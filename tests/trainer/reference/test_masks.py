"""Any boolean mask in which every query sees a key: the softmax is over what is seen, and nothing else has an effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from karat.trainer.reference import attention, softmax
from karat.trainer.reference.arrays import Array, Mask

K = 4
GAIN = 1.7


@st.composite
def masks(draw: st.DrawFn, longest: int = 6) -> Mask:
    """(queries, keys); each query sees one key that is drawn, and any others."""
    queries, keys = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    mask: Mask = draw(arrays(np.bool_, (queries, keys)))
    for row in range(queries):
        mask[row, draw(st.integers(0, keys - 1))] = True
    return mask


def drawn(mask: Mask, seed: int) -> tuple[Array, Array, Array, Array]:
    """q, k, v and the gradient by the output, for two heads."""
    random = np.random.default_rng(seed)
    queries, keys = mask.shape
    return tuple(random.standard_normal((2, n, K)) for n in (queries, keys, keys, queries))  # type: ignore[return-value]


@given(masks(), st.integers(0, 2**32 - 1))
def test_each_query_attends_to_what_it_sees_and_to_nothing_else(mask: Mask, seed: int) -> None:
    q, k, v, _ = drawn(mask, seed)
    out, p = attention.attend(q, k, v, GAIN, mask)
    assert not p[:, ~mask].any()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-14)
    for head in range(2):
        for row, seen in enumerate(mask):
            e = np.exp(GAIN * (k[head, seen] @ q[head, row]) / np.sqrt(K))
            np.testing.assert_allclose(out[head, row], (e / e.sum()) @ v[head, seen], rtol=1e-11, atol=1e-13)


@given(masks(), st.integers(0, 2**32 - 1))
def test_gradients_are_those_of_torchs_fused_attention(mask: Mask, seed: int) -> None:
    q, k, v, dy = drawn(mask, seed)
    out, p = attention.attend(q, k, v, GAIN, mask)
    ours = attention.attend_backward(dy, q, k, v, GAIN, p)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*leaves, attn_mask=torch.from_numpy(mask), scale=GAIN / np.sqrt(K))
    theirs.backward(torch.from_numpy(dy))  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)
    for gradient, leaf in zip(ours[:3], leaves, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-9, atol=1e-12)


@given(masks(), st.integers(0, 2**32 - 1), st.data())
def test_a_key_that_a_query_does_not_see_changes_no_bit_of_its_output(
    mask: Mask, seed: int, data: st.DataObject
) -> None:
    key = data.draw(st.integers(0, mask.shape[1] - 1))
    blind = ~mask[:, key]
    q, k, v, dy = drawn(mask, seed)
    before, _ = attention.attend(q, k, v, GAIN, mask)
    k[:, key], v[:, key] = 1e6, -1e9
    after, p = attention.attend(q, k, v, GAIN, mask)
    np.testing.assert_array_equal(after[:, blind], before[:, blind])
    assert blind.all() or not np.array_equal(after, before)
    gradients = attention.attend_backward(np.where(blind[:, None], dy, 0), q, k, v, GAIN, p)
    assert not gradients.k[:, key].any() and not gradients.v[:, key].any()


@given(masks(), st.data())
def test_a_query_that_sees_nothing_is_refused_by_its_place(mask: Mask, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(mask) - 1))
    mask[row] = False
    q, k, v, _ = drawn(mask, 0)
    with pytest.raises(ValueError, match=rf"row \(0, {row}\) sees no key"):
        attention.attend(q, k, v, GAIN, mask)


def test_an_additive_mask_is_refused() -> None:
    with pytest.raises(TypeError, match="boolean, True where a key is seen; got float64"):
        softmax.masked_softmax(np.zeros((2, 2)), np.zeros((2, 2)))  # type: ignore[arg-type]


@given(st.integers(1, 7))
def test_the_causal_mask_is_the_lower_triangle(length: int) -> None:
    mask = attention.causal_mask(length)
    assert all(mask[i, j] == (j <= i) for i in range(length) for j in range(length))
