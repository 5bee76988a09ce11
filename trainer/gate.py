"""`trainer gate RUN RUN RUN`: are the runs below the target by Student's t-test? INV-7, on the reports of finished runs.

Exit code 0: met. 1: not met. 2: cannot judge, because what was handed in is no sample of one configuration: a run that
did not finish, an altered report, a seed twice, two configurations. Three runs are decided exactly, by the proved
formula on the doubles of the reports; other numbers of runs by SciPy, which is tested and not proved.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from scipy.special import stdtr

from karat.core.errors import ConfigError, KaratError
from karat.core.formulas import victory
from karat.core.policy import Policy
from karat.core.report import ProofStatus, RunReport
from karat.invariants import inv07_victory_gate as inv07
from karat.invariants.standing import cite, demand_current, standings
from karat.trainer.config import dotted
from karat.trainer.console import Console
from karat.trainer.report import read_run_report

RUNS_AT_LEAST = 3
NOT_COMPARED = ("seed", "out")
MET, NOT_MET, CANNOT_JUDGE = 0, 1, 2
LARGEST_LOSS = 1000
"""Bits per byte: over a hundred times the loss of guessing evenly, and far from where squares overflow."""
MOST_EXPONENT = 5
"""Characters after the e of a number as text: 1e-9999 is counted with at once, 1e999999999 would never end."""
MOST_SHOWN = 40
"""Characters of a bad number in its message."""


class NoSample(KaratError):
    """The runs are not a sample of one configuration, so that no test can judge them."""

    exit_code = CANNOT_JUDGE


@dataclass(frozen=True)
class Finished:
    """One run as it was handed in: its folder, its report and the report's digest."""

    path: Path
    report: RunReport
    digest: str

    @property
    def seed(self) -> Any:
        return self.report.config.get("seed")

    @property
    def bpb(self) -> Fraction:
        """The final validation loss in bits per byte: the exact value of the double in the report."""
        if self.report.config.get("overfit_one_batch"):
            raise NoSample(
                f"{self.path} saw one batch alone (overfit_one_batch), so that its validation loss means nothing"
            )
        if self.report.bpb is None:
            raise NoSample(f"{self.path} has no validation loss")
        return Fraction(self.report.bpb)


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says of a sample. `compared` is the comparison that decided, `p` the float for people."""

    met: bool
    p: float
    mean: float
    compared: str
    margin: float
    unit: str
    required: str
    evidence: str

    @property
    def word(self) -> str:
        return "VICTORY" if self.met else "NOT MET"

    @property
    def line(self) -> str:
        """The verdict as one line."""
        return f"{self.word} p={self.p:.4g} mean={self.mean:.4f} {self.compared}"


def gate_of(target: str, alpha: str) -> inv07.Gate:
    """The declared gate from decimals or fractions as text; ConfigError outside 0 < target <= 1000, 0 < alpha <= 1/20."""
    gate = inv07.Gate(_number("target", target), _number("alpha", alpha))
    if not (0 < gate.target <= LARGEST_LOSS and float(gate.target)):
        raise _bad("target", target, f"a loss above 0, up to {LARGEST_LOSS}, in bits per byte, as float64")
    if not (0 < gate.alpha <= inv07.LARGEST_ALPHA and float(gate.alpha)):
        raise _bad("alpha", alpha, f"0 < alpha <= {float(inv07.LARGEST_ALPHA):g}, as float64")
    return gate


def _number(name: str, text: str) -> Fraction:
    """The number that a text is, exactly; ConfigError when it is none, or has more digits than can be counted with."""
    try:
        if len(text.lower().partition("e")[2]) > MOST_EXPONENT:
            raise ValueError("the exponent alone says that it is no loss and no level")
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise _bad(name, text, "two numbers, such as 1.5 and 0.01, for target and alpha") from None


def _bad(name: str, text: str, required: str) -> ConfigError:
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return ConfigError(
        f"--{name} {shown!r}", required=required, next_step="trainer gate RUN RUN RUN --target=1.5 --alpha=0.01"
    )


def sample(paths: Sequence[Path]) -> list[Finished]:
    """The runs, each readable and finished, together a sample of one configuration; NoSample with every reason."""
    if len(paths) < RUNS_AT_LEAST:
        raise NoSample(
            f"{len(paths)} run{'' if len(paths) == 1 else 's'} to judge",
            required=f"at least {RUNS_AT_LEAST} runs of one configuration with distinct seeds",
            next_step="trainer run --set seed=… for each further seed",
        )
    runs = [Finished(path, *read_run_report(path)) for path in paths]
    reasons = [reason for run in runs for reason in _unfinished(run)] or list(_no_sample(runs))
    if reasons:
        raise NoSample(
            "the gate cannot judge these runs:\n" + "\n".join(f"  {reason}" for reason in reasons),
            required="finished runs of one configuration and one validation split, with distinct seeds",
            next_step="trainer report RUN shows what a run was",
        )
    return runs


def _unfinished(run: Finished) -> Iterable[str]:
    """Why a run cannot be counted, taken alone."""
    report, optim = run.report, run.report.config.get("optim", {})
    warmup = optim.get("warmup") if isinstance(optim, dict) else None
    if report.bpb is None or not math.isfinite(report.bpb):
        yield f"{run.path} has no finite validation loss (outcome: {report.outcome})"
    elif report.loss_unit != "bits per byte":
        yield f"{run.path} cannot be held to a target: its losses are in {report.loss_unit}"
    elif not 0 <= report.bpb <= LARGEST_LOSS:
        yield f"{run.path} has a validation loss of {report.bpb:g} bits per byte, required 0 to {LARGEST_LOSS}"
    elif report.steps_done != report.steps_planned:
        yield f"{run.path} took {report.steps_done} of {report.steps_planned} steps"
    elif not isinstance(warmup, int) or report.steps_done <= warmup:
        yield f"{run.path} took {report.steps_done} steps, its warm-up has {warmup}"
    elif report.exit_code != 0:
        yield f"{run.path} ended with exit code {report.exit_code} ({report.outcome})"
    elif report.policy == Policy.OFF:
        yield f"{run.path} ran with its guards off"


def _no_sample(runs: Sequence[Finished]) -> Iterable[str]:
    """Why runs that are each finished are not a sample of one configuration."""
    for place, run in enumerate(runs):
        for other in runs[:place]:
            yield from _alike(other, run)
        if place:
            yield from _differences(runs[0], run)


def _alike(a: Finished, b: Finished) -> Iterable[str]:
    """Why two runs are not independent of each other: the first reason."""
    weights = a.report.weights
    if a.path.resolve() == b.path.resolve() or a.digest == b.digest:
        yield f"{a.path} and {b.path} are one run, given twice"
    elif a.seed == b.seed:
        yield f"{a.path} and {b.path} have the same seed {a.seed}"
    elif a.report.bpb == b.report.bpb or (weights and weights == b.report.weights):
        yield f"{a.path} and {b.path} are identical: {a.report.bpb!r} bits per byte, to the last digit, or equal weights"


def _differences(first: Finished, run: Finished) -> Iterable[str]:
    """What was not equal between two runs but their seeds and folders."""
    ours, theirs = dotted(first.report.config), dotted(run.report.config)
    names = sorted(n for n in ours.keys() | theirs.keys() if n not in NOT_COMPARED and ours.get(n) != theirs.get(n))
    for name in names:
        yield f"{first.path} has {name} = {ours.get(name)!r}, {run.path} has {theirs.get(name)!r}"
    for what, one, two in (
        ("data", first.report.data.get("manifest digest"), run.report.data.get("manifest digest")),
        ("validation", first.report.validation, run.report.validation),
        ("code", first.report.revision, run.report.revision),
    ):
        if one != two:
            yield f"{first.path} and {run.path} have different {what}: {one} and {two}"


def judge_runs(runs: Sequence[Fraction], gate: inv07.Gate, status: ProofStatus) -> GateVerdict:
    """The verdict on three or more validation losses, in bits per byte; equal ones never meet the gate."""
    mean, t = float(sum(runs) / len(runs)), _t_statistic(runs, gate)
    if len(runs) != RUNS_AT_LEAST:
        return _by_scipy(runs, gate, mean, t)
    verdict = inv07.INVARIANT.judge({"runs": list(runs)}, gate)
    ahead, spread = victory.lead(runs, gate.target), victory.scatter(runs)
    left = 4 * gate.alpha * (1 - gate.alpha) * ahead * abs(ahead)
    right = (1 - 2 * gate.alpha) ** 2 * spread
    sign = ">" if left > right else ("<" if left < right else "=")
    return GateVerdict(
        met=not verdict.violated,
        p=float(victory.lower_tail(t, 1 / math.sqrt(2 + t * t))),
        mean=mean,
        compared=f"{float(4 * gate.alpha * (1 - gate.alpha)):g}·lead·|lead| = {float(left):.6g} {sign} "
        f"{float(right):.6g} = {float((1 - 2 * gate.alpha) ** 2):g}·scatter"
        if spread
        else "the runs do not differ",
        margin=verdict.margin,
        unit=inv07.INVARIANT.unit,
        required=inv07.required(gate),
        evidence=cite(status),
    )


def _t_statistic(runs: Sequence[Fraction], gate: inv07.Gate) -> float:
    """Student's t in float64, for people; 0 where the runs do not differ, which is evidence of nothing."""
    mean = sum(runs) / len(runs)
    variance = statistics.variance(runs)
    if variance == 0:
        return 0.0
    squared = (mean - gate.target) ** 2 * len(runs) / variance
    return math.copysign(math.sqrt(squared), float(mean - gate.target))


