"""RUN-28 and RUN-29: the first loss is near ln(classes); a loss function is given what it expects."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from karat.core.formulas.limits import at_least
from karat.invariants.run.run28_first_loss import RULE as FIRST_LOSS
from karat.invariants.run.run28_first_loss import most
from karat.invariants.run.run29_softmax import RULE as LOSS_INPUT
from karat.invariants.runtime.preflight.inputs import called
from karat.invariants.runtime.preflight.listen import Heard
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject

LOSS, SOFTMAX = Says(FIRST_LOSS), Says(LOSS_INPUT)
WRONG = SOFTMAX.margin(1, 0)
"""One loss that is given what it does not take."""
ROWS = 1e-3
"""How far from 1 the sum of a row of probabilities may be: bf16 has 8 bits."""
LOW = 0.5
"""Times ln(classes): below it the model knows something at the start."""


def look_at_loss(subject: Subject) -> Outcome:
    """The mean cross-entropy of what torch's own loss function was given, against ln of the number of classes."""
    total, heard = subject.first.loss, subject.first.heard
    calls = [h for h in heard if h.name == "cross_entropy" and not h.target.is_floating_point() and h.input.ndim > 1]
    if calls and _against_each_other(calls[0]):
        raise NotRun("the classes are the samples of the batch themselves, as of a contrastive loss")
    if calls:
        logits, target = calls[0].input, calls[0].target
        seen, classes = _mean(calls[0]), logits.shape[1]
        if subject.spec.classes not in (None, classes):
            message = f"the loss is over {classes} classes, Spec(classes={subject.spec.classes}) declares others"
            return [
                LOSS.fail(message, margin=-1.0, evidence=f"logits {tuple(logits.shape)}, targets {tuple(target.shape)}")
            ]
    elif subject.spec.classes is not None:
        seen, classes = total, subject.spec.classes
    else:
        raise NotRun("no call of cross_entropy over class indices was seen, and Spec(classes=…) is not declared")
    if not math.isfinite(seen):
        return [LOSS.fail(f"the first cross-entropy is {seen}", evidence=f"{classes} classes")]
    return _compared(subject, seen, classes)


def _against_each_other(call: Heard) -> bool:
    rows = torch.arange(len(call.target), device=call.target.device)
    return call.input.shape == (len(rows), len(rows)) and torch.equal(call.target, rows)


def _mean(call: Heard) -> float:
    """Unweighted, in nats per target that counts: the options of the call change the scale, not the question."""
    ignore = call.options.get("ignore_index", -100)
    if bool((call.target == ignore).all()):
        return float("nan")
    return float(F.cross_entropy(call.input.float(), call.target, ignore_index=ignore))


def _compared(subject: Subject, seen: float, classes: int) -> Outcome:
    expected = math.log(classes)
    evidence = f"first cross-entropy {seen:.4g} nats, ln {classes} = {expected:.4g}"
    if not LOSS.holds_for(seen, most(classes)):
        message = (
            f"the first loss is {seen / expected:.1f} times that of guessing evenly: the logits start too large, "
            "or the targets are not those of these classes"
        )
        finding = LOSS.fail if subject.spec.classes and not subject.spec.pretrained else LOSS.warn
        return [finding(message, margin=LOSS.margin(seen, most(classes)), evidence=evidence)]
    low = at_least(seen, LOW * expected)
    if low < 0 and subject.spec.classes and not subject.spec.pretrained:
        message = (
            "the first loss is far below that of guessing evenly: the input holds the targets, "
            "or the weights are trained already (say Spec(pretrained=True))"
        )
        return [LOSS.warn(message, margin=float(low), evidence=evidence)]
    return Held(evidence)


def look_at_softmax(subject: Subject) -> Outcome:
    """Probabilities where logits are expected, logits where logarithms are, and shapes that broadcast."""
    heard = subject.first.heard
    findings = [finding for call in heard if (finding := _misfed(call)) is not None]
    if not heard:
        return _own_loss(subject)
    return findings[:1] or Held("given what they expect: " + ", ".join(sorted({h.name for h in heard})))


