"""RUN-20: parameters that are declared tied are one tensor; none is a copy that was tied once."""

from __future__ import annotations

from torch import nn

from karat.invariants.run.run20_ties import RULE as TIES
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject

RULE = Says(TIES)


def look(subject: Subject) -> Outcome:
    """Declared pairs by identity; without any, an embedding and a linear map with equal weights in two tensors."""
    every = dict(subject.model.named_parameters(remove_duplicate=False))
    findings = []
    for a, b in subject.spec.tied:
        if every[a] is not every[b]:
            equal = every[a].shape == every[b].shape and bool((every[a] == every[b]).all())
            now = "equal now, and drift apart with the first step" if equal else "already different"
            message = f"{a} and {b} are declared tied, but are two tensors: {now}"
            findings.append(RULE.fail(message, b, margin=RULE.margin(1, 0), evidence="by identity"))
    findings += [] if subject.spec.tied else _copies(subject)
    if not findings and not subject.spec.tied:
        raise NotRun("no pairs are declared (Spec(tied=[('embedding.weight', 'head.weight')])); no copies seen")
    return findings or Held(f"{len(subject.spec.tied)} declared pairs are one tensor each")


def _copies(subject: Subject) -> list[Finding]:
    modules = dict(subject.model.named_modules())
    embeddings = {n: m.weight for n, m in modules.items() if isinstance(m, nn.Embedding)}
    heads = {n: m.weight for n, m in modules.items() if isinstance(m, nn.Linear)}
    return [
        RULE.warn(
            f"{a}.weight and {b}.weight are equal, but two tensors: a tie that was broken by a copy?", f"{b}.weight",
            margin=RULE.margin(1, 0), evidence=f"{u.numel()} equal elements; declare Spec(tied=…), or make them one parameter",
        )
        for a, u in embeddings.items() for b, v in heads.items()
        if u is not v and u.shape == v.shape and u.requires_grad and v.requires_grad
        and float(u.std()) > 0 and bool((u == v).all())
    ]  # fmt: skip


PROBE = RULE.probe(look)
