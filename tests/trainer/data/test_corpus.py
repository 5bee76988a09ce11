"""Every source gives two disjoint texts and a manifest; every bad input gives one clear error."""

import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from karat.core.errors import DataError
from karat.trainer.data import corpus, sources
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.data.download import PinnedText
from karat.trainer.data.manifest import sha256_hex


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(32, 127, size, np.uint8).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def load(path: Path, context: int = 8, **options: Any) -> Corpus:
    return load_corpus(str(path), context=context, **options)


@pytest.fixture(scope="module")
def stdlib() -> Corpus:
    return load_corpus("stdlib", context=256)


def test_stdlib_is_the_same_in_two_calls(stdlib: Corpus) -> None:
    again = load_corpus("stdlib", context=64)
    assert again.manifest.digest == stdlib.manifest.digest
    assert np.array_equal(again.train, stdlib.train)
    assert np.array_equal(again.validation, stdlib.validation)


def test_stdlib_is_python_source_split_by_file(stdlib: Corpus) -> None:
    manifest = stdlib.manifest
    assert manifest.python_version == platform.python_version()
    assert 0.05 <= manifest.validation_bytes / (manifest.train_bytes + manifest.validation_bytes) < 0.075
    assert {file.side for file in manifest.files} == {"train", "validation"}
    paths = [file.path for file in manifest.files]
    assert paths == sorted(paths) and len(set(paths)) == len(paths)
    assert len({file.sha256 for file in manifest.files}) == len(paths)
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    assert not any(left_out & set(Path(path).parts[:-1]) for path in paths)
    assert not any("_sysconfigdata" in path for path in paths)
    assert stdlib.train.dtype == stdlib.validation.dtype == np.uint8


def test_stdlib_sides_share_little_text(stdlib: Corpus) -> None:
    overlap = stdlib.manifest.overlap
    assert overlap.validation_bytes == len(stdlib.validation)
    assert 0.0 < overlap.share < 0.15  # 0.061 on CPython 3.11.7: licence headers, import blocks


def test_a_stdlib_without_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "os.py", b"import sys\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="11 bytes of standard library source") as caught:
        load_corpus("stdlib", context=8)
    assert "full library" in caught.value.next_step


def test_stdlib_files_are_chosen_by_the_stated_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "STDLIB_LEAST_BYTES", 1)
    for path in ("b.py", "a/c.py", "a/test_like.py"):
        write(tmp_path / path, path.encode())
    passed_over = ("test/x.py", "a/tests/x.py", "idlelib/x.py", "site-packages/x.py", "dist-packages/x.py")
    machine = (
        "_sysconfigdata__linux.py",
        "sitecustomize.py",
        "config-3.11/x.py",
        "a/__pycache__/x.py",
        "x.txt",
    )
    for path in (*passed_over, *machine):
        write(tmp_path / path, path.encode())
    write(tmp_path / "z_same_as_b.py", b"b.py")
    write(tmp_path / "latin.py", b"# \xe9")
    write(tmp_path / "empty.py", b"")
    found = sources.read_stdlib(tmp_path)
    assert [file.path for file in found.files] == ["a/c.py", "a/test_like.py", "b.py"]
    assert found.skipped == 3


def test_a_file_is_cut_after_nine_tenths(tmp_path: Path) -> None:
    content = noise(0, 1005)
    loaded = load(write(tmp_path / "mine.txt", content))
    assert loaded.train.tobytes() == content[:904]
    assert loaded.validation.tobytes() == content[904:]
    manifest = loaded.manifest
    assert (loaded.name, manifest.source) == ("mine.txt", "mine.txt")
    assert (manifest.train_bytes, manifest.validation_bytes) == (904, 101)
    assert manifest.train_sha256 == sha256_hex(content[:904])
    assert manifest.validation_sha256 == sha256_hex(content[904:])
    (record,) = manifest.files
    assert (record.path, record.side, record.bytes, record.sha256) == (
        "mine.txt",
        "both",
        1005,
        sha256_hex(content),
    )
    assert str(tmp_path) not in manifest.canonical_json()