def _misfed(call: Heard) -> Finding | None:
    x = call.input.float()
    if call.name == "cross_entropy" and x.ndim > 1 and x.shape[1] > 1 and _probabilities(x, 1):
        classes = x.shape[1]
        lowest = math.log(classes - 1 + math.e) - 1
        message = (
            "cross_entropy is given probabilities, and takes their softmax again: its loss stays near ln(classes), "
            f"never below {lowest:.3f}. Give it the logits"
        )
        evidence = f"rows in [0, 1], each with sum 1; shape {tuple(x.shape)}, ln {classes} = {math.log(classes):.3f}"
        return SOFTMAX.fail(message, margin=WRONG, evidence=evidence)
    if call.name == "nll_loss" and x.ndim > 1 and not _near_one(x.exp().sum(1)):
        given = "probabilities" if _probabilities(x, 1) else "numbers that are not log-probabilities"
        message = f"nll_loss is given {given}; it takes log_softmax of the logits"
        return SOFTMAX.fail(
            message, margin=WRONG, evidence=f"sum of exp over the classes is {float(x.exp().sum(1).mean()):.4g}, not 1"
        )
    if call.name == "kl_div" and x.ndim > 1 and _probabilities(x, -1):
        message = "kl_div is given probabilities; its input is log-probabilities"
        return SOFTMAX.fail(message, margin=WRONG, evidence="rows with sum 1")
    if call.name == "binary_cross_entropy_with_logits" and x.numel() >= 8 and _within(x, 0, 1):
        message = "binary_cross_entropy_with_logits is given numbers in [0, 1] alone: a sigmoid was applied before?"
        return SOFTMAX.warn(
            message, margin=WRONG, evidence=f"{x.numel()} inputs from {float(x.min()):.3g} to {float(x.max()):.3g}"
        )
    return _broadcast(call)


def _broadcast(call: Heard) -> Finding | None:
    if call.name not in ("mse_loss", "l1_loss", "smooth_l1_loss") or call.input.shape == call.target.shape:
        return None
    shapes = f"{tuple(call.input.shape)} and {tuple(call.target.shape)}"
    pairs = (call.input.to("meta") - call.target.to("meta")).shape
    message = (
        f"{call.name} compares shapes {shapes}: it broadcasts, so that samples are compared with other samples' targets"
    )
    return SOFTMAX.fail(
        message, margin=WRONG, evidence=f"{math.prod(pairs)} pairs are compared instead of {call.target.numel()}"
    )


def _own_loss(subject: Subject) -> Outcome:
    """A loss of the user's own: only what the network gives can be looked at."""
    if subject.spec.classes is None:
        raise NotRun("loss_fn calls none of torch's loss functions that are known, and Spec(classes=…) is not declared")
    _, output = called(subject)
    if output.ndim > 1 and output.shape[-1] == subject.spec.classes and _probabilities(output.float(), -1):
        message = "the network's outputs are probabilities: where the loss takes their softmax again, it cannot fall"
        return [SOFTMAX.warn(message, subject.spec.network, margin=WRONG, evidence="rows in [0, 1], each with sum 1")]
    return Held("the network's outputs are not probabilities (the loss function is not one of torch's)")


def _probabilities(x: Tensor, axis: int) -> bool:
    return _within(x, 0, 1) and _near_one(x.sum(axis))


def _within(x: Tensor, low: float, high: float) -> bool:
    return bool(x.numel() and x.min() >= low and x.max() <= high)


def _near_one(sums: Tensor) -> bool:
    return bool((sums - 1).abs().max() <= ROWS) if sums.numel() else True


LOSS_PROBE, SOFTMAX_PROBE = LOSS.probe(look_at_loss), SOFTMAX.probe(look_at_softmax)
