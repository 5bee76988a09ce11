"""The frame of watch: attached and detached, what it refuses, what it leaves as it was, and how a run ends."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.errors import ConfigError
from karat.core.report import digest_holds
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.spec import Schedule, Suppression, read_spec
from karat.invariants.runtime import Spec, Stopped, Watch, watch
from karat.invariants.runtime.watching import checks
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 8, generator=generator), torch.randint(0, 4, (12,), generator=generator)


def counted(module: nn.Module, args: Any, output: Any) -> None:
    """A hook of the user's own."""


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, clear: Any = lambda step: True) -> None:
    for step in steps:
        x, y = batch(step)
        if clear(step):
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def quiet(model: Any, optimizer: Any, **options: Any) -> Watch:
    return watch(model, optimizer, **{"policy": "observe", **options})


def test_a_watched_run_is_the_same_bit_for_bit() -> None:
    ends = []
    for watched in (False, True):
        model = network()
        optimizer = adam(model)
        torch.manual_seed(1)
        guards = quiet(model, optimizer, every=3) if watched else None
        train(model, optimizer, range(10))
        if guards is not None:
            assert not guards.violations and guards.step == 10
            guards.finish()
        moments = [t for state in optimizer.state.values() for t in state.values()]
        ends.append([*model.state_dict().values(), *moments, torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_found_is_found_at_its_step_and_once() -> None:
    model = network()
    optimizer = adam(model)
    said: list[str] = []
    guards = watch(model, optimizer, say=said.append)
    train(model, optimizer, range(12), clear=lambda step: step < 7)
    (found,) = [v for v in guards.violations if v.slug == "gradient-fresh"]
    assert (found.id, found.severity, found.step) == ("RUN-11", "FAIL", 7)
    assert "not cleared since step 6" in found.message and found.margin == -1
    assert sum("RUN-11" in text for text in said) == 1 and "trainer explain RUN-11" in said[0]
    report = guards.finish()
    tally = next(g for g in report if g.invariant == "RUN-11")
    assert (tally.state, tally.checks, tally.violations) == ("VIOLATED", 12, 5)
    assert report.exit_code == 1 and guards.finish() is report


def test_strict_stops_before_the_step() -> None:
    model = network()
    optimizer = adam(model)
    with watch(model, optimizer, policy="strict") as guards:
        train(model, optimizer, range(3))
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        with pytest.raises(Stopped, match="RUN-11 gradient-fresh at step 3"):
            train(model, optimizer, range(3, 4), clear=lambda step: False)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[0][name])
    state = optimizer.state_dict()["state"]
    assert all(torch.equal(state[k][n], t) for k, entry in before[1].items() for n, t in entry.items())
    assert guards.step == 3


def test_a_suppression_is_kept_with_its_reason() -> None:
    model = network()
    optimizer = adam(model)
    why = Suppression(rule="gradient-fresh", reason="momentum by hand")
    guards = quiet(model, optimizer, spec=Spec(suppress=(why,)))
    train(model, optimizer, range(4), clear=lambda step: step < 2)
    report = guards.finish()
    assert not report.violations and report.exit_code == 0
    (kept,) = report.suppressed
    assert kept.id == "RUN-11" and "momentum by hand" in kept.message


def test_the_steps_that_were_declared_and_no_others() -> None:
    for steps, total, where in ((5, 5, None), (6, 5, 5), (4, 5, 4)):
        model = network()
        optimizer = adam(model)
        with quiet(model, optimizer, total_steps=total) as guards:
            train(model, optimizer, range(steps))
        found = [(v.slug, v.step) for v in guards.violations]
        assert found == ([] if where is None else [("step-budget", where)])


def test_an_exception_in_the_loop_ends_in_a_report(tmp_path: Path) -> None:
    model = network()
    optimizer = adam(model)
    with pytest.raises(KeyError, match="the loop's own"), quiet(model, optimizer, report=tmp_path / "r.json") as guards:
        train(model, optimizer, range(3))
        raise KeyError("the loop's own")
    data = json.loads((tmp_path / "r.json").read_text())
    assert digest_holds(data) and data["outcome"] == "the loop raised KeyError after step 3" and data["steps"] == 3
    assert not optimizer._optimizer_step_pre_hooks and not model._forward_hooks  # type: ignore[attr-defined]
    assert guards.step == 3


def test_nothing_is_kept_after_the_end() -> None:
    model = network()
    optimizer = adam(model)
    guards = quiet(model, optimizer)
    train(model, optimizer, range(4))
    guards.finish()
    hooks = [p for p in model.parameters() if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)]
    assert not hooks
    gone = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer, hooks
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert guards.violations == [] and guards.finish().steps == 4


def test_a_loop_that_is_dropped_takes_its_guards_along() -> None:
    model = network()
    optimizer = adam(model)
    gone = weakref.ref(quiet(model, optimizer))
    train(model, optimizer, range(2))
    assert gone() is not None
    del model, optimizer
    gc.collect()
    assert gone() is None


