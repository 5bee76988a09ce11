"""The tokenizer sees the training side alone; the cache gives what was made, or it is made anew."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.prose import prose

from karat.core.errors import DataError, StorageError
from karat.trainer.data import encoded as module
from karat.trainer.data.batches import Batches
from karat.trainer.data.cache import keep
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.data.encoded import Encoded, encode_sides
from karat.trainer.data.tokenizer import Tokenizer, train_tokenizer

VOCAB = 300
TRAIN, HELD_OUT = prose(1, 2000), prose(2, 300)
SECRET = b" quetzal" * 400  # far more frequent than any word of TRAIN


@contextmanager
def silent(text: str) -> Iterator[None]:
    yield


def encode(cache: Path, held_out: bytes = HELD_OUT, train: bytes = TRAIN) -> Encoded:
    sides = (np.frombuffer(text, np.uint8) for text in (train, held_out))
    return encode_sides(*sides, VOCAB, cache, silent)


def load(folder: Path, **options: Any) -> Corpus:
    return load_corpus(str(folder), **{"context": 16, "vocab": VOCAB, "tokens": "bpe", **options})


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """A training file and a held-out one that repeats a word which training does not have."""
    (tmp_path / "train.txt").write_bytes(TRAIN)
    (tmp_path / "held.txt").write_bytes(HELD_OUT + SECRET)
    return tmp_path / "train.txt", tmp_path / "held.txt"


def test_both_sides_come_back_from_their_tokens(tmp_path: Path) -> None:
    made = encode(tmp_path)
    assert made.tokenizer.decode(made.train) == TRAIN
    assert made.tokenizer.decode(made.validation) == HELD_OUT
    assert (made.record.train_tokens, made.record.validation_tokens) == (len(made.train), len(made.validation))
    assert len(made.train) < len(TRAIN) / 1.5


def test_what_stands_in_validation_alone_does_not_reach_the_tokenizer(tmp_path: Path) -> None:
    tokenizers = [encode(tmp_path, held_out).tokenizer for held_out in (HELD_OUT, HELD_OUT + SECRET)]
    assert tokenizers[0].digest == tokenizers[1].digest == train_tokenizer(TRAIN, VOCAB).digest
    assert not any(b"quetzal" in piece for piece in tokenizers[1].pieces)
    leaking = train_tokenizer(TRAIN + HELD_OUT + SECRET, VOCAB)  # the broken form, which this test is there to see
    assert any(b"quetzal" in piece for piece in leaking.pieces)
    assert leaking.digest != tokenizers[1].digest


@pytest.mark.parametrize("separate", [True, False])
def test_load_corpus_trains_it_on_the_training_bytes_and_no_others(
    separate: bool, texts: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def spied(text: bytes, vocab: int) -> Tokenizer:
        seen.append(text)
        return train_tokenizer(text, vocab)

    monkeypatch.setattr(module, "train_tokenizer", spied)
    train, held = texts
    corpus = load(train, validation=held) if separate else load(train)
    assert seen == [TRAIN if separate else TRAIN[: len(TRAIN) * 9 // 10]]
    assert corpus.train_text.tobytes() == seen[0]
    assert corpus.tokenizer is not None
    assert corpus.tokenizer.decode(corpus.validation) == corpus.validation_text.tobytes()


def test_tokens_are_mapped_read_only_and_batches_are_made_of_them(texts: tuple[Path, Path], cache: Path) -> None:
    corpus = load(texts[0])
    assert corpus.train.dtype == np.uint16 and isinstance(corpus.train.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1
    inputs, targets = Batches(corpus.train, 16, 4, seed=3).batch_at(5)
    in_memory = Batches(np.array(corpus.train), 16, 4, seed=3).batch_at(5)
    assert inputs.dtype == np.int64 and inputs.flags.c_contiguous and inputs.flags.writeable
    assert np.array_equal(inputs, in_memory[0]) and np.array_equal(targets, in_memory[1])
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_the_manifest_names_the_tokenizer(texts: tuple[Path, Path], cache: Path) -> None:
    corpus, smaller, plain = load(texts[0]), load(texts[0], vocab=290), load(texts[0], tokens="bytes")
    record = corpus.manifest.tokens
    assert record is not None and corpus.tokenizer is not None
    assert (record.tokenizer_sha256, record.vocab) == (corpus.tokenizer.digest, VOCAB)
    assert plain.manifest.tokens is None and "tokens" not in plain.manifest.canonical_json()
    assert len({c.manifest.digest for c in (corpus, smaller, plain)}) == 3
    assert load(texts[0]).manifest.digest == corpus.manifest.digest
    assert str(cache) not in corpus.manifest.canonical_json()


def test_bytes_per_token_is_the_mean_of_the_training_side(texts: tuple[Path, Path], cache: Path) -> None:
    corpus = load(texts[0])
    assert corpus.bytes_per_token == len(corpus.train_text) / len(corpus.train) > 1.5
    assert load(texts[0], tokens="bytes").bytes_per_token == 1.0


def test_the_second_time_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(tmp_path)
    monkeypatch.setattr(module, "train_tokenizer", None)
    again = encode(tmp_path)
    assert again.record == first.record
    assert np.array_equal(again.train, first.train)
    assert sorted(path.name for path in tmp_path.glob("tokens/*/*")) == [
        "record.json",
        "tokenizer.json",
        "train.bin",
        "validation.bin",
    ]


@pytest.mark.parametrize("name", ["record.json", "tokenizer.json", "train.bin", "validation.bin"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped", "another"])
def test_a_damaged_cache_is_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    first = encode(tmp_path)
    (path,) = tmp_path.glob(f"tokens/*/{name}")
    content = path.read_bytes()
    other = encode(tmp_path / "other", train=prose(3, 2000))
    (foreign,) = (tmp_path / "other").glob(f"tokens/*/{name}")
    match damage:
        case "gone":
            path.unlink()
        case "another":
            keep(foreign.read_bytes(), path)
        case _:
            flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
            keep({"empty": b"", "cut": content[: len(content) // 2 - 1], "flipped": flipped}[damage], path)
    again = encode(tmp_path)
    assert again.record == first.record != other.record
    assert again.tokenizer.decode(again.train) == TRAIN and again.tokenizer.decode(again.validation) == HELD_OUT
    assert path.read_bytes() == content


def test_a_write_that_is_cut_short_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: bytes, target: Path) -> None:
        if target.name == "tokenizer.json":
            raise StorageError("no space left")
        keep(content, target)

    monkeypatch.setattr(module, "keep", full)
    with pytest.raises(StorageError, match="no space"):
        encode(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("tokens/*/record.json"))
    assert encode(tmp_path).tokenizer.decode(encode(tmp_path).train) == TRAIN
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]  # no temporary files


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot keep train\.bin") as caught:
        encode(tmp_path)
    assert "XDG_CACHE_HOME" in caught.value.next_step


def test_a_library_that_loses_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_all = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encode_all(self, text)[:-1])
    with pytest.raises(DataError, match="the tokens of the train side do not give back its text"):
        encode(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_too_few_tokens_for_a_window_are_refused(texts: tuple[Path, Path], cache: Path) -> None:
    with pytest.raises(DataError, match=r"tokens to train on and [\d,]+ to validate on") as caught:
        load(texts[0], context=len(TRAIN) // 10 - 1)  # enough bytes, too few tokens
    assert "tokens on each side" in caught.value.required


def test_a_training_side_that_is_too_small_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_bytes(prose(5, 40))
    with pytest.raises(DataError, match=r"a training text of \d+ bytes gives \d+ tokens"):
        load(path, vocab=4096, context=8)
    assert not cache.exists() or not os.listdir(cache)
