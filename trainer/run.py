"""One run from configuration to report, whatever happens in between; and its resumption."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from karat.core.errors import CheckpointError, ConfigError, KaratError, StorageError
from karat.core.policy import Policy
from karat.core.render_markdown import run_markdown
from karat.core.report import write_text
from karat.invariants.runtime.monitor import NOT_EXERCISED, Stopped
from karat.trainer.budget.checks import free_memory, require_memory
from karat.trainer.checkpoint import latest_checkpoint, load_checkpoint
from karat.trainer.checkpoint.retention import FINAL
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config, to_toml
from karat.trainer.console import Console
from karat.trainer.evaluate import Interrupted, baseline_bpb
from karat.trainer.loop import (
    Disturb,
    Diverged,
    averaged_loss,
    check_end,
    final_loss,
    hold_certificate,
    losses_by_kind,
    train,
)
from karat.trainer.opening import open_session, take_up
from karat.trainer.overfit import OneBatch, judged
from karat.trainer.plot import plot_run
from karat.trainer.report import build_report, read_run_report, write_run_report
from karat.trainer.session import REFUSED, Session
from karat.trainer.signals import StopRequest

RUNS = Path("runs")
CONFIG, LOCK_FILE = "config.toml", ".lock"
HOLDS, VIOLATED, CANNOT_JUDGE = 0, 1, 2


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Holds the run's folder for this process; StorageError when another one is at work in it, or it cannot be made."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot write {run}: {error.strerror or error}",
            required="a folder that can be written",
            next_step="choose another one with --out",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StorageError(
            f"another process is at work in {run}", required="one process per run", next_step="wait, or --out another"
        ) from error
    try:
        yield
    finally:
        if not (run / CONFIG).exists():  # the run never began: leave nothing behind
            for name in (LOCK_FILE, "ledger.jsonl", "log.jsonl"):
                (run / name).unlink(missing_ok=True)
            with suppress(OSError):
                run.rmdir()
        os.close(lock)


def next_free(base: Path = RUNS) -> Path:
    """runs/0001, or the number after the highest there is; made at once, so that runs begun together have one each."""
    numbers = [int(p.name) for p in base.iterdir() if re.fullmatch(r"\d+", p.name)] if base.is_dir() else []
    free = base / f"{max(numbers, default=0) + 1:04d}"
    try:
        free.mkdir(parents=True)
    except FileExistsError:
        return next_free(base) if base.is_dir() else free
    except OSError:
        pass  # `alone` says why the folder cannot be made
    return free


def newest(base: Path = RUNS) -> Path:
    """The run in `base` that was begun last; ConfigError when there is none."""
    runs = [p for p in base.iterdir() if (p / CONFIG).is_file()] if base.is_dir() else []
    if not runs:
        raise ConfigError(
            f"there is no run in {base}", required="a run", next_step="trainer run, or trainer report RUN"
        )
    return max(runs, key=lambda p: (p / CONFIG).stat().st_mtime_ns)


def start(config: RunConfig, console: Console, disturb: Disturb | None = None) -> tuple[int, float | None]:
    """A new run: (exit code, bits per byte or None). ConfigError when the folder holds a run already."""
    out = config.out or next_free()
    with StopRequest() as stop, alone(out):
        if (out / CONFIG).exists():
            raise ConfigError(
                f"{out} already holds a run",
                required="a new folder",
                next_step=f"trainer resume {out}, or --out another",
            )
        return _begin(config, out, console, stop, disturb)


def _begin(
    config: RunConfig, out: Path, console: Console, stop: StopRequest, disturb: Disturb | None
) -> tuple[int, float | None]:
    with session_of(config, out, console) as session:
        write_text(out / CONFIG, to_toml(config.model_copy(update={"out": out})))
        return _carry_out(session, stop, disturb)


def resume(run: Path, console: Console) -> tuple[int, float | None]:
    """Continues a run from its newest complete checkpoint, bit for bit on the CPU."""
    if not (run / CONFIG).is_file():
        raise ConfigError(
            f"{run} is not the folder of a run", required=f"a folder with {CONFIG}", next_step="trainer run"
        )
    config = read_config(run / CONFIG, [])
    with StopRequest() as stop, alone(run):
        try:
            found = latest_checkpoint(run / "checkpoints")
        except CheckpointError as error:
            if (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir()):
                raise
            console.note(f"{error.seen.splitlines()[0]}: starting from the beginning")
            found = None
        for why in found.damaged if found else ():
            console.warn(f"passed over: {why}")
        checkpoint = load_checkpoint(found.path) if found else None
        for name in ("log.jsonl", "ledger.jsonl"):
            keep_rows_before(run / name, checkpoint.step if checkpoint else 0)
        with session_of(config, run, console) as session:
            if checkpoint is not None:
                take_up(session, checkpoint)
                console.note(f"resumed from {checkpoint.path} at step {checkpoint.step}")
            return _carry_out(session, stop, None)


@contextmanager
def session_of(config: RunConfig, out: Path, console: Console) -> Iterator[Session]:
    """An open session; its files are closed on the way out."""
    require_memory(config, free_memory())
    session = open_session(config, out, console)
    if config.overfit_one_batch:
        session.batches = OneBatch(**vars(session.batches))
    try:
        yield session
    except BaseException:  # it goes before what may have gone wrong on the thread, which is said
        try:
            session.saver.finish()
        except KaratError as error:
            console.warn(str(error))
        raise
    finally:
        session.log.close()
        session.ledger.close()


def keep_rows_before(path: Path, step: int) -> None:
    """Drops the rows of a log that the resumed run will write again, and rows that are damaged.

    A START row of the ledger has step 0 and stays; a rung's or a refusal's row at `step` is not written again.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
            before = row["step"] < step or (row.get("event") in ("check", REFUSED) and row["step"] == step)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if before and line.endswith("\n"):
            kept.append(line)
    write_text(path, "".join(kept))


