"""preflight as a whole: a clean model holds in all that applies; suppressions; ids and slugs."""

from __future__ import annotations

import pytest
import torch
from corpus.probed import Body, Tokens, V, probed

from karat.invariants.run.catalogue import find_rule
from karat.invariants.runtime.preflight import PROBES


def test_a_clean_model_of_tokens_holds_in_every_rule_that_applies() -> None:
    report = probed(Tokens(drop=0.1), causal=True, batch_independent=True, deterministic=True, classes=V)
    assert not report.findings, str(report)
    assert report.exit_code == 0
    assert set(report.not_run) == {"RUN-10", "RUN-20", "RUN-33", "schedule"}
    assert set(report.held) | set(report.not_run) == {probe.id for probe in PROBES} | {"schedule"}


def test_suppressions_are_kept_with_their_reason() -> None:
    model = Body()
    half = torch.optim.Adam(model.last.parameters())
    by = {"rule": "RUN-15", "reason": "the body is trained in phase two", "where": "first.*"}
    report = probed(model, optimizer=half, suppress=(by,))
    assert not report.failures and report.suppressed[0].reason == by["reason"] and report.exit_code == 0
    elsewhere = probed(model, optimizer=half, suppress=({**by, "where": "last.*"},))
    assert elsewhere.failures and elsewhere.exit_code == 1


@pytest.mark.parametrize("rule", ["RUN-15", "optimizer-parameters"])
def test_a_rule_is_suppressed_by_its_id_or_its_slug(rule: str) -> None:
    model = Body()
    half = torch.optim.Adam(model.last.parameters())
    report = probed(model, optimizer=half, suppress=({"rule": rule, "reason": "phase two"},))
    assert not report.failures and [(f.id, f.slug, f.reason) for f in report.suppressed] == [
        ("RUN-15", "optimizer-parameters", "phase two")
    ]
    assert "suppressed: phase two" in str(report)


def test_numbers_are_judged_by_the_margin_of_their_rule() -> None:
    report = probed(Tokens(causal=False), causal=True)
    found = next(f for f in report.failures if f.slug == "causality")
    assert found.margin is not None and found.margin < 0 and "largest change" in found.evidence
    half = Body()
    missing = probed(half, optimizer=torch.optim.Adam(half.last.parameters())).failures[0]
    assert missing.margin == find_rule("optimizer-parameters").margin(2, 0) == -2
