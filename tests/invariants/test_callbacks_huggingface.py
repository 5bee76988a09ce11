"""GuardCallback in Hugging Face's own Trainer: small GPT-2 models from configurations, on the CPU, offline."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)
from transformers.modeling_outputs import CausalLMOutput

from karat.core.errors import ConfigError
from karat.invariants.runtime import Spec, Stopped
from karat.invariants.runtime.callbacks.huggingface import GuardCallback

TOKENS, LENGTH = 32, 16


class SmallForCausalLM(GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2 under a name by which Trainer knows its loss, so that it counts as many labels as the loss has targets."""


def gpt2(kind: type = SmallForCausalLM, **config: Any) -> Any:
    torch.manual_seed(0)
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return kind(GPT2Config(vocab_size=TOKENS, n_positions=LENGTH, **{**small, **config}))


def texts(count: int = 64) -> list[dict[str, torch.Tensor]]:
    rows = [(torch.arange(LENGTH) * (1 + k % 3) + k) % TOKENS for k in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    usual = {
        "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "report_to": [], "disable_tqdm": True,
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**usual, **given})


def trainer(folder: Path, guards: GuardCallback, model: Any = None, **given: Any) -> Trainer:
    own = {name: given.pop(name) for name in ("callbacks", "optimizers", "eval_dataset", "kind") if name in given}
    callbacks = [*own.pop("callbacks", []), guards]
    return own.pop("kind", Trainer)(
        model=model or gpt2(), args=arguments(folder, **given), train_dataset=texts(), callbacks=callbacks, **own
    )


def quiet(**given: Any) -> GuardCallback:
    return GuardCallback(**{"policy": "observe", **given})


def failures(guards: GuardCallback) -> list[tuple[str, int]]:
    assert guards.report is not None
    return [(v.slug, v.step) for v in guards.report.failures]


