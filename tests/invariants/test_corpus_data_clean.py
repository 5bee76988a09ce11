"""The loops of the guards' benchmark run, do the same again, and show their bug where they say; nothing judges here."""

from __future__ import annotations

import itertools
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from corpus.loops import clean, data, proposed, search, state
from corpus.loops.case import Case, Clean
from corpus.loops.recorder import Recorders

from karat.invariants.run.finding import Finding, Severity, decided

CASES = (*data.CASES, *state.CASES, *search.CASES)
SLUGS = {"split", "repeats", "targets", "padding", "labels", "resume", "checkpoint", "data-position", "seeds", "prune",
         "loss-trend", "reduction", "first-loss", "lr-decay"}  # fmt: skip
AT_MOST = 3.0
"""Process CPU seconds of one loop, with room for a slow machine; on a fast one each takes well under a second."""

each_clean = pytest.mark.parametrize("loop", clean.CLEAN, ids=lambda loop: loop.name)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def parity(straight: Mapping[int, float], resumed: Mapping[int, float]) -> Finding:
    """Losses of the same steps are the same numbers."""
    shared = straight.keys() & resumed.keys()
    return found("RUN-42", bool(shared) and all(straight[step] == resumed[step] for step in shared))


def seeds(runs: Mapping[str, Sequence[float]]) -> Finding:
    """No two runs have the same losses."""
    return found("RUN-45", all(list(a) != list(b) for a, b in itertools.combinations(runs.values(), 2)))


def prune(
    rule: Callable[[Sequence[float], Sequence[Sequence[float]]], bool], curves: Mapping[str, Sequence[float]]
) -> Finding:
    """The rule does not stop the run that ends best."""
    best = min(curves.values(), key=lambda curve: curve[-1])
    others = list(curves.values())
    return found("RUN-46", not any(rule(best[:n], [c[:n] for c in others]) for n in range(1, len(best))))


def found(id: str, holds: bool) -> Finding:
    """A finding of one of the references above."""
    return decided(id, Severity.FAIL, holds, "", "", rows=1)


@pytest.fixture(autouse=True)
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions on logs that loops call, in place of the package's."""
    module = types.ModuleType("references_of_comparisons")
    module.__dict__.update(resume_parity=parity, independent_seeds=seeds, prune_rule=prune)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(proposed, "MODULE", module.__name__)


def recorded(run: Callable[..., None], *given: bool) -> Recorders:
    """What a loop did, under a stand-in that judges nothing."""
    made = Recorders()
    run(made, *given)
    return made


def digests(made: Recorders) -> list[float]:
    """Of the parameters after each step, of all attachments one after the other."""
    return [digest for recorder in made.made for digest in recorder.digests]


def test_every_loop_has_a_name_of_its_own_and_says_what_it_does() -> None:
    names = [loop.name for loop in (*clean.CLEAN, *CASES)]
    assert len(names) == len(set(names))
    assert len(clean.CLEAN) >= 32
    assert all(len(loop.about.split()) >= 5 for loop in (*clean.CLEAN, *CASES))
    for case in CASES:
        assert case.rules and case.rules <= SLUGS
        assert case.source and case.needs


@each_clean
def test_a_clean_loop_trains_to_its_end_within_its_time(loop: Clean) -> None:
    began = time.process_time()
    made = recorded(loop.run)
    assert made.steps >= 10
    assert all(value == value for value in digests(made)), "a parameter is not a number"
    assert time.process_time() - began < AT_MOST
    assert any(len(set(recorder.digests)) > 1 for recorder in made.made), "no parameter ever moved"


@each_clean
def test_a_clean_loop_does_the_same_again(loop: Clean) -> None:
    torch.manual_seed(123)
    first = recorded(loop.run)
    torch.manual_seed(321)
    assert recorded(loop.run).trace() == first.trace()


@each_case
def test_a_case_shows_its_bug_from_the_step_on_that_it_names(case: Case) -> None:
    began = time.process_time()
    buggy, twin = recorded(case.run, True), recorded(case.run, False)
    assert time.process_time() - began < AT_MOST
    assert buggy.steps >= 10 and twin.steps >= 10
    assert buggy.trace() != twin.trace()
    if case.first_effect is not None:
        assert 0 <= case.first_effect < buggy.steps
        pairs = zip(digests(buggy), digests(twin), strict=False)
        differs = next((step for step, (a, b) in enumerate(pairs) if a != b), None)
        assert differs in (None, case.first_effect), "the parameters differ from another step on"


@each_case
def test_a_case_does_the_same_again(case: Case) -> None:
    for bug in (True, False):
        torch.manual_seed(123)
        first = recorded(case.run, bug)
        torch.manual_seed(321)
        assert recorded(case.run, bug).trace() == first.trace()


@pytest.mark.parametrize("case", [c for c in CASES if c.first_effect is None and c.rules != {"checkpoint"}],
                         ids=lambda case: case.name)  # fmt: skip
def test_what_a_case_collects_violates_its_rule_with_the_bug_and_not_without(case: Case) -> None:
    for bug in (True, False):
        told = [told["finding"] for r in recorded(case.run, bug).made for _, kind, told in r.told if kind == "finding"]
        assert len(told) == 1
        assert ("VIOLATED" in told[0]) is bug


def test_without_the_functions_a_case_says_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposed, "MODULE", "karat.there_is_no_such_module")
    with pytest.raises(NotImplementedError, match="independent_seeds"):
        recorded(search.seed_zero_is_no_seed.run, True)
