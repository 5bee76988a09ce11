"""The contract of the RUN family: records that are complete and true, and one id scheme for watch, preflight and audit."""

from __future__ import annotations

import ast
import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from karat.core.report import read_lock
from karat.core.run_log import Row, RunLog
from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.run.audit import audit
from karat.invariants.run.catalogue import RULES, find_rule
from karat.invariants.run.comparisons import independent_seeds, prune_rule, resume_parity
from karat.invariants.run.intent import Intent
from karat.invariants.run.pages import written
from karat.invariants.run.rule import Form, Rule, Severity
from karat.invariants.run.spec import Schedule, Spec, Suppression
from karat.invariants.runtime.preflight import PROBES
from karat.invariants.runtime.watching.checks import ORDER
from karat.invariants.standing import LOCK
from karat.trainer.cli import main

ALL = pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])
FUNCTIONS = {"resume_parity", "independent", "comparisons", "pruning"}
WITHOUT_LOOP = {
    "overfit": "preflight trains on one batch before any loop; test_preflight_steps.py",
    "log-steps": "audit alone; test_audit_readers.py",
    "tokens": "audit alone; test_audit.py",
    "declarations": "audit alone; test_audit.py",
    "update-ratio": "a heuristic without a reported bug; test_watch_precision.py",
    "lr-past-end": "audit alone: in a loop it is RUN-1, 2 or 3; test_audit.py",
    "claimed-reduction": "audit alone; test_audit.py",
}
"""Rules that no loop of the corpus has as its cause, and why."""


def test_ids_are_contiguous_and_names_unique() -> None:
    assert [rule.id for rule in RULES] == [f"RUN-{k}" for k in range(1, len(RULES) + 1)]
    assert len({rule.slug for rule in RULES}) == len(RULES)
    for name in ("limits", "example"):
        values = [getattr(rule, name) for rule in RULES]
        assert len(set(values)) == len(values), f"two rules have the same {name}"


def test_every_file_of_a_rule_is_in_the_catalogue(repository: Path) -> None:
    files = sorted((repository / "invariants" / "run").glob("run[0-9]*_*.py"))
    assert len(files) == len(RULES)
    for file, rule in zip(files, RULES, strict=True):
        assert file.stem == f"run{int(rule.id[4:]):02d}_{rule.slug.replace('-', '_')}"
        module = importlib.import_module(f"karat.invariants.run.{file.stem}")
        assert module.RULE is rule
        assert str(module.__doc__).startswith(f"{rule.id} {rule.slug}: ")


@ALL
def test_every_field_says_something(rule: Rule) -> None:
    texts = (rule.statement, rule.why, rule.quantity, rule.when, rule.declare, *rule.limits)
    assert rule.limits and rule.holds and rule.violates and rule.seen_by
    assert all(len(text) >= 4 and text == text.strip() and not text.endswith(".") for text in texts)
    assert rule.severity in (Severity.FAIL, Severity.WARN)
    assert set(rule.seen_by) <= {"watch", "preflight", "audit"} | FUNCTIONS
    assert re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+/?", rule.source)
    assert rule.example != rule.mended
    assert all(witness.why for witness in (*rule.holds, *rule.violates))


@ALL
def test_witnesses_are_judged_right_and_no_nan_or_infinity_holds(rule: Rule) -> None:
    for witness in rule.holds:
        assert rule.holds_for(witness.value, *witness.bounds) and rule.margin(witness.value, *witness.bounds) >= 0
    for witness in rule.violates:
        assert not rule.holds_for(witness.value, *witness.bounds) and rule.margin(witness.value, *witness.bounds) < 0
    bounds = rule.holds[0].bounds
    assert len(bounds) == (2 if rule.form in (Form.WITHIN, Form.AGREES) else 1)
    for value in (math.nan, math.inf, -math.inf):
        assert not rule.holds_for(value, *bounds)
    for place in range(len(bounds)):
        spoiled = [math.nan if k == place else bound for k, bound in enumerate(bounds)]
        assert not rule.holds_for(rule.holds[0].value, *spoiled)


