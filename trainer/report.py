"""The report of a run: what was proved, what was enforced, what was not, on which data, by which code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from karat.core.errors import KaratError
from karat.core.provenance import code_revision, environment
from karat.core.render_markdown import run_markdown
from karat.core.report import RunReport, digest_holds, write_report, write_text
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants.catalogue import BUILT_IN, found
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import NOT_EXERCISED
from karat.invariants.standing import cite
from karat.trainer.data.corpus import Corpus
from karat.trainer.loop import certificate_breach
from karat.trainer.models.attention import SAMPLED
from karat.trainer.models.ternary_linear import SAMPLED as ROWS
from karat.trainer.observables import why_not
from karat.trainer.overfit import LABEL
from karat.trainer.session import REFUSED, Session

NOT_ON_DUTY = {
    "INV-1": "the run is shorter than three of its windows",
    "INV-7": "it judges several finished runs: trainer gate RUN RUN RUN",
    "LIMIT-1": "it is the comparison of the rules by which watch(…) judges other loops and trainer audit judges logs",
}
PACKAGES = ("karat", "torch", "numpy", "pydantic", "safetensors")
MOST_NESTED = 16
"""Levels of JSON in a report that is read back; those that runs write have four."""


def build_report(
    session: Session,
    outcome: str,
    exit_code: int,
    bpb: float | None,
    baseline: float | None,
    averaged: float | None = None,
    kinds: Mapping[str, float] | None = None,
) -> RunReport:
    """The record of a run, however it ended."""
    config, progress = session.config, session.progress
    return RunReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        outcome=outcome,
        exit_code=exit_code,
        policy=config.policy.value,
        steps_done=progress.step,
        steps_planned=config.steps,
        bpb=bpb if bpb is not None and math.isfinite(bpb) else None,
        baseline_bpb=baseline,
        first_loss=progress.first_loss,
        validation=session.validation.text + (LABEL if config.overfit_one_batch else ""),
        proofs=session.proofs,
        guards=tuple(guard.summary(_note(session, id_)) for id_, guard in session.monitor.guards.items()),
        violations=tuple(session.monitor.violations),
        evaluations=tuple(session.progress.evaluations),
        rungs=tuple(progress.rungs),
        certificate=_certificate(session, bpb),
        notes=tuple(_not_shown(session, bpb)),
        data=_data(session.corpus, kinds or {}),
        model={
            **config.model.model_dump(mode="json"),
            "d_ff": config.model.feedforward_width,
            "parameters": _count(session),
        },
        config=config.model_dump(mode="json"),
        environment={
            **environment((*PACKAGES, *(plugin.package for plugin in session.plugins))),
            "threads": str(torch.get_num_threads()),
        },
        revision=code_revision(Path(__file__).parents[1]),
        timing={
            "training and evaluation": round(session.elapsed(), 1),
            "of it stalled by checkpoints": round(session.saver.stalled, 3),
        },
        weights=_weights(session) if bpb is not None else "",
        averaged_bpb=averaged if averaged is not None and math.isfinite(averaged) else None,
        loss_unit=session.corpus.unit,
    )


def _data(corpus: Corpus, kinds: Mapping[str, float]) -> dict[str, Any]:
    """What the run was trained on and judged by, as the report names it; kinds: the losses of synthetic sequences."""
    manifest = corpus.manifest
    if corpus.synthetic is not None:
        losses = (
            ", ".join(f"{name} {nats:.4f}" for name, nats in kinds.items()) or "none: the run did not reach its end"
        )
        return {
            "source": manifest.source,
            "split": manifest.rule,
            "train tokens": len(corpus.train),
            "validation tokens": len(corpus.validation),
            "validation loss by kind of sequence, nats per token": losses,
            "floor, nats per token": f"{corpus.synthetic.floor:.4f} (share of random · ln V + ln 3 / T), "
            f"{corpus.synthetic.floor / math.log(2):.4f} bits",
            "manifest digest": manifest.digest,
        }
    return {
        "source": manifest.source,
        "split": manifest.rule,
        "train bytes": manifest.train_bytes,
        "validation bytes": manifest.validation_bytes,
        "validation bytes that also stand in train": f"{manifest.overlap.share:.2%} "
        f"(windows of {manifest.overlap.window} bytes)",
        **_tokens(corpus),
        "manifest digest": manifest.digest,
    }


def _tokens(corpus: Corpus) -> dict[str, Any]:
    """How text became tokens; nothing where they are bytes."""
    record = corpus.manifest.tokens
    if record is None:
        return {}
    return {
        "tokens": f"{record.kind}, {record.vocab:,} of them, trained on the training side alone",
        "tokenizer digest": record.tokenizer_sha256,
        "train tokens": record.train_tokens,
        "validation tokens": record.validation_tokens,
        "training loss": f"in bits per byte by the training side's mean of {corpus.bytes_per_token:.4f} bytes per token; "
        "the validation loss counts the bytes of every token",
    }


def read_run_report(run: Path) -> tuple[RunReport, str]:
    """(report, digest) of a run that ended; KaratError when there is none or its digest does not hold."""
    path = run / "report.json"
    if not path.is_file():
        raise KaratError(f"{run} has no report", required="a run that ended", next_step=f"trainer resume {run}")
    try:
        data = _json_object(path.read_text(encoding="utf-8"))
        stated = data.pop("digest")
        report = RunReport.model_validate(data)
        holds = digest_holds({**data, "digest": stated})
    except (OSError, ValueError, KeyError) as error:
        why = "it has no digest" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise KaratError(
            f"{path} is not a run report: {why}",
            required="report.json as the run wrote it",
            next_step=f"restore the file, or make it again: trainer resume {run}",
        ) from error
    if not holds:
        raise KaratError(f"{path} was altered: its digest is not that of its content", required=f"digest {stated}")
    return report, str(stated)


def _json_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is, nested no deeper than a report can be; ValueError for any other text."""
    deep = ValueError(f"its JSON is nested deeper than {MOST_NESTED} levels")
    try:
        data = json.loads(text)
    except RecursionError:
        raise deep from None
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    level: list[Any] = [data]
    for _ in range(MOST_NESTED):  # level by level: what is nested a thousand deep would end a recursion
        items = (item for held in level for item in (held.values() if isinstance(held, dict) else held))
        level = [item for item in items if isinstance(item, (dict, list))]
    if level:
        raise deep
    return data


