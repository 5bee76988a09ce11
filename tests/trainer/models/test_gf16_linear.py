"""GF16 on tensors equals the exact codec, and the straight-through layer moves its master."""

import itertools
import math
import struct
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from karat.core.formulas import gf16
from karat.trainer.models import gf16_linear
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.gf16_linear import GF16Linear, round_to_gf16
from karat.trainer.models.transformer import Transformer


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def neighbours(value: Fraction) -> list[float]:
    """value as float32 (exact where called) and the float32 numbers on both sides."""
    bits = struct.unpack("<i", struct.pack("<f", float(value)))[0]
    return [struct.unpack("<f", struct.pack("<i", bits + step))[0] for step in (-1, 0, 1)]


EDGES = [
    edge
    for exact in (
        gf16.MAX_FINITE, gf16.OVERFLOW, gf16.MIN_NORMAL, gf16.MIN_SUBNORMAL, gf16.MIN_SUBNORMAL / 2,
        gf16.MIN_SUBNORMAL * Fraction(3, 2), gf16.MIN_NORMAL - gf16.MIN_SUBNORMAL / 2,
        Fraction(1) + Fraction(1, 1024), Fraction(1) + Fraction(3, 1024), Fraction(2) - Fraction(1, 1024),
    )
    for edge in neighbours(exact)
] + [0.0, math.inf, float32(1e-45), float32(3.4e38), 0.1, math.pi]  # fmt: skip


def test_rounding_is_the_exact_codec_at_every_edge() -> None:
    values = [sign * float32(edge) for edge, sign in itertools.product(EDGES, (1.0, -1.0))]
    rounded = round_to_gf16(torch.tensor(values)).tolist()
    expected = [float(gf16.decode(gf16.encode(value))) for value in values]
    assert [struct.pack("<d", x) for x in rounded] == [struct.pack("<d", x) for x in expected]  # -0.0 is not 0.0


def test_rounding_is_the_exact_codec_on_random_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (3000,), generator=generator, dtype=torch.int64).to(torch.int32)
    near_one = torch.randn(1000, generator=generator)
    values = torch.cat([bits.view(torch.float32), near_one, near_one * 2**-33])
    values = values[~values.isnan()]
    expected = torch.tensor([float(gf16.decode(gf16.encode(value))) for value in values.tolist()])
    assert torch.equal(round_to_gf16(values).view(torch.int32), expected.view(torch.int32))


def test_nan_stays_nan_and_other_dtypes_are_refused() -> None:
    assert round_to_gf16(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]
    with pytest.raises(TypeError, match="float64"):
        round_to_gf16(torch.zeros(2, dtype=torch.float64))


def test_shape_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    whole = round_to_gf16(values)
    monkeypatch.setattr(gf16_linear, "CHUNK", 10)
    assert torch.equal(round_to_gf16(values), whole)
    assert torch.equal(round_to_gf16(values.t()), whole.t())
    assert not torch.equal(whole, values)


def layer(gf16: bool = True) -> tuple[GF16Linear, Tensor]:
    torch.manual_seed(0)
    return GF16Linear(6, 5, gf16=gf16), torch.randn(3, 6)


def test_forward_uses_the_rounded_weight_and_the_gradient_reaches_the_master() -> None:
    linear, x = layer()
    y = linear(x)
    assert torch.equal(y, x @ round_to_gf16(linear.weight).t())
    assert not torch.equal(y, x @ linear.weight.t())
    y.sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, x.sum(0).expand(5, 6))  # that of a plain linear map


def test_small_updates_add_up_in_the_master() -> None:
    linear, _ = layer()
    before = linear.stored_weight().clone()
    step = (linear.weight.detach().abs() * 2**-13).clone()  # an eighth of a GF16 unit roundoff
    for _ in range(64):
        with torch.no_grad():
            linear.weight.add_(step)
    assert not torch.equal(linear.stored_weight(), before)
    torch.testing.assert_close(linear.stored_weight(), linear.weight.detach(), rtol=2**-10, atol=0)


def test_rounding_is_done_once_per_change(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = layer()
    calls: list[Tensor] = []
    monkeypatch.setattr(gf16_linear, "round_to_gf16", lambda w: calls.append(w) or w.detach() * 1)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, fused=True)
    for expected in (1, 2):
        linear(x).sum().backward()
        with torch.no_grad():
            linear(x)
        assert len(calls) == expected
        optimizer.step()


def test_without_gf16_it_is_a_plain_linear_map() -> None:
    linear, x = layer(gf16=False)
    assert torch.equal(linear(x), x @ linear.weight.t())
    assert torch.equal(linear.stored_weight(), linear.weight)


def test_inputs_are_rounded_where_asked_with_a_straight_gradient_and_their_size_is_seen() -> None:
    torch.manual_seed(0)
    layer = GF16Linear(6, 3, gf16=True, activations=True)
    x = torch.randn(5, 6, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, round_to_gf16(x) @ layer.stored_weight().t())
    assert not torch.equal(round_to_gf16(x), x)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, upstream @ layer.stored_weight())
    for signed in (x, -x):  # the largest magnitude may be of either sign
        layer(signed)
        assert layer.seen is not None and layer.seen == x.detach().abs().max()
    plain = GF16Linear(6, 3, gf16=True)
    plain(x)
    assert plain.seen is None


def test_the_guard_is_shown_the_inputs() -> None:
    """An input beyond the format is infinite behind the rounding: the model hands the guard what it must see."""
    model = Transformer(ModelConfig(vocab=7, d_model=8, n_heads=2, context=4, gf16_activations=True))
    assert not model.gf16_inputs()
    model(torch.zeros(1, 4, dtype=torch.int64))
    assert len(model.gf16_inputs()) == len(model.gf16_parameters()) == 4
    with torch.no_grad():
        model.sublayers[1].norm.gain.fill_(1e12)
    model(torch.zeros(1, 4, dtype=torch.int64))
    assert max(model.gf16_inputs()).item() > gf16.MAX_FINITE
    with pytest.raises(ValueError, match="needs gf16 = true"):
        ModelConfig(gf16=False, gf16_activations=True)
