"""RUN-8 and RUN-9: every trainable parameter is reached by a gradient that is not identically zero, and all are finite.

A gradient that is zero is judged by finite differences: where the loss changes with the parameter, and backward says
that it does not, something between them cuts the gradient (detach, no_grad, rounding without a straight-through
gradient). Where the loss does not change either, the parameter is unused on this batch, which may be meant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from karat.invariants.run.run08_gradient_reach import RULE as GRADIENT_REACH
from karat.invariants.run.run09_finite import RULE as FINITE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.preflight.loss import Reach, SubjectError, reach
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says, some
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject
from karat.invariants.runtime.preflight.traces import first_not_finite

RULE, NUMBERS = Says(GRADIENT_REACH), Says(FINITE)
WARM_STEPS = 3
"""Steps after which a branch that starts at zero must have woken: a zero gate before a zero matrix takes two."""
AT_MOST = 24
"""Parameters that are tried by finite differences, one forward each."""
NUDGE = 0.3
"""Noise on a parameter, over its root mean square, at least `NUDGE` / 3."""


def look(subject: Subject) -> Outcome:
    """Gradients as found; those that are zero again after a few virtual steps; then finite differences."""
    if not subject.trainable:
        raise NotRun("the spec declares every trainable parameter frozen")
    first = subject.first
    expected = _expected(subject)
    if not math.isfinite(first.loss) or _spoiled(subject, expected):
        raise NotRun(f"the loss or a gradient is not finite, see {FINITE.id}")
    if not first.differentiable:
        message = "the loss has no gradient at all: it was made under no_grad, detached, or of frozen parameters alone"
        return [RULE.fail(message, margin=RULE.margin(len(expected), 0), evidence="loss.requires_grad is False")]
    findings: list[Finding] = []
    silent = {n: p for n, p in expected.items() if first.reached[id(p)] in (Reach.NONE, Reach.ZERO)}
    if silent:
        silent = _silent_after_steps(subject, silent)
        findings = _judged(subject, silent)
    reached = len(expected) - len(silent)
    return findings or Held(f"{reached} of {len(expected)} trainable parameters get a gradient")


def look_at_numbers(subject: Subject) -> Outcome:
    """The first loss and its gradients hold neither NaN nor an infinity."""
    loss, expected = subject.first.loss, _expected(subject)
    if not math.isfinite(loss):
        where = first_not_finite(subject)
        at = f"; the first output that is not finite is that of {where}" if where else ""
        message = f"the loss is {loss} on the first batch{at}"
        return [NUMBERS.fail(message, where, margin=NUMBERS.margin(1, 0), evidence=f"loss = {loss}")]
    names = _spoiled(subject, expected)
    if NUMBERS.holds_for(len(names), 0):
        return Held(f"the first loss and {len(expected)} gradients are finite")
    message = f"the gradient of {some(names)} holds NaN or an infinity, although the loss is {subject.first.loss:.4g}"
    evidence = f"{len(names)} of {len(expected)} gradients are not finite"
    return [NUMBERS.fail(message, names[0], margin=NUMBERS.margin(len(names), 0), evidence=evidence)]


def _expected(subject: Subject) -> dict[str, torch.nn.Parameter]:
    """The parameters that are to get a gradient."""
    return {n: p for n, p in subject.trainable.items() if not covered(n, subject.spec.detached)}


def _spoiled(subject: Subject, expected: dict[str, torch.nn.Parameter]) -> list[str]:
    return [n for n, p in expected.items() if subject.first.reached[id(p)] is Reach.NOT_FINITE]


def _silent_after_steps(subject: Subject, silent: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """Those whose gradient stays zero over a few virtual steps; the model is left after them."""
    subject.gradients()
    for k in range(WARM_STEPS):
        subject.step()
        if not math.isfinite(float(subject.gradients(seed=k + 1).total.detach())):
            subject.kept.put_back()  # the optimizer's step breaks the model: judge it as found
            return silent
        silent = {n: p for n, p in silent.items() if reach(p) in (Reach.NONE, Reach.ZERO)}
        if not silent:
            break
    return silent


def _judged(subject: Subject, silent: dict[str, torch.nn.Parameter]) -> list[Finding]:
    cut: dict[str, float] = {}
    unused: list[str] = []
    for name, p in list(silent.items())[:AT_MOST]:
        change, noise = _change_of_loss(subject, p)
        if change > noise and id(p) in subject.held:
            cut[name] = change
        elif change <= noise:
            unused.append(name)
    findings = []
    if cut:
        name = next(iter(cut))
        message = (
            f"the loss depends on {some(cut)}, but backward gives {'them' if len(cut) > 1 else 'it'} no gradient: "
            "something in between cuts it (detach, .data, no_grad, rounding without straight-through, saturation)"
        )
        evidence = (
            f"the loss moves by {cut[name]:.3g} with {name}, its gradient is zero, now and after {WARM_STEPS} steps"
        )
        findings.append(RULE.fail(message, name, margin=RULE.margin(len(cut), 0), evidence=evidence))
    if unused:
        findings.append(_unused(subject, unused))
    return findings


def _unused(subject: Subject, names: list[str]) -> Finding:
    modules = sorted({n.rpartition(".")[0] for n in names} - subject.first.called)
    never = f"; not called: {some(modules)}" if modules else ""
    message = f"the loss on this batch does not depend on {some(names)}{never}. Unused, or not used by this batch"
    evidence = f"no gradient, and no change of the loss, for {len(names)} parameters"
    return RULE.warn(message, names[0], margin=RULE.margin(len(names), 0), evidence=evidence)


@torch.no_grad()
def _change_of_loss(subject: Subject, p: Tensor) -> tuple[float, float]:
    """How far the loss moves with one parameter, and the rounding that a change must exceed."""
    before = float(subject.loss().total)
    bits = p.detach().clone()
    size = max(float(p.float().square().mean().sqrt()), 1 / 3) * NUDGE if p.numel() else 0.0
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * size
    p.data += noise.to(p.device, p.dtype)
    try:
        after = float(subject.loss().total)
    except SubjectError:  # the noise took it out of the domain of something
        after = before
    p.data.copy_(bits)
    change = abs(after - before) if math.isfinite(after) else math.inf
    return change, 1e-6 * max(abs(before), 1e-3)


PROBE, NUMBERS_PROBE = RULE.probe(look), NUMBERS.probe(look_at_numbers)
