"""`trainer gradcheck`: the gradients against those written by hand. Exit codes: 0 holds, 1 violated, 2 cannot judge."""

from __future__ import annotations

import argparse
import json
import sys

import rich.console

from karat.core.errors import ConfigError
from karat.trainer.gradcheck.check import gradcheck
from karat.trainer.gradcheck.render import as_json, lines, table

LENGTH, LONGEST = 5, 16
LARGEST_SEED = 2**32 - 1
PIPE_WIDTH = 170


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `trainer gradcheck`."""
    command.add_argument("--seed", default="0", metavar="N", help="of the inputs and weights (default: 0)")
    command.add_argument(
        "--length", default=str(LENGTH), metavar="T",
        help=f"tokens a sequence, 1 to {LONGEST} (default: {LENGTH}); with 1 attention has nothing to test",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="every tensor and error as JSON on standard output")


def check_gradients(options: argparse.Namespace) -> int:
    """Checks, shows on standard output; returns the exit code."""
    seed = _count("seed", options.seed, 0, LARGEST_SEED)
    check = gradcheck(seed, _count("length", options.length, 1, LONGEST))
    if options.json:
        print(json.dumps(as_json(check), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        console = rich.console.Console(width=width, highlight=False)
        console.print(table(check))
        for line in lines(check):
            console.print(line, soft_wrap=True)
    return check.exit_code


def _count(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and least <= int(text) <= most):
        raise ConfigError(
            f"--{name} {text[:40]!r}",
            required=f"a whole number from {least} to {most}",
            next_step=f"trainer gradcheck --{name}={LENGTH}",
        )
    return int(text)
