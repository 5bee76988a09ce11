"""preflight on the loss: what it is given, and where it starts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from corpus.probed import B, Body, D, V, from_function, message, probed, severity, vectors
from torch import Tensor, nn


def test_double_softmax_fails_with_its_reason() -> None:
    twice = from_function(lambda m, x: m.last(x).softmax(-1), last=nn.Linear(D, V))
    report = probed(twice)
    assert severity(report, "softmax") == "FAIL" and "softmax again" in message(report, "softmax")
    assert severity(probed(Body()), "softmax") == "held"


def test_nll_of_logits_and_shapes_that_broadcast_fail() -> None:
    def nll(m: Any, b: Any) -> Tensor:
        return F.nll_loss(m(b[0]), b[1])

    def right(m: Any, b: Any) -> Tensor:
        return F.nll_loss(m(b[0]).log_softmax(-1), b[1])

    assert severity(probed(Body(), loss=nll), "softmax") == "FAIL"
    assert severity(probed(Body(), loss=right), "softmax") == "held"
    one = from_function(lambda m, x: m.last(x), last=nn.Linear(D, 1))
    batch = vectors()[0], torch.randn(B)
    wrong = probed(one, batch=batch, loss=lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert severity(wrong, "softmax") == "FAIL" and "36 pairs" in wrong.failures[0].evidence
    assert not probed(one, batch=batch, loss=lambda m, b: F.mse_loss(m(b[0]).squeeze(-1), b[1])).failures


def test_the_first_loss_against_ln_of_the_classes() -> None:
    loud = Body()
    with torch.no_grad():
        loud.last.weight.mul_(100)
    assert severity(probed(loud, classes=V), "first-loss") == "FAIL"
    assert severity(probed(loud), "first-loss") == "WARN"
    assert severity(probed(loud, classes=V, pretrained=True), "first-loss") == "WARN"
    assert severity(probed(Body(), classes=V), "first-loss") == "held"
    wrong = probed(Body(), classes=V + 1)
    assert severity(wrong, "first-loss") == "FAIL" and f"over {V} classes" in message(wrong, "first-loss")
