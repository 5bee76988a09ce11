"""A stand-in for `watch` that judges nothing: it keeps what a loop did, so that loops can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class Recorder:
    """Of one attachment: the digest of the parameters after each step of the first optimizer, and all that was told."""

    def __init__(self, model: Any, optimizer: Any, **declared: Any) -> None:
        self.modules = named(model)
        self.declared = declared
        self.violations: list[Any] = []
        self.told: list[tuple[int, str, dict[str, Any]]] = []
        self.digests: list[float] = []
        self.rates: list[float] = []
        first = optimizer if isinstance(optimizer, torch.optim.Optimizer) else next(iter(optimizer))
        self._handle = first.register_step_post_hook(self._after_step)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return len(self.digests)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.digests.append(sum(_digest(p) for module in self.modules for p in module.parameters()))
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def log(self, **metrics: Any) -> None:
        """As of `watch`."""
        self.told.append((self.steps, "log", _plain(metrics)))

    def checkpoint(self, state: Any, **metrics: Any) -> None:
        """As of `watch`."""
        self.told.append((self.steps, "checkpoint", _plain({"state": state, **metrics})))

    def split(self, **parts: Any) -> None:
        """As of `watch`."""
        self.told.append((self.steps, "split", _plain(parts)))

    def take(self, finding: Any) -> None:
        """What a pure function found enters here."""
        self.told.append((self.steps, "finding", {"finding": str(finding)}))

    def finish(self) -> None:
        """Detaches; calling it again is harmless."""
        self._handle.remove()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.finish()


class Recorders:
    """An attach that keeps every Recorder it makes."""

    def __init__(self) -> None:
        self.made: list[Recorder] = []

    def __call__(self, model: Any, optimizer: Any, **declared: Any) -> Recorder:
        self.made.append(Recorder(model, optimizer, **declared))
        return self.made[-1]

    @property
    def steps(self) -> int:
        """Optimizer steps of all attachments together."""
        return sum(recorder.steps for recorder in self.made)

    def trace(self) -> list[Any]:
        """All that happened, so that two runs can be compared for equality."""
        return [(r.digests, r.rates, r.told, sorted(r.declared)) for r in self.made]


def named(model: Any) -> list[torch.nn.Module]:
    """The modules of what `watch` takes as a model: one, several, or several by name."""
    if isinstance(model, torch.nn.Module):
        return [model]
    return list(model.values() if isinstance(model, Mapping) else model)


def _digest(parameter: torch.Tensor) -> float:
    values = parameter.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    values = values.double().flatten()
    return float((values * torch.linspace(1.0, 2.0, values.numel(), dtype=torch.float64)).sum())


def _plain(value: Any) -> Any:
    """Tensors as a number or a digest, containers as they are, objects by their type's name."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), _digest(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        return type(value).__name__
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else _items(value)


def _items(value: Any) -> Any:
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        return [_plain(value[index]) for index in range(len(value))]
    return type(value).__name__
