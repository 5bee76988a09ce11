"""The invariants of the catalogue on a loop of the user's own: those that were declared to `watch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from karat.core.errors import ConfigError, KaratError
from karat.core.policy import Policy
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import inv11_mhc_doubly_stochastic as inv11
from karat.invariants.catalogue import find
from karat.invariants.runtime.by_name import reading_by_name
from karat.invariants.runtime.monitor import Monitor
from karat.invariants.runtime.probes import Reading, gf16_absmax, learning_rate, mixing_matrices
from karat.invariants.runtime.watching.interrupts import from_signal
from karat.invariants.standing import demand_current, standings

Observe = Callable[[int], Mapping[str, Any]]
Mixing = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Guarded:
    """One declared guard: the id of its invariant, its parameters, and what observes at a step."""

    invariant: str
    parameters: Any
    probe: Callable[[int], Reading]


@dataclass(frozen=True)
class Declared:
    """The declared guards, what was not declared and so is not checked, and the monitor that judges."""

    monitor: Monitor
    probes: tuple[Callable[[int], Reading], ...]
    not_checked: dict[str, str]

    def readings(self, step: int) -> list[Reading]:
        """What is observed at a step. An observation of the user's that raises is left out, and the report says why."""
        found = []
        for place, probe in enumerate(self.probes):
            name = f"declared guard {place + 1} of {len(self.probes)}"
            if name in self.not_checked:
                continue
            try:
                found.append(probe(step))
            except KaratError:
                raise
            except Exception as error:
                if from_signal(error):
                    raise
                self.not_checked[name] = f"it raised at step {step}: {type(error).__name__}: {error}"
        return found


def declare(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    policy: Policy,
    *,
    lr_band: inv08.Band | None,
    plateau: Callable[[int], bool] | None,
    gf16: Iterable[str] | None,
    mixing: Mixing | None,
    invariants: Mapping[str, Observe] | None,
) -> Declared:
    """The guards of the catalogue that were declared. ConfigError for a name that does not exist, or is there twice."""
    guards, not_checked = _of_the_loop(model, optimizer, lr_band, plateau, gf16, mixing)
    for name, observe in (invariants or {}).items():
        invariant = find(name)
        if invariant.id in [guard.invariant for guard in guards]:
            raise ConfigError(f"{invariant.id} is declared twice", required="one declaration of each invariant")
        guards.append(Guarded(invariant.id, invariant.parameters, partial(_declared, invariant.id, observe)))
        not_checked.pop(invariant.id, None)
    return Declared(_on_duty(guards, policy), tuple(guard.probe for guard in guards), not_checked)


def _of_the_loop(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_band: inv08.Band | None,
    plateau: Callable[[int], bool] | None,
    gf16: Iterable[str] | None,
    mixing: Mixing | None,
) -> tuple[list[Guarded], dict[str, str]]:
    """The guards that `watch` reads from the optimizer and the model itself; and what was not declared, and so is not
    checked."""
    declared: list[Guarded] = []
    not_checked: dict[str, str] = {}
    on_plateau = plateau or (lambda step: False)
    if lr_band is not None:
        band = lr_band
        declared.append(
            Guarded(
                "INV-8",
                band,
                lambda step: learning_rate([(float(g["lr"]), band) for g in optimizer.param_groups], on_plateau(step)),
            )
        )
        if plateau is None:
            not_checked["INV-8, lower end"] = "no plateau was declared: only 0 <= lr <= upper end is checked"
    else:
        not_checked["INV-8"] = "no lr_band was declared"
    if gf16 is not None:
        names = _existing(model, gf16)
        declared.append(
            Guarded("INV-3", inv03.DEFAULT,
                    lambda step: gf16_absmax([_parameter(model, name) for name in names], inv03.DEFAULT))
        )  # fmt: skip
    else:
        not_checked["INV-3"] = "no parameters were declared to go through GF16"
    if mixing is not None:
        declared.append(Guarded("INV-11", inv11.DEFAULT, lambda step: mixing_matrices(*mixing())))
    else:
        not_checked["INV-11"] = "no mixing matrices were declared"
    return declared, not_checked


def _declared(invariant_id: str, observe: Observe, step: int) -> Reading:
    return reading_by_name(invariant_id, "watch, invariants", observe(step))


def _on_duty(declared: list[Guarded], policy: Policy) -> Monitor:
    """The monitor of the declared guards; under STRICT only with current proofs."""
    invariants = [(find(guard.invariant), guard.parameters) for guard in declared]
    statuses = standings(invariant for invariant, _ in invariants)
    if policy is Policy.STRICT:
        demand_current(statuses)
    return Monitor.of(invariants, policy, standing={s.invariant: s for s in statuses})


def _existing(model: torch.nn.Module, names: Iterable[str]) -> list[str]:
    """The names, each of a parameter of the model; ConfigError when one is not, or when there are none."""
    found = list(names)
    if not found:
        raise ConfigError("gf16 names no parameter", required="names, or leave gf16 out")
    for name in found:
        _parameter(model, name)
    return found


def _parameter(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter of this name as the model holds it now (one that was replaced is the new one)."""
    try:
        return model.get_parameter(name)
    except AttributeError:
        some = ", ".join(list(dict(model.named_parameters()))[:5]) or "none: the model has no parameters"
        raise ConfigError(f"the model has no parameter {name!r}", required=f"one of its names: {some}, …") from None
