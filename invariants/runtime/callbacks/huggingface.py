"""GuardCallback for Hugging Face's Trainer: `Trainer(..., callbacks=[GuardCallback()])`.

What TrainingArguments declare is taken as declared: accumulation, clipping, the number of steps, the schedule. What the
user writes in `spec` comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from karat.core.errors import ConfigError
from karat.invariants.runtime.callbacks.duty import Duty, Inferred

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler
    from transformers import TrainerCallback, get_scheduler
    from transformers.trainer_utils import has_length
except ImportError as error:
    raise ConfigError(
        f"Hugging Face's Trainer is not there: {error}",
        required="the packages transformers and accelerate",
        next_step='pip install "karat[huggingface]"',
    ) from error

RISING = ("cosine_with_restarts",)
"""Schedules that rise again, as they are meant to."""
ON_METRICS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow a metric, so that nothing is declared of them."""


class GuardCallback(Duty, TrainerCallback):  # type: ignore[misc]
    """The guards of `watch` on a run of Trainer, from on_train_begin to on_train_end. Arguments as of `watch`.

    Steps are counted as Trainer does, also when it resumes. Under strict `Stopped` leaves trainer.train() before the
    parameters change. `callback.report` is the WatchReport. Trainer does not tell its callbacks of an exception: after one,
    the first look at `callback.report`, or the next run, takes the guards off.
    """

    _epoch_began = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attaches the guards to the model and to the optimizer under accelerate's wrapper."""
        optimizer, scheduler, scaler = unwrapped(kwargs["optimizer"], kwargs["lr_scheduler"])
        loader = kwargs.get("train_dataloader")
        batches = len(loader) if loader is not None and has_length(loader) else math.inf
        self.attach(
            kwargs["model"], [optimizer], infer(args, state, optimizer, scheduler, batches),
            scheduler=scheduler, scaler=scaler, first_step=state.global_step,
        )  # fmt: skip

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remembers the step, to tell at the end whether the data ran out."""
        self._epoch_began = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Hands on the loss: the mean of the steps since the last log, as Trainer notes it."""
        self.hand_on(loss=(logs or {}).get("loss"))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kw: Any
    ) -> None:
        """Hands on the loss of an evaluation."""
        self.hand_on(val_loss=(metrics or {}).get("eval_loss"))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hands on the step that a checkpoint records."""
        if self.guards is not None:
            self.guards.checkpoint(step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the guards. A run that a callback stopped is short as it was meant to be; one whose data ran out is not."""
        asked = control.should_training_stop and state.global_step != self._epoch_began
        self.finish("a callback stopped the training" if asked and state.global_step < state.max_steps else "")


def unwrapped(optimizer: Any, scheduler: Any) -> tuple[Any, Any, Any]:
    """The optimizer and the scheduler under accelerate's wrappers, which skip calls while gradients accumulate; the scaler."""
    scaler = None
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer, scaler = optimizer.optimizer, optimizer.scaler
    while isinstance(scheduler, AcceleratedScheduler):
        scheduler = scheduler.scheduler
    return optimizer, scheduler, scaler


def infer(
    args: Any, state: Any, optimizer: torch.optim.Optimizer, scheduler: Any, batches: float = math.inf
) -> Inferred:
    """What TrainingArguments declare of a run with this optimizer and scheduler, and so many batches in an epoch."""
    inferred = Inferred()
    inferred.accumulated(args.gradient_accumulation_steps, batches)
    if args.max_grad_norm and args.max_grad_norm > 0:
        inferred.take("clip_norm", float(args.max_grad_norm))
    else:
        inferred.leave("clip_norm", f"max_grad_norm = {args.max_grad_norm}: Trainer does not clip")
    inferred.take("total_steps", state.max_steps)
    schedule, why = declared_schedule(args, state, optimizer, scheduler)
    if schedule is None:
        inferred.leave("schedule", why)
        return inferred
    inferred.take("schedule", schedule)
    if str(args.lr_scheduler_type.value) in RISING:
        inferred.take("restarts", "any")
    return inferred


def declared_schedule(
    args: Any, state: Any, optimizer: torch.optim.Optimizer, scheduler: Any
) -> tuple[Callable[[int], float] | None, str]:
    """The rate of each update as the arguments declare it; or None, and why they declare none.

    It is built anew from the arguments, on an optimizer of its own, so that nothing that happens to the run's scheduler
    changes it. The arguments count where the run's scheduler is the one that Trainer makes of them.
    """
    kind, peak = str(args.lr_scheduler_type.value), float(args.learning_rate)
    if kind in ON_METRICS:
        return None, f"lr_scheduler_type = {kind} follows a metric"
    if optimizer.defaults.get("lr") != peak:
        return None, f"the optimizer was not made with learning_rate = {peak:g}"
    own = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=peak)
    made = get_scheduler(
        kind, own, num_warmup_steps=args.get_warmup_steps(state.max_steps), num_training_steps=state.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )  # fmt: skip
    ours, theirs = factors(made), factors(scheduler)
    if not ours or not theirs or any(recipe(factor) != recipe(ours[0]) for factor in theirs):
        return None, f"the scheduler is not the one that Trainer makes of lr_scheduler_type = {kind}"
    if len(set(scheduler.base_lrs)) > 1 or (state.global_step == 0 and scheduler.base_lrs[0] != peak):
        return None, "the parameter groups have rates of their own"
    factor = ours[0]
    return (lambda step: peak * factor(step)), ""


def factors(scheduler: Any) -> list[Callable[[int], float]]:
    """Of a LambdaLR, the factor of each group as a function of the step; of another scheduler none."""
    return list(scheduler.lr_lambdas) if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) else []


def recipe(factor: Any) -> tuple[Any, Any]:
    """What tells two factors apart: the function and the arguments that are bound to it."""
    return getattr(factor, "func", factor), getattr(factor, "keywords", None)
