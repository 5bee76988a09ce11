"""The running formulas on numbers: end points, clamps, known values, and the interpreters against each other."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from karat.core.array_ops import ARRAY
from karat.core.formulas import anchors, attention, birkhoff, entropy, gf16, halving, lucas, schedule
from karat.core.golden import PHI
from karat.core.ops import FLOAT
from karat.invariants.runtime.torch_ops import TORCH

finite = st.floats(-1e6, 1e6)


def test_wsd_over_a_whole_run() -> None:
    rates = [schedule.wsd(s, 10, 60, 100, 0.004, 0.0004) for s in range(130)]
    assert rates[0] == pytest.approx(0.0004)
    assert rates[9] == 0.004 and set(rates[10:61]) == {0.004}
    assert rates[80] == pytest.approx((0.004 + 0.0004) / 2)
    assert set(rates[100:]) == {0.0004}
    assert all(a >= b for a, b in itertools.pairwise(rates[60:]))


def test_cosine_stays_at_the_floor_past_its_end() -> None:
    assert schedule.cosine(100, 0, 1000, 0.02, 0.002) > schedule.cosine(900, 0, 1000, 0.02, 0.002)
    assert schedule.cosine(500, 0, 1000, 0.02, 0.002) == pytest.approx(0.011)
    assert {schedule.cosine(s, 0, 1000, 0.02, 0.002) for s in (1000, 1200, 2000)} == {0.002}


@given(finite, finite, finite)
def test_clamp(x: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    y = schedule.clamp(x, low, high)
    assert low <= y <= high
    assert y == x or not low <= x <= high
    assert schedule.clamp(math.nan, low, high) == low


def test_the_anchor_of_the_default_band() -> None:
    assert anchors.nearest_anchor(0.004) == 10
    assert anchors.anchor(10).decimal(6) == "0.004065"
    assert [x.decimal(7) for x in anchors.band(10, 1)] == ["0.0025125", "0.0065778"]
    assert (anchors.ALPHA_PHI / PHI**3).decimal(4) == "0.0279"


@given(st.floats(min_value=1e-16, max_value=1e16))
def test_nearest_anchor_is_nearest(rate: float) -> None:
    n, exact = anchors.nearest_anchor(rate), Fraction(rate)
    here = anchors.anchor(n)
    assert here / PHI <= exact <= here * PHI
    for other in (anchors.anchor(n - 1), anchors.anchor(n + 1)):  # ratio to the anchor, compared without logarithms
        near, far = sorted((here, exact)), sorted((other, exact))
        assert near[1] * far[0] <= far[1] * near[0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_nearest_anchor_of_nonsense(rate: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        anchors.nearest_anchor(rate)


@pytest.mark.parametrize("rate", [5e-324, 1e-18, 1e17, 1.7e308])
def test_no_anchor_is_looked_for_beyond_every_learning_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="searched"):
        anchors.nearest_anchor(rate)


def test_rungs_and_keep() -> None:
    assert halving.rung_steps(1000, 27000) == (1000, 3000, 9000)
    assert halving.rung_steps(5, 5) == ()
    assert [halving.keep(n) for n in (1, 2, 3, 5, 9, 28)] == [1, 1, 1, 1, 3, 9]
    with pytest.raises(ValueError, match="at least 1 step"):
        halving.rung_steps(0, 10)


losses = st.lists(st.floats(), min_size=1, max_size=30)


@given(losses)
def test_ranks_are_a_permutation_and_nan_comes_last(values: list[float]) -> None:
    ranks = [halving.rank(values, place) for place in range(len(values))]
    assert sorted(ranks) == list(range(len(values)))
    kept = halving.survivors(values)
    assert len(kept) == halving.keep(len(values)) and ranks.index(0) in kept
    numbers = [place for place, loss in enumerate(values) if not math.isnan(loss)]
    if any(math.isnan(values[place]) for place in kept):
        assert set(numbers) <= set(kept)


def test_a_race_keeps_the_one_that_is_best_at_every_rung() -> None:
    early = [5.0, 4.0, 3.0, 9.0, 8.0, 7.0, math.nan, 6.0, 2.0]
    late = [1.0, 1.5, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.2]
    assert halving.survivors(early) == [1, 2, 8]
    assert halving.last_alive(9, [early, late]) == [8]  # the trials dropped first do not come back


def test_misplaced_rungs() -> None:
    assert halving.misplaced([3, 9], [3, 9]) == 0
    assert halving.misplaced([3], [3, 9]) == 1
    assert halving.misplaced([4, 7], [3, 9]) == 2
    assert halving.misplaced([], []) == 0


def test_lucas_numbers() -> None:
    assert [lucas.lucas(n) for n in range(10)] == [2, 1, 3, 4, 7, 11, 18, 29, 47, 76]
    with pytest.raises(ValueError, match="counted from 0"):
        lucas.lucas(-1)


@given(st.integers(1, 300), st.integers(-2000, 2000))
def test_closure_tells_even_golden_powers_from_their_neighbours(m: int, ulps: int) -> None:
    nearest = float(PHI ** (2 * m))
    g = Fraction(nearest + ulps * math.ulp(nearest))
    assert (lucas.closure_margin(g, lucas.lucas(2 * m)) >= 0) or ulps != 0
    assert (lucas.closure_margin(g, lucas.lucas(2 * m)) < 0) or abs(ulps) < 3


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8))
def test_scores_by_hand(q: list[int]) -> None:
    k = q[::-1]
    scale = attention.score_scale(attention.golden_gain(2), math.sqrt(len(q)))
    assert attention.score(q, k, scale) == pytest.approx(
        2.618033988749895 * sum(map(math.prod, zip(q, k, strict=True))) / math.sqrt(len(q))
    )
    with pytest.raises(ValueError, match="shorter"):
        attention.score(q, k[1:], scale)


@pytest.mark.parametrize(
    ("loss", "pruned"), [(3.5, False), (3.5000001, True), (math.nan, True), (math.inf, True), (0.0, False)]
)
def test_should_prune(loss: float, pruned: bool) -> None:
    assert halving.should_prune(loss, 3.5) is pruned


def test_entropy_units() -> None:
    uniform = [Fraction(1, 9)] * 9
    assert entropy.entropy_nats(uniform) == pytest.approx(math.log(9))
    assert entropy.entropy_of_counts_nats([81, 0, 0]) == 0
    assert entropy.entropy_of_counts_nats([9] * 9) <= entropy.most_nats(9) < math.log(9) * (1 + 1e-15)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12))
def test_entropy_of_counts(counts: list[int]) -> None:
    assume(sum(counts) > 0)
    total = sum(counts)
    expected = sum(-c / total * math.log(c / total) for c in counts if c)
    assert entropy.entropy_of_counts_nats(counts) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 20), min_size=6, max_size=6), st.lists(st.integers(0, 20), min_size=6, max_size=6))
def test_mixtures_and_products_are_doubly_stochastic(a: list[int], b: list[int]) -> None:
    assume(sum(a) and sum(b))
    m, k = (birkhoff.mixture([Fraction(w, sum(ws)) for w in ws], 3) for ws in (a, b))
    product = birkhoff.matmul(m, k)
    for matrix in (m, k, product):
        assert birkhoff.residual(matrix) == 0
        assert birkhoff.gain(matrix) == 1
    assert np.allclose(np.array(product, float), np.array(m, float) @ np.array(k, float))


def test_residual_and_gain_see_each_defect() -> None:
    third = Fraction(1, 3)
    flat = [[third] * 3 for _ in range(3)]
    assert birkhoff.residual(flat) == 0
    assert birkhoff.residual([[third, third, third], [third] * 3, [third, third, third + 1]]) == 1
    assert birkhoff.residual([[2, -1, 0], [-1, 2, 0], [0, 0, 1]]) == 1
    assert birkhoff.gain([[2, -1, 0], [-1, 2, 0], [0, 0, 1]]) == 3
    assert birkhoff.residual([[1, 0], [1, 0]]) == 1  # rows right, columns wrong


def test_mixture_wants_n_factorial_weights() -> None:
    with pytest.raises(ValueError, match="takes 6 weights, got 5"):
        birkhoff.mixture([1] * 5, 3)


def float_bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@pytest.mark.parametrize(
    ("value", "code"),
    [(1.0, 0x3E00), (2.0, 0x4000), (-1.0, 0xBE00), (0.0, 0), (-0.0, 0x8000), (math.inf, 0x7E00), (4290772992.0, 0x7DFF),
     (2.0**-30, 0x0200), (2.0**-39, 1), (2.0**-40, 0), (2.0**-40 * 1.0001, 1), (4294967296.0, 0x7E00), (math.nan, 0x7F00),
     (1 + 2.0**-10, 0x3E00), (1 + 3 * 2.0**-10, 0x3E02)],
)  # fmt: skip
def test_gf16_known_codes(value: float, code: int) -> None:
    assert gf16.encode(value) == code
    assert gf16.code_of_magnitude_bits(float_bits(value) & 0x7FFFFFFF) == code & 0x7FFF


@given(st.floats(width=32))
def test_gf16_reference_is_nearest(x: float) -> None:
    code = gf16.encode(x)
    value = gf16.decode(code)
    if isinstance(value, float):
        assert value != value if x != x else math.isinf(value) or x == 0 or abs(Fraction(x)) <= Fraction(1, 2**40)
        return
    error = abs(value - Fraction(x))
    neighbours = [gf16.decode(c) for c in (code - 1, code + 1) if 0 <= c <= 0xFFFF]
    assert all(error <= abs(n - Fraction(x)) for n in neighbours if isinstance(n, Fraction))


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_gf16_bits_agree_on_ints_arrays_and_tensors(values: list[float]) -> None:
    magnitudes = np.array(values, np.float32).view(np.int32) & 0x7FFFFFFF
    lanes = torch.tensor(magnitudes)
    for function in (gf16.round_magnitude_bits, gf16.code_of_magnitude_bits):
        plain = [function(int(m)) for m in magnitudes]
        assert function(magnitudes, ARRAY).tolist() == plain
        assert function(lanes, TORCH).tolist() == plain
    codes = gf16.code_of_magnitude_bits(magnitudes, ARRAY)
    assert gf16.magnitude_bits_of_code(torch.tensor(codes), TORCH).tolist() == [
        gf16.magnitude_bits_of_code(int(c)) for c in codes
    ]


@pytest.mark.parametrize("code", [-1, 0x10000])
def test_gf16_code_out_of_range(code: int) -> None:
    with pytest.raises(ValueError, match="GF16 code"):
        gf16.decode(code)


any_float = st.floats()


@given(any_float, any_float)
def test_interpreters_agree(a: float, b: float) -> None:
    ta, tb = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    for name in ("minimum", "maximum"):
        plain = getattr(FLOAT, name)(a, b)
        for other in (float(getattr(TORCH, name)(ta, tb)), float(getattr(ARRAY, name)(np.float64(a), np.float64(b)))):
            assert other == plain or (math.isnan(other) and math.isnan(plain))
        assert math.isnan(plain) == (math.isnan(a) or math.isnan(b))


@given(st.floats(0, 100))
def test_functions_of_the_interpreters_agree(x: float) -> None:
    t, n = torch.tensor(x, dtype=torch.float64), np.float64(x)
    for name in ("xlogx", "cospi"):
        plain = getattr(FLOAT, name)(x)
        assert float(getattr(TORCH, name)(t)) == pytest.approx(plain, abs=1e-11)
        assert float(getattr(ARRAY, name)(n)) == pytest.approx(plain, abs=1e-11)
    assert FLOAT.cospi(3) == -1 and FLOAT.cospi(0) == 1 and FLOAT.cospi(6.0) == 1
