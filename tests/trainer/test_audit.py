"""`trainer audit`: what it finds in a log that overran, in logs as they should be, and what it will not judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from karat.core.formulas import schedule
from karat.core.run_log import Row, RunLog, digits_of
from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.inv08_lr_band import SEED_LOG
from karat.invariants.run.catalogue import find_rule
from karat.invariants.run.finding import Finding
from karat.invariants.run.intent import Intent, merged
from karat.invariants.run.lr_checks import conforms, past_total, rises_in_decay
from karat.invariants.run.reconstruct import reconstruct
from karat.trainer.cli import main

OVERRUN = Path(__file__).with_name("audit_logs") / "overrun.txt"


def audited(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """(exit code, findings by slug and all else) of `trainer audit … --json`."""
    code = main(["audit", *map(str, arguments), "--json"])
    data = json.loads(capsys.readouterr().out)
    return code, data | {finding["slug"]: finding for finding in data["findings"]}


def words(data: dict[str, Any], outcome: str, severity: str = "") -> set[str]:
    found = [f for f in data["findings"] if f["outcome"] == outcome]
    return {f["slug"] for f in found if not severity or f["severity"] == severity}


def log_of(rates: Sequence[tuple[float, str]]) -> RunLog:
    rows = tuple(Row(f"line {k}", step, {"lr": float(text)}) for k, (step, text) in enumerate(rates))
    return RunLog("log", "test", rows, {"lr": "lr"}, {"lr": digits_of(text for _, text in rates)})


SEED = log_of(list(SEED_LOG.items()))


def test_the_report_of_a_run_that_overran(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = audited(capsys, OVERRUN)
    assert code == 1 and data["verdict"] == "VIOLATED"
    assert words(data, "violated", "FAIL") == {
        "step-budget",
        "lr-decay",
        "lr-past-end",
        "lr-schedule",
    }
    assert "step 2000; total_steps = 1000 (line 11)" in data["step-budget"]["message"]
    assert "0.002 at step 1000 -> 0.011 at step 1500" in data["lr-decay"]["message"]
    assert "declared from step 800 on" in data["lr-decay"]["message"]
    assert data["lr-schedule"]["message"].startswith("4 of 8 rows agree")
    assert data["reconstructed"]["family"] == "wsd, unclamped cosine decay" and data["reconstructed"]["fits"]
    assert [data["reconstructed"][k] for k in ("warmup", "stable_end", "total", "peak", "floor")] == [
        500,
        800,
        1000,
        0.02,
        0.002,
    ]
    assert "a uniform guess alone reaches 95.2 %; from ln 4096 it is 54.9 %" in data["claimed-reduction"]["message"]
    assert "total_steps = 1000 (line 11) and 2000" in data["declarations"]["message"]
    assert words(data, "not decided") == {"loss-trend", "validation", "tokens"}


def test_the_table_alone_and_with_a_declared_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.txt"
    lines = OVERRUN.read_text().splitlines()
    table.write_text("\n".join(lines[lines.index("Step    Loss      LR        Grad Norm") :][:9]))
    code, data = audited(capsys, table)
    assert code == 0 and words(data, "violated", "WARN") == {"lr-decay", "schedule-fit"}
    assert data["reconstructed"]["total"] == 1000 and "3 rows are past that total" in data["schedule-fit"]["message"]
    code, data = audited(capsys, table, "--total-steps", "1000")
    assert code == 1 and words(data, "violated", "FAIL") == {"step-budget", "lr-past-end"}
    code, data = audited(capsys, table, "--schedule", "wsd", "--total-steps", "2000", "--stable-end", "800")
    assert code == 1 and words(data, "violated", "FAIL") == {"lr-decay"}


def cosine(step: int) -> float:
    return float(schedule.cosine(step, 100, 3000, 1e-3, 1e-4))


def wsd(step: int) -> float:
    return float(schedule.wsd(step, 60, 720, 1200, 0.004, 0.0004))


def linear_from_zero(step: int) -> float:
    return 5e-5 * (step / 55 if step < 55 else (1000 - step) / 945)


FITTED: list[tuple[str, Callable[[int], float], range, str, tuple[str, int, int, int]]] = [
    ("every row of wsd", wsd, range(1200), "{!r}", ("wsd", 60, 720, 1200)),
    ("six decimals", lambda s: cosine(s), range(0, 3000, 10), "{:.6f}", ("cosine", 100, 100, 3000)),
    ("killed early", lambda s: cosine(s), range(0, 1500, 10), "{!r}", ("cosine", 100, 100, 3000)),
    ("no row at the peak", linear_from_zero, range(10, 1001, 10), "{!r}", ("linear", 55, 55, 1000)),
    ("steps from 1", lambda s: cosine(s - 1), range(1, 3001, 7), "{!r}", ("cosine", 100, 100, 3000)),
    ("no warm-up", lambda s: schedule.cosine(s, 0, 900, 3e-4, 0), range(0, 900, 9), "{!r}", ("cosine", 0, 0, 900)),
    ("constant", lambda s: 1e-3, range(0, 500, 10), "{}", ("constant", 0, 0, 0)),
]


@pytest.mark.parametrize(("rate", "steps", "form", "expected"), [f[1:] for f in FITTED], ids=[f[0] for f in FITTED])
def test_the_schedule_is_reconstructed(
    rate: Callable[[int], float], steps: range, form: str, expected: tuple[str, int, int, int]
) -> None:
    fit = reconstruct(log_of([(s, form.format(rate(s))) for s in steps]))
    assert fit is not None and fit.holds
    shape = fit.shape
    if form == "{:.6f}":  # two digits of each rate: neighbouring totals fit as well
        assert shape.family == expected[0] and abs(shape.total - expected[3]) <= 30
    else:
        assert (shape.family, shape.warmup, shape.stable_end, shape.total) == expected


def test_the_seeds_schedule_is_the_unclamped_cosine() -> None:
    fit = reconstruct(SEED)
    assert fit is not None and fit.holds and fit.shape.unclamped and fit.worst < 0.5
    assert (fit.shape.warmup, fit.shape.stable_end, fit.shape.total) == (500, 800, 1000)


@pytest.mark.parametrize(
    "rate", [lambda s: 0.1 * 0.5 ** (s // 300), lambda s: 0.1 * 0.998**s, lambda s: 0.1 / math.sqrt(s + 9)]
)
def test_other_schedules_fit_none(rate: Callable[[int], float]) -> None:
    fit = reconstruct(log_of([(s, repr(rate(s))) for s in range(0, 2000, 10)]))
    assert fit is None or not fit.holds


def test_as_many_parameters_as_rows_is_no_fit() -> None:
    fit = reconstruct(log_of([(10, "0.0010"), (20, "0.0020"), (100, "0.0011"), (180, "0.0002")]))
    assert fit is None or not fit.holds


DECLARED = Intent(total_steps=1200, schedule="wsd", peak=0.004, floor=0.0004, warmup=60, stable_end=720)


@pytest.mark.parametrize("form", ["{!r}", "{:.6f}", "{:.3e}", "{:g}"])
def test_a_run_that_conforms(form: str) -> None:
    log = log_of([(s, form.format(wsd(s))) for s in range(0, 1200, 5)])
    for finding in (conforms(log, DECLARED), rises_in_decay(log, DECLARED)):
        assert finding.word == "ok" and finding.rows > 90, finding


def perturbed(step: int, factor: float) -> Finding:
    rates = [(s, f"{wsd(s) * (factor if s == step else 1):.9f}") for s in range(0, 1300, 5)]
    return conforms(log_of(rates), DECLARED)


@pytest.mark.parametrize("step", [0, 30, 300, 800, 1195, 1250])
def test_one_row_that_does_not_conform_is_named(step: int) -> None:
    assert perturbed(step, 1.0).word == "ok"
    finding = perturbed(step, 1.01)
    assert finding.word == "FAIL" and finding.where == f"step {step}"


def test_a_declared_restart_is_no_rise() -> None:
    rates = [(s, repr(1e-3 * (1 - s % 100 / 100))) for s in range(0, 300, 10)]
    declared = Intent(schedule="cosine", warmup=0, total_steps=300)
    assert rises_in_decay(log_of(rates), declared).word == "FAIL"
    assert rises_in_decay(log_of(rates), Intent(restarts=(100, 200))).word == "ok"
    assert rises_in_decay(log_of(rates), Intent(restarts=(100,))).word == "WARN"


def test_past_the_total_the_rate_may_stay_but_not_rise() -> None:
    flat = log_of([(s, repr(wsd(s))) for s in range(0, 1500, 10)])
    assert past_total(flat, Intent(total_steps=1200)).word == "ok"
    assert past_total(flat, DECLARED).word == "ok"
    assert past_total(SEED, Intent(total_steps=1000)).word == "FAIL"
    assert past_total(SEED, Intent(total_steps=2000)).word == "not decided"


def test_options_count_before_the_text_and_differences_are_kept() -> None:
    both = merged((Intent(total_steps=5, where={"total_steps": "--total-steps"}), Intent(total_steps=7, peak=1.0)))
    assert both.total_steps == 5 and both.peak == 1.0
    assert both.conflicts == ("total_steps = 5 (--total-steps) and 7 (declared)",)


def write_losses(path: Path, losses: Sequence[float], **columns: Sequence[float]) -> Path:
    rows = [{"step": k, "loss": x, **{n: v[k] for n, v in columns.items()}} for k, x in enumerate(losses)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_finding_carries_id_slug_and_margin(capsys: pytest.CaptureFixture[str]) -> None:
    findings = audited(capsys, OVERRUN, "--vocab", "4096")[1]["findings"]
    assert len(findings) == 15
    for finding in findings:
        assert finding["slug"] == (LR_BAND.slug if finding["id"] == "INV-8" else find_rule(finding["id"]).slug)
        held = finding["outcome"] == "holds"
        assert finding["outcome"] == "not decided" or (
            finding["margin"] is not None and (finding["margin"] >= 0) == held
        )


def test_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(4)
    falling = [2 + 3 * math.exp(-k / 60) + random.gauss(0, 0.05) for k in range(240)]
    log = tmp_path / "log.jsonl"
    code, data = audited(capsys, write_losses(log, falling), "--vocab", "200")
    assert code == 0 and not words(data, "violated") and {"loss-trend", "first-loss"} <= words(data, "holds")
    code, data = audited(capsys, write_losses(log, [*falling[:120], *(x + 2 for x in falling[120:])]))
    assert code == 0 and words(data, "violated") == {"loss-trend"}
    code, data = audited(capsys, write_losses(log, [*falling, math.nan]))
    assert code == 1 and words(data, "violated", "FAIL") == {"finite"} and data["finite"]["where"] == "line 241"
    code, data = audited(capsys, write_losses(log, falling, val_loss=[x / 4 for x in falling]))
    assert words(data, "violated") == {"validation"}
    code, data = audited(capsys, write_losses(log, falling), "--vocab", "4")
    assert words(data, "violated") == {"first-loss"}


def test_a_claimed_reduction_that_does_not_follow_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_losses(tmp_path / "log.jsonl", [4.0, 3.0, 2.0])
    assert audited(capsys, log, "--reduction", "50")[0] == 0
    code, data = audited(capsys, log, "--reduction", "75")
    assert code == 1 and "4 to 2 is 50.0 %" in data["claimed-reduction"]["message"]


def test_tokens_per_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses, even = [3.0] * 20, [512.0 * k for k in range(20)]
    log = tmp_path / "log.jsonl"
    assert "tokens" in words(audited(capsys, write_losses(log, losses, tokens=even))[1], "holds")
    uneven = [t + (512 if k > 9 else 0) for k, t in enumerate(even)]
    assert "tokens" in words(audited(capsys, write_losses(log, losses, tokens=uneven))[1], "violated")


def test_markdown_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "audit.md", tmp_path / "lr.png"
    assert main(["audit", str(OVERRUN), "--out", str(page), "--plot", str(picture)]) == 1
    out = capsys.readouterr().out
    assert "lr-decay" in out and "VIOLATED: 4 FAIL, 4 WARN" in out
    text = page.read_text()
    assert "## Not decided, and why" in text and "unclamped cosine" in text and "exit code 1" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rates_that_are_not_finite_fail_and_leave_nothing_to_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_losses(tmp_path / "log.jsonl", [3.0] * 9, lr=[math.nan] * 9)
    assert main(["audit", str(log), "--plot", str(tmp_path / "lr.png")]) == 1
    out, err = capsys.readouterr()
    assert "lr-range" in out and "is not written" in err and not (tmp_path / "lr.png").exists()


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = audited(capsys, OVERRUN)[1]["catalogue"]
    assert "RUN-2 lr-schedule" in catalogue["INV-8"] and catalogue["INV-3"] == "not decided from a log"


def test_a_karat_run_is_judged_by_its_own_configuration(
    tmp_path: Path, text: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in tiny_settings for part in ("--set", setting)]
    run = tmp_path / "run"
    assert main(["run", "--quiet", "--policy", "warn", "--data", str(text), "--out", str(run), *sets]) == 0
    capsys.readouterr()
    code, data = audited(capsys, run / "log.jsonl")
    assert code == 0 and {"lr-schedule", "step-budget", "finite"} <= words(data, "holds")
    assert data["declared"]["total_steps"]["where"] == "config.toml of the run"
    assert audited(capsys, run)[1]["findings"] == data["findings"]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows[-1]["lr"] = [x * 1.5 for x in rows[-1]["lr"]]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, data = audited(capsys, run)
    assert code == 1 and "lr-schedule" in words(data, "violated", "FAIL")
