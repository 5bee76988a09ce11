"""RUN-15: the optimizers hold exactly the model's trainable parameters, each once."""

from __future__ import annotations

from karat.invariants.run.run15_optimizer_parameters import RULE as OPTIMIZER_PARAMETERS
from karat.invariants.runtime.preflight.loss import Reach
from karat.invariants.runtime.preflight.probe import Held, Outcome, Says, some
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject

RULE = Says(OPTIMIZER_PARAMETERS)
REACHED = (Reach.REACHED, Reach.ZERO, Reach.NOT_FINITE)


def look(subject: Subject) -> Outcome:
    """Identity of objects, not equality of values; and what the first backward reached."""
    own = {id(p): n for n, p in subject.parameters.items()}
    missing = [n for n, p in subject.trainable.items() if id(p) not in subject.held]
    findings = [*_foreign(subject, set(own), missing), *_missing(subject, missing), *_twice(subject, own)]
    return findings or Held(f"{len(subject.held)} parameters held, each once, {len(subject.trainable)} trainable")


def _foreign(subject: Subject, own: set[int], missing: list[str]) -> list[Finding]:
    reached = subject.first.reached
    foreign = [p for key, p in subject.held.items() if key not in own and reached[key] not in REACHED]
    if not foreign:
        return []
    shapes = {p.shape for p in foreign}
    alike = [n for n in missing if subject.parameters[n].shape in shapes]
    cause = (
        f"Some have the shapes of {some(alike)}: the optimizer was made before the model was replaced, moved or wrapped"
        if alike else "They are not trained by this loss"
    )  # fmt: skip
    message = f"the optimizer holds {len(foreign)} parameters that are not the model's. {cause}"
    evidence = f"by identity; shapes {some(str(tuple(p.shape)) for p in foreign)}; the loss gives them no gradient"
    return [RULE.fail(message, alike[0] if alike else "", margin=RULE.margin(len(foreign), 0), evidence=evidence)]


def _missing(subject: Subject, missing: list[str]) -> list[Finding]:
    reached = [n for n in missing if subject.first.reached[id(subject.parameters[n])] in REACHED]
    findings = []
    if reached:
        message = (
            f"no optimizer holds {some(reached)}: they get a gradient and will never move. "
            "Give them to the optimizer, or say Spec(frozen=[…]) or requires_grad_(False)"
        )
        evidence = f"{len(reached)} of {len(subject.trainable)} trainable parameters"
        findings.append(RULE.fail(message, reached[0], margin=RULE.margin(len(reached), 0), evidence=evidence))
    return findings


def _twice(subject: Subject, own: dict[int, str]) -> list[Finding]:
    findings = []
    held = [[id(p) for group in o.param_groups for p in group["params"]] for o in subject.optimizers]
    within = sorted({own.get(key, "a foreign one") for keys in held for key in keys if keys.count(key) > 1})
    if within:
        message = f"one optimizer holds {some(within)} twice: each step moves it twice"
        findings.append(RULE.fail(message, within[0], margin=RULE.margin(len(within), 0), evidence="by identity"))
    everywhere = [key for keys in held for key in set(keys)]
    across = sorted({own.get(key, "a foreign one") for key in everywhere if everywhere.count(key) > 1})
    if across:
        message = f"several optimizers hold {some(across)}: each of their steps moves it"
        findings.append(RULE.warn(message, across[0], margin=RULE.margin(len(across), 0), evidence="by identity"))
    return findings


PROBE = RULE.probe(look)