def calls(text: str) -> Iterator[str]:
    """Every call of Spec in a text, up to its closing bracket."""
    for found in re.finditer(r"(?<!\w)Spec\(", text):
        depth = 0
        for end in range(found.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                yield text[found.start() : end + 1]
                break
        else:
            raise AssertionError(f"a bracket is not closed: {text}")


@ALL
def test_the_code_is_code_and_what_is_declared_can_be(rule: Rule) -> None:
    for code in (rule.example, rule.mended):
        if not code.startswith("--"):
            ast.parse(code)
    names = {"Spec": Spec, "Schedule": Schedule, "Suppression": Suppression}
    for call in calls(rule.declare.replace("=…", "=None")):
        spec = eval(call, names)
        assert all(find_rule(by.rule) is rule for by in spec.suppress)


def test_a_rule_is_found_by_id_or_slug_in_any_case() -> None:
    for rule in RULES:
        assert find_rule(rule.id.lower()) is find_rule(rule.slug.upper()) is rule


# -- who sees it -----------------------------------------------------------------------------------------------------


def log(*columns: str) -> RunLog:
    rows = tuple(Row(f"line {k}", k, dict.fromkeys(columns, 1.0)) for k in range(3))
    return RunLog("log", "test", rows, {name: name for name in columns}, {})


def test_seen_by_is_what_watch_preflight_and_audit_run() -> None:
    watched = {rule.id for check in ORDER for rule in check.rules}
    probed = {probe.id for probe in PROBES}
    judged = {finding.id for finding in audit(log(), Intent()).findings} - {LR_BAND.id}
    for rule in RULES:
        seen = {name for name, ids in (("watch", watched), ("preflight", probed), ("audit", judged)) if rule.id in ids}
        assert seen == set(rule.seen_by) - FUNCTIONS, rule.id
    assert watched | probed | judged <= {rule.id for rule in RULES}
    assert all(find_rule(probe.id) is probe.rule and probe.slug == probe.rule.slug for probe in PROBES)


def test_the_functions_say_the_rules_that_name_them() -> None:
    found = {
        "resume": resume_parity({0: 1.0}, {0: 1.0}),
        "seeds": independent_seeds({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 4.0]}),
        "prune": prune_rule(lambda own, others: False, {"a": [2.0, 1.0]}),
    }
    for slug, finding in found.items():
        assert finding.slug == slug and finding.id == find_rule(slug).id
    assert {rule.slug for rule in RULES if "comparisons" in rule.seen_by} == set(found)


def test_one_severity_for_the_whole_family() -> None:
    from_audit = audit(log(), Intent()).findings[0].severity
    assert type(from_audit) is Severity
    for name in ("runtime.preflight", "runtime.preflight.report", "run.rule"):
        assert importlib.import_module(f"karat.invariants.{name}").Severity is Severity


def test_no_check_of_a_log_says_more_than_its_rule() -> None:
    order = {Severity.INFO: 0, Severity.WARN: 1, Severity.FAIL: 2}
    for finding in audit(log(), Intent()).findings:
        if finding.id != LR_BAND.id:
            assert order[finding.severity] <= order[find_rule(finding.id).severity], finding.id


# -- the pages and the corpus ----------------------------------------------------------------------------------------

GRADE = re.compile(r"The comparison, .*? for every double")


def test_the_pages_are_what_the_records_say(repository: Path) -> None:
    folder, pages = repository / "docs" / "rules", written(read_lock(LOCK))
    assert {path.name for path in folder.iterdir()} == set(pages), "make rules"
    for name, text in pages.items():
        kept = (folder / name).read_text(encoding="utf-8")
        assert GRADE.sub("", kept) == GRADE.sub("", text), f"docs/rules/{name} is stale: make rules"


@ALL
def test_a_page_reads_as_sentences(rule: Rule, repository: Path) -> None:
    text = (repository / "docs" / "rules" / f"{rule.id}.md").read_text(encoding="utf-8")
    assert f"# {rule.id} {rule.slug}\n" in text and rule.source in text and "make bench-guards" in text
    for line in text.partition("## The bug")[0].splitlines():
        if line.startswith("- "):
            assert line.endswith(".") and not line.endswith(".."), line
    assert text.count("```") % 2 == 0 and text.count("`") % 2 == 0


@pytest.mark.parametrize("name", ["RUN-8", "run-8", "gradient-reach"])
def test_a_rule_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# RUN-8 gradient-reach") and "## The bug" in out and "encoder" in out


def test_an_unknown_rule_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "run-88"]) == 2
    assert "did you mean run-8" in capsys.readouterr().err


def test_every_rule_has_a_loop_of_the_corpus_or_a_reason(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    caused = {slug for case in importlib.import_module("detection").cases() for slug in case.rules}
    slugs = {rule.slug for rule in RULES}
    assert caused <= slugs
    assert slugs - caused == set(WITHOUT_LOOP)
    for reason in WITHOUT_LOOP.values():
        for file in re.findall(r"test_\w+\.py", reason):
            assert list((repository / "tests").rglob(file)), file
