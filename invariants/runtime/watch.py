"""watch: the guards on any PyTorch loop, attached to the optimizer's own step hook.

    guards = watch(model, optimizer, policy="strict", lr_band=Band())

Nothing else in the loop changes. Each guard runs on what was declared; what was not declared is listed as not
checked, and why. (Guards that need no declaration, for any training run, are the RUN family, which is still to come.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from karat.core.errors import ConfigError
from karat.core.observation import Phase
from karat.core.policy import Policy
from karat.core.report import GuardSummary, Violation
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import inv11_mhc_doubly_stochastic as inv11
from karat.invariants.catalogue import find
from karat.invariants.runtime.by_name import reading_by_name
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.monitor import Monitor
from karat.invariants.runtime.probes import Reading, gf16_absmax, learning_rate, mixing_matrices
from karat.invariants.standing import demand_current, standings

Observe = Callable[[int], Mapping[str, Any]]
Mixing = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Guarded:
    """One declared guard: the id of its invariant, its parameters, and what observes at a step."""

    invariant: str
    parameters: Any
    probe: Callable[[int], Reading]


class Watch:
    """The guards attached to one optimizer. A context manager: leaving it detaches them."""

    def __init__(self, optimizer: torch.optim.Optimizer, monitor: Monitor, probes: list[Callable[[int], Reading]],
                 not_checked: dict[str, str], ledger: Ledger | None) -> None:  # fmt: skip
        self.step = 0
        self.not_checked = not_checked
        self._monitor, self._probes, self._ledger = monitor, probes, ledger
        self._handle: Any = optimizer.register_step_pre_hook(self._before_step)
        self._after: Any = optimizer.register_step_post_hook(self._after_step)

    @property
    def violations(self) -> list[Violation]:
        """What was violated so far, in order."""
        return list(self._monitor.violations)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._monitor.check(Phase.BEFORE_STEP, self.step, [probe(self.step) for probe in self._probes])

    def _after_step(self, *_: Any) -> None:
        self.step += 1

    def finish(self) -> list[GuardSummary]:
        """Detaches the guards and returns their tallies; calling it again is harmless."""
        if self._handle is not None:
            self._handle.remove()
            self._after.remove()
            self._handle = None
            if self._ledger is not None:
                self._ledger.close()
        lower = self.not_checked.get("INV-8, lower end", "")
        return [guard.summary(lower if id_ == "INV-8" else "") for id_, guard in self._monitor.guards.items()]

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


def watch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    policy: Policy | str = Policy.WARN,
    lr_band: inv08.Band | None = None,
    plateau: Callable[[int], bool] | None = None,
    gf16: Iterable[str] | None = None,
    mixing: Mixing | None = None,
    invariants: Mapping[str, Observe] | None = None,
    ledger: Path | None = None,
) -> Watch:
    """Attaches the declared guards to optimizer.step(); under STRICT a violation raises before the step changes anything.

    lr_band: INV-8 on every parameter group (plateau(step) says where the lower end counts; nowhere by default).
    gf16: names of parameters that go through GF16 (INV-3). mixing(): (matrices (S, n, n), spread ()) of the last
    forward (INV-11). invariants: others of the catalogue, plug-ins too, by id or slug, each with a function of the step
    that gives what it observes, by name, as numbers or tensors; they run with their declared parameters. ConfigError
    when a name does not exist or nothing is declared. A closure passed to optimizer.step runs after the guards looked.
    """
    if policy not in list(Policy):
        raise ConfigError(f"policy {policy!r}", required=f"one of {', '.join(Policy)}")
    declared, not_checked = _of_the_loop(model, optimizer, lr_band, plateau, gf16, mixing)
    for name, observe in (invariants or {}).items():
        invariant = find(name)
        if invariant.id in [guard.invariant for guard in declared]:
            raise ConfigError(f"{invariant.id} is declared twice", required="one declaration of each invariant")
        declared.append(Guarded(invariant.id, invariant.parameters, partial(_declared, invariant.id, observe)))
        not_checked.pop(invariant.id, None)
    monitor = _on_duty(declared, Policy(policy))
    rows = Ledger(ledger) if ledger is not None else None
    monitor.ledger = rows
    return Watch(optimizer, monitor, [guard.probe for guard in declared], not_checked, rows)


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
        declared.append(Guarded("INV-8", lr_band, lambda step: learning_rate(optimizer, on_plateau(step), lr_band)))
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
    """The monitor of the declared guards; under STRICT only with current proofs. ConfigError when there are none."""
    if not declared:
        raise ConfigError(
            "nothing was declared, so there is nothing to watch",
            required="lr_band, gf16, mixing or invariants",
            next_step="see watch.__doc__",
        )
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
