"""A budget for people and for machines: tables, JSON. MB is 10^6 bytes, MiB 2^20; GFLOP is 10^9 operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from karat.trainer.budget import jepa
from karat.trainer.budget.activations import passing, peak, saved
from karat.trainer.budget.checks import CANNOT_JUDGE, HOLDS, OFF, Check
from karat.trainer.budget.formulas import backward_flops, forward_flops, lasting, parameters, symbols, update_flops
from karat.trainer.budget.terms import Term, total
from karat.trainer.config import RunConfig

SCHEMA = 1
HOW = (
    "operations: torch's FlopCounterMode with formulas for what it lacks; saved: autograd's hooks, by storage; peak: "
    "allocations of tensors while model, optimizer and two steps are made, by the profiler"
)


@dataclass(frozen=True)
class Budget:
    """What is said of one configuration. checks is None where nothing was to be measured; why_not where it could not be."""

    name: str
    config: RunConfig
    checks: Sequence[Check] | None = None
    why_not: str = ""

    @property
    def exit_code(self) -> int:
        """0 every check agrees, or none was asked for; 1 one is off; 2 it could not be measured."""
        if self.why_not:
            return CANNOT_JUDGE
        return OFF if any(not check.ok for check in self.checks or ()) else HOLDS


def size(count: int) -> str:
    """Bytes in both units."""
    return f"{count / 1e6:,.2f} MB = {count / 2**20:,.2f} MiB"


def flops(count: int) -> str:
    """Operations in 10^9."""
    return f"{count / 1e9:,.3f} GFLOP"


def view(budget: Budget) -> Group:
    """The budget as tables for a terminal."""
    config = budget.config
    at = symbols(config)
    names = ("V", "d", "L", "H", "F", "m", "n", "B", "T", "R", "w", *jepa.symbols(config))
    shape = ", ".join(f"{name} = {at[name]}" for name in names)
    moment, most = peak(config)
    work = [*forward_flops(config), *backward_flops(config), *update_flops(config)]
    tables = [
        _table("parameters", parameters(config), "{:,}".format),
        _table("memory that stays", lasting(config), size),
        _table("saved for the backward pass", saved(config), size),
        _table(
            f"held at the fullest moment of a step ({moment}) beside weights and state", passing(config)[moment], size
        ),
        _table("forward pass of a step", forward_flops(config), flops),
        _table("backward pass of a step", backward_flops(config), flops),
    ]
    if update_flops(config):
        tables.append(_table("optimizer step", update_flops(config), flops))
    foot = [
        Text(f"peak of a step: {size(most)}, in: {moment}", style="bold"),
        Text(
            f"one step: {flops(total(work))} for {at['R']:,} tokens, {total(work) / at['R'] / 1e6:,.3f} MFLOP a token",
            style="bold",
        ),
    ]
    head = [Text(f"{budget.name}: {config.precision}, {config.optim.name}", style="bold"), Text(shape)]
    return Group(*head, *tables, *foot, *_verdict(budget))


def _table(title: str, lines: Sequence[Term], text: Any) -> Table:
    shown = Table(title=title, title_justify="left", show_footer=True)
    shown.add_column("part", "total", no_wrap=True)
    shown.add_column("formula")
    shown.add_column("with numbers")
    shown.add_column("", text(total(lines)), justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(line.part, line.formula, line.numbers, text(line.value))
    return shown


def _verdict(budget: Budget) -> list[Any]:
    if budget.why_not:
        return [Text(f"not measured: {budget.why_not}", style="yellow")]
    if budget.checks is None:
        return [Text("not measured, as asked", style="dim")]
    shown = Table(title="measured on the running model, random tokens", title_justify="left")
    for name in ("quantity", "printed", "measured", "measured / printed", "required", ""):
        shown.add_column(
            name, no_wrap=name != "required", justify="right" if "measured" in name or name == "printed" else "left"
        )
    for check in budget.checks:
        value = {"": "{:,}".format, "B": size, "FLOP": flops}[check.unit]
        ratio = f"{check.measured / check.printed:.4f}" if check.printed else "-"
        word = Text("OK", style="green") if check.ok else Text("OFF", style="bold red")
        shown.add_row(check.name, value(check.printed), value(check.measured), ratio, check.required, word)
    return [shown, Text(HOW, style="dim")]


def as_json(budget: Budget) -> dict[str, Any]:
    """The budget as JSON data: bytes, operations of a step, numbers of parameters."""
    config = budget.config
    moment, most = peak(config)
    parts = {
        "parameters": parameters(config),
        "lasting_bytes": lasting(config),
        "saved_bytes": saved(config),
        "forward_flops": forward_flops(config),
        "backward_flops": backward_flops(config),
        "update_flops": update_flops(config),
    }
    work = sum(total(parts[name]) for name in ("forward_flops", "backward_flops", "update_flops"))
    tokens = symbols(config)["R"]
    measured = None
    if budget.checks is not None:
        measured = [
            {"quantity": check.name, "unit": check.unit, "printed": check.printed, "measured": check.measured,
             "required": check.required, "ok": check.ok}
            for check in budget.checks
        ]  # fmt: skip
    return {
        "schema_version": SCHEMA,
        "kind": "karat budget",
        "name": budget.name,
        "symbols": dict(symbols(config)),
        **{name: {"total": total(lines), "terms": [asdict(line) for line in lines]} for name, lines in parts.items()},
        "passing_bytes": {name: [asdict(line) for line in lines] for name, lines in passing(config).items()},
        "peak": {"bytes": most, "moment": moment},
        "tokens_per_step": tokens,
        "flops_per_step": work,
        "flops_per_token": work / tokens,
        "measured": measured,
        "how": HOW,
        "why_not_measured": budget.why_not,
        "exit_code": budget.exit_code,
    }
