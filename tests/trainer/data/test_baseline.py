"""The trigram model is a probability model, scored by its definition and fitted on training text only."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.core.errors import DataError
from karat.trainer.data import baseline
from karat.trainer.data.baseline import Trigram, count_trigrams, fit_trigram, fit_weights, trigram_bpb
from karat.trainer.data.disjoint import Tokens


def tokens(text: bytes) -> Tokens:
    return np.frombuffer(text, np.uint8)


TRAIN = b"abracadabra, abracadabra! " * 3 + b"a tail that is new"
MODEL = fit_trigram(tokens(TRAIN))


@settings(max_examples=40, deadline=None)
@given(context=st.one_of(st.binary(max_size=3), st.sampled_from([b"ab", b"zb", b"ra", b"a", b""])))
def test_probabilities_are_positive_and_sum_to_one(context: bytes) -> None:
    distribution = MODEL.distribution(context)
    assert distribution.shape == (256,)
    assert distribution.min() > 0.0
    assert math.isclose(distribution.sum(), 1.0, rel_tol=1e-12)


def test_a_case_by_hand() -> None:
    """abab: f(b | b, a) = 1 of 1, f(b | a) = 2 of 2, f(b) = 2 of 4, f(a) = 2 of 4; f(a | a) = 0 of 2."""
    model = Trigram(count_trigrams(tokens(b"abab")), (0.5, 0.25, 0.125, 0.125))
    assert model.distribution(b"xba")[ord("b")] == 0.5 * 1 + 0.25 * 1 + 0.125 * 0.5 + 0.125 / 256
    assert model.distribution(b"ba")[ord("a")] == 0.125 * 0.5 + 0.125 / 256
    # The context "za" was never counted, so f(. | a) stands in for it; nor was "z", so f(.) does.
    assert model.distribution(b"za")[ord("b")] == 0.75 * 1 + 0.125 * 0.5 + 0.125 / 256
    assert model.distribution(b"z")[ord("b")] == 0.875 * 0.5 + 0.125 / 256
    assert model.distribution(b"")[ord("c")] == 0.125 / 256


def test_the_score_is_the_mean_over_every_byte_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"cadabra is new"
    bits = -sum(math.log2(MODEL.distribution(text[:i])[text[i]]) for i in range(1, len(text)))
    assert trigram_bpb(tokens(TRAIN), tokens(text)) == pytest.approx(bits / (len(text) - 1), rel=1e-12)
    monkeypatch.setattr(baseline, "CHUNK", 3)
    assert trigram_bpb(tokens(TRAIN), tokens(text)) == pytest.approx(bits / (len(text) - 1), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_counts_are_the_runs_of_the_text(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "CHUNK", chunk)
    counts = count_trigrams(tokens(TRAIN))
    threes = {TRAIN[i : i + 3] for i in range(len(TRAIN) - 2)}
    for run in threes:
        naive = sum(TRAIN[i : i + 3] == run for i in range(len(TRAIN)))
        assert counts.two[(run[0] * 256 + run[1]) * 256 + run[2]] == naive
    assert counts.two.sum() == len(TRAIN) - 2
    assert counts.one.sum() == len(TRAIN) - 1
    assert counts.one[ord("b") * 256 + ord("r")] == TRAIN.count(b"br")
    assert counts.none[ord("a")] == TRAIN.count(b"a")


def test_expectation_maximisation_raises_the_likelihood_and_finds_the_better_component() -> None:
    parts = np.array([[0.9, 0.1, 0.1, 1 / 256]] * 9 + [[0.0, 0.5, 0.1, 1 / 256]])
    weights = fit_weights(parts)
    assert math.isclose(sum(weights), 1.0, rel_tol=1e-12)
    assert weights[0] > 0.8 > 0.05 < weights[1]
    start = np.log2(parts @ np.full(4, 0.25)).sum()
    assert np.log2(parts @ np.array(weights)).sum() > start
    assert weights[3] == pytest.approx(baseline.LEAST_WEIGHT, rel=1e-4)  # it fades, but not below this


def test_an_impossible_looking_byte_costs_bits_and_not_infinity() -> None:
    bpb = trigram_bpb(tokens(b"ab" * 5000), tokens(b"a\xff" * 50))
    assert 4.0 < bpb < 28.0


def test_the_weights_come_from_the_tail_of_train_against_the_counts_of_its_head() -> None:
    head, tail = b"ab" * 450, b"ba" * 50
    known = fit_trigram(tokens(head + tail)).weights
    novel = fit_trigram(tokens(head + bytes(range(100, 200)))).weights
    assert known[3] == pytest.approx(baseline.LEAST_WEIGHT, rel=1e-4)  # the head explains the tail
    assert novel[3] > 0.9  # nothing in the head explains the tail


def test_known_entropies() -> None:
    coin = np.random.default_rng(0).choice(np.frombuffer(b"ab", np.uint8), 40_000)
    assert trigram_bpb(coin[:36_000], coin[36_000:]) == pytest.approx(1.0, abs=0.01)
    cycle = tokens(b"abc" * 2000)
    assert trigram_bpb(cycle[:5000], cycle[5000:]) < 0.01


def test_two_bytes_are_enough_and_one_is_not() -> None:
    assert math.isfinite(trigram_bpb(tokens(b"ab"), tokens(b"cd")))
    with pytest.raises(DataError, match="training text of 1 bytes"):
        trigram_bpb(tokens(b"a"), tokens(b"cd"))
    with pytest.raises(DataError, match="validation text of 1 bytes"):
        trigram_bpb(tokens(b"ab"), tokens(b"c"))
