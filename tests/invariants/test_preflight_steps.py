"""preflight on steps: what moves, what rounding swallows, one batch learnt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.probed import Body, D, Tokens, V, adam, from_function, message, probed, severity, vectors
from torch import nn

from karat.invariants.runtime.preflight import Report


def test_a_step_that_low_precision_swallows() -> None:
    def step(dtype: torch.dtype, lr: float) -> Report:
        model = from_function(lambda m, x: m.last(x), last=nn.Linear(D, V, bias=False)).to(dtype)
        nn.init.normal_(model.last.weight, mean=8.0)  # type: ignore[arg-type, union-attr]
        batch = vectors()[0].to(dtype), vectors()[1]
        return probed(model, batch=batch, optimizer=torch.optim.SGD(model.parameters(), lr=lr))

    swallowed = step(torch.bfloat16, 1e-4)
    assert severity(swallowed, "precision") == "FAIL" and severity(swallowed, "parameter-moves") == "not run"
    assert severity(step(torch.float32, 1e-4), "parameter-moves") == "held"
    coarse = step(torch.bfloat16, 10.0)
    assert severity(coarse, "parameter-moves") == "held" and severity(coarse, "precision") == "held", str(coarse)


def test_a_rate_of_zero_and_a_warm_up_that_begins_there() -> None:
    model = Body()
    assert severity(probed(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)), "parameter-moves") == "WARN"
    warming = adam(model)
    torch.optim.lr_scheduler.LambdaLR(warming, lambda step: step / 100)
    report = probed(model, optimizer=warming)
    assert severity(report, "parameter-moves") == "held" and severity(report, "overfit") == "held"


def test_one_batch_is_learnt_and_what_cannot_be_is_warned_of() -> None:
    assert severity(probed(Tokens()), "overfit") == "held"
    slow = Body()
    assert "slowly" in probed(slow, optimizer=adam(slow, 1e-7)).held["RUN-32"]
    upwards = Body()
    wrong = torch.optim.SGD(upwards.parameters(), lr=5.0, maximize=True)
    report = probed(upwards, optimizer=wrong)
    assert severity(report, "overfit") == "WARN" and "grows" in message(report, "overfit")
    noise = Body()
    report = probed(noise, loss=lambda m, b: F.cross_entropy(m(b[0]) * 1e-6, b[1]))
    assert severity(report, "overfit") == "WARN" and "cannot learn" in message(report, "overfit")
