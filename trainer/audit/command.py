"""`trainer audit LOG`: what a finished run's log shows, and what it does not. Exit codes: 0 holds, 1 violated, 2 cannot judge."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import rich.console

from karat.core.errors import ConfigError
from karat.core.report import write_text
from karat.invariants.run.audit import Audit, audit
from karat.invariants.run.finding import CANNOT_JUDGE, exit_code
from karat.invariants.run.intent import KINDS, Intent, impossible, merged
from karat.trainer.audit.declarations import of_karat_run, of_spec
from karat.trainer.audit.plot import plot_audit
from karat.trainer.audit.read import read_log
from karat.trainer.audit.render import as_json, markdown, rich_view
from karat.trainer.console import Console

PIPE_WIDTH = 140
COUNTS = ("total_steps", "warmup", "stable_end", "vocab")
RATES = ("peak", "floor", "reduction")
NEXT = "trainer audit LOG --total-steps 1000 --schedule wsd --peak 0.02 --floor 0.002 --warmup 500 --stable-end 800"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `trainer audit`."""
    command.add_argument("log", type=Path, metavar="LOG", help="JSONL, CSV, trainer_state.json, TensorBoard events, or a "
                         "text with a table; or the folder of a run")  # fmt: skip
    command.add_argument(
        "--spec", type=Path, metavar="FILE.toml", help="declarations: keys of Spec, and the options below as keys"
    )
    command.add_argument("--total-steps", metavar="N", help="the declared number of steps")
    command.add_argument("--schedule", choices=KINDS, help="the declared schedule; wsd decays in a straight line")
    command.add_argument("--decay", choices=("linear", "cosine"), help="the form of wsd's decay")
    command.add_argument("--peak", metavar="LR", help="the declared largest learning rate")
    command.add_argument("--floor", metavar="LR", help="the declared last learning rate")
    command.add_argument("--warmup", metavar="N", help="steps of warm-up")
    command.add_argument("--stable-end", metavar="N", help="the step at which wsd starts to decay")
    command.add_argument(
        "--restart", metavar="N", action="append", default=[], help="a step at which the rate may rise again"
    )
    command.add_argument(
        "--vocab", "--classes", metavar="N", help="number of classes of the loss, which is then taken to be in nats"
    )
    command.add_argument("--reduction", metavar="PERCENT", help="the loss reduction that is claimed of the run")
    command.add_argument("--window", metavar="ROWS", help="rows in a window of INV-1's test (default: up to 60)")
    command.add_argument("--json", action="store_true", help="the audit as JSON on standard output")
    command.add_argument("--out", type=Path, metavar="FILE.md", help="write a Markdown report")
    command.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the rate against the reconstructed schedule"
    )


def audit_log(options: argparse.Namespace, console: Console) -> int:
    """Reads, judges, shows; returns the exit code."""
    given = _options(options)
    spec = of_spec(options.spec) if options.spec is not None else Intent()
    log, own = read_log(options.log)
    intent = merged((given, spec, of_karat_run(options.log), own))
    wrong = impossible(intent)
    if wrong:
        raise ConfigError(f"these declarations cannot all be meant: {wrong}", required="warmup <= stable_end <= total_steps, "
                          "floor <= peak, positive totals", next_step=NEXT)  # fmt: skip
    result = audit(log, intent, _count("window", options.window))
    _show(result, to_json=options.json)
    if options.out is not None:
        write_text(options.out, markdown(result))
    if options.plot is not None and not plot_audit(result, options.plot):
        console.warn(f"{options.plot} is not written: the log has no finite learning rate with a step")
    code = exit_code(result.findings)
    if code == CANNOT_JUDGE:
        console.error(
            f"trainer: nothing in {options.log} decides anything\n  required  rows with a loss or a learning rate, and steps\n"
            f"  next      {NEXT}"
        )
    return code


def _show(result: Audit, *, to_json: bool) -> None:
    if to_json:
        print(json.dumps(_plain(as_json(result)), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        rich.console.Console(width=width, highlight=False).print(rich_view(result))


def _plain(value: Any) -> Any:
    """JSON data with the numbers that JSON has no form for as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _options(options: argparse.Namespace) -> Intent:
    """The declarations of the command line."""
    values: dict[str, Any] = {name: _count(name, getattr(options, name)) for name in COUNTS}
    values |= {name: _rate(name, getattr(options, name)) for name in RATES}
    values |= {"schedule": options.schedule, "decay": options.decay}
    restarts = [_count("restart", text) for text in options.restart]
    values["restarts"] = tuple(step for step in restarts if step is not None)
    where = {name: f"--{name.replace('_', '-')}" for name, value in values.items() if value not in (None, ())}
    return dataclasses.replace(Intent(), **values, where=where)


def _count(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    plain = text.replace(",", "").replace("_", "")
    if not (plain.isascii() and plain.isdigit() and len(plain) <= 15):
        raise _bad(name, text, "a whole number")
    if name == "window" and int(plain) < 2:
        raise _bad(name, text, "at least 2 rows")
    return int(plain)


def _rate(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _bad(name, text, "a finite number")
    return value


def _bad(name: str, text: str, required: str) -> ConfigError:
    return ConfigError(f"--{name.replace('_', '-')} {text[:40]!r}", required=required, next_step=NEXT)