def test_the_shortest_text_that_will_do_and_one_byte_less(tmp_path: Path) -> None:
    shortest = load(write(tmp_path / "a.txt", noise(0, 130)), context=64)
    assert (len(shortest.train), len(shortest.validation)) == (65, 65)
    with pytest.raises(DataError, match=r"a\.txt is too short: 129 bytes") as caught:
        load(write(tmp_path / "a.txt", noise(0, 129)), context=64)
    assert "at least 65 bytes on each side" in caught.value.required


def test_a_folder_is_split_by_file(tmp_path: Path) -> None:
    contents = {"b.txt": noise(1, 900), "a/z.txt": noise(2, 100), "c.txt": noise(3, 800)}
    for path, content in contents.items():
        write(tmp_path / "texts" / path, content)
    write(tmp_path / "texts" / "image.png", b"\x89PNG\0\0")
    write(tmp_path / "texts" / ".git" / "config", b"hidden")
    loaded = load(tmp_path / "texts")
    assert loaded.validation.tobytes() == contents["a/z.txt"]
    assert loaded.train.tobytes() == contents["b.txt"] + contents["c.txt"]
    sides = [(file.path, file.side) for file in loaded.manifest.files]
    assert sides == [("a/z.txt", "validation"), ("b.txt", "train"), ("c.txt", "train")]
    assert loaded.manifest.skipped == 1


def test_a_folder_of_one_text_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "one.txt", noise(1, 900))
    write(tmp_path / "texts" / "same.txt", noise(1, 900))
    loaded = load(tmp_path / "texts")
    assert [(file.path, file.side) for file in loaded.manifest.files] == [("one.txt", "both")]
    assert loaded.manifest.skipped == 1


def test_a_folder_with_a_tiny_second_file_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a_note.txt", b"short")
    write(tmp_path / "texts" / "long.txt", noise(1, 5000))
    write(tmp_path / "texts" / "z_note.txt", b"also")
    loaded = load(tmp_path / "texts", context=64)
    sides = [file.side for file in loaded.manifest.files]
    assert sides == ["train", "both", "validation"]
    assert len(loaded.train) + len(loaded.validation) == 5009


def test_a_folder_whose_held_out_file_is_no_window_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a.txt", noise(0, 60))
    write(tmp_path / "texts" / "b.txt", noise(1, 900))
    assert len(load(tmp_path / "texts", context=59).validation) == 60
    assert len(load(tmp_path / "texts", context=60).validation) == 96


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_file_name_that_is_not_unicode_is_escaped(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"caf\xe9.txt"), noise(0, 300))
    assert load(tmp_path).manifest.files[0].path == "caf\\xe9.txt"


def test_skipped_files_of_both_sources_are_counted(tmp_path: Path) -> None:
    for side in ("train", "held"):
        write(tmp_path / side / "text.txt", noise(ord(side[0]), 300))
        write(tmp_path / side / "empty.txt", b"")
    assert load(tmp_path / "train", validation=tmp_path / "held").manifest.skipped == 2


def test_a_separate_validation_text_is_used_whole(tmp_path: Path) -> None:
    train, held = write(tmp_path / "train.txt", noise(0, 300)), write(tmp_path / "held.txt", noise(1, 90))
    loaded = load(train, validation=held)
    assert (loaded.train.tobytes(), loaded.validation.tobytes()) == (noise(0, 300), noise(1, 90))
    assert [(file.path, file.side) for file in loaded.manifest.files] == [
        ("train.txt", "train"),
        ("held.txt", "validation"),
    ]


@pytest.mark.parametrize(
    ("train", "held", "message"),
    [
        (noise(0, 300), noise(0, 300)[100:190], "the validation text .* stands whole in the training text"),
        (noise(0, 300)[50:200], noise(0, 300), "the training text .* stands whole in the validation text"),
        (noise(0, 300), noise(0, 300)[:200] + noise(1, 50), "73.3% of the 187 validation windows"),
        (noise(0, 300), b"short", "too short"),
        (noise(0, 300), b"", "held.txt: the file is empty"),
        (noise(0, 300), b"\0" * 50, "held.txt: not text: a NUL byte"),
    ],
)
def test_a_bad_validation_text_is_refused(train: bytes, held: bytes, message: str, tmp_path: Path) -> None:
    paths = write(tmp_path / "train.txt", train), write(tmp_path / "held.txt", held)
    with pytest.raises(DataError, match=message):
        load(paths[0], validation=paths[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.txt: the file is empty"),
        (b"x", "bad.txt is too short: 1 byte,"),
        (b"hello", "bad.txt is too short: 5 bytes"),
        (b"text\0more text", "bad.txt: not text: a NUL byte at offset 4"),
        (b"caf\xe9 au lait, s'il vous plait", "bad.txt: not UTF-8: byte 0xe9 at offset 3"),
        (b"copy " * 200, "stands whole in the training text"),
    ],
)
def test_a_bad_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path / "bad.txt", content))
    assert caught.value.required and caught.value.next_step


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder at .*nowhere\.txt") as caught:
        load(tmp_path / "nowhere.txt")
    assert "stdlib, tiny_shakespeare" in caught.value.required


