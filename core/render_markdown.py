"""Reports as Markdown, for people: the verification report and the run report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from karat.core.evidence import Evidence, MutantState, Score, score_line, unjudged
from karat.core.report import RunReport, VerificationReport, with_digest


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a `|` in a cell is escaped."""
    head = list(header)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def _counterexample(evidence: Evidence) -> str:
    found = evidence.counterexample
    if found is None:
        return ""
    values = ", ".join(f"{name} = {value}" for name, value in found.values.items())
    how = "reproduced on the running function" if found.reproduced else "NOT reproduced"
    return f"{values} ({how}{'; ' + found.note if found.note else ''})"


def verification_markdown(report: VerificationReport) -> str:
    """The verification report: a row per obligation, then counterexamples, then what the proofs assume."""
    missed = [e for e in report.evidence if e.missed]
    verdict = "everything is as expected" if not missed else f"{len(missed)} obligations are NOT as expected"
    rows = [(e.obligation, e.claim, e.engine, e.label, f"{e.seconds:.2f} s") for e in report.evidence]
    parts = [
        "# Verification report",
        f"{len(report.evidence)} obligations, {verdict}; exit code {report.exit_code}. "
        f"Revision {report.revision}; {report.created}.",
        table(("obligation", "claim", "engine", "status", "time"), rows),
    ]
    if missed:
        parts += ["## Not as expected", "\n".join(f"- **{e.obligation}** {e.grade.name}: {e.detail} "
                                                  f"{_counterexample(e)}" for e in missed)]  # fmt: skip
    refuted = [e for e in report.evidence if e.must_fail and e.expected]
    if refuted:
        parts += ["## Refuted, as they must be", "\n".join(f"- **{e.obligation}** \"{e.claim}\": "
                                                           f"{_counterexample(e)}" for e in refuted)]  # fmt: skip
    assumed = sorted({fact for e in report.evidence for fact in e.assumes})
    if assumed:
        parts += ["## Facts that proofs instantiate", "\n".join(f"- {fact}" for fact in assumed)]
    parts += ["## Mutants of the running functions", *_mutants(report)]
    parts += ["## Reach of proofs", *_reach(report)]
    parts += ["## Checks on the proofs themselves", _checks(report.evidence)]
    tools = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    parts += [f"Tools: {tools}.", f"Digest of report.json: `{with_digest(report)['digest']}`"]
    return "\n\n".join(parts) + "\n"


def _mutants(report: VerificationReport) -> Iterable[str]:
    if not report.mutants:
        yield "No mutant was judged: that is done when every obligation is as expected."
        return
    yield f"{'Mutation score: ' if unjudged(report.evidence) else ''}{score_line(report.evidence, report.mutants)}."
    functions = dict.fromkeys(m.function for m in report.mutants)
    scores = {f: Score.of(m for m in report.mutants if m.function == f) for f in functions}
    yield table(
        ("function", "killed", "equivalent", "survived"),
        [(f, s.killed, s.equivalent, s.survived) for f, s in scores.items()],
    )
    left = [m for m in report.mutants if m.state is not MutantState.KILLED]
    if left:
        yield "\n".join(f"- {m.state} {m.where} `{m.function}`: {m.change}{f' ({m.by})' if m.by else ''}" for m in left)


def _reach(report: VerificationReport) -> Iterable[str]:
    yield table(
        ("file", "lines that can run", "run by a proof", "by a test only", "by none"),
        [(f.file, f.lines, f.proved, _lines(f.tested_only), f"**{_lines(f.none)}**" if f.none else "")
         for f in report.reach],
    )  # fmt: skip


def _lines(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _checks(evidence: Iterable[Evidence]) -> str:
    rows = [
        (e.obligation, "; ".join(f"{name}: {text}" for name, text in e.checks.items())) for e in evidence if e.checks
    ]
    return table(("obligation", "checks"), rows)


def run_markdown(report: RunReport, digest: str) -> str:
    """The run report: result, proofs, guards, what was not shown, data, environment."""
    bpb = "none" if report.bpb is None else f"**{report.bpb:.4f}** {report.loss_unit}"
    baseline = "" if report.baseline_bpb is None else f"; byte-trigram baseline {report.baseline_bpb:.4f}"
    averaged = "" if report.averaged_bpb is None else f"; the averaged weights {report.averaged_bpb:.4f}"
    parts = [
        "# Run report",
        f"Outcome: **{report.outcome}** after {report.steps_done} of {report.steps_planned} steps, policy "
        f"{report.policy}, exit code {report.exit_code}.",
        f"Validation: {bpb} ({report.validation}){baseline}{averaged}." if report.bpb is not None else "Validation: none.",
        "## What is proved",
        table(
            ("invariant", "standing", "proved", "tested", "refuted as expected", "engines", "fingerprint", "stale"),
            [(p.invariant, p.grade, p.shown, p.tested, p.refuted_as_expected, ", ".join(p.engines), p.fingerprint,
              ", ".join((*p.stale, *p.missing))) for p in report.proofs],
        ),
        "## What was enforced",
        table(
            ("guard", "state", "checks", "violations", "worst margin", "at step", "required"),
            [(f"{g.invariant} {g.slug}", g.state, g.checks, g.violations,
              "" if g.worst_margin is None else f"{g.worst_margin:+.4g} {g.unit}".strip(),
              "" if g.worst_step is None else g.worst_step, g.required + (f" ({g.note})" if g.note else ""))
             for g in report.guards],
        ),
        f"Prune certificate: {report.certificate}",
    ]  # fmt: skip
    if report.rungs:
        parts.append(table(("rung", f"loss ({report.loss_unit})", "should_prune"),
                           [(r["step"], f"{r['loss']:.4f}" if r["loss"] is not None else "not finite", r["prune"])
                            for r in report.rungs]))  # fmt: skip
    shown = report.violations[:20]
    if shown:
        parts += ["## Violations", "\n".join(
            f"- {v.invariant} {v.slug} at step {v.step} ({v.phase}): observed {v.observed or v.reason}; required {v.required}"
            for v in shown)]  # fmt: skip
    if len(report.violations) > len(shown):
        parts.append(f"… and {len(report.violations) - len(shown)} more, in report.json.")
    parts += ["## What was not shown", "\n".join(f"- {note}" for note in report.notes) or "- nothing noted"]
    data = "\n".join(f"- {key}: {_readable(value)}" for key, value in report.data.items())
    model = ", ".join(f"{key} {_readable(value)}" for key, value in report.model.items())
    tools = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    timing = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.timing.items())
    settings = "\n".join(f"{name} = {value}" for name, value in _settings(report.config))
    parts += ["## Data", data, "## Model", model, "## Configuration", f"```\n{settings}\n```"]
    parts += ["## Environment", f"{tools}. Revision {report.revision}. {timing}.",
              f"Digest of report.json: `{digest}`, the SHA-256 of its content without `digest` as JSON with sorted keys, no "
              "spaces, UTF-8. `trainer report` checks it."]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _readable(value: object) -> str:
    """A count with separators; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _settings(config: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Dotted name and value of every setting but the model's, which have a section of their own."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "model":
                yield from _settings(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
