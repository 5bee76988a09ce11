"""The wheel: built, installed into a clean environment, and used in a folder that holds a foreign core/ and trainer.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tracked sources (so that nothing is left in the checkout)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout.split(
        b"\0"
    )
    for name in filter(None, (f.decode() for f in files)):
        path = repository / name
        if path.is_file() and not name.startswith(".typing"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(source),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_every_module(wheel: Path, repository: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("core", "invariants", "proofs", "trainer"):
        for path in (repository / package).rglob("*.py"):
            assert f"karat/{path.relative_to(repository).as_posix()}" in held
        assert f"karat/{package}/py.typed" in held
    assert "karat/invariants/proofs.lock" in held
    assert not any(name.startswith(("core/", "trainer/", "tests/")) for name in held)


@pytest.mark.slow
def test_the_wheel_works_beside_foreign_names(wheel: Path, tmp_path: Path, repository: Path) -> None:
    """A clean environment with the wheel alone; its dependencies come from this environment, read-only, by a .pth file."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    assert subprocess.run(install).returncode == 0
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(_without_karat(tmp_path) + "\n")
    foreign = tmp_path / "work"
    (foreign / "core").mkdir(parents=True)
    (foreign / "core" / "__init__.py").write_text("raise RuntimeError('the foreign core was imported')")
    (foreign / "trainer.py").write_text("raise RuntimeError('the foreign trainer was imported')")
    (foreign / "text.txt").write_text(" ".join(f"word{k * k % 997} and {k}" for k in range(3000)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
    tell = (
        "import karat.core.golden, sys; from karat.invariants.runtime import watch; print(karat.core.golden.__file__)"
    )
    told = subprocess.run([str(python), "-c", tell], cwd=foreign, env=clean, capture_output=True, text=True)
    assert told.returncode == 0 and str(site) in told.stdout, told.stdout + told.stderr
    readme = (repository / "README.md").read_text(encoding="utf-8")
    quick = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "for step in range" in code)
    (foreign / "loop.py").write_text(quick)
    looped = subprocess.run([str(python), "loop.py"], cwd=foreign, env=clean, capture_output=True, text=True)
    assert looped.returncode == 0 and "FAIL RUN-11 gradient-fresh at step 1" in looped.stderr, looped.stderr
    assert looped.stdout.startswith("watch: 100 steps, 1 FAIL") and "not checked, until it is told:" in looped.stdout
    run = [str(environment / "bin" / "trainer"), "run", "--strict-invariants", "--data", "text.txt", "--out", "out",
           "--set", "steps=4", "--set", "model.d_model=32", "--set", "model.context=32", "--set", "eval.bytes=1000"]  # fmt: skip
    ran = subprocess.run(run, cwd=foreign, env=clean, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("BPB="), ran.stdout + ran.stderr
    again = subprocess.run([*run[:1], "resume", "out"], cwd=foreign, env=clean, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == ran.stdout


def _without_karat(folder: Path) -> str:
    """A folder of links to the installed dependencies, karat itself left out."""
    links = folder / "dependencies"
    links.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "karat" not in path.name and path.suffix != ".pth":
            (links / path.name).symlink_to(path)
    return str(links)
