"""The tokens of a corpus, made once and kept: tokenizer.json and two memory-mapped files of uint16.

They lie in the cache below a digest of what they are made from (both texts, the vocabulary, the words, the library),
each written under a temporary name and renamed. A file that is damaged, or not the one that its record names, is made
anew; what was made gives back the text byte for byte, or it is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from karat.core.errors import DataError, KaratError, StorageError
from karat.trainer.data.batches import Ids
from karat.trainer.data.cache import keep
from karat.trainer.data.disjoint import Tokens
from karat.trainer.data.manifest import TokenRecord, sha256_hex
from karat.trainer.data.tokenizer import PATTERN, Tokenizer, check_vocab, read_tokenizer, train_tokenizer

FORMAT = 1
STORED = np.dtype("<u2")
TOKENIZER, RECORD = "tokenizer.json", "record.json"
SIDES = ("train", "validation")

Working = Callable[[str], AbstractContextManager[None]]
"""working(text): says what is being done, should it take long."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of both sides (read-only, memory-mapped), the tokenizer that made them, and its record."""

    train: Ids
    validation: Ids
    tokenizer: Tokenizer
    record: TokenRecord


def encode_sides(train: Tokens, validation: Tokens, vocab: int, cache: Path, working: Working) -> Encoded:
    """The tokens of both texts by a tokenizer that has seen the training text ALONE; from the cache where they are there.

    train, validation: (n,) uint8. DataError for a vocabulary that the training text cannot fill, StorageError where the
    cache cannot be written.
    """
    check_vocab(vocab)
    folder = cache / "tokens" / _key(train, validation, vocab)
    found = read_encoded(folder)
    if found is None:
        _make(train.tobytes(), validation.tobytes(), vocab, folder, working)
        found = read_encoded(folder)
    if found is None:
        seen = f"the tokens in {folder} are not what was just written there"
        raise StorageError(seen, required="a folder that keeps its files", next_step="set XDG_CACHE_HOME to another")
    return found


def read_encoded(folder: Path) -> Encoded | None:
    """What a folder of the cache holds; None where a file is missing, damaged or of another making."""
    try:
        record = TokenRecord.model_validate_json((folder / RECORD).read_bytes())
        tokenizer = read_tokenizer((folder / TOKENIZER).read_text(encoding="utf-8"))
        train, validation = (_mapped(folder / f"{side}.bin") for side in SIDES)
    except (OSError, ValueError, KaratError):
        return None
    found = Encoded(train, validation, tokenizer, record)
    return found if record == _record(tokenizer, train, validation) else None


def _key(train: Tokens, validation: Tokens, vocab: int) -> str:
    """32 hex digits of all that decides the tokens."""
    texts = [sha256_hex(text.tobytes()) for text in (train, validation)]
    made_from = [FORMAT, PATTERN, tokenizers.__version__, vocab, *texts]
    return sha256_hex(json.dumps(made_from).encode())[:32]


def _make(train: bytes, validation: bytes, vocab: int, folder: Path, working: Working) -> None:
    with working(f"training a tokenizer of {vocab:,} tokens on {len(train):,} bytes"):
        tokenizer = train_tokenizer(train, vocab)
    sides: list[Ids] = []
    for side, text in zip(SIDES, (train, validation), strict=True):
        with working(f"encoding the {len(text):,} bytes of the {side} side"):
            tokens = tokenizer.encode(text)
            if tokenizer.decode(tokens) != text:
                raise DataError(
                    f"the tokens of the {side} side do not give back its text: the library tokenizers "
                    f"{tokenizers.__version__} is at fault",
                    required="every byte back",
                    next_step="install the version that constraints.txt names, or train on bytes: tokens=bytes",
                )
        sides.append(tokens)
        keep(tokens.astype(STORED).tobytes(), folder / f"{side}.bin")
    keep(tokenizer.to_json().encode(), folder / TOKENIZER)
    keep(_record(tokenizer, *sides).model_dump_json().encode(), folder / RECORD)


def _mapped(path: Path) -> Ids:
    """The tokens of a file; ValueError for one that is empty or has an odd number of bytes."""
    return np.memmap(path, STORED, mode="r").view(np.ndarray)


def _record(tokenizer: Tokenizer, train: Ids, validation: Ids) -> TokenRecord:
    return TokenRecord(
        kind="bpe",
        vocab=tokenizer.vocab,
        tokenizer_sha256=tokenizer.digest,
        train_tokens=len(train),
        validation_tokens=len(validation),
        train_tokens_sha256=_digest(train),
        validation_tokens_sha256=_digest(validation),
    )


def _digest(tokens: Ids) -> str:
    return sha256_hex(tokens.astype(STORED).tobytes())
