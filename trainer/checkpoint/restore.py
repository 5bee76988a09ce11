"""Restoring: a live model and optimizer get exactly the saved state, or a message that names what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint.load import Checkpoint, model_differences
from karat.trainer.checkpoint.manifest import describe

ABSENT = "not set"
MOMENTS = ("exp_avg", "max_exp_avg", "momentum_buffer")
"""State of torch's optimizers (Adam's, SGD's) that has the shape of its parameter."""


def require_same_config(checkpoint: Checkpoint, config_digest: str, settings: Mapping[str, Any]) -> None:
    """CheckpointError, naming the settings that differ, unless the run is configured as the checkpoint's was.

    settings: dotted name -> value, as given to `save_checkpoint` (`RunConfig.trajectory`).
    """
    if checkpoint.config_digest == config_digest:
        return
    saved = checkpoint.settings
    names = sorted(name for name in saved.keys() | settings.keys() if saved.get(name) != settings.get(name))
    lines = [
        f"  {name}: {saved.get(name, ABSENT)!r} in the checkpoint, {settings.get(name, ABSENT)!r} now" for name in names
    ]
    raise CheckpointError(
        "\n".join([f"{checkpoint.path} is of a run that is configured otherwise", *lines]),
        required=f"the configuration with digest {checkpoint.config_digest[:16]}",
        next_step="trainer resume RUN, without settings that change the run; or start a new one: trainer run",
    )


def require_same_model(checkpoint: Checkpoint, model_state: Mapping[str, Tensor]) -> None:
    """CheckpointError, naming the tensors that differ, unless names, types and shapes are the checkpoint's."""
    differences = model_differences(describe(model_state), checkpoint.model)
    if differences:
        raise CheckpointError(
            "\n".join([f"{checkpoint.path} is of another model", *differences]),
            required="the names, types and shapes of this model",
            next_step="build the model from the configuration in the checkpoint's run folder",
        )


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the saved parameters and buffers into the model; CheckpointError, and no change, if it is another one."""
    require_same_model(checkpoint, model.state_dict())
    model.load_state_dict(checkpoint.model_state)


def restore_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Gives the optimizer the saved state, bit for bit: moments, step counters, and every group's settings.

    `Optimizer.load_state_dict` casts state to the type of its parameter; here types stay as saved. State goes to the
    parameter's device. CheckpointError, and no change, if the groups or shapes are of another optimizer.
    """
    state = checkpoint.optimizer_state
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _require_fit(optimizer, parameters, checkpoint)
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise _misfit(checkpoint, str(error)) from error
    for index, saved in state["state"].items():
        parameter = parameters[index]
        live = optimizer.state[parameter]
        for key, value in saved.items():
            if isinstance(value, Tensor):  # where load_state_dict put it, in the type and with the bits of the file
                live[key] = torch.empty_like(value, device=live[key].device).copy_(value)


def _require_fit(optimizer: Optimizer, parameters: list[nn.Parameter], checkpoint: Checkpoint) -> None:
    """The saved groups have the lengths of the live ones, and each moment has the shape of its parameter."""
    state = checkpoint.optimizer_state
    try:
        saved = [len(group["params"]) for group in state["param_groups"]]
        moments = [(index, key, value) for index, of in state["state"].items() for key, value in of.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise _misfit(checkpoint, f"its state is not that of a torch optimizer: {error!r}") from error
    live = [len(group["params"]) for group in optimizer.param_groups]
    if saved != live:
        raise _misfit(checkpoint, f"its groups have {saved} parameters, the optimizer's {live}")
    for index, key, value in moments:
        if type(index) is not int or not 0 <= index < len(parameters):
            raise _misfit(checkpoint, f"it has state for parameter {index!r} of {len(parameters)}")
        required = tuple(parameters[index].shape)
        seen = tuple(value.shape) if isinstance(value, Tensor) and key.startswith(MOMENTS) else required
        if seen != required:
            raise _misfit(checkpoint, f"{key} of parameter {index} is {seen}, the parameter {required}")


def _misfit(checkpoint: Checkpoint, why: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} is of another optimizer: {why}",
        required="the same parameter groups in the same order",
        next_step="build the optimizer from the configuration in the checkpoint's run folder",
    )
