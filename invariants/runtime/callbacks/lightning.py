"""GuardCallback for Lightning: `Trainer(..., callbacks=[GuardCallback()])`, with automatic and manual optimization.

What the Trainer's arguments declare is taken as declared: accumulation, clipping by norm, the number of steps. What the
user writes in `spec` comes first. Nothing is told by its class, so that it serves `pytorch_lightning` too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from karat.core.errors import ConfigError
from karat.invariants.runtime.callbacks.duty import Duty, Inferred

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ConfigError(
        f"Lightning is not there: {error}",
        required="the package lightning",
        next_step='pip install "karat[lightning]"',
    ) from error


class GuardCallback(Duty, Callback):  # type: ignore[misc]
    """The guards of `watch` on a run of Lightning's Trainer.fit, from on_train_start to its end or to an exception.

    Arguments as of `watch`. All optimizers of the module are watched together. Under strict `Stopped` leaves trainer.fit()
    before the parameters change. `callback.report` is the WatchReport, also after an exception.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches the guards: optimizers are made, a checkpoint is loaded, the sanity check is over."""
        optimizers = [getattr(optimizer, "_optimizer", optimizer) for optimizer in trainer.optimizers]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.attach(
            pl_module, optimizers, infer(trainer, pl_module),
            scheduler=schedulers[0] if len(schedulers) == 1 else None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            first_step=trainer.global_step if len(optimizers) == 1 else 0,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hands on the loss of the batch, as training_step returned it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, torch.Tensor):
            self.hand_on(loss=loss.detach() * trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Hands on the metric `val_loss`, where the module logs one."""
        self.hand_on(val_loss=trainer.callback_metrics.get("val_loss"))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Hands on what is about to be written; with several optimizers its step is not the guards', and nothing is."""
        if self.guards is not None and len(trainer.optimizers) == 1:
            self.guards.checkpoint(checkpoint)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the guards. A run that EarlyStopping, a Timer or the module stopped is short as it was meant to be."""
        self.finish("the training was stopped before its planned end" if trainer.should_stop else "")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Ends the guards; the exception goes on."""
        self.finish(error=exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Ends the guards, should nothing else have."""
        self.finish()


def infer(trainer: Any, module: Any) -> Inferred:
    """What the arguments of Lightning's Trainer declare of a run of this module."""
    inferred = Inferred()
    if module.automatic_optimization:
        _accumulation(trainer, inferred)
        _clipping(trainer, module, inferred)
        _total(trainer, inferred)
    else:
        for name in ("accumulation", "clip_norm", "total_steps"):
            inferred.leave(name, "manual optimization: the module decides it in training_step")
    inferred.leave("schedule", "Trainer's arguments declare none")
    return inferred


def _accumulation(trainer: Any, inferred: Inferred) -> None:
    if _scheduled(trainer):
        inferred.leave("accumulation", "GradientAccumulationScheduler changes it from epoch to epoch")
    else:
        inferred.accumulated(trainer.accumulate_grad_batches, trainer.num_training_batches)


def _clipping(trainer: Any, module: Any, inferred: Inferred) -> None:
    value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    if not type(module).configure_gradient_clipping.__qualname__.startswith("LightningModule."):
        inferred.leave("clip_norm", "the module clips in its own configure_gradient_clipping")
    elif not value:
        inferred.leave("clip_norm", f"gradient_clip_val = {value}: Trainer does not clip")
    elif algorithm is not None and algorithm.value != "norm":
        inferred.leave("clip_norm", f"gradient_clip_algorithm = {algorithm.value}: the norm has no limit")
    else:
        inferred.take("clip_norm", float(value))


def _total(trainer: Any, inferred: Inferred) -> None:
    total = math.inf if _scheduled(trainer) else trainer.estimated_stepping_batches
    if total > 0 and math.isfinite(total):
        inferred.take("total_steps", int(total))
    else:
        inferred.leave("total_steps", "Trainer cannot tell how many steps its arguments come to")


def _scheduled(trainer: Any) -> bool:
    kinds = (kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__)
    return "GradientAccumulationScheduler" in kinds
