"""What is looked at again when the forward, the data or the parameters are no longer what they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.loops import clean_midrun, midrun
from corpus.loops.case import Case, Clean
from corpus.loops.materials import D, H, K, Language, batches, labelled, mlp, next_token, text, windows
from corpus.loops.midrun import decoder, dropping, past
from torch import nn

from karat.core.report import Violation
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching.checks.changes import Changes
from karat.invariants.runtime.watching.checks.probes import AGAIN, MOST_NEWS, Probes
from karat.invariants.runtime.watching.traits import Attributes, of_call, of_graph


def heard(run: Callable[[Any], None]) -> list[Violation]:
    """What the guards say of a loop."""
    kept: list[Any] = []

    def attach(model: Any, optimizer: Any, **declared: Any) -> Any:
        kept.append(watch(model, optimizer, policy="observe", **declared))
        return kept[-1]

    run(attach)
    return [v for guards in kept for v in guards.finish().violations]


@pytest.mark.parametrize("case", midrun.CASES, ids=lambda case: case.name)
def test_each_bug_is_named_after_it_begins(case: Case) -> None:
    found = [v for v in heard(lambda attach: case.run(attach, True)) if v.slug in case.rules]
    assert found and case.first_effect is not None
    assert all(v.step is not None and case.first_effect <= v.step <= case.first_effect + 20 for v in found)


@pytest.mark.parametrize("case", midrun.CASES, ids=lambda case: case.name)
def test_its_twin_is_quiet(case: Case) -> None:
    assert [v.message for v in heard(lambda attach: case.run(attach, False))] == []


@pytest.mark.parametrize("loop", clean_midrun.CLEAN, ids=lambda loop: loop.name)
def test_legitimate_switches_are_quiet(loop: Clean) -> None:
    assert [v.message for v in heard(loop.run)] == []


def test_a_causal_mask_that_is_gone_is_a_fail_and_says_what_changed() -> None:
    case = next(c for c in midrun.CASES if c.name == "mask-flag-off")
    found = [v for v in heard(lambda attach: case.run(attach, True)) if v.slug == "causality"]
    assert [v.severity for v in found] == ["FAIL"] and "attention.causal from True to False" in found[0].evidence


# -- what is seen to change ------------------------------------------------------------------------------------------


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.act, self.config = nn.Linear(D, K), F.relu, SimpleNamespace(rate=0.1)
        self.table = {"kind": "a"}
        self.register_buffer("mask", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.act(x))


def exchange_part(m: Configured) -> None:
    m.part = nn.Linear(D, K)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("training", lambda m: m.eval()),
        ("act", lambda m: setattr(m, "act", torch.tanh)),
        ("config.rate", lambda m: setattr(m.config, "rate", 0.0)),
        ("table.kind", lambda m: m.table.update(kind="b")),
        ("table.kind", lambda m: m.table.clear()),
        ("mask", lambda m: m.mask.fill_(0)),
        ("part", exchange_part),
        ("part.bias", lambda m: None),
    ],
)
def test_attributes(name: str, change: Callable[[Configured], Any]) -> None:
    model = Configured()
    seen = Attributes(model)
    assert seen.changed() == {}
    change(model)
    assert (name in seen.changed()) == (name != "part.bias")
    assert seen.changed() == {}


def test_an_attribute_that_becomes_a_tensor_is_a_change() -> None:
    model = Configured()
    model.scale = 1.0
    seen = Attributes(model)
    model.scale = torch.ones(3)  # type: ignore[assignment]
    assert "scale" in seen.changed()


def test_running_statistics_are_no_change() -> None:
    model = nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H))
    seen = Attributes(model)
    model(torch.randn(8, D))
    assert seen.changed() == {}


def test_traits_of_a_call() -> None:
    model, x = mlp(), torch.randn(4, D)
    plain = of_call(model, (x,), {"causal": True}, ())
    assert plain == of_call(model, (x + 1,), {"causal": True}, ())
    for other in (
        of_call(model, (x,), {"causal": False}, ()),
        of_call(model, (x,), {}, ()),
        of_call(model, (x.half(),), {"causal": True}, ()),
        of_call(model, (x,), {"causal": True}, (("cpu", torch.bfloat16),)),
    ):
        assert other != plain


def test_traits_of_a_graph() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    graphs = [of_graph([F.scaled_dot_product_attention(x, x, x, is_causal=causal)]) for causal in (True, False, True)]
    assert graphs[0] == graphs[2] != graphs[1]


# -- what it sets off ------------------------------------------------------------------------------------------------


def probed_at(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], None]) -> list[int]:
    steps: list[int] = []
    original = Probes._run

    def noting(self: Probes, loop: Any, step: int, *given: Any) -> None:
        steps.append(step)
        original(self, loop, step, *given)

    monkeypatch.setattr(Probes, "_run", noting)
    heard(run)
    return steps


def toggled(period: int, start: int, steps: int = 120) -> Callable[[Any], None]:
    """A flag without a meaning that goes over every so many steps, from some step on."""

    def run(attach: Any) -> None:
        model, optimizer = dropping()
        attach(model, optimizer)
        for step, (x, y) in enumerate(batches(*labelled(), steps)):
            model.flag = bool(step >= start and (step - start) // period % 2 == 0)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def test_a_flag_that_changes_from_the_start_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [s for s in probed_at(monkeypatch, toggled(1, 0)) if s > 3] == [64]


def test_a_flag_is_news_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.invariants.runtime.watching.checks.probes.AGAIN", ())
    assert len([s for s in probed_at(monkeypatch, toggled(8, 20)) if s > 3]) == 2


def test_many_things_that_change_are_news_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.invariants.runtime.watching.checks.probes.AGAIN", ())

    def run(attach: Any) -> None:
        model, optimizer = dropping()
        for i in range(30):
            setattr(model, f"flag{i}", 0)
        attach(model, optimizer)
        for step, (x, y) in enumerate(batches(*labelled(), 120)):
            if step >= 8:
                setattr(model, f"flag{(step // 4) % 30}", step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    assert len([s for s in probed_at(monkeypatch, run) if s > 3]) == MOST_NEWS


def test_the_forward_is_probed_again_at_two_early_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [s for s in probed_at(monkeypatch, toggled(1000, 1000, 140)) if s > 3] == list(AGAIN) == [64]


def test_a_mask_that_fades_unseen_is_found_at_a_later_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is in a list that nobody reads but the forward: no attribute, argument or operation changes."""
    monkeypatch.setattr(Changes, "_news", lambda *given: None)
    masks = [past()]

    def run(attach: Any) -> None:
        model, optimizer = decoder()
        attach(model, optimizer)
        forward = model.attention.forward
        model.attention.forward = lambda x, mask: forward(x, masks[0])  # type: ignore[method-assign]
        for step, (x, y) in enumerate(windows(text(), 80)):
            if step == 20:
                masks[0] = torch.ones_like(masks[0])
            optimizer.zero_grad()
            next_token(model(x), y).backward()
            optimizer.step()

    found = [v for v in heard(run) if v.slug == "causality"]
    assert [(v.severity, v.step) for v in found] == [("FAIL", AGAIN[0])]


