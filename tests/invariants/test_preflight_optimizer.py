"""preflight on what the optimizer holds, and on ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from corpus.probed import Body, D, V, adam, cross_entropy, from_function, message, probed, severity, text
from torch import Tensor, nn


def test_an_optimizer_of_replaced_parameters_fails_and_says_why() -> None:
    model = Body()
    stale = adam(model)
    model.last = nn.Linear(D, V)
    report = probed(model, optimizer=stale)
    text = message(report, "optimizer-parameters")
    assert severity(report, "optimizer-parameters") == "FAIL"
    assert "made before the model was replaced" in text and "last.weight" in text


def test_an_optimizer_that_misses_a_part_fails_and_a_frozen_part_does_not() -> None:
    model = Body()
    half = torch.optim.Adam(model.last.parameters())
    assert severity(probed(model, optimizer=half), "optimizer-parameters") == "FAIL"
    assert severity(probed(model, optimizer=half, frozen=("first",)), "optimizer-parameters") == "held"
    model.first.requires_grad_(False)
    report = probed(model, optimizer=half)
    assert severity(report, "optimizer-parameters") == "held" and not report.failures


def test_a_backbone_under_no_grad_is_no_fail() -> None:
    def headed(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.first(x)
        return m.last(h)  # type: ignore[no-any-return]

    model = from_function(headed, first=nn.Linear(D, D), last=nn.Linear(D, V))
    report = probed(model, optimizer=torch.optim.Adam(model.last.parameters()))  # type: ignore[union-attr]
    assert not report.failures, str(report)


def test_a_parameter_held_twice_fails_and_a_learnt_one_outside_the_model_does_not() -> None:
    model = Body()
    with pytest.warns(UserWarning, match="duplicate"):
        twice = torch.optim.SGD([*model.parameters(), model.last.weight], lr=0.1)
    assert severity(probed(model, optimizer=twice), "optimizer-parameters") == "FAIL"
    scale = nn.Parameter(torch.zeros(()))
    both = torch.optim.Adam([*model.parameters(), scale])
    learnt = probed(model, optimizer=both, loss=lambda m, b: cross_entropy(m, b) * (-scale).exp() + scale)
    assert severity(learnt, "optimizer-parameters") == "held"


def test_declared_ties() -> None:
    model = from_function(lambda m, x: m.head(m.embedding(x)), embedding=nn.Embedding(V, D), head=nn.Linear(D, V))
    model.head.weight = model.embedding.weight  # type: ignore[union-attr]
    pair = ("embedding.weight", "head.weight")
    tied = probed(model, batch=text(), tied=(pair,))
    assert severity(tied, "ties") == "held" and not tied.failures
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())  # type: ignore[union-attr, operator]
    assert severity(probed(model, batch=text(), tied=(pair,)), "ties") == "FAIL"
    assert severity(probed(model, batch=text()), "ties") == "WARN"
