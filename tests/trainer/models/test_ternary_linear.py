"""The integer product is the straightforward fake-quantised one, in value and in both gradients; and it is exact."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.core.formulas.ternary import GROUP, LEAST, LEVELS, trit
from karat.trainer.models.ternary_linear import Codes, TernaryLinear, Trits, encode, integer_product, ternarise


def example(rows: int = 40, d_in: int = 256, d_out: int = 24) -> tuple[TernaryLinear, torch.Tensor]:
    torch.manual_seed(0)
    return TernaryLinear(d_in, d_out, init_std=0.02), torch.randn(4, rows // 4, d_in, requires_grad=True)


def test_forward_and_both_gradients_are_those_of_the_definition() -> None:
    layer, x = example()
    seen = [layer(x), layer.by_definition(x)]
    upstream = torch.randn_like(seen[0])
    ours, defined = (torch.autograd.grad(y, (x, layer.weight), upstream) for y in seen)
    for a, b in zip((seen[0], *ours), (seen[1], *defined), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        assert b.abs().max() > 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**32))
def test_the_product_of_the_integers_is_exact(rows: int, groups: int, d_out: int, seed: int) -> None:
    """With scales of 1 every sum is an integer, and must be that integer, extremes included."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-LEVELS, LEVELS + 1, (rows, groups * GROUP), generator=generator, dtype=torch.int8)
    t = torch.randint(-1, 2, (d_out, groups, GROUP), generator=generator, dtype=torch.int8)
    q[0], t[0] = LEVELS, 1
    product = integer_product(Codes(q, torch.ones(rows, 1)), Trits(t, torch.ones(d_out, groups)))
    assert torch.equal(product.long(), q.long() @ t.flatten(1).long().t())
    assert product[0, 0] == groups * GROUP * LEVELS


@pytest.mark.parametrize("at_a_time", [16 * 24, 2**18])
def test_rows_taken_in_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    layer, x = example()
    whole = layer(x)
    monkeypatch.setattr("karat.trainer.models.ternary_linear.PRODUCTS_AT_A_TIME", at_a_time)
    assert torch.equal(layer(x), whole)


def test_a_weight_is_the_nearest_of_three_with_the_scale_of_its_group() -> None:
    layer, _ = example()
    stored = layer.stored_weight().unflatten(1, (-1, GROUP))
    grouped = layer.weight.detach().unflatten(1, (-1, GROUP))
    scales = grouped.abs().mean(-1, keepdim=True)
    candidates = torch.stack([-scales.expand_as(grouped), torch.zeros_like(grouped), scales.expand_as(grouped)])
    nearest = (candidates - grouped).abs().amin(0)
    torch.testing.assert_close((stored - grouped).abs(), nearest)
    assert {round(v, 6) for v in (stored / scales).unique().tolist()} == {-1.0, 0.0, 1.0}


def test_rounding_agrees_with_round_but_for_ties_and_zeros_stay_zero() -> None:
    weights = torch.randn(3, GROUP)
    scale = weights.abs().mean(-1, keepdim=True)
    assert torch.equal(ternarise(weights).trits_OGK[:, 0].float(), (weights / scale).round().clamp(-1, 1))
    zeros = ternarise(torch.zeros(2, GROUP))
    assert not zeros.trits_OGK.any() and (zeros.scales_OG == torch.tensor(LEAST)).all()
    assert not encode(torch.zeros(3, GROUP)).codes_RI.any()
    assert [trit(w, 1.0) for w in (-0.6, -0.5, 0.0, 0.5, 0.6)] == [-1.0, 0.0, 0.0, 0.0, 1.0]


def test_codes_use_the_whole_range_and_are_within_half_a_step() -> None:
    x = torch.randn(50, GROUP) * torch.logspace(-6, 6, 50)[:, None]
    codes, step = encode(x)
    assert (codes.abs().amax(-1) == LEVELS).all()
    assert ((codes * step - x).abs() <= step * (0.5 + 1e-5)).all()


def test_a_row_of_next_to_nothing_is_nothing_and_its_step_is_not_zero() -> None:
    for row in (torch.zeros(1, 128), torch.full((1, 128), 1e-30)):
        codes = encode(row)
        assert not bool(codes.codes_RI.any())
        assert float(codes.step_R1) == pytest.approx(LEAST / LEVELS)


def test_the_gradient_goes_straight_through_to_the_master() -> None:
    """A quantiser without straight-through gradient trains nothing: the seed's kind of silent bug."""
    layer, x = example()
    layer(x).square().mean().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad != 0).float().mean() > 0.99


def test_a_width_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 128"):
        TernaryLinear(192, 8)


def test_what_is_kept_for_the_backward_pass_is_a_quarter_of_the_float_input() -> None:
    layer, x = example(rows=400)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    assert sum(t.nbytes for t in kept if t.shape[0] == 400) <= x.numel() + 4 * 400
    assert math.isfinite(layer(x).sum().item())
