"""The model under its wrappers, and the names of its parameters without what wrappers add to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from karat.core.errors import ConfigError

ADDED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What torch.compile, FSDP and activation checkpointing put into names; `module.` is taken off at the front only."""


def one_model(given: Any) -> nn.Module:
    """The model as one module: itself, or what holds several (a list, or a mapping of names); ConfigError for all else."""
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, Mapping) and given and all(isinstance(m, nn.Module) for m in given.values()):
        return nn.ModuleDict({str(name).replace(".", "_"): module for name, module in given.items()})
    if isinstance(given, (list, tuple)) and given and all(isinstance(m, nn.Module) for m in given):
        return nn.ModuleList(given)
    raise ConfigError(
        f"model is {type(given).__name__}", required="a torch.nn.Module, or a list or mapping of them",
        next_step="watch(model, optimizer)",
    )  # fmt: skip


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that the user wrote, under DataParallel, DistributedDataParallel, FSDP and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in (
            "DataParallel",
            "DistributedDataParallel",
            "FullyShardedDataParallel",
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A parameter's name as the user's own module has it."""
    for part in ADDED:
        name = name.replace(part, "")
    return name


def roots(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """The modules whose forward the loop calls: the model, or the members of one that only holds others."""
    if isinstance(model, (nn.ModuleList, nn.ModuleDict)):
        return tuple(model.named_children())
    return (("", model),)


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children, and those of children that only hold others."""
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from ((f"{name}.{inner}", module) for inner, module in parts(child))
        else:
            yield name, child


def compiled(model: nn.Module) -> bool:
    """Whether some of it is compiled: a hook that is taken off later makes it compile anew."""
    return any(
        type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )


def callable_modules(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """Those whose forward the loop may call: the roots, and the parts of a single one, which may only hold them."""
    own = roots(model)
    return own if own != (("", model),) else (*own, *parts(model))


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Plain name -> parameter of the unwrapped model, a tied one once."""
    return {plain_name(name): p for name, p in unwrapped(model).named_parameters()}


def local(tensor: Tensor) -> Tensor:
    """The numbers that this process holds of a tensor: its shard, its stored values, its real and imaginary parts."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.is_sparse:
        tensor = tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        tensor = tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def plain(tensor: Tensor) -> bool:
    """Whether `local` would change nothing."""
    return tensor.layout is torch.strided and not tensor.is_complex() and not hasattr(tensor, "to_local")


def some(names: Iterable[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = [f"module {name}" if name[:1].isdigit() and "." not in name else name for name in names]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