@pytest.mark.parametrize("source", ["", "  ", "a\0b"])
def test_an_impossible_source_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="no corpus is named"):
        load_corpus(source, context=8)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_corpus("x" * 5000, context=8)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a.bin", b"\0\1")
    write(tmp_path / "texts" / "b.txt", b"")
    with pytest.raises(DataError, match=r"no text below .*: 2 files"):
        load(tmp_path / "texts")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_unreadable_file_is_refused(as_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "texts" / "secret.txt", noise(0, 300))

    def deny(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(DataError, match=r"cannot read .*secret\.txt: Permission denied"):
        load(path.parent if as_folder else path)


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match=r"cannot read .*: Permission denied"):
        load(tmp_path)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", noise(0, 300).replace(b"~", b"-") + "é~é".encode())
    with pytest.raises(DataError, match=r"4 bytes do not fit a vocabulary of 128; .* byte 195 in a\.txt") as caught:
        load(path, vocab=128)
    assert "196 or more" in caught.value.next_step
    with pytest.raises(DataError, match="2 bytes do not fit a vocabulary of 195"):
        load(path, vocab=195)
    assert len(load(path, vocab=196).validation) > 0


def test_the_vocabulary_covers_the_separate_validation_text(tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.txt", b"abc" * 50), write(tmp_path / "b.txt", b"xyz" * 50)
    with pytest.raises(DataError, match=r"50 bytes .* vocabulary of 122; .* byte 122 in b\.txt"):
        load(train, validation=held, vocab=122)


def test_a_context_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a context of 0 bytes"):
        load(write(tmp_path / "a.txt", noise(0, 300)), context=0)


@pytest.fixture
def shakespeare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A stand-in for the pinned text, with a cache in tmp_path and no network."""
    content = noise(0, 1000)
    pin = PinnedText("tiny_shakespeare.txt", (tmp_path / "absent").as_uri(), 1000, sha256_hex(content))
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", pin)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KARAT_DATA", raising=False)
    return content


@pytest.mark.parametrize("place", ["data_dir", "environment", "cache"])
def test_tiny_shakespeare_is_found(
    place: str, shakespeare: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"data_dir": "a", "environment": "b", "cache": "cache/karat"}[place]
    write(tmp_path / folder / "tiny_shakespeare.txt", shakespeare)
    monkeypatch.setenv("KARAT_DATA", str(tmp_path / "b"))
    loaded = load_corpus("tiny_shakespeare", data_dir=tmp_path / "a", context=8)
    assert loaded.train.tobytes() == shakespeare[:900]
    assert loaded.manifest.source == "tiny_shakespeare"


def test_tiny_shakespeare_that_cannot_be_had_says_where_to_put_it(shakespeare: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot download") as caught:
        load_corpus("tiny_shakespeare", data_dir=tmp_path / "a", context=8)
    assert f"not in {tmp_path / 'a'}" in caught.value.seen
    assert "put tiny_shakespeare.txt into a folder and export KARAT_DATA=FOLDER" in caught.value.next_step


REAL = Path(os.environ.get("KARAT_DATA", "")) / "tiny_shakespeare.txt"


@pytest.mark.skipif(not REAL.is_file(), reason="KARAT_DATA names no folder with tiny_shakespeare.txt")
def test_the_real_tiny_shakespeare() -> None:
    loaded = load_corpus("tiny_shakespeare", context=256)
    assert (len(loaded.train), len(loaded.validation)) == (1_003_854, 111_540)
    assert loaded.manifest.overlap.share == 0.0
