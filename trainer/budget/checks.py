"""The printed budget against the running model: what must agree, how closely, and what cannot be judged."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from karat.core.errors import ConfigError
from karat.trainer.budget.activations import peak, saved
from karat.trainer.budget.formulas import backward_flops, forward_flops, parameters, update_flops
from karat.trainer.budget.measure import Measured
from karat.trainer.budget.terms import total
from karat.trainer.config import RunConfig

HOLDS, OFF, CANNOT_JUDGE = 0, 1, 2
CLOSE = (Fraction(99, 100), Fraction(101, 100))
"""Operations and saved bytes: measured over printed. Left out of the formulas are arrays of a few numbers."""
PEAK = (Fraction(6, 10), Fraction(13, 10))
"""The peak: the parts of a step overlap by less than whole layers."""
MOST_FLOPS = 10**12
"""Operations of the largest step that is measured: three such steps take minutes on a desktop CPU."""
MEMORY_SHARE = Fraction(7, 10)
"""Of the free memory, what a measured step may take."""


@dataclass(frozen=True)
class Check:
    """One quantity: what the formulas say, what was measured, and the ends of measured / printed that are let pass."""

    name: str
    unit: str
    printed: int
    measured: int
    ends: tuple[Fraction, Fraction]

    @property
    def ok(self) -> bool:
        """Whether it agrees; decided in whole numbers."""
        low, high = self.ends
        return low * self.printed <= self.measured <= high * self.printed

    @property
    def required(self) -> str:
        """What is let pass, as text."""
        low, high = self.ends
        return "equal" if low == high else f"{float(low):g} to {float(high):g} of the printed"


def checks(config: RunConfig, measured: Measured) -> list[Check]:
    """Every quantity that was measured beside the printed one."""
    same = (Fraction(1), Fraction(1))
    found = [
        Check("parameters", "", total(parameters(config)), measured.parameters, same),
        Check("forward pass", "FLOP", total(forward_flops(config)), measured.forward_flops, CLOSE),
        Check("backward pass", "FLOP", total(backward_flops(config)), measured.backward_flops, CLOSE),
    ]
    if update_flops(config) or measured.update_flops:
        found.append(Check("optimizer step", "FLOP", total(update_flops(config)), measured.update_flops, CLOSE))
    return [
        *found,
        Check("saved for backward", "B", total(saved(config)), measured.saved, CLOSE),
        Check("peak of a step", "B", peak(config)[1], measured.peak, PEAK),
    ]


def too_large(config: RunConfig, free: int | None) -> str:
    """Why this configuration is not run to be measured; empty when it is. free: bytes of memory, None where unknown."""
    flops = total([*forward_flops(config), *backward_flops(config), *update_flops(config)])
    if flops > MOST_FLOPS:
        return f"a step is {flops / 1e9:,.0f} GFLOP, measured are steps of up to {MOST_FLOPS / 1e9:,.0f}"
    _, most = peak(config)
    if free is not None and most > MEMORY_SHARE * free:
        return f"a step holds {most / 1e6:,.0f} MB, of {free / 1e6:,.0f} MB that are free"
    return ""


def require_memory(config: RunConfig, free: int | None) -> None:
    """ConfigError when a step surely holds more than is free: what a measured peak may fall short of is allowed for."""
    least = int(PEAK[0] * peak(config)[1])
    if free is not None and least > free:
        raise ConfigError(
            f"a step of this model and batch holds at least {least // 10**6:,} MB, of {free // 10**6:,} MB that are free",
            required="a step that fits into memory",
            next_step="less of batch_size, model.context, model.d_model, model.n_layers, model.vocab, model.d_ff; "
            "trainer budget --no-measure shows what takes how much",
        )


def free_memory() -> int | None:
    """Bytes of memory that are available, where the system says so."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        said = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        if said:
            return int(said[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
