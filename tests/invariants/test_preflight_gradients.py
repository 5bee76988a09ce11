"""preflight on gradients: what is cut off, what is only silent yet, what is not finite; and the terms of the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from corpus.probed import Body, D, V, cross_entropy, from_function, message, probed, severity
from torch import Tensor, nn


def test_a_detached_part_fails_by_name_and_its_twin_holds() -> None:
    cut = from_function(lambda m, x: m.last(m.first(x).detach().relu()), first=nn.Linear(D, D), last=nn.Linear(D, V))
    report = probed(cut)
    assert severity(report, "gradient-reach") == "FAIL"
    assert "first.weight" in message(report, "gradient-reach") and "cuts it" in message(report, "gradient-reach")
    assert severity(probed(cut, detached=("first",)), "gradient-reach") == "held"
    assert severity(probed(Body()), "gradient-reach") == "held"


def test_rounding_without_a_straight_through_gradient_fails() -> None:
    def quantised(m: Any, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, (m.first.weight * 8).round() / 8), m.last.weight)

    def straight(m: Any, x: Tensor) -> Tensor:
        w = m.first.weight
        return F.linear(F.linear(x, w + ((w * 8).round() / 8 - w).detach()), m.last.weight)

    parts = {"first": nn.Linear(D, D, bias=False), "last": nn.Linear(D, V, bias=False)}
    assert severity(probed(from_function(quantised, **parts)), "gradient-reach") == "FAIL"
    assert severity(probed(from_function(straight, **parts)), "gradient-reach") == "held"


def test_a_branch_that_starts_at_zero_is_not_silent() -> None:
    def lora(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x).relu() + m.b(m.a(x)))  # type: ignore[no-any-return]

    b = nn.Linear(4, D, bias=False)
    nn.init.zeros_(b.weight)
    model = from_function(lora, first=nn.Linear(D, D), a=nn.Linear(D, 4, bias=False), b=b, last=nn.Linear(D, V))
    assert severity(probed(model), "gradient-reach") == "held"
    gate = nn.Parameter(torch.zeros(()))
    gated = from_function(lambda m, x: m.last(x + m.gate * m.a(x)), gate=gate, a=nn.Linear(D, D), last=nn.Linear(D, V))
    assert severity(probed(gated), "gradient-reach") == "held"


def test_an_expert_that_this_batch_does_not_use_is_no_fail() -> None:
    def routed(m: Any, x: Tensor) -> Tensor:
        return m.last(m.experts[0](x))  # type: ignore[no-any-return]

    model = from_function(routed, experts=nn.ModuleList([nn.Linear(D, D) for _ in range(3)]), last=nn.Linear(D, V))
    report = probed(model)
    assert not report.failures, str(report)
    assert severity(report, "gradient-reach") == "WARN" and "not called: experts.1" in message(report, "gradient-reach")


def test_a_loss_that_is_not_a_number_is_located() -> None:
    model = Body(from_function(lambda m, x: (x - x).log() * 0))
    report = probed(model)
    assert severity(report, "finite") == "FAIL" and "middle" in message(report, "finite")


def test_a_loss_without_any_gradient_fails() -> None:
    report = probed(Body(), loss=lambda m, b: cross_entropy(m, b).detach())
    assert severity(report, "gradient-reach") == "FAIL" and "no gradient at all" in message(report, "gradient-reach")


def test_a_detached_term_fails_and_beside_a_total_it_is_a_warning() -> None:
    def terms(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        out = model(batch[0])
        return {"ce": F.cross_entropy(out, batch[1]), "aux": out.square().mean().detach()}

    def connected(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        out = model(batch[0])
        return {"ce": F.cross_entropy(out, batch[1]), "aux": out.square().mean()}

    report = probed(Body(), loss=terms)
    assert severity(report, "loss-terms") == "FAIL" and "'aux'" in message(report, "loss-terms")
    assert severity(probed(Body(), loss=terms, detached=("aux",)), "loss-terms") == "held"
    assert severity(probed(Body(), loss=connected), "loss-terms") == "held"
    logged = probed(Body(), loss=lambda m, b: {**terms(m, b), "loss": cross_entropy(m, b)})
    assert severity(logged, "loss-terms") == "WARN" and not logged.failures
