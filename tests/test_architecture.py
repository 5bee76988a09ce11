"""The architecture as tests: import direction, names, sizes, sub-packages, and docs that name every invariant."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from karat.invariants.catalogue import BUILT_IN

PACKAGES = ("core", "invariants", "proofs", "trainer")


def modules(repository: Path) -> list[Path]:
    return [p for package in PACKAGES for p in (repository / package).rglob("*.py")]


def test_import_contracts(repository: Path) -> None:
    command = [Path(sys.executable).with_name("lint-imports")]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_no_import_inside_a_function(repository: Path) -> None:
    for path in modules(repository):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
                assert not inner, f"{path}: import inside {node.name}"


def test_what_runs_in_a_run_is_made_of_functions_of_less_than_fifty_lines(repository: Path) -> None:
    long = [
        f"{path.relative_to(repository)}::{node.name}"
        for path in modules(repository)
        if path.relative_to(repository).parts[0] != "proofs"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 >= 50
    ]
    assert not long


LOADS = re.compile(r"(?<!safetensors\.)torch\.load\((?!\w+, weights_only=True[,)])")
"""torch.load of anything but tensors, numbers, texts and their containers."""


def test_nothing_unpickles(repository: Path) -> None:
    for path in modules(repository):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text and not LOADS.search(text), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_bare_import_is_refused_with_one_sentence(package: str, repository: Path) -> None:
    command = [sys.executable, "-c", f"import {package}"]
    ran = subprocess.run(
        command, cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert f"ImportError: this folder is the package karat.{package}, imported here as '{package}'" in ran.stderr


def test_every_sub_package_is_in_pyproject(repository: Path) -> None:
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        "karat." + ".".join(p.parent.relative_to(repository).parts)
        for p in modules(repository)
        if p.name == "__init__.py"
    }
    assert set(listed) == on_disk


def test_every_folder_of_modules_is_a_package(repository: Path) -> None:
    for path in modules(repository):
        assert (path.parent / "__init__.py").is_file(), path


def test_proofs_run_where_torch_is_not_installed() -> None:
    block = (
        "import sys; sys.modules['torch'] = None\n"
        "import karat.proofs.verify\n"
        "assert not [m for m in sys.modules if m.startswith(('torch.', 'karat.trainer', 'karat.invariants.runtime'))]"
    )
    assert subprocess.run([sys.executable, "-c", block]).returncode == 0


def test_training_runs_where_no_solver_is_installed() -> None:
    block = (
        "import sys\n"
        "for name in ('z3', 'cvc5', 'hypothesis', 'karat.proofs'): sys.modules[name] = None\n"
        "import karat.trainer.cli, karat.invariants.runtime"
    )
    assert subprocess.run([sys.executable, "-c", block]).returncode == 0


def test_docs_name_every_invariant(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert all(f"{i.id} " in text and i.slug in text for i in BUILT_IN)
