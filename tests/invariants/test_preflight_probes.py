"""Each probe of preflight on one bug and its clean twin: small models, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.runtime import Spec, preflight
from karat.invariants.runtime.preflight import PROBES, Report

V, T, D, B = 11, 8, 16, 6


class Tokens(nn.Module):
    """A small causal transformer, whose parts can be broken."""

    def __init__(self, causal: bool = True, mix: bool = True, zero: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.mix = causal, mix
        self.embedding, self.place = nn.Embedding(V, D), nn.Parameter(0.1 * torch.randn(T, D))
        self.qkv, self.out, self.drop = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Dropout(drop)
        self.head = nn.Linear(D, V)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.mix:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:  # a sequence of length one to each position
            y = F.scaled_dot_product_attention(*(t.unsqueeze(2) for t in (q, k, v))).squeeze(2)
        return self.head(x + self.drop(self.out(y)))  # type: ignore[no-any-return]


class Body(nn.Module):
    """x (B, D) -> logits (B, V) through `middle(hidden)`."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(D, D), middle or nn.ReLU(), nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))  # type: ignore[no-any-return]


def from_function(function: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """A module of parts whose forward is a function of itself and the input."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    return Made()


def text() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1].clone(), tokens[:, 1:].clone()


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, D, generator=generator), torch.randint(0, V, (B,), generator=generator)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def adam(model: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def probed(
    model: nn.Module, *, loss: Any = cross_entropy, batch: Any = None, optimizer: Any = None, **spec: Any
) -> Report:
    given = batch if batch is not None else (text() if isinstance(model, Tokens) else vectors())
    return preflight(model, given, loss, optimizer or adam(model), spec=Spec(seconds=60, **spec))


def severity(report: Report, rule: str) -> str:
    """FAIL, WARN, held or not run: what became of one rule."""
    found = {f.severity.value for f in report.findings if f.id == rule}
    if found:
        return min(found)  # FAIL before WARN
    return "held" if rule in report.held else "not run"


def message(report: Report, rule: str) -> str:
    return " ".join(f.message for f in report.findings if f.id == rule)


def test_a_clean_model_of_tokens_holds_in_every_rule_that_applies() -> None:
    report = probed(Tokens(drop=0.1), causal=True, batch_independent=True, deterministic=True, classes=V)
    assert not report.findings, str(report)
    assert report.exit_code == 0
    assert set(report.not_run) == {"RUN-TIES", "RUN-TERMS", "schedule"}
    assert set(report.held) | set(report.not_run) == {probe.id for probe in PROBES} | {"schedule"}


# -- gradients -------------------------------------------------------------------------------------------------------


def test_a_detached_part_fails_by_name_and_its_twin_holds() -> None:
    cut = from_function(lambda m, x: m.last(m.first(x).detach().relu()), first=nn.Linear(D, D), last=nn.Linear(D, V))
    report = probed(cut)
    assert severity(report, "RUN-GRADIENT") == "FAIL"
    assert "first.weight" in message(report, "RUN-GRADIENT") and "cuts it" in message(report, "RUN-GRADIENT")
    assert severity(probed(cut, detached=("first",)), "RUN-GRADIENT") == "held"
    assert severity(probed(Body()), "RUN-GRADIENT") == "held"


def test_rounding_without_a_straight_through_gradient_fails() -> None:
    def quantised(m: Any, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, (m.first.weight * 8).round() / 8), m.last.weight)

    def straight(m: Any, x: Tensor) -> Tensor:
        w = m.first.weight
        return F.linear(F.linear(x, w + ((w * 8).round() / 8 - w).detach()), m.last.weight)

    parts = {"first": nn.Linear(D, D, bias=False), "last": nn.Linear(D, V, bias=False)}
    assert severity(probed(from_function(quantised, **parts)), "RUN-GRADIENT") == "FAIL"
    assert severity(probed(from_function(straight, **parts)), "RUN-GRADIENT") == "held"


def test_a_branch_that_starts_at_zero_is_not_silent() -> None:
    def lora(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x).relu() + m.b(m.a(x)))  # type: ignore[no-any-return]

    b = nn.Linear(4, D, bias=False)
    nn.init.zeros_(b.weight)
    model = from_function(lora, first=nn.Linear(D, D), a=nn.Linear(D, 4, bias=False), b=b, last=nn.Linear(D, V))
    assert severity(probed(model), "RUN-GRADIENT") == "held"
    gate = nn.Parameter(torch.zeros(()))
    gated = from_function(lambda m, x: m.last(x + m.gate * m.a(x)), gate=gate, a=nn.Linear(D, D), last=nn.Linear(D, V))
    assert severity(probed(gated), "RUN-GRADIENT") == "held"


def test_an_expert_that_this_batch_does_not_use_is_no_fail() -> None:
    def routed(m: Any, x: Tensor) -> Tensor:
        return m.last(m.experts[0](x))  # type: ignore[no-any-return]

    model = from_function(routed, experts=nn.ModuleList([nn.Linear(D, D) for _ in range(3)]), last=nn.Linear(D, V))
    report = probed(model)
    assert not report.failures, str(report)
    assert severity(report, "RUN-GRADIENT") == "WARN" and "not called: experts.1" in message(report, "RUN-GRADIENT")


def test_a_loss_that_is_not_a_number_is_located() -> None:
    model = Body(from_function(lambda m, x: (x - x).log() * 0))
    report = probed(model)
    assert severity(report, "RUN-GRADIENT") == "FAIL" and "middle" in message(report, "RUN-GRADIENT")


def test_a_loss_without_any_gradient_fails() -> None:
    report = probed(Body(), loss=lambda m, b: cross_entropy(m, b).detach())
    assert severity(report, "RUN-GRADIENT") == "FAIL" and "no gradient at all" in message(report, "RUN-GRADIENT")


# -- terms -----------------------------------------------------------------------------------------------------------


def test_a_detached_term_fails_and_beside_a_total_it_is_a_warning() -> None:
    def terms(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        out = model(batch[0])
        return {"ce": F.cross_entropy(out, batch[1]), "aux": out.square().mean().detach()}

    def connected(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        out = model(batch[0])
        return {"ce": F.cross_entropy(out, batch[1]), "aux": out.square().mean()}

    report = probed(Body(), loss=terms)
    assert severity(report, "RUN-TERMS") == "FAIL" and "'aux'" in message(report, "RUN-TERMS")
    assert severity(probed(Body(), loss=terms, detached=("aux",)), "RUN-TERMS") == "held"
    assert severity(probed(Body(), loss=connected), "RUN-TERMS") == "held"
    logged = probed(Body(), loss=lambda m, b: {**terms(m, b), "loss": cross_entropy(m, b)})
    assert severity(logged, "RUN-TERMS") == "WARN" and not logged.failures


# -- optimizer and ties ----------------------------------------------------------------------------------------------


def test_an_optimizer_of_replaced_parameters_fails_and_says_why() -> None:
    model = Body()
    stale = adam(model)
    model.last = nn.Linear(D, V)
    report = probed(model, optimizer=stale)
    text = message(report, "RUN-OPTIMIZER")
    assert severity(report, "RUN-OPTIMIZER") == "FAIL"
    assert "made before the model was replaced" in text and "last.weight" in text


def test_an_optimizer_that_misses_a_part_fails_and_a_frozen_part_does_not() -> None:
    model = Body()
    half = torch.optim.Adam(model.last.parameters())
    assert severity(probed(model, optimizer=half), "RUN-OPTIMIZER") == "FAIL"
    assert severity(probed(model, optimizer=half, frozen=("first",)), "RUN-OPTIMIZER") == "held"
    model.first.requires_grad_(False)
    report = probed(model, optimizer=half)
    assert severity(report, "RUN-OPTIMIZER") == "held" and not report.failures


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
    assert severity(probed(model, optimizer=twice), "RUN-OPTIMIZER") == "FAIL"
    scale = nn.Parameter(torch.zeros(()))
    both = torch.optim.Adam([*model.parameters(), scale])
    learnt = probed(model, optimizer=both, loss=lambda m, b: cross_entropy(m, b) * (-scale).exp() + scale)
    assert severity(learnt, "RUN-OPTIMIZER") == "held"


def test_declared_ties() -> None:
    model = from_function(lambda m, x: m.head(m.embedding(x)), embedding=nn.Embedding(V, D), head=nn.Linear(D, V))
    model.head.weight = model.embedding.weight  # type: ignore[union-attr]
    pair = ("embedding.weight", "head.weight")
    tied = probed(model, batch=text(), tied=(pair,))
    assert severity(tied, "RUN-TIES") == "held" and not tied.failures
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())  # type: ignore[union-attr, operator]
    assert severity(probed(model, batch=text(), tied=(pair,)), "RUN-TIES") == "FAIL"
    assert severity(probed(model, batch=text()), "RUN-TIES") == "WARN"


# -- what the model computes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
def test_a_leak_of_the_future_is_found_also_behind_a_branch_that_starts_at_zero(zero: bool) -> None:
    assert severity(probed(Tokens(causal=False, zero=zero), causal=True), "RUN-CAUSAL") == "FAIL"
    assert severity(probed(Tokens(causal=True, zero=zero), causal=True), "RUN-CAUSAL") == "held"


def test_causality_is_guessed_from_shifted_targets_and_only_warned_of() -> None:
    assert severity(probed(Tokens(causal=False)), "RUN-CAUSAL") == "WARN"
    labels = text()[0], torch.zeros(B, T, dtype=torch.long)
    assert severity(probed(Tokens(causal=False), batch=labels), "RUN-CAUSAL") == "not run"
    assert severity(probed(Tokens(causal=False), causal=False), "RUN-CAUSAL") == "not run"


@pytest.mark.parametrize("zero", [False, True])
def test_an_attention_over_one_token_is_warned_of(zero: bool) -> None:
    report = probed(Tokens(mix=False, zero=zero))
    assert severity(report, "RUN-INPUTS") == "WARN" and "its own position alone" in message(report, "RUN-INPUTS")
    assert severity(probed(Tokens(mix=True, zero=zero)), "RUN-INPUTS") == "held"


def test_an_input_without_effect_fails() -> None:
    blind = from_function(
        lambda m, x: m.last(torch.zeros_like(x) + m.first.bias), first=nn.Linear(D, D), last=nn.Linear(D, V)
    )
    assert severity(probed(blind), "RUN-INPUTS") == "FAIL"
    assert severity(probed(Body()), "RUN-INPUTS") == "held"


def test_samples_that_see_each_other_and_batch_norm_that_does_so_in_train_mode_only() -> None:
    mixing = Body(from_function(lambda m, x: x - x.mean(0, keepdim=True)))
    report = probed(mixing, batch_independent=True)
    assert severity(report, "RUN-BATCH") == "FAIL" and "middle" in message(report, "RUN-BATCH")
    assert severity(probed(mixing), "RUN-BATCH") == "WARN"
    normed = probed(Body(nn.BatchNorm1d(D)), batch_independent=True)
    assert severity(normed, "RUN-BATCH") == "held" and not normed.findings, str(normed)
    without = Body(nn.BatchNorm1d(D, track_running_stats=False))
    assert severity(probed(without, batch_independent=True), "RUN-BATCH") == "FAIL"


def test_dropout_that_ignores_eval_mode() -> None:
    always = Body(from_function(lambda m, x: F.dropout(x, 0.5)))
    report = probed(always, deterministic=True)
    assert severity(report, "RUN-EVAL") == "FAIL" and "first in middle" in message(report, "RUN-EVAL")
    assert severity(probed(always), "RUN-EVAL") == "WARN"
    assert severity(probed(Body(nn.Dropout(0.5)), deterministic=True), "RUN-EVAL") == "held"


def test_sampling_in_eval_mode_is_no_dropout_and_is_not_warned_of() -> None:
    sampled = Body(from_function(lambda m, x: x + torch.randn_like(x)))
    assert severity(probed(sampled), "RUN-EVAL") == "not run"
    assert severity(probed(sampled, deterministic=True), "RUN-EVAL") == "FAIL"
    for call in (
        lambda m, x: F.dropout(x, 0.0),
        lambda m, x: F.dropout(x, 0.5, False),
        lambda m, x: F.dropout(x, p=0.5, training=False),
    ):
        assert severity(probed(Body(from_function(call))), "RUN-EVAL") == "held"
    for call in (
        lambda m, x: F.dropout(x, p=0.5),
        lambda m, x: F.dropout(x, training=True),
        lambda m, x: F.dropout(x, 0.5, True),
    ):
        assert severity(probed(Body(from_function(call))), "RUN-EVAL") == "WARN"


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
    assert severity(exchanged, "RUN-INPUTS") == "WARN" and severity(exchanged, "RUN-BATCH") == "WARN"


def test_a_contrastive_model_is_no_finding() -> None:
    model = from_function(
        lambda m, x: F.normalize(m.a(x)) @ F.normalize(m.b(x)).T * 14, a=nn.Linear(D, D), b=nn.Linear(D, D)
    )
    report = probed(model, batch=(vectors()[0], torch.arange(B)))
    assert not report.findings, str(report)
    assert {"RUN-LOSS", "RUN-BATCH"} <= set(report.not_run)


def test_dropout_that_does_nothing_in_train_mode() -> None:
    unused = from_function(lambda m, x: m.last(x), last=nn.Linear(D, V), drop=nn.Dropout(0.5))
    assert severity(probed(unused), "RUN-DROPOUT") == "WARN"
    left = Body(nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5)))
    left.middle.eval()
    assert severity(probed(left), "RUN-DROPOUT") == "WARN"
    report = probed(Body(nn.Dropout(0.5)))
    assert severity(report, "RUN-DROPOUT") == "held" and not report.findings, str(report)


# -- the loss --------------------------------------------------------------------------------------------------------


def test_double_softmax_fails_with_its_reason() -> None:
    twice = from_function(lambda m, x: m.last(x).softmax(-1), last=nn.Linear(D, V))
    report = probed(twice)
    assert severity(report, "RUN-SOFTMAX") == "FAIL" and "softmax again" in message(report, "RUN-SOFTMAX")
    assert severity(probed(Body()), "RUN-SOFTMAX") == "held"


def test_nll_of_logits_and_shapes_that_broadcast_fail() -> None:
    def nll(m: Any, b: Any) -> Tensor:
        return F.nll_loss(m(b[0]), b[1])

    def right(m: Any, b: Any) -> Tensor:
        return F.nll_loss(m(b[0]).log_softmax(-1), b[1])

    assert severity(probed(Body(), loss=nll), "RUN-SOFTMAX") == "FAIL"
    assert severity(probed(Body(), loss=right), "RUN-SOFTMAX") == "held"
    one = from_function(lambda m, x: m.last(x), last=nn.Linear(D, 1))
    batch = vectors()[0], torch.randn(B)
    wrong = probed(one, batch=batch, loss=lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert severity(wrong, "RUN-SOFTMAX") == "FAIL" and "36 pairs" in wrong.failures[0].evidence
    assert not probed(one, batch=batch, loss=lambda m, b: F.mse_loss(m(b[0]).squeeze(-1), b[1])).failures


def test_the_first_loss_against_ln_of_the_classes() -> None:
    loud = Body()
    with torch.no_grad():
        loud.last.weight.mul_(100)
    assert severity(probed(loud, classes=V), "RUN-LOSS") == "FAIL"
    assert severity(probed(loud), "RUN-LOSS") == "WARN"
    assert severity(probed(loud, classes=V, pretrained=True), "RUN-LOSS") == "WARN"
    assert severity(probed(Body(), classes=V), "RUN-LOSS") == "held"
    wrong = probed(Body(), classes=V + 1)
    assert severity(wrong, "RUN-LOSS") == "FAIL" and f"over {V} classes" in message(wrong, "RUN-LOSS")


# -- branches and steps ----------------------------------------------------------------------------------------------


def test_branches_and_units_that_are_equal() -> None:
    def parallel(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.stack([branch(x) for branch in m.branches]).mean(0))  # type: ignore[no-any-return]

    model = from_function(parallel, branches=nn.ModuleList([nn.Linear(D, D) for _ in range(3)]), last=nn.Linear(D, V))
    assert severity(probed(model), "RUN-TWINS") == "held"
    model.branches[2].load_state_dict(model.branches[0].state_dict())  # type: ignore[index, union-attr]
    report = probed(model)
    assert severity(report, "RUN-TWINS") == "WARN" and "branches.2" in message(report, "RUN-TWINS")
    flat = Body()
    nn.init.constant_(flat.first.weight, 0.1)
    assert "units of first" in message(probed(flat), "RUN-TWINS")


def test_a_step_that_low_precision_swallows() -> None:
    def step(dtype: torch.dtype, lr: float) -> Report:
        model = from_function(lambda m, x: m.last(x), last=nn.Linear(D, V, bias=False)).to(dtype)
        nn.init.normal_(model.last.weight, mean=8.0)  # type: ignore[arg-type, union-attr]
        batch = vectors()[0].to(dtype), vectors()[1]
        return probed(model, batch=batch, optimizer=torch.optim.SGD(model.parameters(), lr=lr))

    swallowed = step(torch.bfloat16, 1e-4)
    assert severity(swallowed, "RUN-MOVES") == "FAIL"
    assert severity(step(torch.float32, 1e-4), "RUN-MOVES") == "held"
    assert severity(step(torch.bfloat16, 10.0), "RUN-MOVES") == "held"


def test_a_rate_of_zero_and_a_warm_up_that_begins_there() -> None:
    model = Body()
    assert severity(probed(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)), "RUN-MOVES") == "WARN"
    warming = adam(model)
    torch.optim.lr_scheduler.LambdaLR(warming, lambda step: step / 100)
    report = probed(model, optimizer=warming)
    assert severity(report, "RUN-MOVES") == "held" and severity(report, "RUN-OVERFIT") == "held"


def test_one_batch_is_learnt_and_what_cannot_be_is_warned_of() -> None:
    assert severity(probed(Tokens()), "RUN-OVERFIT") == "held"
    slow = Body()
    assert "slowly" in probed(slow, optimizer=adam(slow, 1e-7)).held["RUN-OVERFIT"]
    upwards = Body()
    wrong = torch.optim.SGD(upwards.parameters(), lr=5.0, maximize=True)
    report = probed(upwards, optimizer=wrong)
    assert severity(report, "RUN-OVERFIT") == "WARN" and "grows" in message(report, "RUN-OVERFIT")
    noise = Body()
    report = probed(noise, loss=lambda m, b: F.cross_entropy(m(b[0]) * 1e-6, b[1]))
    assert severity(report, "RUN-OVERFIT") == "WARN" and "cannot learn" in message(report, "RUN-OVERFIT")


def test_suppressions_are_kept_with_their_reason() -> None:
    model = Body()
    half = torch.optim.Adam(model.last.parameters())
    by = {"rule": "RUN-OPTIMIZER", "reason": "the body is trained in phase two", "where": "first.*"}
    report = probed(model, optimizer=half, suppress=(by,))
    assert not report.failures and report.suppressed[0].reason == by["reason"] and report.exit_code == 0
    elsewhere = probed(model, optimizer=half, suppress=({**by, "where": "last.*"},))
    assert elsewhere.failures and elsewhere.exit_code == 1
