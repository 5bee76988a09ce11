"""Sabotaged formulas: each change of a constant, a comparison or a clamp is refuted by the obligation meant for it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from karat.core.evidence import Grade
from karat.core.formulas import (
    anchors,
    attention,
    birkhoff,
    descent,
    ema,
    entropy,
    gf16,
    gf16_arithmetic,
    halving,
    lucas,
    schedule,
    ternary,
    victory,
)
from karat.core.obligation import Obligation
from karat.proofs.worker import decide, invariants

SABOTAGES = [
    (schedule, "    if step >= end:\n        return floor\n    return clamp(floor", "    return clamp(floor", "INV-8.ends"),
    (schedule, "    if x >= high:\n        return high\n", "", "INV-8.clamp"),
    (schedule, "return low", "return x", "INV-8.clamp"),
    (schedule, "return clamp(floor + (peak - floor) * (1 - ", "return max(floor + (peak - floor) * (1 - ", "INV-8.returned"),
    (schedule, "if step < stable_end:", "if step <= stable_end:", "INV-8.ends"),
    (schedule, "if step < warmup:", "if step <= warmup:", "INV-8.plateau"),
    (schedule, "peak * (step + 1) / warmup", "peak * step / warmup", "INV-8.ends"),
    (schedule, "1 + ops.cospi", "1 - ops.cospi", "INV-8.cosine-never-rises"),
    (schedule, "    if step >= end:\n        return floor\n    part", "    part", "INV-8.cosine-never-rises"),
    (anchors, "rate * rate <= low * high", "rate * rate <= low * low", "INV-8.nearest"),
    (anchors, "return PHI**-n / 2", "return PHI**-n / 3", "INV-8.champion"),
    (halving, "not loss <= threshold", "loss > threshold", "INV-2.nan"),
    (halving, "not loss <= threshold", "not loss < threshold", "INV-2.sufficient"),
    (halving, "not loss <= threshold", "not loss <= threshold + 1", "INV-2.necessary"),
    (halving, "return threshold - (target + gap)", "return threshold - (target - gap)", "INV-2.certificate"),
    (halving, "max(1, n // ETA)", "n // ETA", "INV-10.keep"),
    (halving, "while rung < total:", "while rung <= total:", "INV-10.rungs"),
    (gf16, "half_less_one = (1 << (drop - 1)) - 1", "half_less_one = 1 << (drop - 1)", "INV-3.encoder"),
    (gf16, "half_less_one = (1 << (drop - 1)) - 1", "half_less_one = 0", "INV-3.rounding"),
    (gf16, "half_less_one = (1 << (drop - 1)) - 1", "half_less_one = 0", "INV-3.half-ulp"),
    (gf16, "magnitude > (87 << 23)", "magnitude >= (87 << 23)", "INV-3.encoder"),
    (gf16, "magnitude >= _F32_OVERFLOW", "magnitude > _F32_OVERFLOW", "INV-3.rounding"),
    (gf16, "_F32_MIN_NORMAL = (127 - 30) << 23", "_F32_MIN_NORMAL = (127 - 31) << 23", "INV-3.encoder"),
    (gf16, "(fraction - (1 << k)) << (23 - k)", "(fraction - (1 << k)) << (22 - k)", "INV-3.decoder"),
    (gf16, "exponent = magnitude >> 23", "exponent = magnitude >> 22", "INV-3.rounding"),
    (gf16, "BIAS = 31", "BIAS = 30", "INV-3.codec"),
    (gf16, "units = round(magnitude", "units = int(magnitude", "INV-3.encode"),
    (gf16, "min(units + ((exponent + 30) << 9), INFINITY_CODE)", "units + ((exponent + 30) << 9)", "INV-3.encode"),
    (gf16, "MAX_FINITE = Fraction(2) ** 31 * (2 - Fraction(1, 512))", "MAX_FINITE = Fraction(2) ** 40", "INV-3.constants"),
    (gf16_arithmetic, "shifted, shifted | 1)", "shifted, shifted)", "INV-3.of-float64"),
    (gf16_arithmetic, "shifted, shifted | 1)", "shifted, shifted)", "INV-3.fma-edges"),
    (gf16_arithmetic, "kept + 1 + ((kept >> 2) & 1)", "kept + 2", "INV-3.add-sample"),
    (gf16_arithmetic, "kept + 1 + ((kept >> 2) & 1)", "kept + 2", "INV-3.mul-sample"),
    (gf16_arithmetic, "sign_a & sign_b", "sign_a | sign_b", "INV-3.units"),
    (gf16_arithmetic, "sign_a & sign_b", "sign_a | sign_b", "INV-3.edges-exact"),
    (gf16_arithmetic, "for step in (16, 8, 4, 2, 1)", "for step in (8, 4, 2, 1)", "INV-3.add-edges"),
    (gf16_arithmetic, "undefined = infinite & ((size_a == 0) | (size_b == 0))", "undefined = infinite & (size_a == 0)",
     "INV-3.mul-edges"),
    (gf16_arithmetic, "ops.where(size_b == 0, size_b, size_a)", "size_a", "INV-3.fma-edges"),
    (gf16_arithmetic, "ops.where(a == SIGN, 1, up)", "up", "INV-3.neighbours"),
    (gf16_arithmetic, "ops.where(unordered(a, b), False, ordinal(a, ops) < ", "(ordinal(a, ops) < ", "INV-3.order"),
    (halving, "max(1, n // ETA)", "max(2, n // ETA)", "INV-10.keep"),
    (halving, "return rung * ETA", "return rung + ETA", "INV-10.next"),
    (halving, "if r0 < 1:", "if r0 < 0:", "INV-10.rungs"),
    (halving, "if rung <= step", "if rung < step", "INV-10.judged"),
    (halving, "worst: Number = abs(len(rungs) - len(due))", "worst: Number = 0", "INV-10.judged"),
    (halving, "ops.absolute(rung - wanted)", "rung - wanted", "INV-10.judged"),
    (halving, "    if (loss == loss) != (other == other):  # one of them is NaN\n        return loss == loss\n", "",
     "INV-10.order"),
    (halving, "    if loss > other:\n        return False\n", "", "INV-10.order"),
    (halving, "return place < other_place", "return place <= other_place", "INV-10.order"),
    (halving, "        return loss == loss\n", "        return other == other\n", "INV-10.nan"),
    (halving, "    if loss < other:\n        return True\n", "    if loss < other:\n        return place < other_place\n",
     "INV-10.order"),
    (halving, "    if loss < other:\n        return True\n", "    if loss < other:\n        return False\n", "INV-10.race"),
    (halving, "    if loss < other:\n        return True\n", "", "INV-10.order"),
    (halving, "    if loss > other:\n        return False\n", "    if loss > other:\n        return True\n", "INV-10.one-first"),
    (halving, "survivors([losses[trial] for trial in alive])", "survivors([losses[place] for place in range(len(alive))])",
     "INV-10.races"),
    (halving, "if rank(losses, place) < kept", "if rank(losses, place) <= kept", "INV-10.ranks"),
    (lucas, "return b, a + b", "return b, a - b", "INV-5.step"),
    (lucas, "return b, a + b", "return a, a + b", "INV-5.pair"),
    (lucas, "START = (2, 1)", "START = (1, 1)", "INV-5.base"),
    (lucas, "for _ in range(n)", "for _ in range(n - 1)", "INV-5.exact"),
    (lucas, "HALF_ULP = Fraction(1, 2**53)", "HALF_ULP = Fraction(1, 2**50)", "INV-5.doubles"),
    (lucas, "HALF_ULP = Fraction(1, 2**53)", "HALF_ULP = Fraction(1, 2**54)", "INV-5.accepts"),
    (lucas, "closes_to * g + 1", "closes_to * g - 1", "INV-5.margin"),
    (attention, "return gain / root", "return gain", "INV-9.scale"),
    (attention, "return gain / root", "return gain * gain / root", "INV-9.square"),
    (attention, "return scale * ops.sum", "return ops.sum", "INV-9.bilinear"),
    (attention, "(near - right) - (below - across)", "(near - right) + (below - across)", "INV-9.matters"),
    (attention, "(near - right) - (below - across)", "near - across", "INV-9.bilinear"),
    (attention, "float(PHI**power)", "round(float(PHI**power), 6)", "INV-9.rounded"),
    (attention, "return gain / root", "return round(gain / root, 12)", "INV-9.in-force"),
    (birkhoff, "        defects.extend(-entry for entry in a[i])\n", "", "INV-11.residual"),
    (birkhoff, "-entry for entry in a[i]", "-entry for entry in a[0]", "INV-11.sizes"),
    (anchors, "return PHI**-n / 2", "return PHI**-n * Fraction(51, 100)", "INV-8.anchors-cover"),
    (anchors, "anchor(n) * PHI**-k, anchor(n) * PHI**k", "anchor(n) * PHI**-1, anchor(n) * PHI**1", "INV-8.band"),
    (schedule, "    if step < warmup:\n        return warmup_ramp(step, warmup, peak)\n    return cosine_decay",
     "    if step < warmup:\n        return peak\n    return cosine_decay", "INV-8.cosine-shape"),
    (entropy, "return -ops.sum(", "return ops.sum(", "INV-4.range"),
    (entropy, "return -ops.sum(ops.xlogx(p) for p in probabilities)",
     "return -ops.sum(ops.xlogx(p) for p in probabilities[1:])", "INV-4.uniform"),
    (birkhoff, "if perm[i] == j", "if perm[i] == i", "INV-11.mixture-3"),
    (birkhoff, "zip(row, column, strict=True)) for column", "zip(row[1:], column[1:], strict=True)) for column",
     "INV-11.product-3"),
    (birkhoff, "columns = list(zip(*b, strict=True))", "columns = list(b)", "INV-11.norm-2"),
    (birkhoff, "rows[i][j] / sums[j]", "rows[i][j]", "INV-11.sinkhorn-columns"),
    (victory, "doubt * doubt * spread", "doubt * spread", "INV-7.significance"),
    (victory, "4 * alpha * (1 - alpha)", "2 * alpha * (1 - alpha)", "INV-7.significance"),
    (victory, "ahead * ops.absolute(ahead)", "ahead * ahead", "INV-7.significance"),
    (victory, "1 - 2 * alpha", "1 - alpha", "INV-7.significance"),
    (victory, "(spread > 0) & (distance != 0)", "(spread >= 0) & (distance != 0)", "INV-7.margin"),
    (victory, "(spread > 0) & (distance != 0)", "spread > 0", "INV-7.margin"),
    (victory, "3 * target - (a + b + c)", "3 * target - (a + b)", "INV-7.statistic"),
    (victory, "(c - a) * (c - a)", "(c - a)", "INV-7.statistic"),
    (victory, "(1 + t * scale) * HALF", "(1 + t * scale)", "INV-7.density"),
    (ema, "clamp(end - (end - start) * (1 + cosine) / 2, start, end)", "end - (end - start) * (1 + cosine) / 2",
     "INV-6.returned"),
    (ema, "* (1 + cosine) /", "* (1 - cosine) /", "INV-6.band"),
    (ema, "ops.minimum(step, total) / total", "step / total", "INV-6.band"),
    (ema, "ops.cospi(ops.minimum(step, total) / total), start", "1 - 2 * ops.minimum(step, total) / total, start",
     "INV-6.shape"),
    (ema, "ops.maximum(ops.minimum(moved, ops.maximum(average, weight)), ops.minimum(average, weight))", "moved",
     "INV-6.held"),
    (ema, "(1 - decay) * (weight - average)", "(1 - decay) * (average - weight)", "INV-6.hull"),
    (descent, "x - lr * g for", "x + lr * g for", "INV-1.descent"),
    (descent, "for m in move) / 2", "for m in move) / 3", "INV-1.bound"),
    (descent, "for g in gradient) / 2", "for g in gradient)", "INV-1.descent"),
    (descent, "x - lr * g for", "x - 2 * lr * g for", "INV-1.attained"),
    (descent, "(len(losses) - 1)", "len(losses)", "INV-1.statistics"),
    (descent, "rise * ops.absolute(rise)", "rise * rise", "INV-1.accepts"),
    (descent, "early[1] + late[1]", "early[1] - late[1]", "INV-1.margin"),
    (descent, "tolerance * tolerance", "tolerance", "INV-1.margin"),
    (ternary, "twice > scale", "twice >= scale", "INV-12.trit"),
    (ternary, "twice < -scale", "weight < -scale", "INV-12.nearest"),
    (ternary, "weight + weight", "weight * 1.5", "INV-12.nearest"),
    (ternary, "twice = weight + weight", "twice, scale = weight, scale / 2", "INV-12.halves"),
    (ternary, "code * weight", "code", "INV-12.sum"),
    (ternary, "terms * LEVELS", "(terms - 1) * LEVELS", "INV-12.step"),
    (ternary, "LEVELS = 127", "LEVELS = 128", "INV-12.extremes"),
    (ternary, "LEVELS = 127", "LEVELS = 256", "INV-12.exact"),
]  # fmt: skip


def sabotaged(module: ModuleType, old: str, new: str) -> ModuleType:
    """The module compiled from its source with one change; its functions call each other in the changed version."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) >= 1, f"{old!r} is not in {module.__name__}"
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(compile(source.replace(old, new, 1), module.__file__, "exec"), changed.__dict__)
    return changed