def _by_scipy(runs: Sequence[Fraction], gate: inv07.Gate, mean: float, t: float) -> GateVerdict:
    """The same test for any number of runs, with SciPy's distribution; each run must be below the target as well."""
    p = float(stdtr(len(runs) - 1, t))
    worst = max(runs)
    met = worst < gate.target and p < gate.alpha
    return GateVerdict(
        met=met,
        p=p,
        mean=mean,
        compared=f"p {'<' if p < gate.alpha else '>='} {float(gate.alpha):g}, worst run {float(worst):.4f}",
        margin=min(float(gate.alpha) - p, float(gate.target - worst)),
        unit="",
        required=f"every run < {float(gate.target):g}, variance > 0 and p < {float(gate.alpha):g} on {len(runs)} runs",
        evidence="tested: SciPy's distribution of Student's t; the proofs are of three runs",
    )


def show_verdict(verdict: GateVerdict, runs: Sequence[Finished]) -> str:
    """The verdict in the form in which a violation is shown."""
    observed = ", ".join(f"{float(run.bpb):.6f} (seed {run.seed})" for run in runs)
    unit = f" {verdict.unit}" if verdict.unit else ""
    return "\n".join(
        (
            f"INV-7 {inv07.INVARIANT.slug} {'holds' if verdict.met else 'violated'}: {verdict.line}",
            f"  observed   {observed} bits per byte   (trainer/gate.py, judge_runs)",
            f"  required   {verdict.required}",
            f"  margin     {verdict.margin:+.4g}{unit}",
            f"  evidence   {verdict.evidence}",
            "  next       trainer explain INV-7",
        )
    )


def as_json(verdict: GateVerdict, runs: Sequence[Finished], gate: inv07.Gate) -> str:
    """The verdict as one JSON document: exact numbers as fractions in text."""
    data = {
        "verdict": verdict.word,
        "target": str(gate.target),
        "alpha": str(gate.alpha),
        **{name: value for name, value in vars(verdict).items() if name != "met"},
        "runs": [{"run": str(run.path), "seed": run.seed, "bpb": float(run.bpb), "digest": run.digest} for run in runs],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)


def gate_runs(paths: Sequence[Path], gate: inv07.Gate, policy: Policy, console: Console, *, to_json: bool) -> int:
    """The command: one line (or JSON) on standard output, the verdict in full on standard error; its exit code."""
    status = standings([inv07.INVARIANT])[0]
    if policy is Policy.STRICT:
        demand_current([status])
    runs = sample(paths)
    verdict = judge_runs([run.bpb for run in runs], gate, status)
    (console.note if verdict.met else console.error)(show_verdict(verdict, runs))
    print(as_json(verdict, runs, gate) if to_json else verdict.line, flush=True)
    return MET if verdict.met else NOT_MET
