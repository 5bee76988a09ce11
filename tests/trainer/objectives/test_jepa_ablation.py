"""The ablation: it says "better" only where its interval excludes 0, and runs from a file to JSON."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def ablation(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/jepa_ablation.py as a module, with a short probe and a wide terminal."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.setenv("COLUMNS", "250")
    module = importlib.import_module("jepa_ablation")
    monkeypatch.setattr(module, "PROBE_BATCHES", 2)
    monkeypatch.setattr(module, "PROBE_STEPS", 3)
    return module


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.010, -0.011, -0.012], "better"),
        ([0.010, 0.011, 0.012], "worse"),
        ([-0.010, -0.001, -0.012], "no difference seen"),
        ([0.0, 0.0, 0.0], "no difference seen"),
        ([-0.5], "one seed: cannot judge"),
    ],
)
def test_a_weight_buys_something_only_where_its_interval_excludes_zero(
    ablation: ModuleType, differences: list[float], verdict: str
) -> None:
    rest = (0.0, None, None, None, None, 0.0)
    results = [ablation.Result("base", seed, 1, 2.0 + seed, *rest) for seed in range(len(differences))]
    results += [ablation.Result("arm", seed, 1, 2.0 + seed + x, *rest) for seed, x in enumerate(differences)]
    mean, half, says = ablation.difference(results, "arm", "base")
    assert says == verdict and mean == pytest.approx(np.mean(differences))
    if len(differences) == 3:
        assert half == pytest.approx(4.302653 * np.std(differences, ddof=1) / 3**0.5, rel=1e-5)


def test_it_runs_from_a_file_to_json(
    ablation: ModuleType,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short, out = tmp_path / "short.txt", tmp_path / "out.json"
    short.write_bytes(text.read_bytes()[:6000])
    sizes = ["--steps", "3", "--batch", "2", "--context", "16", "--d-model", "16", "--layers", "1", "--seeds", "1"]
    ablation.main(["--data", str(short), "--weights", "0", "0.5", *sizes, "--set", "heads=2", "--json", str(out)])
    record = json.loads(out.read_text())
    arms = {result["arm"]: result for result in record["results"]}
    assert list(arms) == ["weight 0", "weight 0.5", "JEPA alone", "untrained"]
    assert record["settings"]["jepa"]["ratio"] == 0.3 and record["settings"]["jepa"]["heads"] == 2
    assert arms["weight 0"]["bpb"] != arms["weight 0.5"]["bpb"] and arms["JEPA alone"]["bpb"] is None
    assert "cannot judge" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ablation.main(["--data", str(short), "--weights", "0.5", "1"])
