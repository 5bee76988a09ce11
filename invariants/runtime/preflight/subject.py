"""What is probed: the user's own loop seen through hooks, so that every forward runs as the loop runs it.

Inputs of the network are edited, and its outputs read, while loss_fn calls it: autocast, wrappers and extra arguments
stay as they are. Nothing is put back here; `run.py` does that after each probe.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from karat.core.errors import KaratError
from karat.invariants.run.spec import Spec, covered
from karat.invariants.runtime.preflight.keep import Kept, seed_all
from karat.invariants.runtime.preflight.listen import Listener
from karat.invariants.runtime.preflight.loss import First, Loss, Reach, SubjectError, dense_gradient, reach, read_loss
from karat.invariants.runtime.preflight.probed import Call
from karat.invariants.runtime.preflight.trees import Path, leaves, replaced

LossFunction = Callable[[Any, Any], Any]
JITTER = 0.1
"""Noise on every weight, over the weight's root mean square: wakes branches that start at zero."""
LEAST_JITTER = 0.02


class _Enough(BaseException):
    """Ends loss_fn once the network has answered. No Exception, so that a loop's own handler does not take it."""


@dataclass
class Subject:
    """Model, batch, loss function and optimizers under one spec."""

    model: nn.Module
    batch: Any
    loss_fn: LossFunction
    optimizers: tuple[torch.optim.Optimizer, ...]
    spec: Spec
    kept: Kept
    deadline: float = field(default=float("inf"))
    notes: dict[str, Any] = field(default_factory=dict)
    """What one probe found out and another one uses too."""

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, tied ones once."""
        return dict(self.model.named_parameters())

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Those that ask for a gradient and are not declared frozen."""
        return {n: p for n, p in self.parameters.items() if p.requires_grad and not covered(n, self.spec.frozen)}

    @cached_property
    def held(self) -> dict[int, Tensor]:
        """id -> parameter, of all that the optimizers hold."""
        return {id(p): p for o in self.optimizers for group in o.param_groups for p in group["params"]}

    @cached_property
    def network(self) -> nn.Module:
        """The module whose inputs and outputs are probed."""
        return self.model.get_submodule(self.spec.network)

    @cached_property
    def first(self) -> First:
        """Loss and gradients as found: what the first step would be. It moves the model: the runner puts it back."""
        called: set[str] = set()
        began = time.perf_counter()
        hooks = [
            module.register_forward_pre_hook(lambda m, args, name=name: called.add(name))
            for name, module in self.model.named_modules()
        ]
        try:
            with Listener() as listener:
                loss = self.gradients()
        finally:
            for hook in hooks:
                hook.remove()
        reached = {id(p): reach(p) for p in (*self.parameters.values(), *self.held.values())}
        stuck = self._stuck_after_a_step() if loss.total.requires_grad else {}
        self.notes["seconds of a step"] = time.perf_counter() - began
        value, asks = float(loss.total.detach()), loss.total.requires_grad
        return First(value, asks, tuple(loss.terms), reached, frozenset(called), stuck, tuple(listener.heard))

    def _stuck_after_a_step(self) -> dict[str, float]:
        """Name -> share of the elements with a gradient whose bits one step leaves; of what gets one and is held."""
        due = {n: p for n, p in self.trainable.items() if id(p) in self.held and reach(p) is Reach.REACHED}
        before = {n: p.detach().clone() for n, p in due.items()}
        asked = {n: dense_gradient(p) != 0 for n, p in due.items()}
        self.step()
        return {n: float((p.detach() == before[n])[asked[n]].double().mean()) for n, p in due.items()}

    def time_left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.perf_counter()

    def loss(self, *, seed: int = 0) -> Loss:
        """One call of loss_fn with all generators seeded, in the mode that the model is in."""
        seed_all(seed)
        try:
            result = self.loss_fn(self.model, self.batch)
        except KaratError:
            raise
        except Exception as error:
            raise _explained(error, self) from error
        return read_loss(result)

    def gradients(self, *, seed: int = 0) -> Loss:
        """Loss and backward; the gradients are in the parameters' `grad`, those of before are dropped."""
        for p in (*self.parameters.values(), *self.held.values()):
            p.grad = None
        with torch.enable_grad():
            loss = self.loss(seed=seed)
            if loss.total.requires_grad:
                try:
                    torch.autograd.backward(loss.total)
                except RuntimeError as error:
                    raise SubjectError(
                        f"the loss cannot be differentiated: {_first_line(error)}",
                        required="a loss that backward() goes through, made anew in each call of loss_fn",
                    ) from error
        return loss

    def step(self) -> None:
        """One step of the optimizers on the gradients there are, at the peak rate that a scheduler noted."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if "initial_lr" in group:  # a warm-up may have it at 0 now
                    group["lr"] = group["initial_lr"]
            with unhooked(optimizer):
                self._step_of(optimizer)

    def _step_of(self, optimizer: torch.optim.Optimizer) -> None:
        """By its class: a scheduler has put a counting method in place of the instance's own."""
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        try:
            if closure is not None and closure.default is inspect.Parameter.empty:  # such as LBFGS
                type(optimizer).step(optimizer, self._closure)
            else:
                type(optimizer).step(optimizer)
        except Exception as error:
            raise SubjectError(
                f"{type(optimizer).__name__}.step() raised {type(error).__name__}: {_first_line(error)}",
                required="an optimizer that takes a step on the gradients of this loss",
                next_step="take one step by hand: loss_fn(model, batch).backward(); optimizer.step()",
            ) from error

    def _closure(self) -> float:
        return float(self.gradients().total.detach())

    @torch.no_grad()
    def forward(
        self, edits: Mapping[Path, Tensor] | None = None, *, training: bool = False, seed: int = 0,
        watched: Mapping[str, nn.Module] | None = None, seen: Callable[[str, Any, Any], None] | None = None,
    ) -> Call | None:  # fmt: skip
        """The network's first call within loss_fn, its inputs edited by path; None when loss_fn does not call it.

        seen(name, inputs, output) is told of every call of the modules `watched`.
        """
        caught: list[Call] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if not training:  # again: loss_fn may have called model.train() itself
                self.model.eval()
            return replaced((args, kwargs), edits) if edits else (args, kwargs)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            caught.append(Call(args, kwargs, *_main_output(output)))
            raise _Enough

        hooks = [
            self.network.register_forward_pre_hook(before, with_kwargs=True),
            self.network.register_forward_hook(after, with_kwargs=True),
        ]
        for name, module in (watched or {}).items():
            hooks.append(module.register_forward_hook(_teller(name, seen), prepend=True))
        try:
            if training != self.model.training:  # a part in eval mode, such as a frozen one, stays so in train mode
                self.model.train(training)
            elif not training:
                self.model.eval()
            self._call_network(seed)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return caught[0] if caught else None

    def _call_network(self, seed: int) -> None:
        example = self.spec.example
        if example is None:
            self.loss(seed=seed)
            return
        seed_all(seed)
        try:
            self.network(**example) if isinstance(example, dict) else self.network(*example)
        except Exception as error:
            raise SubjectError(
                f"the network cannot be called with Spec.example: {type(error).__name__}: {_first_line(error)}",
                required="a tuple of positional arguments, or a dictionary of keyword arguments, of its forward",
                next_step="Spec(example=(tokens, mask)) or Spec(example={'input_ids': tokens})",
            ) from error

    @torch.no_grad()
    def jitter(self) -> None:
        """Noise on every floating-point parameter: what holds of an architecture holds of all its weights."""
        source = torch.Generator().manual_seed(1)
        for p in self.parameters.values():
            if p.numel() and p.is_floating_point():
                size = max(JITTER * float(p.float().square().mean().sqrt()), LEAST_JITTER)
                p.data += (torch.randn(p.shape, generator=source) * size).to(p.device, p.dtype)


