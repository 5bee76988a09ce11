"""A named corpus is exactly its pinned bytes, wherever they come from; nothing else is kept."""

import dataclasses
import http.client
import io
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from karat.core.errors import DataError, StorageError
from karat.trainer.data.cache import cache_folder
from karat.trainer.data.download import TINY_SHAKESPEARE, PinnedText, open_url, pinned_text
from karat.trainer.data.manifest import sha256_hex

CONTENT = b"To be, or not to be\n" * 10
WRONG = b"To bee, or not to bee\n" * 10


def pinned(url: str = "https://example.invalid/text") -> PinnedText:
    return PinnedText("text.txt", url, len(CONTENT), sha256_hex(CONTENT))


def refuse(url: str) -> AbstractContextManager[io.BytesIO]:
    raise AssertionError(f"downloaded {url}")


def both_hashes(error: DataError) -> bool:
    return sha256_hex(WRONG) in error.seen and sha256_hex(CONTENT) in error.required


def test_the_pin_is_the_commit_that_was_measured() -> None:
    assert "/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/" in TINY_SHAKESPEARE.url
    assert TINY_SHAKESPEARE.sha256.startswith("86c4e6aa9db7c042")


def test_the_first_folder_that_has_it_comes_first(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "text.txt").write_bytes(CONTENT)
    folders = [tmp_path / "a", tmp_path / "b"]
    assert pinned_text(pinned(), folders, tmp_path / "cache", refuse) == CONTENT
    assert not (tmp_path / "cache").exists()


def test_a_wrong_local_file_is_refused_with_both_hashes_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(WRONG)
    with pytest.raises(DataError) as caught:
        pinned_text(pinned(), [tmp_path], tmp_path / "cache", refuse)
    assert both_hashes(caught.value)
    assert (tmp_path / "text.txt").read_bytes() == WRONG


def test_a_download_from_a_url_is_kept_and_used_again(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.write_bytes(CONTENT)
    cache = tmp_path / "deep" / "cache"
    assert pinned_text(pinned(origin.as_uri()), [], cache, open_url) == CONTENT
    assert [path.name for path in cache.iterdir()] == ["text.txt"]
    origin.unlink()
    assert pinned_text(pinned(origin.as_uri()), [], cache, refuse) == CONTENT


@pytest.mark.parametrize("answer", [WRONG, CONTENT[:-1], b""])
def test_a_wrong_download_is_refused_and_nothing_is_kept(answer: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        pinned_text(pinned(), [], tmp_path / "cache", lambda url: io.BytesIO(answer))
    assert sha256_hex(answer[: len(CONTENT) + 1]) in caught.value.seen
    assert sha256_hex(CONTENT) in caught.value.required
    assert not list(tmp_path.rglob("*.*"))


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    class Endless(io.BytesIO):
        given = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None and 0 < size < 10_000
            Endless.given += size
            return b"x" * size

    with pytest.raises(DataError, match=f"{len(CONTENT) + 1} bytes"):
        pinned_text(pinned(), [], tmp_path, lambda url: Endless())
    assert Endless.given == len(CONTENT) + 1


def test_short_reads_are_put_together(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    assert pinned_text(pinned(), [], tmp_path, lambda url: Slow(CONTENT)) == CONTENT


def test_a_wrong_cache_entry_is_refused_with_both_hashes_and_removed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(WRONG)
    with pytest.raises(DataError, match="run again to download it afresh") as caught:
        pinned_text(pinned(), [], tmp_path, refuse)
    assert both_hashes(caught.value)
    assert not (tmp_path / "text.txt").exists()


@pytest.mark.parametrize(
    "failure",
    [OSError("no route"), TimeoutError("timed out"), http.client.IncompleteRead(b""), ValueError("bad")],
)
def test_a_failing_download_says_how_to_give_a_local_path(failure: Exception, tmp_path: Path) -> None:
    def fail(url: str) -> AbstractContextManager[io.BytesIO]:
        raise failure

    with pytest.raises(DataError, match=r"cannot download https://example\.invalid/text") as caught:
        pinned_text(pinned(), [tmp_path / "mine"], tmp_path / "cache", fail)
    assert f"not in {tmp_path / 'mine'}" in caught.value.seen
    assert "KARAT_DATA=FOLDER" in caught.value.next_step
    assert "text.txt" in caught.value.next_step


def test_a_missing_origin_is_a_failing_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot download file:"):
        pinned_text(pinned((tmp_path / "absent").as_uri()), [], tmp_path, open_url)


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot keep text\.txt"):
        pinned_text(pinned(), [], tmp_path / "file" / "cache", lambda url: io.BytesIO(CONTENT))


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "text.txt").mkdir()  # a folder where the file should go
    with pytest.raises(StorageError, match=r"cannot keep text\.txt"):
        pinned_text(pinned(), [], tmp_path, lambda url: io.BytesIO(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "karat"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "karat"


def test_the_pin_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY_SHAKESPEARE.sha256 = ""  # type: ignore[misc]
