"""RUN-10: every term of the loss trains something."""

from __future__ import annotations

import torch

from karat.invariants.run.run10_loss_terms import RULE as LOSS_TERMS
from karat.invariants.run.spec import covered
from karat.invariants.runtime.preflight.loss import TOTALS, Loss
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject

RULE = Says(LOSS_TERMS)


def look(subject: Subject) -> Outcome:
    """One backward to a term: which trainable parameters are connected, and is any gradient not zero."""
    if not set(subject.first.terms) - set(TOTALS):
        raise NotRun("loss_fn gives one loss; return a dictionary of its terms to have each of them checked")
    with torch.enable_grad():
        loss = subject.loss()
    trained = list(subject.trainable.values())
    terms = [name for name in loss.terms if name not in TOTALS and not covered(name, subject.spec.detached)]
    findings = [finding for name in terms if (finding := _judged(loss, name, trained)) is not None]
    return findings or Held(f"each of {', '.join(terms) or 'no terms'} reaches some parameter")


def _judged(loss: Loss, name: str, trained: list[torch.nn.Parameter]) -> Finding | None:
    term = loss.terms[name]
    say = RULE.warn if loss.has_total else RULE.fail  # beside a total of its own, a term may be there to be logged
    if not term.requires_grad:
        message = (
            f"the term {name!r} is connected to no parameter: it was detached, or made under no_grad or of numbers. "
            f"A value to be logged does not belong among the terms, or is declared: Spec(detached=[{name!r}])"
        )
        return say(message, name, margin=RULE.margin(1, 0), evidence=f"{name}.requires_grad is False")
    gradients = torch.autograd.grad(term.sum(), trained, retain_graph=True, allow_unused=True)
    reached = [g for g in gradients if g is not None]
    if not reached:
        message = f"the term {name!r} reaches no trainable parameter"
        return say(message, name, margin=RULE.margin(1, 0), evidence="no path in the graph")
    if not any(bool(g.coalesce().values().any() if g.is_sparse else g.any()) for g in reached):
        evidence = f"{len(reached)} parameters are connected, each with a gradient of zero"
        message = f"the term {name!r} is connected, but its gradient is zero on this batch"
        return RULE.warn(message, name, margin=RULE.margin(1, 0), evidence=evidence)
    return None


PROBE = RULE.probe(look)
