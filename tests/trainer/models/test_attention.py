"""Rotary positions are relative, attention is causal and has the declared gain."""

import math

import pytest
import torch
from torch import Tensor

from karat.trainer.models.attention import SAMPLED, Attention, rotary_table, rotate
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.normalization import EPSILON


def config(qk_gain: float = 1.0, qk_norm: bool = False) -> ModelConfig:
    return ModelConfig(d_model=12, n_heads=3, context=9, qk_gain=qk_gain, qk_norm=qk_norm)


def plain_attention(attention: Attention, x_BTD: Tensor, gain: float, normed: bool = False) -> Tensor:
    """The definition, head by head and position by position, with rotations as 2 x 2 matrices."""
    b, t, d = x_BTD.shape
    heads, size = 3, d // 3
    q, k, v = (x_BTD @ attention.qkv.weight.t()).view(b, t, 3, heads, size).unbind(2)
    if normed:
        q, k = (part / (part.square().mean(-1, keepdim=True) + EPSILON).sqrt() for part in (q, k))

    def turned(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for i in range(size // 2):
            angle = position * 1e4 ** (-2 * i / size)
            c, s = math.cos(angle), math.sin(angle)
            out[..., 2 * i] = c * x[..., 2 * i] - s * x[..., 2 * i + 1]
            out[..., 2 * i + 1] = s * x[..., 2 * i] + c * x[..., 2 * i + 1]
        return out

    rows = []
    for i in range(t):
        scores = [(turned(q[:, i], i) * turned(k[:, j], j)).sum(-1) * gain / math.sqrt(size) for j in range(i + 1)]
        p = torch.stack(scores, -1).softmax(-1)
        rows.append(torch.einsum("bhj,bjhs->bhs", p, v[:, : i + 1]).flatten(1))
    return torch.stack(rows, 1) @ attention.out.weight.t()


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("gain", [1.0, 2.618])
def test_attention_is_its_definition(gain: float, normed: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(config(gain, normed)), torch.randn(2, 9, 12)
    torch.testing.assert_close(attention(x), plain_attention(attention, x, gain, normed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_sample_is_what_the_layer_did_and_is_taken_once(length: int) -> None:
    torch.manual_seed(0)
    attention, x = Attention(config(2.618)), torch.randn(2, length, 12, requires_grad=True)
    assert attention.take_sample() is None
    attention(x).sum().backward()
    sample = attention.take_sample()
    assert sample is not None and attention.take_sample() is None
    positions = min(length, SAMPLED)
    assert all(part.shape == (3, positions, 4) and not part.requires_grad for part in sample)
    scores = sample.q_HPK @ sample.k_HPK.transpose(1, 2) * 2.618 / 2
    causal = scores.masked_fill(torch.ones(positions, positions).triu(1) > 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(causal @ sample.v_HPK, sample.mixed_HPK, rtol=1e-5, atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    table = rotary_table(20, 8, 1e4)
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    q_T, k_T = (rotate(x.expand(1, 20, 1, 1, 8).contiguous(), table)[0, :, 0, 0] for x in (q, k))
    torch.testing.assert_close(q_T[5] @ k_T[2], q_T[17] @ k_T[14])
    assert abs(float(q_T[5] @ k_T[2] - q_T[5] @ k_T[4])) > 1e-3


def test_rotation_of_a_strided_view_equals_that_of_a_copy() -> None:
    packed = torch.randn(2, 5, 3, 2, 4)
    table = rotary_table(5, 4, 1e4)
    assert torch.equal(rotate(packed[:, :, :2], table), rotate(packed[:, :, :2].clone(), table))