def test_a_process_that_ends_says_what_was_found() -> None:
    code = (
        "import torch\nfrom karat.invariants.runtime import watch\n"
        "m = torch.nn.Linear(2, 2); o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "guards = watch(m, o, total_steps=5)\n"
        "for _ in range(3):\n    o.zero_grad(); m(torch.randn(4, 2)).sum().backward(); o.step()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the run ended after 3 of 5 declared steps" in ended.stderr and not ended.stdout
    assert "watch: 3 steps, 0 FAIL, 1 WARN" in ended.stderr


class Raises(Check):
    rules = (RULES[0],)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        raise RuntimeError("a mistake in a check")


def test_a_check_that_raises_is_taken_off_duty_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ORDER", (Raises,))
    model = network()
    optimizer = adam(model)
    guards = quiet(model, optimizer)
    train(model, optimizer, range(3))
    assert guards.step == 3 and not guards.violations
    assert (
        guards.not_checked["step-budget"]
        == "its check raised in before_step at step 0: RuntimeError: a mistake in a check"
    )
    assert guards.finish().exit_code == 2


def test_a_closure_that_is_called_many_times_sets_nothing_off() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    guards = quiet(model, optimizer)
    for step in range(4):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    assert guards.step == 4 and not [v for v in guards.violations if v.severity == "FAIL"]


def test_a_closure_is_judged_before_the_step_changes_anything() -> None:
    model = network()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="strict")
    before: list[Tensor] = []
    with pytest.raises(Stopped) as stopped:
        for step in range(8):
            before = [p.detach().clone() for p in model.parameters()]
            x, y = batch(step)

            def closure(step: int = step, x: Tensor = x, y: Tensor = y) -> Tensor:
                if step != 5:
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
    assert (stopped.value.record.slug, stopped.value.record.step) == ("gradient-fresh", 5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    guards.finish()


def with_closures(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    losses = []
    for step in steps:
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        losses.append(optimizer.step(closure))  # type: ignore[call-overload]
    return losses


def test_a_run_with_closures_is_the_same_bit_for_bit() -> None:
    ends = []
    for watched in (False, True):
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.2, max_iter=4)
        torch.manual_seed(1)
        guards = quiet(model, optimizer, every=2) if watched else None
        losses = with_closures(model, optimizer, range(4))
        if guards is not None:
            guards.finish()
        ends.append([*model.state_dict().values(), *losses, torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_resumed_run_counts_on_from_its_first_step() -> None:
    model = network()
    optimizer = adam(model)
    guards = quiet(model, optimizer, total_steps=25, first_step=20)
    train(model, optimizer, range(20, 26))
    (found,) = [v for v in guards.violations if v.slug == "step-budget"]
    assert found.step == 25 and guards.step == 26
    assert 0 < guards.finish().step_ms < 1000
    with pytest.raises(ConfigError, match="first_step = -1"):
        quiet(model, optimizer, first_step=-1)


@pytest.mark.parametrize("ending", ["early", "raises", "short"])
def test_a_run_that_ends_early_is_short_only_where_nothing_says_why(ending: str) -> None:
    model = network()
    optimizer = adam(model)
    guards = quiet(model, optimizer, total_steps=9)
    if ending == "raises":
        with pytest.raises(KeyboardInterrupt), guards:
            train(model, optimizer, range(4))
            raise KeyboardInterrupt
    else:
        train(model, optimizer, range(4))
    report = guards.finish("the validation loss rises") if ending == "early" else guards.finish()
    assert [v.slug for v in report.violations] == (["step-budget"] if ending == "short" else [])
    assert ("rises" in report.outcome, "KeyboardInterrupt" in report.outcome) == (ending == "early", ending == "raises")


def test_a_watched_model_is_copied_and_saved_without_its_guards(tmp_path: Path) -> None:
    model = network()
    optimizer = adam(model)
    theirs = model.register_forward_hook(counted)
    before = set(model.__dict__)
    guards, others = quiet(model, optimizer), quiet(model, torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer, range(3))
    double = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (double, saved, copy.copy(model)):
        assert list(other._forward_hooks.values()) == [counted]
        other(batch(0)[0])
    assert guards._loop.forwards == 3 and b"karat" not in (tmp_path / "model.pt").read_bytes()
    theirs.remove()
    guards.finish()
    assert model._forward_hooks and not copy.deepcopy(model)._forward_hooks
    others.finish()
    assert not model._forward_hooks and set(model.__dict__) == before
    torch.save(optimizer, tmp_path / "optimizer.pt")


def test_several_optimizers_and_models_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    parts = {"critic": nn.Linear(8, 4), "actor": nn.Linear(8, 4)}
    several = [torch.optim.SGD(m.parameters(), lr=0.1) for m in parts.values()]
    guards = quiet(parts, several)
    for step in range(6):
        x, y = batch(step)
        for model, optimizer in zip(parts.values(), several, strict=True):
            if optimizer is several[0] or step < 4:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    (found,) = [v for v in guards.violations if v.severity == "FAIL"]
    assert found.step == 4 and "actor" in found.evidence and guards.step == 6


def test_gradients_that_are_sparse_or_complex_are_watched() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(20, 4, sparse=True)
    guards = quiet(embedding, torch.optim.SGD(embedding.parameters(), lr=0.1))
    for step in range(4):
        embedding.zero_grad()
        embedding(torch.arange(step, step + 5)).square().sum().backward()
        guards._loop.optimizers[0].step()
    assert guards.step == 4 and not guards.violations, guards.violations
    waves = nn.Linear(4, 4, dtype=torch.complex64)
    optimizer = torch.optim.SGD(waves.parameters(), lr=0.1)
    guards = quiet(waves, optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        waves(torch.randn(3, 4, dtype=torch.complex64)).abs().sum().backward()
        optimizer.step()
    assert guards.step == 4 and not guards.violations, guards.violations


def test_a_compiled_model_is_watched_through_its_wrapper() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = adam(model)
    guards = quiet(compiled, optimizer)
    train(compiled, optimizer, range(4))  # type: ignore[arg-type]
    assert guards.step == 4 and not guards.violations, guards.violations
    assert "0.weight" in guards._loop.parameters


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"policy": "loud"}, "policy 'loud'"),
        ({"every": 0}, "every = 0"),
        ({"total_steps": 0}, "total_steps"),
        ({"spec": {"frozen": ["bakbone.*"]}}, "Spec.frozen: 'bakbone.*' is not a parameter of the model"),
        ({"spec": {"tied": [["0.wieght", "4.weight"]]}}, "did you mean '0.weight'"),
        ({"spec": {"suppress": [{"rule": "gradient-frehs", "reason": "x"}]}}, "did you mean 'gradient-fresh'"),
        ({"spec": {"shedule": None}}, "did you mean 'schedule'"),
        ({"spec": {"schedule": {"kind": "cosine", "peak": 0.1}}}, "needs total"),
        ({"spec": 3}, "spec is int"),
        ({"spec": "absent.toml"}, "absent.toml cannot be read"),
        ({"model": nn.ReLU()}, "the model has no parameters"),
        ({"model": "gpt2"}, "model is str"),
        ({"model": []}, "model is list"),
        ({"optimizer": []}, "optimizer is list"),
        ({"optimizer": "adam"}, "optimizer is str"),
    ],
)
def test_bad_input_is_told_with_what_to_do(options: dict[str, Any], seen: str) -> None:
    model = network()
    given = {"model": model, "optimizer": adam(model), **options}
    with pytest.raises(ConfigError) as told:
        watch(**given)
    assert seen in str(told.value)
    assert not given["model"]._forward_hooks if isinstance(given["model"], nn.Module) else True


