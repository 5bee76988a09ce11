"""Every byte comes back, the same bytes give the same tokenizer, and the library alone reads what was written."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers
from corpus.prose import prose
from hypothesis import example, given
from hypothesis import strategies as st

from karat.core.errors import DataError
from karat.trainer.data import tokenizer as module
from karat.trainer.data.tokenizer import FEWEST, PATTERN, read_tokenizer, train_tokenizer

TEXT = prose(1, 3000)
TOKENIZER = train_tokenizer(TEXT, 400)
LIBRARY = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
texts = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.lists(st.sampled_from([b"karat", b" mol\n", b"\r\n", b"\0", b"\xff\xfe", b" ", b"\t", b"_17"])).map(b"".join),
    st.integers(0, 400).map(lambda n: b" " * n + b"x" * n),
)


@given(texts)
@example(bytes(range(256)))
@example(b"\xc3")  # half of a character
@example(b"\xed\xa0\x80")  # a surrogate, which UTF-8 forbids
@example("é\u0085\u00a0ÿ".encode())
def test_any_bytes_come_back(text: bytes) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens.dtype == np.uint16
    assert TOKENIZER.decode(tokens) == text
    assert int(TOKENIZER.lengths[tokens].sum()) == len(text)


@given(texts)
def test_the_written_file_gives_the_library_the_same_tokens(text: bytes) -> None:
    encoding = LIBRARY.encode(text.decode("latin-1"))
    assert encoding.ids == TOKENIZER.encode(text).tolist()
    assert LIBRARY.decode(encoding.ids).encode("latin-1") == text


@given(texts)
def test_words_cover_the_text_are_short_and_stay_words_when_they_are_cut_out(text: bytes) -> None:
    words = re.findall(PATTERN, text.decode("latin-1"))
    assert "".join(words).encode("latin-1") == text
    assert all(len(word) <= 130 for word in words)
    assert all(re.findall(PATTERN, word) == [word] for word in words)


def test_the_first_tokens_are_the_bytes() -> None:
    assert TOKENIZER.pieces[:256] == tuple(bytes([byte]) for byte in range(256))
    assert len(set(TOKENIZER.pieces)) == TOKENIZER.vocab == 400
    assert TOKENIZER.encode(b"").tolist() == []
    assert len(TOKENIZER.encode(TEXT)) < len(TEXT) / 2


def test_merges_are_those_of_a_count_by_hand() -> None:
    """abab | abab | abab with blanks before two: ab occurs 6 times, then abab 3 times, then it with its blank twice."""
    found = train_tokenizer(b"abab abab abab", 259)
    assert found.pieces[256:] == (b"ab", b"abab", b" abab")
    assert found.encode(b"abab ababa").tolist() == [257, 258, ord("a")]


def test_a_large_text_is_encoded_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TOKENIZER.encode(TEXT)
    monkeypatch.setattr(module, "WORDS_AT_ONCE", 7)
    assert np.array_equal(TOKENIZER.encode(TEXT), whole)


def test_equal_bytes_give_an_equal_digest_and_other_bytes_another() -> None:
    assert train_tokenizer(bytes(bytearray(TEXT)), 400).digest == TOKENIZER.digest
    assert read_tokenizer(TOKENIZER.to_json()).digest == TOKENIZER.digest
    others = [train_tokenizer(TEXT, 399), train_tokenizer(TEXT + b" karat" * 900, 400)]
    assert len({TOKENIZER.digest, *(other.digest for other in others)}) == 3


@pytest.mark.parametrize("threads", ["1", "3"])
def test_neither_threads_nor_hash_seeds_change_it(threads: str) -> None:
    program = (
        "import sys; from karat.trainer.data.tokenizer import train_tokenizer; "
        "print(train_tokenizer(sys.stdin.buffer.read(), 400).digest)"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    done = subprocess.run([sys.executable, "-c", program], input=TEXT, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == TOKENIZER.digest


def test_a_text_that_cannot_fill_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="a training text of 14 bytes gives 259 tokens") as caught:
        train_tokenizer(b"abab abab abab", 260)
    assert "fills the vocabulary of 260" in caught.value.required
    assert "model.vocab=259 or less" in caught.value.next_step
    with pytest.raises(DataError, match="gives 256 tokens") as caught:
        train_tokenizer(b"abc", FEWEST)
    assert "tokens=bytes" in caught.value.next_step and "model.vocab=256 or less" not in caught.value.next_step


@pytest.mark.parametrize("vocab", [0, 256, (1 << 16) + 1])
def test_a_vocabulary_out_of_range_is_refused(vocab: int) -> None:
    with pytest.raises(DataError, match="byte-pair encoding") as caught:
        train_tokenizer(TEXT, vocab)
    assert "257 to 65,536" in caught.value.required


def test_a_text_without_blanks_is_no_trap() -> None:
    """Half a megabyte of one letter: as one word it would take minutes."""
    began = time.process_time()
    tokens = TOKENIZER.encode(b"k" * 500_000)
    with pytest.raises(DataError, match="a training text of 500,000 bytes"):
        train_tokenizer(b"k" * 500_000, 400)
    assert TOKENIZER.decode(tokens) == b"k" * 500_000
    assert time.process_time() - began < 5


def test_an_unknown_token_is_refused() -> None:
    with pytest.raises(DataError, match="token 400"):
        TOKENIZER.decode(np.array([3, 400], np.uint16))


def altered(**changes: object) -> str:
    data = json.loads(TOKENIZER.to_json())
    return json.dumps({**data, "model": {**data["model"], **changes}})


VOCAB: dict[str, int] = json.loads(TOKENIZER.to_json())["model"]["vocab"]
LAST = max(VOCAB, key=lambda name: VOCAB[name])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        TOKENIZER.to_json()[:-20],
        altered(vocab={**VOCAB, "\u0394": 400}),  # no byte
        altered(vocab={**VOCAB, "unmerged": 400}),
        altered(vocab={name: token for name, token in VOCAB.items() if name != LAST}),
        altered(vocab={**VOCAB, "a": VOCAB["b"], "b": VOCAB["a"]}),
        altered(vocab={name: token * 2 for name, token in VOCAB.items()}),
        altered(vocab={name: token for name, token in VOCAB.items() if token < 256}, merges=[]),
        altered(merges=[["a", "b", "c"]]),
        altered(merges=[]),
        altered(merges=None),
    ],
)
def test_a_file_that_is_no_such_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a byte-level tokenizer"):
        read_tokenizer(text)
