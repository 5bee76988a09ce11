"""Byte-level byte-pair encoding (Gage 1994; Sennrich et al. 2016) that gives back every byte it is given.

The library `tokenizers` works on Unicode text; here each byte is the character of its number (Latin-1), so that
there is no text, valid UTF-8 or not, that it cannot hold: token 0..255 is the byte itself. Text is first cut into
words (PATTERN), and no merge crosses a word, so the tokens of a word depend on the word alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from karat.core.errors import DataError
from karat.trainer.data.batches import Ids
from karat.trainer.data.manifest import sha256_hex

BYTES = 256
FEWEST, MOST = BYTES + 1, 1 << 16  # one merge at least; tokens are kept as uint16
LEAST_COUNT = 2  # a pair that occurs once is no pattern
WORDS_AT_ONCE = 1 << 20  # 100 MiB of words and numbers

_LETTER, _SPACE = "A-Za-z\u0080-\u00ff", " \t\n\r\x0b\x0c"  # every byte of a character beyond ASCII is a letter
PATTERN = (
    f"[^{_LETTER}0-9\r\n]?[{_LETTER}]{{1,64}}"  # a word with the blank, dot, bracket or underscore before it
    "|[0-9]{1,3}"
    f"| ?[^{_LETTER}0-9{_SPACE}]{{1,64}}[\r\n]{{0,64}}"  # signs, with the end of their line
    f"|[{_SPACE}]{{1,64}}"
)
"""The words, as a regular expression on Latin-1 text. Its four classes cover every byte; there is nothing in it that
looks ahead, so a word cut out of its text is still that word. No word is longer than 130 bytes: training and encoding
stay linear on a text without blanks."""

_WORDS = re.compile(PATTERN)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """pieces[t]: the bytes that token t stands for, the first 256 one byte each. merges: in the order of their rank."""

    pieces: tuple[bytes, ...]
    merges: tuple[tuple[bytes, bytes], ...]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many bytes each token stands for: (vocab,) int64, all at least 1."""
        return np.array([len(piece) for piece in self.pieces], np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pattern, pieces and merges: equal digests, equal tokens of every text, in any library version."""
        merges = [[left.hex(), right.hex()] for left, right in self.merges]
        content = {"pattern": PATTERN, "pieces": [piece.hex() for piece in self.pieces], "merges": merges}
        return sha256_hex(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())

    def encode(self, text: bytes) -> npt.NDArray[np.uint16]:
        """The tokens of any bytes: (n,) uint16; `decode` of them is the text."""
        known: dict[str, int] = {}
        tokens: list[list[int]] = []
        parts = [np.empty(0, np.uint16)]
        for words in _some_at_once(_words(text)):
            for word in words:
                if word not in known:
                    known[word] = len(tokens)
                    tokens.append(self._model.encode(word, add_special_tokens=False).ids)
            parts.append(_joined(tokens, np.fromiter(map(known.__getitem__, words), np.int64, len(words))))
        return np.concatenate(parts)

    def decode(self, tokens: Ids) -> bytes:
        """The bytes that the tokens (n,) stand for, joined. DataError for a token that there is not."""
        if len(tokens) and int(tokens.max()) >= self.vocab:
            raise DataError(f"token {int(tokens.max())}", required=f"tokens below the vocabulary of {self.vocab}")
        return b"".join(map(self.pieces.__getitem__, tokens.tolist()))

    def to_json(self) -> str:
        """tokenizer.json as the library reads it: on Latin-1 text it gives the same tokens by itself."""
        whole = tokenizers.Tokenizer(_bpe(self.pieces, self.merges))
        whole.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
        whole.decoder = decoders.Fuse()
        return whole.to_str(pretty=False)

    @cached_property
    def _model(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer(_bpe(self.pieces, self.merges))


def train_tokenizer(text: bytes, vocab: int) -> Tokenizer:
    """The tokenizer of a training text, with exactly `vocab` tokens: equal bytes, equal digest. DataError otherwise.

    FEWEST <= vocab <= MOST. A text with too few pairs that occur twice cannot fill a vocabulary, and is refused.
    """
    check_vocab(vocab)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=LEAST_COUNT,
        initial_alphabet=[chr(byte) for byte in range(BYTES)],
        special_tokens=[],
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.BPE())
    trained.train_from_iterator(_words(text), trainer)
    found = trained.get_vocab_size()
    if found != vocab:
        smaller = f"set model.vocab={found} or less, or " if found >= FEWEST else ""
        raise DataError(
            f"a training text of {len(text):,} bytes gives {found:,} tokens: no further pair of tokens occurs in it "
            f"{LEAST_COUNT} times",
            required=f"a text that fills the vocabulary of {vocab:,}",
            next_step=f"{smaller}give a longer text, or train on bytes: tokens=bytes model.vocab=256",
        )
    return read_tokenizer(trained.to_str(pretty=False))


def check_vocab(vocab: int) -> None:
    """DataError where no tokenizer has that many tokens."""
    if not FEWEST <= vocab <= MOST:
        raise DataError(
            f"a vocabulary of {vocab:,} for byte-pair encoding",
            required=f"{FEWEST} to {MOST:,} tokens: the {BYTES} bytes, and one merge or more",
            next_step="set model.vocab=4096, or train on bytes: tokens=bytes model.vocab=256",
        )


def read_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json; DataError for anything that is not one of byte pairs over all 256 bytes."""
    try:
        model = json.loads(text)["model"]
        ids: dict[str, int] = model["vocab"]
        merges = tuple((_bytes(left), _bytes(right)) for left, right in model["merges"])
        names = sorted(ids, key=lambda name: ids[name])
        pieces = tuple(map(_bytes, names))
        sound = [ids[name] for name in names] == list(range(len(names))) and FEWEST <= len(names) <= MOST
        sound = sound and pieces[:BYTES] == tuple(bytes([byte]) for byte in range(BYTES))
        sound = sound and set(pieces[BYTES:]) == {left + right for left, right in merges}
        _bpe(pieces, merges)
    except Exception as error:  # foreign code reads a foreign file: whatever it raises, this is no tokenizer
        raise _no_tokenizer(f"{type(error).__name__}: {error}") from error
    if not sound:
        raise _no_tokenizer("its tokens are not the 256 bytes and what its merges make of them")
    return Tokenizer(pieces, merges)


def _no_tokenizer(why: str) -> DataError:
    seen = f"not a byte-level tokenizer: {why.splitlines()[0]}"
    return DataError(seen, required="a tokenizer.json as a run wrote it", next_step="remove the file and run again")


def _bpe(pieces: Sequence[bytes], merges: Iterable[tuple[bytes, bytes]]) -> models.BPE:
    ids = {piece.decode("latin-1"): token for token, piece in enumerate(pieces)}
    return models.BPE(vocab=ids, merges=[(a.decode("latin-1"), b.decode("latin-1")) for a, b in merges])


def _bytes(name: str) -> bytes:
    return name.encode("latin-1")


def _words(text: bytes) -> Iterator[str]:
    return map(re.Match.group, _WORDS.finditer(text.decode("latin-1")))


def _some_at_once(words: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(words, WORDS_AT_ONCE)):
        yield some


def _joined(tokens: Sequence[Sequence[int]], order: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """tokens[order[0]], tokens[order[1]], … end to end."""
    lengths = np.array([len(some) for some in tokens], np.int64)
    flat = np.fromiter(chain.from_iterable(tokens), np.uint16, int(lengths.sum()))
    starts = (np.cumsum(lengths) - lengths)[order]
    counts = lengths[order]
    ends = np.cumsum(counts)
    places = np.arange(int(ends[-1])) + np.repeat(starts - (ends - counts), counts)
    joined: npt.NDArray[np.uint16] = flat[places]
    return joined
