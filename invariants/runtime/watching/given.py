"""What `watch` is given, and what it requires of it: settings, optimizers, a spec whose names exist."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError
from karat.core.policy import Policy
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.spec import Spec, read_spec, require_names
from karat.invariants.runtime.watching.naming import named_parameters, plain_name, unwrapped


def require_settings(policy: Policy | str, every: int, first_step: int) -> None:
    """ConfigError for a policy that does not exist, or a number of steps that cannot be one."""
    if policy not in list(Policy):
        raise ConfigError(f"policy {policy!r}", required=f"one of {', '.join(Policy)}")
    if every < 1:
        raise ConfigError(f"every = {every}", required="at least 1 step")
    if first_step < 0:
        raise ConfigError(f"first_step = {first_step}", required="at least 0, the steps taken before this run")


def declared_spec(
    spec: Spec | Mapping[str, Any] | str | Path | None, total_steps: int | None, model: nn.Module
) -> Spec:
    """The spec, with the total given beside it, every name of it checked on the model."""
    declared = read_spec(spec)
    if total_steps is not None:
        given = {name: getattr(declared, name) for name in declared.model_fields_set}
        declared = read_spec({**given, "total_steps": total_steps})
    if not named_parameters(model):
        raise ConfigError("the model has no parameters", required="a module with parameters to train")
    inner = unwrapped(model)
    modules = [plain_name(name) for name, _ in inner.named_modules() if name]
    parameters = [plain_name(name) for name, _ in inner.named_parameters(remove_duplicate=False)]
    buffers = [plain_name(name) for name, _ in inner.named_buffers()]
    require_names(declared, parameters, modules, [name for r in RULES for name in (r.id, r.slug)], buffers)
    return declared


def several_optimizers(given: Any, watched: Container[torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, ...]:
    """One optimizer, or a list of them, each with parameters, given once and not watched yet; ConfigError for all else."""
    several = (given,) if isinstance(given, torch.optim.Optimizer) else given
    held = tuple(several) if isinstance(several, (tuple, list)) else ()
    if not held or not all(isinstance(o, torch.optim.Optimizer) for o in held):
        raise ConfigError(
            f"optimizer is {type(given).__name__}", required="a torch.optim.Optimizer, or a list of them",
            next_step="watch(model, optimizer)",
        )  # fmt: skip
    for optimizer in held:
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise ConfigError(
                f"{type(optimizer).__name__} takes no step hooks, for its __init__ does not call that of torch.optim.Optimizer",
                required="an optimizer with step hooks",
                next_step="watch(model, the optimizer that it wraps)",
            )
    if not any(group["params"] for o in held for group in o.param_groups):
        raise ConfigError(
            "the optimizer has no groups with parameters", required="an optimizer of the model's parameters",
            next_step="torch.optim.AdamW(model.parameters(), lr=…)",
        )  # fmt: skip
    if len(set(map(id, held))) < len(held):
        raise ConfigError("an optimizer is given twice", required="each optimizer once")
    for optimizer in held:
        if optimizer in watched:
            raise ConfigError(
                "this optimizer is watched already", required="one watch(…) for each optimizer",
                next_step="guards.finish() before it is watched again",
            )  # fmt: skip
    return held