@contextmanager
def unhooked(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The optimizer without step hooks, such as guards that watch it; they are put back."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = type(hooks[0])(), type(hooks[1])()
    try:
        yield
    finally:
        optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = hooks


def _teller(name: str, seen: Callable[[str, Any, Any], None] | None) -> Callable[..., None]:
    def tell(module: nn.Module, args: Any, output: Any) -> None:
        if seen is not None:
            seen(name, args, output)

    return tell


def _main_output(output: Any) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    floating = [(path, t) for path, t in leaves(output) if t.is_floating_point()]
    named = [t for path, t in floating if path and path[-1].startswith("logits") and t.ndim]
    largest = max((t for _, t in floating if t.ndim), key=Tensor.numel, default=None)
    return (named[0] if named else largest), tuple(t for _, t in floating)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _explained(error: Exception, subject: Subject) -> SubjectError:
    """An exception of loss_fn, with what is likely to cure it."""
    devices = {str(p.device) for p in subject.parameters.values()}
    of_batch = {str(t.device) for _, t in leaves(subject.batch)}
    text = f"loss_fn raised {type(error).__name__}: {_first_line(error)}"
    if of_batch and not of_batch <= devices:
        return SubjectError(
            f"{text}   (model on {', '.join(sorted(devices))}, batch on {', '.join(sorted(of_batch))})",
            required="model and batch on one device",
            next_step="move the batch in loss_fn, as the loop does: batch.to(device)",
        )
    if isinstance(error, TypeError) and ("argument" in str(error)):
        return SubjectError(
            text,
            required="loss_fn(model, batch) that calls the model with every argument its forward needs",
            next_step="pass them in loss_fn: lambda model, batch: criterion(model(batch[0], mask=batch[1]), batch[2])",
        )
    return SubjectError(
        text, required="loss_fn(model, batch) as the training loop runs it", next_step="call it once by itself"
    )
