"""preflight on what the model computes: causality, inputs, samples, eval mode, dropout, equal branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.probed import B, Body, D, T, Tokens, V, from_function, message, probed, severity, text, vectors
from torch import Tensor, nn


@pytest.mark.parametrize("zero", [False, True])
def test_a_leak_of_the_future_is_found_also_behind_a_branch_that_starts_at_zero(zero: bool) -> None:
    assert severity(probed(Tokens(causal=False, zero=zero), causal=True), "causality") == "FAIL"
    assert severity(probed(Tokens(causal=True, zero=zero), causal=True), "causality") == "held"


def test_causality_is_guessed_from_shifted_targets_and_only_warned_of() -> None:
    assert severity(probed(Tokens(causal=False)), "causality") == "WARN"
    labels = text()[0], torch.zeros(B, T, dtype=torch.long)
    assert severity(probed(Tokens(causal=False), batch=labels), "causality") == "not run"
    assert severity(probed(Tokens(causal=False), causal=False), "causality") == "not run"


@pytest.mark.parametrize("zero", [False, True])
def test_an_attention_over_one_token_is_warned_of(zero: bool) -> None:
    report = probed(Tokens(mix=False, zero=zero))
    assert severity(report, "inputs") == "WARN" and "its own position alone" in message(report, "inputs")
    assert severity(probed(Tokens(mix=True, zero=zero)), "inputs") == "held"


def test_an_input_without_effect_fails() -> None:
    blind = from_function(
        lambda m, x: m.last(torch.zeros_like(x) + m.first.bias), first=nn.Linear(D, D), last=nn.Linear(D, V)
    )
    assert severity(probed(blind), "inputs") == "FAIL"
    assert severity(probed(Body()), "inputs") == "held"


def test_samples_that_see_each_other_and_batch_norm_that_does_so_in_train_mode_only() -> None:
    mixing = Body(from_function(lambda m, x: x - x.mean(0, keepdim=True)))
    report = probed(mixing, batch_independent=True)
    assert severity(report, "batch-independence") == "FAIL" and "middle" in message(report, "batch-independence")
    assert severity(probed(mixing), "batch-independence") == "WARN"
    normed = probed(Body(nn.BatchNorm1d(D)), batch_independent=True)
    assert severity(normed, "batch-independence") == "held" and not normed.findings, str(normed)
    without = Body(nn.BatchNorm1d(D, track_running_stats=False))
    assert severity(probed(without, batch_independent=True), "batch-independence") == "FAIL"


def test_dropout_that_ignores_eval_mode() -> None:
    always = Body(from_function(lambda m, x: F.dropout(x, 0.5)))
    report = probed(always, deterministic=True)
    assert severity(report, "eval-determinism") == "FAIL" and "first in middle" in message(report, "eval-determinism")
    assert severity(probed(always), "eval-determinism") == "WARN"
    assert severity(probed(Body(nn.Dropout(0.5)), deterministic=True), "eval-determinism") == "held"


def test_sampling_in_eval_mode_is_no_dropout_and_is_not_warned_of() -> None:
    sampled = Body(from_function(lambda m, x: x + torch.randn_like(x)))
    assert severity(probed(sampled), "eval-determinism") == "not run"
    assert severity(probed(sampled, deterministic=True), "eval-determinism") == "FAIL"
    for call in (
        lambda m, x: F.dropout(x, 0.0),
        lambda m, x: F.dropout(x, 0.5, False),
        lambda m, x: F.dropout(x, p=0.5, training=False),
    ):
        assert severity(probed(Body(from_function(call))), "eval-determinism") == "held"
    for call in (
        lambda m, x: F.dropout(x, p=0.5),
        lambda m, x: F.dropout(x, training=True),
        lambda m, x: F.dropout(x, 0.5, True),
    ):
        assert severity(probed(Body(from_function(call))), "eval-determinism") == "WARN"


class TimeFirst(nn.Module):
    """Mixes the first axis: right where that is time, an axes bug where it is the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.memory, self.head = nn.Embedding(V, D), nn.LSTM(D, D), nn.Linear(D, V)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.memory(self.embedding(tokens))[0])  # type: ignore[no-any-return]


def test_time_first_is_no_finding_and_axes_exchanged_are() -> None:
    tokens, targets = text()
    clean = probed(TimeFirst(), batch=(tokens.T, targets.T))
    assert not clean.findings, str(clean)
    exchanged = probed(TimeFirst(), batch=(tokens, targets))
    assert severity(exchanged, "inputs") == "WARN" and severity(exchanged, "batch-independence") == "WARN"


def test_a_contrastive_model_is_no_finding() -> None:
    model = from_function(
        lambda m, x: F.normalize(m.a(x)) @ F.normalize(m.b(x)).T * 14, a=nn.Linear(D, D), b=nn.Linear(D, D)
    )
    report = probed(model, batch=(vectors()[0], torch.arange(B)))
    assert not report.findings, str(report)
    assert {"RUN-28", "RUN-24"} <= set(report.not_run)


def test_dropout_that_does_nothing_in_train_mode() -> None:
    unused = from_function(lambda m, x: m.last(x), last=nn.Linear(D, V), drop=nn.Dropout(0.5))
    assert severity(probed(unused), "dropout") == "WARN"
    left = Body(nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5)))
    left.middle.eval()
    assert severity(probed(left), "dropout") == "WARN"
    report = probed(Body(nn.Dropout(0.5)))
    assert severity(report, "dropout") == "held" and not report.findings, str(report)


def test_branches_and_units_that_are_equal() -> None:
    def parallel(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.stack([branch(x) for branch in m.branches]).mean(0))  # type: ignore[no-any-return]

    model = from_function(parallel, branches=nn.ModuleList([nn.Linear(D, D) for _ in range(3)]), last=nn.Linear(D, V))
    assert severity(probed(model), "twins") == "held"
    model.branches[2].load_state_dict(model.branches[0].state_dict())  # type: ignore[index, union-attr]
    report = probed(model)
    assert severity(report, "twins") == "WARN" and "branches.2" in message(report, "twins")
    flat = Body()
    nn.init.constant_(flat.first.weight, 0.1)
    assert "units of first" in message(probed(flat), "twins")