def write_run_report(session: Session, report: RunReport) -> str:
    """Writes report.json, report.md and manifest.json into the run's folder; returns the report's digest."""
    write_text(session.out / "manifest.json", session.corpus.manifest.canonical_json() + "\n")
    earlier = session.out / "report.json"
    if earlier.is_file():  # a resumed run: what was cited before stays
        earlier.rename(session.out / f"report-{len(list(session.out.glob('report-*.json'))) + 1}.json")
    digest = write_report(session.out / "report.json", report)
    write_text(session.out / "report.md", run_markdown(report, digest))
    return digest


def _weights(session: Session) -> str:
    """The SHA-256 of the model's tensors, name by name: equal for two runs that ended with equal weights."""
    content = hashlib.sha256()
    for name, tensor in session.model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _count(session: Session) -> int:
    return sum(parameter.numel() for parameter in session.objective.parameters() if parameter.requires_grad)


def _note(session: Session, invariant: str) -> str:
    """What a reader must know beside the numbers of a guard."""
    if invariant == "INV-2":
        count = len(session.progress.rungs)
        return f"{count} rung{'' if count == 1 else 's'} consulted"
    if invariant == "INV-10":
        return (
            f"{len(session.progress.rungs)} held, judged where they are and at both ends of the run; one trial of one"
        )
    if invariant == "INV-9":
        return f"{_how_often(session, invariant)}; every layer and head, at the first {SAMPLED} positions of a sequence"
    if invariant == "INV-12":
        return (
            f"{_how_often(session, invariant)}; every ternary matrix, activations at the first {ROWS} rows of a batch"
        )
    if invariant == "INV-3" and session.config.model.d_model < inv03.POLICY_D_MODEL:
        return f"policy d_model >= {inv03.POLICY_D_MODEL} is not met; nothing proves that policy"
    if invariant == "INV-1":
        window = session.config.descent.window
        return f"statistical; every step from {2 * window if window else 0} on"
    if invariant == "INV-8" and len(session.config.peaks) > 1:
        _, matrices = session.config.peaks
        ends = session.config.band_of(matrices).ends
        return (
            f"{_how_often(session, invariant)}; Muon's rate {matrices:g} by the band of its nearest anchor, "
            f"[{ends[0]:.6g}, {ends[1]:.6g}]"
        )
    return _how_often(session, invariant)


