"""`trainer budget`: what a configuration costs, by formulas, and whether the running model agrees.

Exit codes: 0 what was measured agrees (or nothing was asked for), 1 a check is off, 2 it cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import rich.console

from karat.core.errors import ConfigError
from karat.trainer.budget.checks import CANNOT_JUDGE, HOLDS, OFF, checks, free_memory, too_large
from karat.trainer.budget.measure import measure
from karat.trainer.budget.render import Budget, as_json, view
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.presets import PRESETS

PIPE_WIDTH = 160


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `trainer budget`."""
    command.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help="a TOML file of settings")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--preset", nargs="+", default=[], metavar="NAME", help="one or several of trainer presets")
    which.add_argument("--all", action="store_true", help="every preset")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting")
    command.add_argument(
        "--measure", action=argparse.BooleanOptionalAction, default=True,
        help="run a few steps on random tokens and compare (default)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="a list of budgets as JSON on standard output")


def show_budgets(options: argparse.Namespace, console: Console) -> int:
    """Computes, measures, shows; returns the exit code: 1 where a check is off, else 2 where one could not be made."""
    if options.all and options.config is not None:
        raise ConfigError("a file and --all", required="one or the other", next_step="trainer budget --all")
    names = list(PRESETS) if options.all else options.preset
    configs = {name: read_config(options.config, options.set, preset=name) for name in names}
    if not configs:
        config = read_config(options.config, options.set)
        configs = {str(options.config or config.preset or "the default configuration"): config}
    shown = []
    for name, config in configs.items():
        budget = budget_of(name, config, to_measure=options.measure, console=console)
        shown.append(budget)
        if not options.json:
            width = None if sys.stdout.isatty() else PIPE_WIDTH
            rich.console.Console(width=width, highlight=False).print(view(budget))
    if options.json:
        print(json.dumps([as_json(budget) for budget in shown], indent=2, ensure_ascii=False, allow_nan=False))
    codes = {budget.exit_code for budget in shown}
    for budget in shown:
        off = [check.name for check in budget.checks or () if not check.ok]
        if off:
            console.error(f"trainer: {budget.name}: the running model is not as printed: {', '.join(off)}")
    return OFF if OFF in codes else CANNOT_JUDGE if CANNOT_JUDGE in codes else HOLDS


def budget_of(name: str, config: RunConfig, *, to_measure: bool, console: Console) -> Budget:
    """The budget of one configuration; a model that is too large or does not run is not measured, and says why."""
    if not to_measure:
        return Budget(name, config)
    why_not = too_large(config, free_memory())
    if why_not:
        return Budget(name, config, why_not=f"{why_not}; --no-measure prints the formulas alone")
    console.note(f"{name}: three steps on random tokens")
    try:
        return Budget(name, config, checks(config, measure(config)))
    except RuntimeError as error:  # torch's, from the model itself
        return Budget(name, config, why_not=f"a step fails: {str(error).splitlines()[0]}")
