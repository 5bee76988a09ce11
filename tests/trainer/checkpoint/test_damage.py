"""A checkpoint that is not the one that was written is refused, whichever byte, file or version differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint import latest_checkpoint, load_checkpoint
from karat.trainer.checkpoint.manifest import FILES, MANIFEST, Manifest, manifest_bytes, read_manifest


@pytest.fixture
def path(tmp_path: Path, make_run: Any) -> Path:
    run = make_run()
    run.train(0, 2)
    return run.save(tmp_path, 2)


def rewrite(path: Path, **changes: Any) -> None:
    """Replaces fields of the manifest, its digest recomputed: what a careful forger, not a bad disk, would write."""
    manifest = read_manifest(path)
    (path / MANIFEST).write_bytes(manifest_bytes(Manifest(**(manifest.model_dump() | changes))))


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(path)
    assert raised.value.required and raised.value.next_step
    return raised.value


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from([*FILES, MANIFEST]), mask=st.integers(1, 255))
def test_one_altered_byte_anywhere_is_refused(path: Path, data: st.DataObject, name: str, mask: int) -> None:
    content = (path / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    (path / name).write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
    try:
        refused(path)
    finally:
        (path / name).write_bytes(content)
    assert load_checkpoint(path).step == 2


def test_a_manifest_that_still_reads_well_is_refused(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"step": 2', '"step": 3'))
    assert "its digest differs" in refused(path).seen
    (path / MANIFEST).write_text(text + " ")
    assert "its digest differs" in refused(path).seen


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_truncated_file_is_refused(path: Path, name: str, kept: int) -> None:
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:kept])
    assert f"{name} " in refused(path).seen and "cut off or altered" in refused(path).seen


def test_sizes_are_in_the_message(path: Path) -> None:
    size = (path / FILES[0]).stat().st_size
    with (path / FILES[0]).open("ab") as file:
        file.write(b"x")
    assert f"has {size + 1:,} bytes" in refused(path).seen
    assert refused(path).required == f"{size:,} bytes"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused(path: Path, name: str) -> None:
    (path / name).unlink()
    assert refused(path).seen == f"{path} is incomplete: {name} is missing"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refused(tmp_path / "step-000001").seen


def test_another_version_is_refused(path: Path) -> None:
    rewrite(path, version=3)
    error = refused(path)
    assert error.seen == f"{path} has format version 3" and error.required == "version 1 or 2"


def test_another_format_is_refused(path: Path) -> None:
    rewrite(path, format="other")
    assert "it is no karat-checkpoint" in refused(path).seen


def test_tensors_that_differ_from_the_manifest_are_refused(path: Path) -> None:
    model = read_manifest(path).model_dump()["model"]
    rewrite(path, model=model | {"hidden.bias": {"dtype": "float32", "shape": [7]}})
    assert "hidden.bias: required float32 (7,), seen float32 (6,)" in refused(path).seen


@pytest.mark.parametrize(
    "state",
    ["[]", "{}", "3", '{"optimizer": {"$tensor": "no"}}', '{"$evil": 1}', '{"$tuple": 3}', "[" * 100_000, "\udc80"],
)
def test_a_state_that_no_save_wrote_is_refused(path: Path, state: str) -> None:
    content = state.encode(errors="surrogatepass")
    (path / "state.json").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(path, files=read_manifest(path).model_dump()["files"] | {"state.json": entry})
    assert "does not read as a checkpoint" in refused(path).seen


def test_the_manifest_can_name_no_other_file(path: Path) -> None:
    files = read_manifest(path).model_dump()["files"]
    rewrite(path, files=files | {"../other": files["state.json"]})
    assert "it lists the files" in refused(path).seen


# -- the newest complete one ---------------------------------------------------------------------------------------


def test_the_newest_complete_one_is_found_and_damage_is_said(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    for step in (900_000, 1_000_000, 2_000_000):
        run.save(tmp_path, step)
    assert (latest_checkpoint(tmp_path).step, latest_checkpoint(tmp_path).damaged) == (2_000_000, ())
    (tmp_path / "step-2000000" / "state.json").write_bytes(b"{}")
    found = latest_checkpoint(tmp_path)
    assert found.path == tmp_path / "step-1000000" and found.step == 1_000_000
    assert len(found.damaged) == 1 and "step-2000000/state.json has 2 bytes" in found.damaged[0]


def test_a_named_one_counts_by_its_steps(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 5)
    run.save(tmp_path, 4, name="violation")
    assert latest_checkpoint(tmp_path).path.name == "step-000005"
    run.save(tmp_path, 6, name="final")
    assert latest_checkpoint(tmp_path).path.name == "final"
    run.save(tmp_path, 6)
    assert latest_checkpoint(tmp_path).path.name == "step-000006"


def test_of_equal_steps_best_comes_last_whatever_its_name_sorts_like(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    for name in ("best", "violation", "final", None):  # each is preferred to those before it
        run.save(tmp_path, 6, name=name)
        assert latest_checkpoint(tmp_path).path.name == (name or "step-000006")


def test_a_named_one_without_manifest_is_reported(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 5)
    (run.save(tmp_path, 6, name="final") / MANIFEST).unlink()
    (tmp_path / "plots").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found.step == 5 and found.damaged == (f"{tmp_path / 'final'} is incomplete: {MANIFEST} is missing",)


def test_no_complete_one_is_an_error_that_lists_why(tmp_path: Path, path: Path) -> None:
    (path / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError) as raised:
        latest_checkpoint(tmp_path)
    assert "there is no complete checkpoint" in raised.value.seen and "it is no karat-checkpoint" in raised.value.seen
    shutil.rmtree(path)
    with pytest.raises(CheckpointError):
        latest_checkpoint(tmp_path / "nowhere")


def test_the_manifest_is_readable_json_with_hashes(path: Path) -> None:
    record = json.loads((path / MANIFEST).read_text())
    assert record["version"] == 2 and record["step"] == 2
    assert record["model"]["hidden.weight"] == {"dtype": "float32", "shape": [6, 6]}
    for name in FILES:
        assert record["files"][name]["sha256"] == hashlib.sha256((path / name).read_bytes()).hexdigest()