def test_an_optimizer_is_watched_once_and_again_after_the_end() -> None:
    model = network()
    optimizer = adam(model)
    guards = quiet(model, optimizer)
    with pytest.raises(ConfigError, match="watched already"):
        quiet(model, optimizer)
    with pytest.raises(ConfigError, match="given twice"):
        quiet(model, [adam(model)] * 2)
    guards.finish()
    quiet(model, optimizer).finish()


def test_policy_off_costs_nothing_and_says_so() -> None:
    model = network()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="off")
    train(model, optimizer, range(3), clear=lambda step: False)
    report = guards.finish()
    assert not report.violations and report.steps == 3 and report.exit_code == 2


def test_a_spec_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('total_steps = 3\nclip_norm = 1.0\n[schedule]\nkind = "wsd"\npeak = 0.02\nwarmup = 10\n'
                    'stable_end = 80\ntotal = 100\n[[suppress]]\nrule = "RUN-11"\nreason = "why"\n')  # fmt: skip
    spec = read_spec(path)
    assert spec.total_steps == 3 and isinstance(spec.schedule, Schedule)
    assert [spec.schedule.rate(s) for s in (0, 5, 10, 80, 90, 100, 1000)] == [0, 0.01, 0.02, 0.02, 0.01, 0, 0]
    assert spec.suppressed(("RUN-11", "gradient-fresh"), "") is not None


def test_one_pattern_stands_for_a_tuple_and_a_decay_may_be_a_number() -> None:
    spec = read_spec({"frozen": "0.*", "restarts": True, "decay": 0.1, "no_decay": "*.bias"})
    assert spec.frozen == ("0.*",) and spec.restarts == "any" and spec.no_decay == ("*.bias",)
    assert read_spec({"restarts": 500}).restarts == (500,)
    for value, found in ((0.1, False), (0.0, True), (0.2, True)):
        model = nn.Linear(8, 4)
        groups = [{"params": [model.weight], "weight_decay": value}, {"params": [model.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        guards = quiet(model, optimizer, spec={"decay": 0.1, "no_decay": "*.bias"})
        train(model, optimizer, range(2))
        fails = [v for v in guards.violations if v.slug == "weight-decay"]
        assert bool(fails) is found and all(v.severity == "FAIL" and v.where == "weight" for v in fails)
        guards.finish()