def about_changed(obligation: Obligation, changed: ModuleType) -> Obligation:
    """The obligation about the changed functions: where it, or a claim or margin of its own, reads the module."""
    short = changed.__name__.rsplit(".", 1)[1]

    def rebound(f: FunctionType) -> FunctionType:
        if f.__module__ == changed.__name__:
            function: FunctionType = getattr(changed, f.__name__)
            return function
        space = {**f.__globals__, short: changed}
        return FunctionType(f.__code__, space, f.__name__, f.__defaults__, f.__closure__)

    parts = {
        name: rebound(function)
        for name in ("show", "check", "holds")
        if isinstance(function := getattr(obligation, name, None), FunctionType)
    }
    about = tuple(rebound(f) if isinstance(f, FunctionType) else f for f in obligation.about)
    return dataclasses.replace(obligation, about=about, **parts)


@pytest.mark.parametrize(
    ("module", "old", "new", "obligation_id"), SABOTAGES, ids=lambda x: str(x)[-28:].replace("\n", " ")
)
def test_each_sabotage_is_found_out(module: ModuleType, old: str, new: str, obligation_id: str) -> None:
    obligation = next(o for i in invariants() for o in i.obligations if o.id == obligation_id)
    evidence = decide(about_changed(obligation, sabotaged(module, old, new)))
    assert not evidence.expected
    assert evidence.grade in (Grade.REFUTED, Grade.VACUOUS), evidence.detail


def test_verify_ends_1_and_names_the_invariant(tmp_path: Path, repository: Path) -> None:
    package = tmp_path / "karat"
    for part in ("core", "invariants", "proofs"):
        shutil.copytree(repository / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / "core" / "formulas" / "halving.py"
    path.write_text(path.read_text().replace("not loss <= threshold", "loss > threshold"))
    lock = (package / "invariants" / "proofs.lock").read_bytes()
    ran = subprocess.run(
        [sys.executable, "-m", "karat.proofs.verify", "--only", "INV-2", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert (
        "INV-2.nan" in ran.stdout and "loss = nan" in ran.stdout and "core.formulas.halving.should_prune" in ran.stdout
    )
    assert (package / "invariants" / "proofs.lock").read_bytes() == lock
    assert '"grade": 0' in (tmp_path / "out" / "only.json").read_text()
