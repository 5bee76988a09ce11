"""A corpus is two disjoint byte texts, the tokens that a model reads them as, and the manifest that says what they are.

Sources: "stdlib" (the running Python's own library: real text on every machine, no network),
"tiny_shakespeare", or the path of a text file or folder (write ./stdlib for a folder of that name); "synthetic"
and "synthetic:SEED" are sequences of tokens that stand for no text. Tokens are bytes, or byte pairs of a
tokenizer that was trained on the training side alone.
"""

import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from karat.core.errors import DataError
from karat.trainer.data.batches import Ids
from karat.trainer.data.cache import cache_folder
from karat.trainer.data.disjoint import Tokens, check_disjoint
from karat.trainer.data.download import TINY_SHAKESPEARE, pinned_text
from karat.trainer.data.encoded import Working, encode_sides
from karat.trainer.data.manifest import FileRecord, Manifest, Side, sha256_hex
from karat.trainer.data.sources import Texts, printable, read_stdlib, read_texts
from karat.trainer.data.split import TextFile, split_files
from karat.trainer.data.synthetic import Synthetic, is_synthetic, load_synthetic
from karat.trainer.data.tokenizer import Tokenizer

TRAIN_TENTHS = 9  # of a text that is cut in two

TokenKind = Literal["bytes", "bpe"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Disjoint training and validation tokens as read-only arrays (n,) and (m,), uint8 or uint16, and their manifest.

    train_text, validation_text: the bytes that they stand for, uint8; the same arrays where tokens are bytes, and
    empty where tokens stand for none (synthetic). tokenizer: None where tokens are bytes, or stand for none.
    """

    name: str
    train: Ids
    validation: Ids
    manifest: Manifest
    train_text: Tokens
    validation_text: Tokens
    tokenizer: Tokenizer | None = None
    synthetic: Synthetic | None = None

    @property
    def bytes_per_token(self) -> float:
        """The mean over the training side; 1 where tokens are bytes, and where they stand for none."""
        return 1.0 if self.tokenizer is None else len(self.train_text) / len(self.train)

    @property
    def unit(self) -> str:
        """What losses are in: bits per byte; per token where tokens stand for no bytes."""
        return "bits per byte" if self.synthetic is None else "bits per token"

    @property
    def size(self) -> str:
        """How much there is of it, in words."""
        if self.synthetic is not None:
            return f"{len(self.train):,} tokens to train on, {len(self.validation):,} to validate"
        text = f"{len(self.train_text):,} bytes to train on, {len(self.validation_text):,} to validate"
        if self.tokenizer is None:
            return text
        return (
            f"{text}, as {len(self.train):,} and {len(self.validation):,} tokens ({self.bytes_per_token:.3f} bytes per "
            f"token of the training side; tokenizer {self.tokenizer.digest[:16]}…)"
        )


@dataclass(frozen=True)
class _Sides:
    """The two texts, the side of each file, and the rule that made them."""

    train: bytes
    validation: bytes
    records: tuple[FileRecord, ...]
    rule: str


def _at_once(text: str) -> AbstractContextManager[None]:
    """Says nothing of what is being done."""
    return nullcontext()


def load_corpus(
    source: str,
    *,
    data_dir: Path | None = None,
    context: int,
    vocab: int = 256,
    tokens: TokenKind = "bytes",
    validation: Path | None = None,
    working: Working = _at_once,
) -> Corpus:
    """The corpus of a source, checked: text, disjoint, a window of context + 1 tokens or more on each side.

    data_dir: folder of named corpora, looked into before $KARAT_DATA. context: tokens of input per window, >=
    1. vocab: how many byte values the model knows; for bpe how many tokens it is to have. validation: a
    separate validation text; the source is then all training. The split depends on the files alone (on `context`
    too only where a tenth is shorter than a window). working: says what takes long. Raises DataError for text that
    cannot be trained on, StorageError where a download or the tokens cannot be kept.
    """
    if context < 1:
        raise DataError(f"a context of {context} bytes", required="at least 1 byte")
    if is_synthetic(source):
        return _synthetic(source, vocab, context, tokens, validation)
    known = vocab if tokens == "bytes" else 256  # byte values that a token stands for
    corpus = _texts(source, data_dir, context, known, validation)
    if tokens == "bytes":
        return corpus
    encoded = encode_sides(corpus.train_text, corpus.validation_text, vocab, cache_folder(), working)
    _check_tokens(corpus.name, encoded.train, encoded.validation, context)
    manifest = corpus.manifest.model_copy(update={"tokens": encoded.record})
    return Corpus(
        corpus.name,
        encoded.train,
        encoded.validation,
        manifest,
        corpus.train_text,
        corpus.validation_text,
        encoded.tokenizer,
    )


def _synthetic(source: str, vocab: int, context: int, tokens: TokenKind, validation: Path | None) -> Corpus:
    """The sequences as one run of tokens a side."""
    if tokens != "bytes" or validation is not None:
        seen = f"{source} data with {'a validation text' if validation is not None else f'tokens={tokens}'}"
        next_step = "leave out tokens and validation, or give a text as data"
        raise DataError(seen, required="neither: its tokens and its held-out side are drawn", next_step=next_step)
    drawn = load_synthetic(source, vocab, context)
    train, held = drawn.train.ravel(), drawn.validation.ravel()
    for side in (train, held):
        side.flags.writeable = False
    nothing = np.empty(0, np.uint8)
    return Corpus(source, train, held, drawn.manifest, nothing, nothing, synthetic=drawn)


def _texts(source: str, data_dir: Path | None, context: int, vocab: int, validation: Path | None) -> Corpus:
    """The corpus of a text, its tokens the bytes."""
    name, texts = _find(source, data_dir)
    _check_vocab(texts.files, vocab)
    if validation is None:
        sides, skipped = _split(texts.files, context), texts.skipped
    else:
        held_out = read_texts(validation.expanduser())
        _check_vocab(held_out.files, vocab)
        sides, skipped = _separate(texts.files, held_out.files), texts.skipped + held_out.skipped
    _check_length(name, sides, context)
    train, held = np.frombuffer(sides.train, np.uint8), np.frombuffer(sides.validation, np.uint8)
    manifest = Manifest(
        source=name,
        rule=sides.rule,
        files=sides.records,
        skipped=skipped,
        train_bytes=len(train),
        validation_bytes=len(held),
        train_sha256=sha256_hex(sides.train),
        validation_sha256=sha256_hex(sides.validation),
        overlap=check_disjoint(train, held),
        python_version=platform.python_version() if source == "stdlib" else None,
    )
    return Corpus(name, train, held, manifest, train, held)


def _find(source: str, data_dir: Path | None) -> tuple[str, Texts]:
    """The name of the corpus (no folder of this machine in it) and its files."""
    if source == "stdlib":
        return source, read_stdlib()
    if source == "tiny_shakespeare":
        folders = [data_dir] if data_dir else []
        if os.environ.get("KARAT_DATA"):
            folders.append(Path(os.environ["KARAT_DATA"]))
        content = pinned_text(TINY_SHAKESPEARE, [folder.expanduser() for folder in folders], cache_folder())
        return source, Texts((TextFile(TINY_SHAKESPEARE.name, content),), 0)
    if not source.strip() or "\0" in source:
        required = "stdlib, tiny_shakespeare, synthetic, or the path of a text file or folder"
        raise DataError(f"no corpus is named {source!r}", required=required, next_step="try stdlib")
    path = Path(source).expanduser()
    return printable(path.resolve().name), read_texts(path)


def _split(files: Sequence[TextFile], context: int) -> _Sides:
    """By file where there are several and both sides get a window, else the joined text, cut once."""
    by_file = split_files(files) if len(files) > 1 else None
    if by_file is not None:
        train = b"".join(file.content for i, file in enumerate(files) if i not in by_file.held_out)
        held = b"".join(file.content for i, file in enumerate(files) if i in by_file.held_out)
        if min(len(train), len(held)) > context:
            sides: list[Side] = ["validation" if i in by_file.held_out else "train" for i in range(len(files))]
            return _Sides(train, held, _records(files, sides), by_file.rule)
    return _cut(files, context)


def _cut(files: Sequence[TextFile], context: int) -> _Sides:
    """The joined text, cut after nine tenths, or earlier where the last tenth is shorter than a window."""
    text = b"".join(file.content for file in files)
    tenth = len(text) - len(text) * TRAIN_TENTHS // 10
    cut = len(text) - max(tenth, min(context + 1, len(text) // 2))
    sides: list[Side] = []
    start = 0
    for file in files:
        end = start + len(file.content)
        sides.append("train" if end <= cut else "validation" if start >= cut else "both")
        start = end
    rule = f"the text cut once: the first {cut:,} bytes train, the last {len(text) - cut:,} validate"
    return _Sides(text[:cut], text[cut:], _records(files, sides), rule)


def _separate(train: Sequence[TextFile], held_out: Sequence[TextFile]) -> _Sides:
    """All of one source trains, all of the other validates."""
    records = _records(train, ["train"] * len(train)) + _records(held_out, ["validation"] * len(held_out))
    texts = [b"".join(file.content for file in files) for files in (train, held_out)]
    return _Sides(texts[0], texts[1], records, "a separate validation text")


def _records(files: Sequence[TextFile], sides: Sequence[Side]) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(path=file.path, side=side, bytes=len(file.content), sha256=sha256_hex(file.content))
        for file, side in zip(files, sides, strict=True)
    )


def _check_length(name: str, sides: _Sides, context: int) -> None:
    least = context + 1
    if min(len(sides.train), len(sides.validation)) < least:
        total = len(sides.train) + len(sides.validation)
        raise DataError(
            f"{name} is too short: {total:,} {'byte' if total == 1 else 'bytes'}, "
            f"{len(sides.train):,} to train on and {len(sides.validation):,} to validate on",
            required=f"at least {least:,} bytes on each side: a context of {context:,} and the byte after it",
            next_step="give a longer text or a smaller context",
        )


def _check_tokens(name: str, train: Ids, validation: Ids, context: int) -> None:
    if min(len(train), len(validation)) <= context:
        raise DataError(
            f"{name} is too short: {len(train):,} tokens to train on and {len(validation):,} to validate on",
            required=f"at least {context + 1:,} tokens on each side: a context of {context:,} and the token after it",
            next_step="give a longer text or a smaller context, or train on bytes: tokens=bytes model.vocab=256",
        )


def _check_vocab(files: Sequence[TextFile], vocab: int) -> None:
    """DataError where bytes have no token: names the largest, their number and the vocabulary needed."""
    counts = sum((np.bincount(np.frombuffer(f.content, np.uint8), minlength=256) for f in files), np.zeros(256, int))
    largest = int(np.flatnonzero(counts)[-1])
    if largest >= vocab:
        path = next(f.path for f in files if largest in f.content)
        many = int(counts[max(0, vocab) :].sum())
        seen = f"{many:,} bytes do not fit a vocabulary of {vocab}; the largest is byte {largest} in {path}"
        next_step = f"set the vocabulary to {largest + 1} or more (256 fits every text)"
        raise DataError(seen, required=f"every byte below {vocab}", next_step=next_step)