@dataclass
class Found:
    """What a run came to: validation losses, of the averaged weights and by kind of sequence too, as far as it got."""

    baseline: float | None = None
    averaged: float | None = None
    bpb: float | None = None
    kinds: dict[str, float] = field(default_factory=dict)


def _carry_out(session: Session, stop: StopRequest, disturb: Disturb | None) -> tuple[int, float | None]:
    """Trains, evaluates, saves and reports; a violation, a divergence or a signal ends it with a checkpoint."""
    console, out = session.console, session.out
    found, message = Found(), ""
    try:
        found.baseline = baseline_bpb(session.corpus, session.validation)
        _announce(session, found.baseline)
        with console.start(session.progress.step, session.config.steps):
            train(session, stop.go_on, disturb)
        check_end(session)
        session.save(FINAL)
        bpb = _evaluate(session, stop, found)
        hold_certificate(session, bpb)
        session.saver.finish()
        code, outcome = _judge_ending(session)
        if session.config.overfit_one_batch:
            code, outcome, message = judged(session, code, outcome, bpb)
    except (Stopped, Diverged) as error:
        session.save("violation")
        code, message = VIOLATED, str(error)
        outcome = "diverged" if isinstance(error, Diverged) else "stopped by a violation"
    except Interrupted:
        session.save()
        code, outcome = CANNOT_JUDGE, f"interrupted by {stop.requested}"
        message = f"{outcome} at step {session.progress.step}; to go on: trainer resume {out}"
    session.saver.finish()
    _require_evidence(out)
    report = build_report(session, outcome, code, found.bpb, found.baseline, found.averaged, found.kinds)
    digest = write_run_report(session, report)
    try:
        plot_run(session, found.baseline)
    except OSError as error:
        console.warn(f"no picture: {error}")
    # why a code is not 0 is an error, which a quiet console shows too
    tell = console.note if code == HOLDS else console.error
    if message:
        tell(message)
    tell(f"{outcome}: {out / 'report.md'} (digest {digest[:16]}…)")
    return code, None if message else found.bpb


def _evaluate(session: Session, stop: StopRequest, found: Found) -> float:
    """The validation loss of the final weights, noted and saved with them; Diverged when it is not finite."""
    found.averaged = averaged_loss(session, stop.go_on)
    found.bpb = bpb = final_loss(session, stop.go_on)
    found.kinds = losses_by_kind(session, stop.go_on)
    if not math.isfinite(bpb):
        raise Diverged(f"the final validation loss is {bpb}", required="a finite number", next_step="lower optim.lr")
    session.evaluated(bpb)
    session.save(FINAL)  # again, now that its loss is known
    return bpb


def _require_evidence(out: Path) -> None:
    """StorageError when files that the run wrote are gone."""
    if not all((out / name).is_file() for name in (CONFIG, "log.jsonl", "ledger.jsonl")):
        raise StorageError(
            f"{out} lost its files while the run was at work, so there is no evidence of it",
            required=f"{CONFIG}, log.jsonl and ledger.jsonl, as the run wrote them",
            next_step="start the run again, in a folder that nothing else touches",
        )


def _judge_ending(session: Session) -> tuple[int, str]:
    """(exit code, outcome) of a run that reached its end."""
    monitor = session.monitor
    if monitor.violations:
        return VIOLATED, f"finished with {len(monitor.violations)} violations"
    idle = monitor.not_exercised()
    if idle and session.config.policy is Policy.STRICT:
        return CANNOT_JUDGE, f"finished, but {', '.join(idle)} {NOT_EXERCISED}"
    if session.saver.kept.get(FINAL) != session.progress.step:
        return CANNOT_JUDGE, "finished, but there was no room for its final weights"
    if session.config.policy is Policy.OFF:
        return HOLDS, "finished, with guards off"
    return HOLDS, "finished, every guard held"


def _announce(session: Session, baseline: float | None) -> None:
    config, corpus, console = session.config, session.corpus, session.console
    parameters = sum(p.numel() for p in session.objective.parameters() if p.requires_grad)
    console.note(
        f"{corpus.manifest.source}: {corpus.size}; "
        f"{parameters:,} parameters; policy {config.policy}; guards {', '.join(session.monitor.guards)}"
    )
    if baseline is not None:
        console.note(f"byte-trigram baseline: {baseline:.4f} bits per byte on {session.validation.text}")
    if corpus.synthetic is not None:
        floor = corpus.synthetic.floor
        console.note(f"floor: {floor:.4f} nats per token, {floor / math.log(2):.4f} bits, on {session.validation.text}")
    if corpus.tokenizer is not None:
        mean = f"{corpus.bytes_per_token:.3f} bytes per token"
        console.note(f"training losses are shown in bits per byte by the mean of the training side, {mean}")


def show_report(run: Path) -> str:
    """The report of a run as Markdown, made of report.json; KaratError when there is none or its digest does not hold."""
    return run_markdown(*read_run_report(run))
