"""The entry point of the command `trainer`: says what to install where something is missing, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from karat.trainer.cli import main as run_command
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.startswith("karat"):
        raise
    MISSING: str | None = missing.name
else:
    MISSING = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 2 and one line when a package that it needs is not installed."""
    if MISSING is not None:
        print(f"trainer: {MISSING} is not installed\n  next      pip install 'karat[train]'", file=sys.stderr)
        return 2
    return run_command(arguments)
