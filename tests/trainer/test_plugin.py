"""A package with an invariant, from docs/adding-an-invariant.md: installed, found, proved, guarded, reported; then broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from karat.core.report import read_lock
from karat.invariants.standing import LOCK

pytestmark = pytest.mark.slow
Run = Callable[..., subprocess.CompletedProcess[str]]
MODULE, TOML = "gradient_limit/__init__.py", "pyproject.toml"


def page_example(repository: Path) -> dict[str, str]:
    """The two files of the page, by their path: the test runs what the page shows."""
    page = (repository / "docs" / "adding-an-invariant.md").read_text(encoding="utf-8")
    toml = re.search(r"```toml\n(\[build-system\].*?)```", page, re.S)
    python = re.search(r"```python\n(.*?)```", page, re.S)
    assert toml and python
    return {TOML: toml[1], MODULE: python[1]}


def install(files: dict[str, str], source: Path, target: Path) -> None:
    """pip install --target, without the network."""
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
           "--no-build-isolation", "--target", str(target), str(source)]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def runner(site: Path, work: Path) -> Run:
    """run(module, *arguments): a karat command in a process that finds the packages in `site`."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])])

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        work.mkdir(exist_ok=True)
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def proved(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's package in it, installed and proved; and what `verify` said, in said.txt."""
    folder = tmp_path_factory.mktemp("plugin")
    install(page_example(repository), folder / "source", folder / "site")
    ran = runner(folder / "site", folder)("karat.proofs.verify", "--only", "GRAD-1", "--jobs", "1")
    (folder / "site" / "said.txt").write_text(f"{ran.returncode}\n{ran.stdout}{ran.stderr}")
    return folder / "site"


@pytest.fixture
def site(proved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be edited."""
    return Path(shutil.copytree(proved, tmp_path / "site"))


@pytest.fixture
def train(site: Path, tmp_path: Path, text: Path, tiny_settings: tuple[str, ...]) -> Run:
    """train("a=b", …, out=…, policy=…): `trainer run` with tiny settings, the plug-in installed."""
    run = runner(site, tmp_path)

    def start(*settings: str, out: str = "run", policy: str = "strict") -> subprocess.CompletedProcess[str]:
        sets = [part for setting in (*tiny_settings, *settings) for part in ("--set", setting)]
        return run("karat.trainer", "run", "--policy", policy, "--data", str(text), "--out", out, *sets)

    return start


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1
    path.write_text(content.replace(old, new), encoding="utf-8")


def report(folder: Path, out: str = "run") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / out / "report.json").read_text())
    return data


def test_it_is_proved_and_its_lock_is_beside_it(proved: Path) -> None:
    said = (proved / "said.txt").read_text()
    assert said.startswith("0\n") and "2 obligations: 2 proved" in said and "none left open" in said
    lock = read_lock(proved / "gradient_limit" / "proofs.lock")
    assert lock is not None and list(lock.proofs) == list(lock.guards) == ["GRAD-1"]
    assert {p.grade for p in lock.proofs["GRAD-1"].values()} == {"PROVED"}
    assert f"GRAD-1: {proved / 'gradient_limit' / 'proofs.lock'} written" in said
    ours = read_lock(LOCK)
    assert ours is not None and "GRAD-1" not in ours.proofs


def test_it_is_guarded_and_reported(train: Run, site: Path, tmp_path: Path) -> None:
    ran = train()
    assert ran.returncode == 0, ran.stderr
    data = report(tmp_path)
    guard = next(g for g in data["guards"] if g["invariant"] == "GRAD-1")
    assert (guard["state"], guard["checks"], guard["violations"]) == ("held", 9, 0) and guard["note"] == "every step"
    assert guard["required"] == "0 <= |g| <= 1000"
    proof = next(p for p in data["proofs"] if p["invariant"] == "GRAD-1")
    assert proof["grade"] == "PROVED" and proof["shown"] == 2 and not proof["stale"]
    assert "GRAD-1: The limit is declared; nothing proves that it is a good one." in data["notes"]
    assert data["environment"]["gradient-limit"] == "0.1.0"
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and all(
        row["margins"]["GRAD-1"] == min(1000.0 - row["gradient_norm"], row["gradient_norm"]) for row in rows
    )
    page = runner(site, tmp_path)("karat.trainer", "explain", "gradient-limit")
    assert page.returncode == 0 and page.stdout.count("PROVED ") == 2 and "proved: z3 fp, z3" in page.stdout


def prove(site: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return runner(site, tmp_path)("karat.proofs.verify", "--only", "GRAD-1", "--jobs", "1")


def test_a_limit_that_the_run_breaks_stops_it_before_the_step(train: Run, site: Path, tmp_path: Path) -> None:
    edit(site / MODULE, "limit: float = 1000.0", "limit: float = 0.001")
    edit(site / MODULE, "statement=", "  statement=")  # layout is not meaning
    stale = train(out="stale")
    assert stale.returncode == 2 and "GRAD-1 is UNPROVED" in stale.stderr and "declared parameters" in stale.stderr
    assert prove(site, tmp_path).returncode == 0
    ran = train()
    assert ran.returncode == 1 and ran.stdout == ""
    assert re.search(
        r"GRAD-1 gradient-limit violated at step 0 \(before the step; strict\)\n"
        r"  observed   \|g\| = [\d.]+   \(trainer/observables.py, gradient_norm\)\n"
        r"  required   0 <= \|g\| <= 0.001\n  margin     -[\d.]+\n"
        r"  evidence   proved: z3 fp, z3 \(2 obligations proved, 0 tested\)\n  next       trainer explain GRAD-1",
        ran.stderr,
    )
    data = report(tmp_path)
    assert data["steps_done"] == 0 and [v["invariant"] for v in data["violations"]] == ["GRAD-1"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [r["invariant"] for r in rows if r["event"] == "violation"] == ["GRAD-1"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ops.minimum(below(norm, declared.limit), norm)", "ops.minimum(below(norm, declared.limit), norm + 1)"),
        ("return limit - norm", "return limit - norm + 1"),
    ],
    ids=["margin", "its-helper"],
)
def test_what_was_edited_since_is_unproved_and_refused(
    old: str, new: str, train: Run, site: Path, tmp_path: Path
) -> None:
    edit(site / MODULE, old, new)
    ran = train()
    assert ran.returncode == 2 and ran.stdout == "" and "Traceback" not in ran.stderr
    assert "GRAD-1 is UNPROVED: gradient_limit.margin" in ran.stderr and "karat.proofs.verify" in ran.stderr
    assert not (tmp_path / "run").exists()
    lock = (site / "gradient_limit" / "proofs.lock").read_bytes()
    wrong = prove(site, tmp_path)
    assert wrong.returncode == 1 and "REFUTED" in wrong.stdout and "left as it was" in wrong.stdout
    assert (site / "gradient_limit" / "proofs.lock").read_bytes() == lock


def test_without_its_lock_it_is_unproved(train: Run, site: Path) -> None:
    (site / "gradient_limit" / "proofs.lock").unlink()
    ran = train()
    assert ran.returncode == 2 and "GRAD-1 is UNPROVED: 2 obligations were never shown" in ran.stderr


def test_a_broken_package_is_named_and_left_out(train: Run, site: Path, tmp_path: Path) -> None:
    edit(site / MODULE, "import math\n", "import maths_that_is_not_there\n")
    named = "the entry point gradient-limit = gradient_limit:INVARIANT (group karat.invariants) of the package gradient-limit"
    ran = train()
    assert ran.returncode == 2 and "Traceback" not in ran.stderr and named in ran.stderr
    assert "ModuleNotFoundError: No module named 'maths_that_is_not_there'" in ran.stderr
    warned = train(policy="warn", out="warned")
    assert warned.returncode == 0 and named in warned.stderr
    assert any(named in note for note in report(tmp_path, "warned")["notes"])
    unknown = prove(site, tmp_path)
    assert unknown.returncode == 2 and named in unknown.stderr and "Traceback" not in unknown.stderr
    others = runner(site, tmp_path)("karat.trainer", "explain", "INV-8")
    assert others.returncode == 0 and others.stdout.startswith("INV-8 lr-band")


def test_a_quantity_that_is_not_offered_is_reported_and_a_probe_gives_it(
    train: Run, site: Path, tmp_path: Path
) -> None:
    for old, new in (
        ('values["gradient_norm"]', 'values["head_norm"]'),
        ('Quantity("gradient_norm"', 'Quantity("head_norm"'),
    ):
        edit(site / MODULE, old, new)
    module = (site / MODULE).read_text().replace('{"gradient_norm"', '{"head_norm"')
    (site / MODULE).write_text(module)
    assert prove(site, tmp_path).returncode == 0
    assert train(out="without").returncode == 0
    data = report(tmp_path, "without")
    assert "GRAD-1" not in {g["invariant"] for g in data["guards"]}
    assert (
        "GRAD-1 gradient-limit of the package gradient-limit: not on duty, the trainer does not offer head_norm"
        in data["notes"]
    )
    points = next(site.glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text() + "\n[karat.probes]\nGRAD-1 = gradient_limit.probe:read\n")
    (site / "gradient_limit" / "probe.py").write_text(
        "def read(view):\n    return {'head_norm': next(iter(view.model.parameters())).detach().norm()}\n"
    )
    assert train(out="probed").returncode == 0
    guard = next(g for g in report(tmp_path, "probed")["guards"] if g["invariant"] == "GRAD-1")
    assert (guard["state"], guard["checks"]) == ("held", 9) and guard["worst_margin"] > 0


def test_a_run_is_not_resumed_without_the_guard_that_it_began_with(train: Run, site: Path, tmp_path: Path) -> None:
    assert train().returncode == 0
    shutil.rmtree(next(site.glob("*.dist-info")))
    ran = runner(site, tmp_path)("karat.trainer", "resume", "run")
    assert ran.returncode == 2 and "GRAD-1: not as declared when this run began" in ran.stderr


def test_a_lock_that_cannot_be_written_goes_to_the_out_folder(site: Path, tmp_path: Path) -> None:
    path = site / "gradient_limit" / "proofs.lock"
    path.unlink()
    path.mkdir()  # what nobody can replace by a file, whatever their rights
    ran = prove(site, tmp_path)
    assert ran.returncode == 0 and f"cannot write {path}" in ran.stdout
    assert f"copy it to {path}" in ran.stdout
    lock = read_lock(tmp_path / "build" / "verify" / "gradient-limit.proofs.lock")
    assert lock is not None and list(lock.proofs) == ["GRAD-1"]
