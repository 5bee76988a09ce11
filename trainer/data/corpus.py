"""A corpus is two disjoint byte texts and the manifest that says what they are.

Sources: "stdlib" (the running Python's own library: real text on every machine, no network),
"tiny_shakespeare", or the path of a text file or folder (write ./stdlib for a folder of that name). Tokens
are bytes.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from karat.core.errors import DataError
from karat.trainer.data.disjoint import Tokens, check_disjoint
from karat.trainer.data.download import TINY_SHAKESPEARE, cache_folder, pinned_text
from karat.trainer.data.manifest import FileRecord, Manifest, Side, sha256_hex
from karat.trainer.data.sources import Texts, printable, read_stdlib, read_texts
from karat.trainer.data.split import TextFile, split_files

TRAIN_TENTHS = 9  # of a text that is cut in two


@dataclass(frozen=True, eq=False)
class Corpus:
    """Disjoint training and validation text as read-only uint8 arrays (n,) and (m,), and their manifest."""

    name: str
    train: Tokens
    validation: Tokens
    manifest: Manifest


@dataclass(frozen=True)
class _Sides:
    """The two texts, the side of each file, and the rule that made them."""

    train: bytes
    validation: bytes
    records: tuple[FileRecord, ...]
    rule: str


def load_corpus(
    source: str,
    *,
    data_dir: Path | None = None,
    context: int,
    vocab: int = 256,
    validation: Path | None = None,
) -> Corpus:
    """The corpus of a source, checked: text, disjoint, a window of context + 1 bytes or more on each side.

    data_dir: folder of named corpora, looked into before $KARAT_DATA. context: bytes of input per window, >=
    1. vocab: how many byte values the model knows. validation: a separate validation text; the source is then
    all training. The split depends on the files alone (on `context` too only where a tenth is shorter than a
    window). Raises DataError for text that cannot be trained on, StorageError where a download cannot be
    kept.
    """
    if context < 1:
        raise DataError(f"a context of {context} bytes", required="at least 1 byte")
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
    return Corpus(name, train, held, manifest)


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
        required = "stdlib, tiny_shakespeare, or the path of a text file or folder"
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