def _how_often(session: Session, invariant: str) -> str:
    checks, steps = session.monitor.guards[invariant].checks, session.progress.step
    return "every step" if checks >= steps else f"only {checks} checks in {steps} steps"


def _certificate(session: Session, bpb: float | None) -> str:
    certificate = session.config.certificate
    rungs = [rung for rung in session.progress.rungs if rung["loss"] is not None]
    declared = f"declared gap {float(certificate.gap):g}"
    if bpb is None or not rungs:
        return f"not tried ({declared}; no finished trial with a rung)"
    gap = max(rung["loss"] for rung in rungs) - bpb
    if bpb > certificate.target:
        return (
            f"not tried: the final {bpb:.4f} is above the target {float(certificate.target):g}, so this run says nothing "
            f"about the gap of those that reach it (observed gap {gap:.4f}, {declared})"
        )
    breach = certificate_breach(session, bpb)
    return f"VOID: {breach}" if breach else f"held: observed gap {gap:.4f}, {declared}"


def _not_shown(session: Session, bpb: float | None) -> Sequence[str]:
    """What this report does not show, said outright."""
    on_duty = session.monitor.guards
    notes = [
        f"{invariant.id} {invariant.slug}: not on duty, "
        + NOT_ON_DUTY.get(invariant.id, "this configuration has no such quantity")
        + (
            f" ({session.config.steps} steps, {session.config.descent.window} in a window)"
            if invariant.id == "INV-1"
            else ""
        )
        for invariant in BUILT_IN
        if invariant.id not in on_duty
    ]
    notes += [f"{p.invariant.id} {p.invariant.slug} of the package {p.package}: not on duty, {why_not(p)}"
              for p in found(with_probes=True).plugins if p.invariant.id not in on_duty]  # fmt: skip
    notes += [f"left out: {error.seen}" for error in found(with_probes=True).broken]
    if session.progress.resumed_at:
        notes.append(
            f"the run was resumed at step {', '.join(map(str, session.progress.resumed_at))}; the tallies cover all of it"
        )
    notes += [f"{id_}: {NOT_EXERCISED}" for id_ in session.monitor.not_exercised()]
    notes += [f"{p.invariant}: {cite(p)}" for p in session.proofs if not p.current]
    for guard in on_duty.values():
        notes += [f"{guard.invariant.id}: {limit}" for limit in guard.invariant.limits]
    rows = list(read_rows(session.ledger.path))
    notes += [f"a checkpoint was refused: {row['reason']}" for row in rows if row.get("event") == REFUSED]
    taken = session.progress.step
    missing = taken - len({row["step"] for row in read_rows(session.log.path)} & set(range(taken)))
    if missing:
        notes.append(
            f"{missing} of {taken} steps are not in log.jsonl: rows of it were lost before the run was resumed"
        )
    notes += session.progress.collapsed
    if bpb is None:
        notes.append("no validation loss: the run did not reach its end")
    return notes
