"""Bits per byte by hand: nats of all targets over ln 2 over the bytes that those targets stand for."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus.prose import prose
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from karat.trainer.data.baseline import fit_trigram, trigram_bpb
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.evaluate import Validation, baseline_bpb, bits_per_byte, nats_by_kind, validation_part
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Output, Transformer


class Table(nn.Module):
    """p(next | token) from a table of probabilities: (V, V)."""

    def __init__(self, p_VV: Tensor) -> None:
        super().__init__()
        self.log_p_VV = p_VV.log()

    def forward(self, tokens_BT: Tensor) -> Output:
        logits = self.log_p_VV[tokens_BT]
        return Output(logits, torch.eye(logits.shape[-1]), None, None)


def bits(p_VV: Tensor, validation: Validation, context: int = 4) -> float:
    return bits_per_byte(Table(p_VV), validation, context)  # type: ignore[arg-type]


def ids(*tokens: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.array(tokens, np.uint16)


def test_a_case_by_hand() -> None:
    """Tokens a, bcd, ef: 3 and 2 bytes are predicted, at probability 1/8 and 1/2: 3 + 1 bits over 5 bytes."""
    p = torch.tensor([[0.5, 0.125, 0.375], [0.25, 0.25, 0.5], [0.2, 0.3, 0.5]])
    validation = Validation(ids(0, 1, 2), total=6, lengths=np.array([1, 3, 2]))
    assert (validation.size, validation.given, validation.target_bytes) == (6, 1, 5)
    assert bits(p, validation) == pytest.approx(4 / 5, rel=1e-6)
    per_token, mean_length = 4 / 2, 6 / 3
    assert bits(p, validation) != pytest.approx(per_token / mean_length, rel=1e-2)  # a mean over all tokens is not it


def test_the_bytes_of_the_first_token_are_not_counted() -> None:
    p = torch.full((3, 3), 1 / 3)
    long, short = (Validation(ids(0, 1, 2), 99, lengths=np.array([n, 3, 2])) for n in (50, 1))
    assert bits(p, long) == bits(p, short) == pytest.approx(2 * math.log2(3) / 5, rel=1e-6)
    assert long.text == "the first 55 of 99 bytes of the validation split; the first token, 50 bytes, is given"


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(1, 9), st.integers(0, 2**31))
def test_it_is_the_sum_over_targets_however_they_fall_into_windows(tokens: list[int], context: int, seed: int) -> None:
    p = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed)) + 0.01
    p = p / p.sum(1, keepdim=True)
    lengths = np.array([1, 4, 2, 7, 1])
    total = sum(-math.log2(float(p[a, b])) for a, b in itertools.pairwise(tokens))
    expected = total / sum(int(lengths[token]) for token in tokens[1:])
    validation = Validation(ids(*tokens), 0, lengths)
    assert bits(p, validation, context) == pytest.approx(expected, rel=1e-4)


def test_bytes_are_the_case_of_one_byte_each() -> None:
    p = torch.rand(256, 256, generator=torch.Generator().manual_seed(1))
    p = p / p.sum(1, keepdim=True)
    text = np.frombuffer(prose(4, 100), np.uint8)
    plain = bits(p, Validation(text, len(text)))
    assert plain == bits(p, Validation(text, len(text), lengths=np.ones(256, np.int64)))
    a, b = torch.from_numpy(text[:-1].astype(int)), torch.from_numpy(text[1:].astype(int))
    assert plain == pytest.approx(float(-p[a, b].double().log2().mean()), rel=1e-5)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Some 25 kB of prose in 290 tokens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_bytes(prose(6, 3000))
    return load_corpus(str(tmp_path / "text.txt"), context=16, vocab=290, tokens="bpe")


def test_a_model_that_knows_nothing_of_text_pays_eight_bits_a_byte(corpus: Corpus) -> None:
    """p(token) = 256^-length / Z costs 8 bits for each byte it stands for, and log2 Z for each token: exact counts."""
    assert corpus.tokenizer is not None
    weights = torch.from_numpy(256.0**-corpus.tokenizer.lengths)
    p = (weights / weights.sum()).expand(290, 290)
    part = validation_part(corpus, None)
    expected = 8 + math.log2(float(weights.sum())) * (len(part.tokens) - 1) / part.target_bytes
    assert bits(p, part, 16) == pytest.approx(expected, rel=1e-6)
    assert part.target_bytes == len(corpus.validation_text) - len(corpus.tokenizer.pieces[corpus.validation[0]])


def test_a_part_is_whole_tokens_within_the_limit(corpus: Corpus) -> None:
    assert corpus.tokenizer is not None
    for limit in (100, 101, 102, 103, 104):
        part = validation_part(corpus, limit)
        cut = int(corpus.tokenizer.lengths[corpus.validation[len(part.tokens)]])
        assert part.size <= limit < part.size + cut
        assert corpus.tokenizer.decode(part.tokens) == corpus.validation_text[: part.size].tobytes()
    assert len(validation_part(corpus, 2).tokens) == 2
    whole = validation_part(corpus, None)
    assert whole.size == whole.total == validation_part(corpus, 10**9).size == len(corpus.validation_text)
    assert whole.text.startswith(f"all {whole.total:,} bytes of the validation split; the first token, ")


def test_the_baseline_is_scored_on_the_very_bytes_of_the_model(corpus: Corpus, tmp_path: Path) -> None:
    assert corpus.tokenizer is not None
    trigram, text = fit_trigram(corpus.train_text), corpus.validation_text.tobytes()
    lengths = corpus.tokenizer.lengths[corpus.validation]
    for given_bytes in (1, 3):  # texts that begin with a token of one byte, and of several
        first = int(np.flatnonzero(lengths == given_bytes)[0])
        part = replace(validation_part(corpus, None), tokens=corpus.validation[first : first + 60])
        start = int(lengths[:first].sum())
        moved, rest = replace(corpus, validation_text=corpus.validation_text[start:]), text[start:]
        assert part.given == given_bytes
        predicted = range(given_bytes, part.size)
        by_hand = sum(-math.log2(trigram.distribution(rest[:i])[rest[i]]) for i in predicted) / len(predicted)
        assert baseline_bpb(moved, part) == pytest.approx(by_hand, rel=1e-12)
    plain = load_corpus(str(tmp_path / "text.txt"), context=16)
    assert baseline_bpb(plain, validation_part(plain, None)) == trigram_bpb(plain.train_text, plain.validation_text)


def test_the_loss_is_taken_without_dropout_and_training_goes_on_with_it() -> None:
    torch.manual_seed(0)
    shape = ModelConfig(vocab=8, d_model=8, n_layers=2, n_heads=2, context=6, streams=1, gf16=False, dropout=0.5)
    model = Transformer(shape).train()
    plain = Transformer(shape.model_copy(update={"dropout": 0.0}))
    plain.load_state_dict(model.state_dict())
    validation = Validation(ids(*(np.arange(61) % 7)), total=61)
    state = torch.get_rng_state()
    assert (
        bits_per_byte(model, validation, 6)
        == bits_per_byte(model, validation, 6)
        == bits_per_byte(plain, validation, 6)
    )
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_kinds_of_synthetic_sequences_are_told_apart() -> None:
    """A model that expects the token to stay is sure of constants, wrong on counting, and wrong on random ones."""
    vocab, context = 40, 8
    corpus = load_corpus("synthetic", context=context, vocab=vocab)
    p = torch.full((vocab, vocab), 0.1 / (vocab - 1)).fill_diagonal_(0.9)
    part = validation_part(corpus, None)
    kinds = nats_by_kind(Table(p), part, context)  # type: ignore[arg-type]
    stay, move = -math.log(0.9), -math.log(0.1 / (vocab - 1))
    assert kinds["constant"] == pytest.approx(stay, rel=1e-5)
    assert kinds["counting"] == pytest.approx(move, rel=1e-5)
    assert kinds["random"] == pytest.approx(stay / vocab + move * (1 - 1 / vocab), rel=0.02)
    assert sum(kinds.values()) / 3 / math.log(2) == pytest.approx(bits(p, part, context), rel=1e-6)
    assert part.target_bytes == 960 * context
    assert validation_part(corpus, 1).size == 3 * (context + 1)
    assert baseline_bpb(corpus, part) is None
    assert nats_by_kind(Table(p), Validation(ids(1, 2), 2), context) == {}  # type: ignore[arg-type]
