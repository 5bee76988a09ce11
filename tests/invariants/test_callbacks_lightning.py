"""GuardCallback in Lightning's own Trainer: small modules, automatic and manual optimization, on the CPU."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from karat.core.errors import ConfigError
from karat.invariants.runtime import Stopped
from karat.invariants.runtime.callbacks.lightning import GuardCallback

pytestmark = [  # Lightning's advice, and what it uses of torch that is deprecated
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


class Classifier(pl.LightningModule):
    """The usual module: automatic optimization of one network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.network(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class Quasi(Classifier):
    """Its optimizer calls the closure many times in a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Manual(Classifier):
    """Manual optimization: clears, steps and clips itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        self.clip_gradients(optimizer, gradient_clip_val=0.1)
        optimizer.step()


class Adversarial(pl.LightningModule):
    """Two networks and two optimizers that take turns, one with a closure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(2, 4), nn.Linear(4, 1)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        real, _ = batch
        first, second = self.optimizers()
        with first.toggle_model():
            first.zero_grad()
            self.manual_backward(F.softplus(-self.critic(self.generator(real[:, :2]))).mean())
            first.step()
        fake = self.generator(real[:, :2]).detach()

        def closure() -> Tensor:
            second.zero_grad()
            loss = (F.softplus(-self.critic(real)) + F.softplus(self.critic(fake))).mean()
            self.manual_backward(loss)
            return loss

        second.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (self.generator, self.critic)]


class OwnClipping(Classifier):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 5.0)


def data(rows: int = 64) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 4, generator=generator), torch.randint(3, (rows,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=rows > 16, generator=generator)


def trainer(folder: Path, *callbacks: Any, package: Any = pl, **given: Any) -> pl.Trainer:
    usual = {
        "max_steps": 12, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return package.Trainer(callbacks=list(callbacks), **{**usual, **given})


def quiet(**given: Any) -> GuardCallback:
    return GuardCallback(**{"policy": "observe", **given})


def failures(guards: GuardCallback) -> list[tuple[str, int]]:
    assert guards.report is not None
    return [(v.slug, v.step) for v in guards.report.failures]


def bare(model: nn.Module, *optimizers: torch.optim.Optimizer) -> bool:
    """Whether no hook is left on a model, its parameters or its optimizers."""
    on_modules = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()]
    on_parameters = [p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()]
    on_optimizers = [o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in optimizers]
    return not any(map(bool, [*on_modules, *on_parameters, *on_optimizers]))


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (Classifier, {}),
        (Classifier, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
        (Classifier, {"accumulate_grad_batches": 3, "max_epochs": 2, "max_steps": -1, "precision": "bf16-mixed"}),
        (Classifier, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "inference_mode": False}),
        (OwnClipping, {"gradient_clip_val": 0.1}),
        (Quasi, {}),
        (Manual, {}),
        (Adversarial, {}),
    ],
    ids=["usual", "accumulation", "epochs", "by value", "own clipping", "lbfgs", "manual", "two optimizers"],
)
def test_a_clean_run_has_no_failure_and_trains_the_same(module: Any, given: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for watched in (True, False):
        guards, model = quiet(every=4), module()
        run = trainer(tmp_path, *([guards] if watched else []), **given)
        run.fit(model, data(), data(16) if module is not Adversarial else None)
        ends.append(list(model.state_dict().values()))
        if watched:
            assert not failures(guards)
            assert guards.report is not None and guards.report.outcome == "finished" and guards.report.exit_code == 0
            assert guards.report.steps == run.global_step // len(run.optimizers)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("module", "extra", "given", "inferred"),
    [
        (Classifier, [], {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
         {"accumulation": 2, "clip_norm": 0.1, "total_steps": 12}),
        (Classifier, [], {"max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 3},
         {"accumulation": 3, "total_steps": 6}),
        (Classifier, [], {"max_epochs": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
         {"accumulation": 1, "total_steps": 12}),
        (OwnClipping, [], {"gradient_clip_val": 0.1}, {"accumulation": 1, "total_steps": 12}),
        (Classifier, [GradientAccumulationScheduler({0: 2, 1: 1})], {"max_epochs": 2, "max_steps": -1}, {}),
        (Manual, [], {}, {}),
        (Adversarial, [], {}, {}),
    ],
)  # fmt: skip
def test_what_the_arguments_declare_is_taken(
    module: Any, extra: list[Any], given: dict[str, Any], inferred: dict[str, Any], tmp_path: Path
) -> None:
    guards = quiet()
    trainer(tmp_path, guards, *extra, **given).fit(module(), data())
    assert guards.inferred == inferred and not failures(guards)
    assert set(guards.not_inferred) == {"accumulation", "clip_norm", "total_steps", "schedule"} - set(inferred)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_run_longer_than_declared_is_told_at_its_step(package: str, tmp_path: Path) -> None:
    theirs = importlib.import_module(package)

    class Module(theirs.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        training_step, configure_optimizers = Classifier.training_step, Classifier.configure_optimizers

    guards = quiet(total_steps=9)
    trainer(tmp_path, guards, package=theirs, gradient_clip_val=1.0).fit(Module(), data())
    assert failures(guards)[0] == ("step-budget", 9) and guards.inferred["clip_norm"] == 1.0


class Parts(pl.LightningModule):
    """Its own forward is never called: the encoder goes into the head in training_step."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head, self.detached = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3), detached

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        features = self.encoder(x)
        return F.cross_entropy(self.head(features.detach() if self.detached else features), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Kept(Classifier):
    def optimizer_zero_grad(self, *_: Any) -> None:
        """Forgets to."""


class Climbing(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class HeadAlone(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.network[3].parameters(), lr=1e-2)


class Freezes(Classifier):
    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if self.global_step == 4:
            self.network[0].requires_grad_(False)


class TwoSoftmaxes(Classifier):
    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        return F.cross_entropy(self.network(x).softmax(-1), y)


class InEvalMode(Classifier):
    def on_train_batch_start(self, batch: Any, index: int) -> None:
        self.network.eval()


class NotANumber(Classifier):
    def training_step(self, batch: Any, index: int) -> Any:
        loss = super().training_step(batch, index)
        return loss * float("nan") if index == 5 else loss


@pytest.mark.parametrize(
    ("module", "severity", "slug", "step"),
    [
        (lambda: Parts(detached=True), "FAIL", "gradient-reach", 0),
        (Kept, "FAIL", "gradient-fresh", 1),
        (Climbing, "FAIL", "lr-decay", 7),
        (HeadAlone, "FAIL", "optimizer-parameters", 0),
        (Freezes, "WARN", "gradient-reach", 4),
        (TwoSoftmaxes, "FAIL", "softmax", 0),
        (InEvalMode, "WARN", "mode", 0),
        (NotANumber, "FAIL", "finite", 5),
    ],
)
def test_a_bug_is_told_with_its_cause_and_its_step(
    module: Any, severity: str, slug: str, step: int, tmp_path: Path
) -> None:
    guards = quiet()
    trainer(tmp_path, guards).fit(module(), data())
    assert guards.report is not None
    first = guards.report.violations[0]
    assert (first.severity, first.slug, first.step) == (severity, slug, step)


def test_a_module_whose_forward_is_never_called_is_watched_through_its_parts(tmp_path: Path) -> None:
    guards, model = quiet(), Parts()
    run = trainer(tmp_path, guards)
    run.fit(model, data())
    held = {g.slug for g in guards.report.guards if g.state == "held"} if guards.report else set()
    assert {"gradient-reach", "eval-determinism", "inputs", "accumulation"} <= held and not failures(guards)
    assert bare(model, *run.optimizers) and "__getstate__" not in model.encoder.__dict__


def test_strict_stops_before_the_parameters_change(tmp_path: Path) -> None:
    guards, model = GuardCallback(policy="strict", total_steps=5), Classifier()
    seen: list[Tensor] = []

    class Remember(Callback):  # type: ignore[misc]
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            seen[:] = [p.detach().clone() for p in module.parameters()]

    run = trainer(tmp_path, guards, Remember())
    with pytest.raises(Stopped) as stopped:
        run.fit(model, data())
    assert (stopped.value.record.slug, stopped.value.record.step) == ("step-budget", 5)
    assert all(torch.equal(a, b) for a, b in zip(seen, model.parameters(), strict=True))
    assert failures(guards) == [("step-budget", 5)] and bare(model, *run.optimizers)


def test_the_report_survives_an_exception(tmp_path: Path) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            if self.global_step == 4:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, index)

    guards, model = quiet(), Fails()
    run = trainer(tmp_path, guards)
    with pytest.raises(RuntimeError, match="the disk is full"):
        run.fit(model, data())
    assert guards.guards is None and bare(model, *run.optimizers)
    assert guards.report is not None and guards.report.steps == 4 and not guards.report.violations
    assert guards.report.outcome == "the loop raised RuntimeError after step 4"


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    first, saved = trainer(tmp_path, max_steps=10), tmp_path / "after-10.ckpt"
    first.fit(Classifier(), data())
    first.save_checkpoint(saved)
    guards = quiet()
    trainer(tmp_path, guards, max_steps=15).fit(Classifier(), data(), ckpt_path=saved)
    assert guards.report is not None and guards.report.steps == 15 and not failures(guards)
    longer = quiet(total_steps=12)
    trainer(tmp_path, longer, max_steps=15).fit(Classifier(), data(), ckpt_path=saved)
    assert failures(longer)[0] == ("step-budget", 12)


class Empties(Callback):  # type: ignore[misc]
    """Writes weights that are not the model's."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {n: torch.randn_like(p) for n, p in checkpoint["state_dict"].items()}


@pytest.mark.parametrize(("others", "expected"), [([], []), ([Empties()], ["checkpoint"])])
def test_a_checkpoint_is_judged_when_it_is_written(others: list[Any], expected: list[str], tmp_path: Path) -> None:
    guards = quiet()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    run = trainer(tmp_path, *others, guards, keep, enable_checkpointing=True, accumulate_grad_batches=2)
    run.fit(Classifier(), data())
    assert [slug for slug, _ in failures(guards)] == expected
    assert guards.report is not None and "checkpoint" not in guards.report.not_checked


def test_a_run_that_is_stopped_early_is_not_short(tmp_path: Path) -> None:
    guards = quiet()
    stop = EarlyStopping("val_loss", min_delta=10.0, patience=1)
    run = trainer(tmp_path, guards, stop, max_epochs=6, max_steps=-1)
    run.fit(Classifier(), data(), data(16))
    assert guards.inferred["total_steps"] == 48 and run.global_step == 16 and not failures(guards)
    assert guards.report is not None and guards.report.outcome.startswith("ended early")


def test_nothing_is_held_after_the_end(tmp_path: Path) -> None:
    guards, model = quiet(), Classifier()
    run = trainer(tmp_path, guards)
    run.fit(model, data())
    assert guards.guards is None and bare(model, *run.optimizers)
    held = [weakref.ref(model), weakref.ref(run.optimizers[0])]
    del run, model, guards.log, guards.log_dict  # Lightning gives its callbacks the module's own
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_what_cannot_be_used_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="no argument 'model'"):
        GuardCallback(model=network())


def test_without_the_package_one_sentence_says_what_to_install() -> None:
    block = "import sys; sys.modules['lightning'] = None; import karat.invariants.runtime.callbacks.lightning"
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert ran.returncode == 1 and 'pip install "karat[lightning]"' in ran.stderr
