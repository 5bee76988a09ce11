"""The loops with a wrong schedule, wrong gradients, accumulation, clipping or loss scaling are what their records say.

Each loop runs twice under a stand-in for `watch` that writes down what the optimizer's steps see and do. The first step
at which the loop with the bug differs from its clean twin is the step that its record names.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy
import pytest
import torch
from corpus.loops import accumulation, clipping, finite, fresh, reach, scaling, schedule, schedulers, terms
from corpus.loops.case import Case

MODULES = (schedule, schedulers, reach, terms, fresh, finite, accumulation, clipping, scaling)
CASES = [case for module in MODULES for case in module.CASES]
RULES = {
    "step-budget", "lr-schedule", "lr-decay", "warmup-ends", "scheduler-steps", "lr-range", "lr-groups", "gradient-reach",
    "finite", "loss-terms", "gradient-fresh", "accumulation", "clipping", "loss-scale",
}  # fmt: skip
NEIGHBOURS = {"frozen", "parameter-moves", "straight-through", "overflow", "schedule-fit", "reduction", "padding"}
DECLARED = {"spec", "scheduler", "scaler", "total_steps"}
SPEC = {
    "schedule", "total_steps", "restarts", "frozen", "detached", "accumulation", "clip_norm", "lr_range", "group_ratios",
    "ignore_index",
}  # fmt: skip
LOGGED = {"loss", "losses", "inputs", "targets"}


@dataclass
class Recorder:
    """Stands in for `watch`: what each step of the optimizer saw (rates, gradients) and left (parameters)."""

    declared: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    trained: set[str] = field(default_factory=set)
    rates: list[list[float]] = field(default_factory=list)
    finite: bool = True
    attached: int = 0
    left: int = 0

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **declared: Any) -> Recorder:
        assert set(declared) <= DECLARED
        assert set(declared.get("spec", {})) <= SPEC
        self.declared = declared
        self.attached += 1
        named = dict(model.named_parameters())

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.rates.append([float(group["lr"]) for group in optimizer.param_groups])
            grads = {name: parameter.grad for name, parameter in named.items()}
            self.trained |= {name for name, parameter in named.items() if parameter.requires_grad}
            self.reached |= {name for name, grad in grads.items() if grad is not None and bool(grad.any())}
            self.finite &= all(bool(grad.isfinite().all()) for grad in grads.values() if grad is not None)
            self.rows.append((self.rates[-1], {name: exact(grad) for name, grad in grads.items()}))

        def after(*_: Any) -> None:
            self.finite &= all(bool(parameter.isfinite().all()) for parameter in named.values())
            self.rows[-1] += ({name: exact(parameter.detach()) for name, parameter in named.items()},)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return self

    def log(self, **logged: Any) -> None:
        assert set(logged) <= LOGGED
        for value in logged.get("losses", {}).values():
            assert isinstance(value, torch.Tensor)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1


def exact(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().numpy().tobytes()


def run(case: Case, buggy: bool) -> Recorder:
    """The record of one run; the losses are those on which backward was called, unscaled."""
    recorder = Recorder()
    backward = torch.Tensor.backward

    def recorded(tensor: torch.Tensor, *arguments: Any, **named: Any) -> None:
        scaler = recorder.declared.get("scaler")
        recorder.losses.append(float(tensor.detach()) / (1 if scaler is None else scaler.get_scale()))
        backward(tensor, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", recorded)
        case.run(recorder.attach, buggy)
    return recorder


@functools.cache
def ran(case: Case, buggy: bool) -> Recorder:
    """As `run`, once for all tests."""
    return run(case, buggy)


def first_difference(one: list[Any], other: list[Any]) -> int | None:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bug_and_twin_part_at_the_step_that_the_record_names(case: Case) -> None:
    buggy, clean = ran(case, True), ran(case, False)
    assert (buggy.attached, buggy.left, clean.attached, clean.left) == (1, 1, 1, 1)
    assert buggy.declared.keys() == clean.declared.keys(), "both declare the same"
    assert 20 <= len(clean.rows) <= 60
    parted = first_difference(buggy.rows, clean.rows)
    assert parted is not None, "the bug changes nothing"
    if case.first_effect is None:
        assert len(buggy.rows) == parted < len(clean.rows), "a bug that shows at the end only cuts the run short"
    else:
        assert parted == case.first_effect
        assert case.first_effect < len(buggy.rows) or len(buggy.rows) < len(clean.rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_is_clean(case: Case) -> None:
    clean = ran(case, False)
    assert clean.finite and all(math.isfinite(loss) for loss in clean.losses)
    assert clean.trained and clean.trained == clean.reached & clean.trained, (
        "a gradient reaches every trained parameter"
    )
    assert all(0 <= rate < 1 for rates in clean.rates for rate in rates)
    tenth = max(3, len(clean.losses) // 10)
    assert sum(clean.losses[-tenth:]) < 0.9 * sum(clean.losses[:tenth]), "it learns"


@pytest.mark.parametrize("case", reach.CASES, ids=lambda case: case.name)
def test_a_parameter_that_the_twin_trains_gets_no_gradient(case: Case) -> None:
    start = case.first_effect or 0
    late = []
    for buggy in (True, False):
        rows = ran(case, buggy).rows[start:]
        late.append({name for row in rows for name, grad in row[1].items() if grad is not None and any(grad)})
    assert late[0] < late[1]


def rise_after_a_fall(rates: list[list[float]]) -> int | None:
    """The first step at which a group's rate is above the step before, after a fall of that rate."""
    fell: set[int] = set()
    for step in range(1, len(rates)):
        for group, (before, now) in enumerate(zip(rates[step - 1], rates[step], strict=True)):
            if now > before * (1 + 1e-9) and group in fell:
                return step
            if now < before:
                fell.add(group)
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rates_rise_after_a_fall_where_that_is_the_bug_and_nowhere_else(case: Case) -> None:
    assert rise_after_a_fall(ran(case, False).rates) is None
    step = rise_after_a_fall(ran(case, True).rates)
    if "lr-decay" in case.rules:
        assert step is not None and case.first_effect is not None and step >= case.first_effect
    else:
        assert step is None


def norms(record: Recorder) -> list[float]:
    """The norm of all gradients at each step."""
    return [
        math.sqrt(sum(float(numpy.square(numpy.frombuffer(grad, numpy.float32), dtype=float).sum())
                      for grad in row[1].values() if grad is not None))
        for row in record.rows
    ]  # fmt: skip


CLIPPED = [case for case in CASES if "clipping" in case.rules]


@pytest.mark.parametrize("case", CLIPPED, ids=lambda case: case.name)
def test_norms_are_within_the_declared_bound_where_clipping_is_right(case: Case) -> None:
    bug, clean = ran(case, True), ran(case, False)
    bound = clean.declared["spec"]["clip_norm"]
    assert max(norms(clean)) <= bound * (1 + 1e-5) and norms(clean)[0] >= bound * (1 - 1e-5), "it clips"
    if case.name == "clipped-before-unscaling":
        assert max(norms(bug)) <= 1.001 * bound / 2**10
    else:
        assert norms(bug)[0] > 1.05 * bound


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_is_the_same_twice(case: Case) -> None:
    assert ran(case, True).rows == run(case, True).rows


def test_records() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    for case in CASES:
        assert case.rules and case.rules <= RULES | NEIGHBOURS and case.rules & RULES
        assert case.about.endswith(".") and not case.needs.endswith(".")
    for rule in RULES:
        assert sum(rule in case.rules for case in CASES) >= 2, rule