def test_the_forward_is_kept_no_longer_than_needed() -> None:
    """What stays odd is looked at a few times, then as everything is."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    guards = watch(model, optimizer, policy="observe")
    kept = []
    for step, (x, y) in enumerate(batches(*labelled(), 60)):
        kept.append(guards._loop.capture_next)
        optimizer.zero_grad()
        F.cross_entropy(
            model(torch.zeros_like(x) if step >= 20 else x), torch.zeros_like(y) if step >= 20 else y
        ).backward()
        optimizer.step()
    guards.finish()
    assert sum(kept[20:]) <= 12


@pytest.mark.parametrize("name", ["mask-flag-off", "sampling-left-on", "zeros-later", "padding-later"])
def test_a_watched_run_is_the_run_itself(name: str) -> None:
    case = next(c for c in midrun.CASES if c.name == name)
    ends: list[dict[str, torch.Tensor]] = []

    def attaching(guard: bool) -> Callable[..., Any]:
        def attach(model: nn.Module, optimizer: Any, **declared: Any) -> Any:
            models.append(model)
            return watch(model, optimizer, policy="observe", **declared) if guard else None

        return attach

    for guard in (False, True):
        models: list[nn.Module] = []
        torch.manual_seed(0)
        case.run(attaching(guard), True)
        ends.append(copy.deepcopy(models[0].state_dict()))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


# -- what a loop writes to its parameters ----------------------------------------------------------------------------


def written(change: Callable[[nn.Module, int], None], steps: int = 60) -> list[Violation]:
    def run(attach: Any) -> None:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        for step, (x, y) in enumerate(batches(*labelled(), steps)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                change(model, step)

    return [v for v in heard(run) if v.slug == "parameter-moves"]


def half_noise(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.mul_(0.5).add_(0.01 * torch.randn(p.shape, generator=draw))


def fresh(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.copy_(0.1 * torch.randn(p.shape, generator=draw))


def test_what_is_done_once_is_said_and_what_is_done_again_is_not() -> None:
    once = written(lambda model, step: half_noise(model) if step == 10 else None)
    assert [(v.severity, v.step) for v in once] == [("WARN", 11)]
    assert written(lambda model, step: half_noise(model) if step % 10 == 9 else None) == []


def test_what_is_another_parameter_is_said_at_once_however_often() -> None:
    found = written(lambda model, step: fresh(model) if step % 10 == 9 else None)
    assert found and found[0].step == 10


def test_scaling_and_pruning_are_meant() -> None:
    def prune(model: nn.Module, step: int) -> None:
        if step == 20:
            for p in model.parameters():
                p.mul_(p.abs() > p.abs().median() * 0.5)

    assert written(lambda model, step: [p.mul_(0.5) for p in model.parameters()] and None if step == 20 else None) == []
    assert written(prune) == []


def test_the_language_model_of_the_corpus_is_probed_no_more_than_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(attach: Any) -> None:
        model = Language()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        attach(model, optimizer)
        for x, y in windows(text(), 40):
            optimizer.zero_grad()
            next_token(model(x), y).backward()
            optimizer.step()

    monkeypatch.setattr("karat.invariants.runtime.watching.checks.probes.AGAIN", ())
    assert [s for s in probed_at(monkeypatch, run) if s > 3] == []