def bare(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether no hook is left on a model, its parameters or its optimizer."""
    on_modules = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()]
    on_parameters = [p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()]
    on_optimizer = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return not any(map(bool, [*on_modules, *on_parameters, *on_optimizer]))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.3, "warmup_steps": 3, "lr_scheduler_type": "cosine"},
        {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "logging_steps": 5},
        {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 3, "lr_scheduler_type": "polynomial"},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}, "max_steps": 18},
        {"activation_checkpointing": True, "bf16": True, "label_smoothing_factor": 0.1},
        {
            "eval_strategy": "steps",
            "eval_steps": 4,
            "eval_dataset": texts(8),
            "save_strategy": "steps",
            "save_steps": 6,
        },
    ],
    ids=["usual", "accumulation", "constant", "epochs", "restarts", "bf16", "evaluated"],
)
def test_a_clean_run_has_no_failure_and_trains_the_same(given: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for watched in (True, False):
        guards = quiet(every=4)
        run = trainer(tmp_path, guards, **given)
        if not watched:
            run.remove_callback(GuardCallback)
        run.train()
        ends.append(list(run.model.state_dict().values()))
        if watched:
            assert not failures(guards)
            assert guards.report is not None and guards.report.outcome == "finished" and guards.report.exit_code == 0
            assert guards.report.steps == run.state.global_step == run.state.max_steps
            assert ("checkpoint" in guards.report.not_checked) == ("save_steps" not in given)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_the_arguments_declare_is_taken_and_what_the_user_writes_comes_first(tmp_path: Path) -> None:
    given = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "warmup_steps": 4, "learning_rate": 1e-2}
    guards = quiet()
    trainer(tmp_path, guards, **given).train()
    schedule = guards.inferred.pop("schedule")
    assert guards.inferred == {"accumulation": 2, "clip_norm": 0.5, "total_steps": 12} and not guards.not_inferred
    assert [schedule(step) for step in (0, 2, 4, 8, 12)] == pytest.approx([0, 5e-3, 1e-2, 5e-3, 0])
    guards = quiet(spec=Spec(clip_norm=0.7, schedule=None), total_steps=12)
    trainer(tmp_path, guards, **given).train()
    assert guards.inferred == {"accumulation": 2, "total_steps": 12} and not failures(guards)


def test_a_run_longer_than_declared_is_told_at_its_step(tmp_path: Path) -> None:
    guards = quiet(total_steps=9)
    trainer(tmp_path, guards).train()
    assert failures(guards)[0] == ("step-budget", 9)


class Detached(SmallForCausalLM):
    """The head trains on features that are cut off from the layers that make them."""

    def forward(self, input_ids: Any = None, labels: Any = None, **_: Any) -> Any:
        logits = self.lm_head(self.transformer(input_ids)[0].detach())
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, TOKENS), labels[:, 1:].reshape(-1))
        return CausalLMOutput(loss=loss, logits=logits)


class Kept(SmallForCausalLM):
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets to."""


class Unclipped(Trainer):  # type: ignore[misc]
    def _clip_grad_norm(self, model: Any) -> Any:
        return torch.zeros(())


class Undivided(Trainer):  # type: ignore[misc]
    """A loss of its own, which takes no notice of num_items_in_batch: Trainer does not divide it either."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class InEvalMode(Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, *given: Any, **options: Any) -> Any:
        return super().compute_loss(model.eval(), *given, **options)


class Twice(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        kwargs["lr_scheduler"].step()


class Freezes(TrainerCallback):  # type: ignore[misc]
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            kwargs["model"].transformer.h.requires_grad_(False)


def climbing() -> dict[str, Any]:
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6))}


def head_alone() -> dict[str, Any]:
    model = gpt2()
    return {"model": model, "optimizers": (torch.optim.AdamW(model.lm_head.parameters(), lr=3e-3), None)}


@pytest.mark.parametrize(
    ("given", "severity", "slug", "step"),
    [
        (lambda: {"model": gpt2(Detached)}, "FAIL", "gradient-reach", 0),
        (lambda: {"model": gpt2(Kept), "gradient_accumulation_steps": 2}, "FAIL", "gradient-fresh", 1),
        (climbing, "FAIL", "lr-decay", 7),
        (lambda: {"callbacks": [Twice()]}, "FAIL", "lr-schedule", 1),
        (head_alone, "FAIL", "optimizer-parameters", 0),
        (lambda: {"callbacks": [Freezes()]}, "WARN", "gradient-reach", 3),
        (lambda: {"kind": Unclipped, "max_grad_norm": 0.1}, "FAIL", "clipping", 0),
        (lambda: {"kind": Undivided, "max_grad_norm": 0, "gradient_accumulation_steps": 4}, "FAIL", "accumulation", 0),
        (lambda: {"kind": InEvalMode}, "WARN", "mode", 0),
    ],
    ids=[
        "detached",
        "never cleared",
        "climbing",
        "stepped twice",
        "head alone",
        "frozen",
        "unclipped",
        "undivided",
        "eval",
    ],
)
def test_a_bug_is_told_with_its_cause_and_its_step(
    given: Any, severity: str, slug: str, step: int, tmp_path: Path
) -> None:
    guards = quiet()
    trainer(tmp_path, guards, **given()).train()
    assert guards.report is not None
    first = guards.report.violations[0]
    assert (first.severity, first.slug, first.step) == (severity, slug, step)


def test_strict_stops_before_the_parameters_change(tmp_path: Path) -> None:
    guards = GuardCallback(policy="strict", spec={"total_steps": 5})
    run = trainer(tmp_path, guards)
    seen: list[torch.Tensor] = []

    class Remember(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
            seen[:] = [p.detach().clone() for p in kwargs["model"].parameters()]

    run.add_callback(Remember())
    with pytest.raises(Stopped) as stopped:
        run.train()
    assert (stopped.value.record.slug, stopped.value.record.step) == ("step-budget", 5)
    assert all(torch.equal(a, b) for a, b in zip(seen, run.model.parameters(), strict=True))
    assert failures(guards) == [("step-budget", 5)] and run.state.global_step == 5
    assert bare(run.model, run.optimizer.optimizer)


def test_the_report_survives_an_exception_and_the_guards_are_off_when_it_is_read(tmp_path: Path) -> None:
    class Fails(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise RuntimeError("the disk is full")

    guards = quiet()
    run = trainer(tmp_path, guards, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="the disk is full"):
        run.train()
    assert guards.report is not None and guards.report.steps == 4 and not guards.report.violations
    assert "did not say" in guards.report.outcome
    assert bare(run.model, run.optimizer.optimizer)
    run.pop_callback(Fails)
    run.train()
    assert guards.report.steps == 12 and guards.report.outcome == "finished"


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    given = {"save_strategy": "steps", "save_steps": 5, "max_steps": 15, "lr_scheduler_type": "cosine"}
    trainer(tmp_path, quiet(), **given).train()
    guards = quiet()
    run = trainer(tmp_path, guards, **given)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert guards.report is not None and guards.report.steps == 15 and not failures(guards)
    longer = quiet(total_steps=12)
    run = trainer(tmp_path, longer, **given)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert failures(longer)[0] == ("step-budget", 12)


def test_stopping_early_is_short_where_it_is_meant_and_not_where_the_data_ran_out(tmp_path: Path) -> None:
    guards = quiet()
    run = trainer(
        tmp_path, guards, callbacks=[EarlyStoppingCallback(1, 10.0)], eval_dataset=texts(8), eval_strategy="steps",
        eval_steps=3, save_strategy="steps", save_steps=3, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    run.train()
    assert run.state.global_step == 6 and not failures(guards)
    assert guards.report is not None and "a callback stopped" in guards.report.outcome

    class Once(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.left = iter(texts(20))

        def __iter__(self) -> Iterator[Any]:
            return self.left

    guards = quiet()
    given = arguments(tmp_path, accelerator_config={"dispatch_batches": False})
    Trainer(model=gpt2(), args=given, train_dataset=Once(), callbacks=[guards]).train()
    assert guards.report is not None and not failures(guards)
    assert [(v.slug, v.severity, v.step) for v in guards.report.violations] == [("step-budget", "WARN", 5)]


def test_a_schedule_is_declared_only_by_what_the_trainer_makes_of_its_arguments(tmp_path: Path) -> None:
    def declared(optimizer: Any = None, scheduler: Any = None, **given: Any) -> str | None:
        guards = quiet()
        run = trainer(tmp_path, guards, gpt2(), optimizers=(optimizer, scheduler), **given)
        if optimizer is not None:  # of the model that is trained
            optimizer.param_groups[0]["params"] = list(run.model.parameters())
        run.train()
        assert not failures(guards)
        return guards.not_inferred.get("schedule")

    def adam(lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=lr)

    assert declared(adam(3e-3)) is None
    assert "was not made with learning_rate" in (declared(adam(1e-3)) or "")
    mine = adam(3e-3)
    own = get_scheduler("linear", mine, num_warmup_steps=2, num_training_steps=12)
    assert "is not the one" in (declared(mine, own) or "")


def test_nothing_is_held_after_the_end(tmp_path: Path) -> None:
    guards = quiet()
    run = trainer(tmp_path, guards)
    run.train()
    assert guards.guards is None and bare(run.model, run.optimizer.optimizer)
    held = [weakref.ref(run.model), weakref.ref(run.optimizer.optimizer)]
    del run
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_what_cannot_be_used_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="no argument 'evry'") as told:
        GuardCallback(evry=3)
    assert "'every'" in str(told.value)
    with pytest.raises(ConfigError, match="there is no key 'totl_steps'"):
        GuardCallback({"totl_steps": 3})


def test_without_the_package_one_sentence_says_what_to_install() -> None:
    block = "import sys; sys.modules['transformers'] = None; import karat.invariants.runtime.callbacks.huggingface"
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert ran.returncode == 1 and 'pip install "karat[huggingface]"' in ran.stderr
