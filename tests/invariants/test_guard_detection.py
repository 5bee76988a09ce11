"""The runner of the guards' benchmark: what counts as caught, as the right cause, as a false alarm, and the exit code."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from corpus.loops import data, search
from corpus.loops.case import Attach, Case, Clean
from corpus.loops.materials import mlp

Say = Callable[[int, dict[str, Any]], tuple[str, str] | None]


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/guard_detection.py as a module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("guard_detection")


class Talking:
    """Guards that judge what is logged by a function of the step and the metrics: (slug, severity) or None."""

    def __init__(self, say: Say, optimizer: torch.optim.Optimizer) -> None:
        self.say, self.step, self.violations = say, 0, list[Any]()
        optimizer.register_step_post_hook(self._after)

    def _after(self, *_: Any) -> None:
        self.step += 1

    def log(self, **metrics: Any) -> None:
        """Judges."""
        if found := self.say(self.step - 1, metrics):
            slug, severity = found
            self.violations.append(
                SimpleNamespace(id="RUN-0", slug=slug, severity=severity, step=self.step - 1, message="seen")
            )

    def finish(self) -> None:
        """Nothing to end."""


def watching(make: Callable[[], Say]) -> Callable[..., Talking]:
    """An attach that gives each attachment a function of its own."""
    return lambda model, optimizer, **declared: Talking(make(), optimizer)


def repeats() -> Say:
    """Speaks when an input was there before."""
    known: list[torch.Tensor] = []

    def say(step: int, metrics: dict[str, Any]) -> tuple[str, str] | None:
        inputs = metrics["inputs"]
        again = any(torch.equal(inputs, seen) for seen in known)
        known.append(inputs.clone())
        return ("repeats", "FAIL") if again else None

    return say


def loop(bug_at: int | None = None, steps: int = 12) -> Callable[[Attach, bool], None]:
    """A loop that logs whether its bug shows, from a step on."""

    def run(attach: Attach, bug: bool) -> None:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        guards = attach(model, optimizer)
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 16)).square().mean().backward()
            optimizer.step()
            guards.log(wrong=bug and bug_at is not None and step >= bug_at)

    return run


def case(run: Callable[[Attach, bool], None], effect: int | None = 3) -> Case:
    """A case around a loop."""
    return Case("made-up", "a loop made for this test", frozenset({"right"}), effect, run)


def when_wrong(slug: str, severity: str = "FAIL", late: int = 0) -> Callable[..., Talking]:
    """Guards that speak so many steps after the bug first shows."""

    def make() -> Say:
        count = 0

        def say(step: int, metrics: dict[str, Any]) -> tuple[str, str] | None:
            nonlocal count
            count += metrics["wrong"]
            return (slug, severity) if count > late else None

        return say

    return watching(make)


def always(slug: str, severity: str) -> Callable[..., Talking]:
    """Guards that speak at every step."""
    return watching(lambda: lambda step, metrics: (slug, severity))


def test_a_bug_of_the_corpus_is_caught_where_it_starts(bench: ModuleType) -> None:
    judged = bench.judge(data.iterator_again_and_again, watching(repeats), rivals=False)
    assert (judged.caught.step, judged.delay, judged.cause) == (1, 0, True)
    assert not judged.twin.seen and not judged.broken


@pytest.mark.parametrize("late", [0, 4])
def test_the_delay_is_counted_from_the_first_effect(bench: ModuleType, late: int) -> None:
    judged = bench.judge(case(loop(3)), when_wrong("right", late=late), rivals=False)
    assert (judged.caught.step, judged.delay) == (3 + late, late)


def test_another_rule_catches_but_does_not_name_the_cause(bench: ModuleType) -> None:
    judged = bench.judge(case(loop(3)), when_wrong("other"), rivals=False)
    assert judged.caught is not None and not judged.cause


def test_another_rule_before_the_first_effect_is_no_detection(bench: ModuleType) -> None:
    judged = bench.judge(case(loop(1)), watching(lambda: lambda step, m: ("other", "FAIL") if m["wrong"] and step == 1 else None),
                         rivals=False)  # fmt: skip
    assert judged.buggy.seen and judged.caught is None


def test_what_speaks_on_the_twin_too_is_no_detection_and_a_false_alarm(bench: ModuleType) -> None:
    judged = bench.judge(case(loop(3)), always("right", "FAIL"), rivals=False)
    assert judged.caught is None
    summary = bench.summarise([judged], {}, {})
    assert (summary["caught"], summary["false_fails_twins"], summary["false_warns_twins"]) == (0, 1, 0)
    assert bench.exit_code(summary) == 1


def test_an_exception_and_a_missing_function_are_told_apart(bench: ModuleType) -> None:
    def broken(attach: Attach, bug: bool) -> None:
        raise ValueError("the loop is broken")

    assert "the loop is broken" in bench.judge(case(broken), always("right", "WARN"), rivals=False).buggy.error
    judged = bench.judge(search.seed_zero_is_no_seed, watching(lambda: lambda step, metrics: None), rivals=False)
    summary = bench.summarise([judged], {}, {})
    assert summary["errors"] == 0
    assert summary["caught"] + summary["not_implemented"] == 1


@pytest.mark.parametrize(("severity", "code"), [("WARN", 0), ("FAIL", 1)])
def test_a_false_alarm_on_a_clean_loop_counts_by_its_severity(bench: ModuleType, severity: str, code: int) -> None:
    clean = Clean("made-up", "a loop made for this test", lambda attach: loop()(attach, False))
    summary = bench.summarise([], {clean.name: bench.guarded(clean.run, always("x", severity))}, {})
    assert summary[f"false_{severity.lower()}s_clean"] == 1
    assert bench.exit_code(summary) == code


def test_nothing_run_is_no_verdict(bench: ModuleType) -> None:
    assert bench.exit_code(bench.summarise([], {}, {})) == 2


def test_below_95_percent_fails(bench: ModuleType) -> None:
    good = bench.judge(case(loop(3)), when_wrong("right"), rivals=False)
    missed = bench.judge(case(loop(3)), watching(lambda: lambda step, metrics: None), rivals=False)
    assert bench.exit_code(bench.summarise([good] * 19 + [missed], {}, {})) == 0
    assert bench.exit_code(bench.summarise([good] * 18 + [missed], {}, {})) == 1


def test_the_rivals_see_what_they_can_see(bench: ModuleType) -> None:
    def not_a_number(attach: Attach) -> None:
        weight = torch.zeros(2, requires_grad=True)
        (weight.sqrt() * 0).sum().backward()

    anomaly, loss = bench.RIVALS["anomaly"], bench.RIVALS["loss"]
    assert anomaly(not_a_number) and not loss(not_a_number)
    assert loss(lambda attach: search.climbs.run(attach, True)) and not anomaly(
        lambda attach: search.climbs.run(attach, True)
    )
    assert not loss(lambda attach: search.climbs.run(attach, False))


def test_the_command_prints_tables_and_writes_a_record(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    arguments = ["--only", "iterator-again-*", "--json", str(path), "--no-rivals"]
    assert bench.main(arguments, attach=watching(repeats)) == 0
    shown = capsys.readouterr().out
    assert "iterator-again-and-again" in shown and "RUN-0 repeats" in shown and "quiet" in shown
    record = json.loads(path.read_text())
    assert record["summary"]["detection_rate"] == 1.0
    assert record["cases"][0]["caught"]["step"] == 1
    assert bench.main(["--only", "there-is-none"], attach=watching(repeats)) == 2


def test_every_module_of_the_corpus_that_exists_is_collected(bench: ModuleType) -> None:
    found = [c.name for c in importlib.import_module("detection").cases()]
    assert {c.name for c in (*data.CASES, *search.CASES)} <= set(found)
    assert len(found) == len(set(found))
