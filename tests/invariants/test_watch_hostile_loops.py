"""Loops that are hostile to their guards: copies, compilers, optimizers, threads, streams, and what they are told."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus.hostile import Plain, batch, same, steps, trained
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from karat.core.errors import ConfigError
from karat.invariants.runtime import Spec, Watch, watch
from karat.invariants.runtime.watching.captured import MOST_RUNS

# -- copies, files, compilers ----------------------------------------------------------------------------------------------


class Stateful(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "own": 1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({k: v for k, v in state.items() if k != "own"})


@pytest.mark.parametrize("kind", [Plain, Stateful])
def test_copies_and_files_have_no_guards(kind: type[nn.Module]) -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model = kind()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        watching(model, optimizer)
        found = []
        for step in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            several = [
                copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model)),
                torch.load(file, weights_only=False), copy.deepcopy(model.a), copy.deepcopy((model, optimizer))[0],
            ]  # fmt: skip
            for place, twin in enumerate(several):
                own = [twin] if place == 1 else list(twin.modules())  # a shallow copy has the model's own parts
                found.append([sorted(m.__dict__) for m in own])
                found.append([len(m._forward_hooks) + len(m._forward_pre_hooks) for m in own])
                found.append(len(twin._load_state_dict_post_hooks))
            found.append(len(pickle.dumps(optimizer)))
        return [model, found]

    same(loop)


@pytest.mark.filterwarnings("ignore")
def test_tracing_scripting_exporting_and_transforming_a_watched_model() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model, found = Plain(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching(model, optimizer)
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            given = {name: p.detach() for name, p in model.named_parameters()}

            def loss(p: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
                return F.cross_entropy(functional_call(model, p, (a[None],)), b[None])

            found += [
                torch.jit.trace(model, x)(x),
                torch.jit.script(model)(x),
                vmap(grad(loss), (None, 0, 0))(given, x, y),
            ]  # type: ignore[no-untyped-call]
            if step == 1:
                found.append(torch.export.export(model, (x,), strict=False).module()(x))
        return [model.state_dict(), found]

    same(loop)


@pytest.mark.parametrize("first", [True, False])
def test_compiled_models_stay_whole(first: bool) -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        torch._dynamo.reset()
        model = Plain()
        called = torch.compile(model, backend="eager", fullgraph=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching(model if first else called, optimizer)
        for step in range(4):
            optimizer.zero_grad()
            F.cross_entropy(called(batch(step)[0]), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return model

    same(loop)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_runs_without_the_guards_which_say_so() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        torch._dynamo.reset()
        model = Plain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching(model, optimizer)
        step = torch.compile(optimizer.step, backend="eager")
        for place in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(place)[0]), batch(place)[1]).backward()  # type: ignore[no-untyped-call]
            step()
        return model

    guards = same(loop)
    assert not guards.violations and "compiled" in guards.not_checked["parameter-moves"]


def test_a_script_module_is_watched_without_its_forwards() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = torch.jit.script(Plain())  # type: ignore[no-untyped-call]
        return trained(watching, model)[1]

    assert same(loop).not_checked["causality"]


def test_counters_of_the_loop_count_the_loop() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model, counted = Plain(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching(model, optimizer)
        for step in range(3):
            with FlopCounterMode(display=False) as flops:
                optimizer.zero_grad()
                F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            counted.append(flops.get_total_flops())
        return counted

    same(loop)


# -- optimizers and threads ------------------------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_an_optimizer_without_step_hooks_is_refused_at_once() -> None:
    model = Plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="step hooks"):
        watch(model, Lookahead(inner))
    watch(model, inner, policy="observe").finish()


class Odd(torch.optim.SGD):
    def step(self, loss: Any, closure: Any = None, *, scale: float = 1.0) -> Any:  # type: ignore[override]
        super().step()
        self.zero_grad()
        return loss * scale


def test_steps_with_a_signature_of_their_own_and_rates_of_every_kind() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model, told = Plain(), []
        optimizer = Odd(model.parameters(), lr=0.05)
        watching(model, optimizer)
        for step, rate in enumerate([0.05, np.float64(0.05), np.float32(0.05), torch.tensor(0.05), 1, 0.05]):
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(model(batch(step)[0]), batch(step)[1])
            loss.backward()  # type: ignore[no-untyped-call]
            told.append(optimizer.step(loss.detach(), scale=2.0))
        return [model, told]

    same(loop)


def test_gradients_buffers_and_counters_of_changes_are_the_same_objects() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guards = watch(model, optimizer, every=2, policy="observe")

    def look() -> list[Any]:
        held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        return [(id(t), t.data_ptr(), t._version, t.detach().clone().tolist()) for t in held]

    before: list[Any] = []
    optimizer.register_step_pre_hook(lambda *given: seen.append(look()))
    seen: list[Any] = []
    for step in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        before.append(look())
        optimizer.step()
    assert seen == before and not guards.finish().violations


def test_several_threads_that_step_one_optimizer_end_its_guards_and_not_the_run() -> None:
    model = Plain()
    gate = threading.Barrier(2, timeout=20)

    class Meeting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            gate.wait()
            return super().step(closure)

    optimizer = Meeting(model.parameters(), lr=0.0)
    guards = watch(model, optimizer, policy="observe")
    several = [threading.Thread(target=optimizer.step) for _ in range(2)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join(30)
    report = guards.finish()
    assert not report.violations and "several threads" in report.not_checked["gradient-fresh"]


def test_loops_in_several_threads_share_their_generators_undisturbed() -> None:
    models = [Plain() for _ in range(3)]
    several = [
        threading.Thread(target=trained, args=(functools.partial(watch, policy="observe"), model)) for model in models
    ]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for thread in several:
        thread.start()
    for thread in several:
        thread.join(60)
    assert torch.equal(torch.get_rng_state(), before)


# -- what is said, logged and finished -------------------------------------------------------------------------------------


class Evil:
    def __float__(self) -> float:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError

    def __iter__(self) -> Iterator[int]:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError


GARBAGE: list[Any] = [
    "x", None, {}, [], torch.empty((), device="meta"), torch.randn(1000, 1000), float("nan"), 10**400, 1j, Evil(),
    np.float32(1), torch.zeros(0), torch.ones(3).to_sparse(), nn.Linear(2, 2), lambda: 1,
]  # fmt: skip


def test_garbage_may_be_told() -> None:
    def loop(watching: Callable[..., Any]) -> Any:
        model = Plain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        guards = watching(model, optimizer)
        for step in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
            for value in GARBAGE if guards is not None else ():
                guards.log(loss=value, losses={"a": value}, inputs=value, targets=value, val_loss=value, lr=value)
                guards.checkpoint({"model": value, "step": value, "optimizer": value}, loss=value, step=value)
                with contextlib.suppress(ConfigError):
                    guards.split(train=value, validation=value)
            optimizer.step()
        return model

    guards = same(loop)
    assert guards.not_checked["checkpoint"] and "gradient-fresh" not in guards.not_checked


def test_logging_holds_no_graph_and_a_step_no_batch() -> None:
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guards = watch(model, optimizer, policy="observe")
    for step in range(4):
        optimizer.zero_grad()
        x, y = batch(step)
        out = model(x)
        loss = F.cross_entropy(out, y)
        guards.log(loss=loss, losses={"ce": loss}, inputs=x, targets=y, out=out)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        held = [weakref.ref(t) for t in (x, y, out, loss)]
        del x, y, out, loss
        assert [found() is None for found in held] == [True] * 4
    guards.finish()


class FullDisk(io.RawIOBase):
    def write(self, data: Any) -> int:
        raise OSError(28, "no space left on device")


def broken_loop(**options: Any) -> Watch:
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guards = watch(model, optimizer, **options)
    for step in range(4):
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return guards


def test_streams_and_disks_that_fail_silence_the_guards_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(text: str) -> None:
        raise OSError

    assert any(v.slug == "gradient-fresh" for v in broken_loop(say=say).finish().violations)
    monkeypatch.setattr("sys.stderr", None)
    assert any(v.slug == "gradient-fresh" for v in broken_loop().finish().violations)
    monkeypatch.undo()
    assert not capsys.readouterr().out
    if Path("/dev/full").exists():
        said: list[str] = []
        assert broken_loop(ledger="/dev/full", say=said.append).finish().violations
        assert sum("no more rows" in text for text in said) == 1
    for place in (tmp_path, tmp_path / "file" / "report.json"):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="report"):
            broken_loop(report=place)


@pytest.mark.parametrize("place", ["before", "after", "forward", "gradient", "say"])
def test_finish_may_be_said_anywhere(place: str) -> None:
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found: list[Watch] = []
    calls: list[int] = []

    def finish(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            found[0].finish()

    places: dict[str, Any] = {
        "before": optimizer.register_step_pre_hook, "after": optimizer.register_step_post_hook,
        "forward": model.register_forward_hook, "gradient": model.a.weight.register_hook,
    }  # fmt: skip
    if place in places:
        places[place](finish)
    found.append(watch(model, optimizer, say=finish if place == "say" else lambda text: None))
    after: list[int] = []
    optimizer.register_step_pre_hook(lambda *given: after.append(1))
    for step in range(4):
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert len(after) == 4
    found[0].finish()


def test_declared_observers_that_raise_are_left_out() -> None:
    def mixing() -> Any:
        raise RuntimeError("not today")

    def loop(watching: Callable[..., Any]) -> Any:
        model = Plain()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        watching(model, optimizer, mixing=mixing)
        return steps(model, optimizer)

    guards = same(loop)
    assert "not today" in guards.not_checked["declared guard 1 of 1"] and "gradient-fresh" not in guards.not_checked


@pytest.mark.parametrize("given", [{"lr_range": (2.0, 1.0)}, {"lr_range": (float("nan"), 1.0)}, {"window": 0}])
def test_a_spec_that_cannot_hold_is_refused(given: dict[str, Any]) -> None:
    model = Plain()
    with pytest.raises(ConfigError):
        watch(model, torch.optim.SGD(model.parameters(), 0.1), spec=given)


def test_forwards_are_run_again_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(nn.Module):
        """Eighty parameters that no gradient reaches, so that each is tried."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(6, 3), nn.ModuleList(nn.Linear(3, 3) for _ in range(40))

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.first(x)
            for layer in self.rest:
                h = h + layer(h.detach()).detach() * 0.1
            return h

    ran, forwards = nn.Linear.forward, [0]

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        forwards[0] += self.in_features == 6
        return ran(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    trained(functools.partial(watch, policy="observe"), Cut(), steps=1)
    assert 1 < forwards[0] <= 1 + MOST_RUNS


def test_buffers_too_large_to_be_copied_are_not() -> None:
    class Large(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.empty(1 << 27 | 1), persistent=False)

    guards = watch(m := Large(), o := torch.optim.SGD(m.parameters(), 0.1), policy="observe")
    steps(m, o)
    assert "MiB" in guards.finish().not_checked["causality"]


def test_spec_is_given_as_a_record_too() -> None:
    guards = watch(m := Plain(), o := torch.optim.SGD(m.parameters(), 0.1), spec=Spec(causal=False), policy="observe")
    steps(m, o)
    assert guards.finish().exit_code == 0
