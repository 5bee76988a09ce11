"""meta.json says what is true of the checkpoint, is covered by the manifest, and old checkpoints do without."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint import Meta, latest_checkpoint, load_checkpoint, measured
from karat.trainer.checkpoint.manifest import MANIFEST, META, Manifest, entry, manifest_bytes, read_manifest


def test_it_reads_for_people_and_comes_back(tmp_path: Path, make_run: Any) -> None:
    meta = Meta(
        step=4, training_loss=measured(2.5, 3), validation_loss=measured(math.nan, 4), learning_rates={"decayed": 0.004},
        seconds=1.5, parameters=84, config_digest="c0ffee", data_digest="dada",
    )  # fmt: skip
    path = make_run().save(tmp_path, 4, meta=meta)
    assert load_checkpoint(path).meta == meta
    text = (path / META).read_text()
    assert json.loads(text)["training_loss"] == {"value": 2.5, "unit": "bits per byte", "step": 3}
    assert json.loads(text)["validation_loss"]["value"] == "nan" and text.count("\n") > 15


def test_what_was_not_measured_is_null_and_never_zero(tmp_path: Path, make_run: Any) -> None:
    record = json.loads((make_run().save(tmp_path, 0) / META).read_text())
    assert record == {
        "step": 0, "training_loss": None, "validation_loss": None, "learning_rates": {}, "seconds": None,
        "parameters": None, "config_digest": "c0ffee", "data_digest": None,
    }  # fmt: skip
    assert measured(None, 3) is None and measured(2.0, -1) is None
    assert [measured(x, 0).value for x in (math.inf, -math.inf, 0.0)] == ["inf", "-inf", 0.0]  # type: ignore[union-attr]


def test_a_loss_that_is_altered_is_refused(tmp_path: Path, make_run: Any) -> None:
    path = make_run().save(tmp_path, 4, meta=Meta(step=4, training_loss=measured(2.5, 3)))
    (path / META).write_text((path / META).read_text().replace("2.5", "1.5"))
    with pytest.raises(CheckpointError, match=r"meta.json was altered"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["{}", '{"step": -1}', '{"step": 4, "loss": 0.0}', "[]", "", '{"step": "4"}'])
def test_one_that_no_save_wrote_is_refused(tmp_path: Path, make_run: Any, text: str) -> None:
    path = make_run().save(tmp_path, 4)
    (path / META).write_text(text)
    manifest = read_manifest(path)
    files = manifest.files | {META: entry([text.encode()])}
    (path / MANIFEST).write_bytes(manifest_bytes(manifest.model_copy(update={"files": files})))
    with pytest.raises(CheckpointError, match="does not read as a checkpoint"):
        load_checkpoint(path)


def as_version_1(path: Path) -> None:
    """The folder as the version without meta.json wrote it."""
    (path / META).unlink()
    record = read_manifest(path).model_dump()
    del record["files"][META]
    (path / MANIFEST).write_bytes(manifest_bytes(Manifest(**(record | {"version": 1}))))


def test_a_checkpoint_of_version_1_still_loads_and_leaves_in_its_turn(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.train(0, 2)
    as_version_1(run.save(tmp_path, 2))
    assert latest_checkpoint(tmp_path).step == 2 and latest_checkpoint(tmp_path).damaged == ()
    old = load_checkpoint(tmp_path / "step-000002")
    assert old.meta is None and old.extra == {"loss": 1.25, "position": 2}
    run.save(tmp_path, 3, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]  # it counts as complete
    run.save(tmp_path, 4, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_lists_its_own_files(tmp_path: Path, make_run: Any, version: int) -> None:
    path = make_run().save(tmp_path, 2)
    if version == 2:
        as_version_1(path)
    (path / MANIFEST).write_bytes(manifest_bytes(read_manifest(path).model_copy(update={"version": version})))
    with pytest.raises(CheckpointError, match="it lists the files"):
        load_checkpoint(path)
