"""RUN-24: in eval mode no sample's output depends on another sample of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run24_batch_independence import RULE as BATCH_INDEPENDENCE
from karat.invariants.runtime.preflight.inputs import (
    answer,
    batch_inputs,
    differs_by_itself,
    jittered,
    others,
    time_is_second,
)
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.probed import Probed
from karat.invariants.runtime.preflight.traces import first_difference, roughly
from karat.invariants.runtime.preflight.trees import Path

RULE = Says(BATCH_INDEPENDENCE)


def look(subject: Probed) -> Outcome:
    """The first sample is replaced, with noise on all weights; the outputs of the others must stay as they are."""
    if subject.spec.batch_independent is False:
        raise NotRun("Spec(batch_independent=False)")
    call, base = jittered(subject)
    inputs = batch_inputs(call, base, bool(subject.spec.batch_independent))
    edits = {path: _edited(x, 0) for path, x in inputs.items()}
    changed = answer(subject, edits)
    if changed.shape != base.shape:
        raise NotRun("the shape of the output depends on the values of the input")
    allowed, leak = roughly(base), float((changed - base)[1:].abs().max())
    if not RULE.holds_for(leak, allowed):
        allowed += differs_by_itself(subject, base)
    if RULE.holds_for(leak, allowed):
        return Held(f"{base.shape[0] - 1} samples keep their outputs when the first one is replaced")
    declared = subject.spec.batch_independent
    if not declared and _batch_is_second(subject, inputs, base):
        raise NotRun(
            "the first axis looks like time, the second like the batch; Spec(batch_independent=True) forces it"
        )
    where = _where(subject, edits, base.shape[0])
    message = "the output of one sample depends on the other samples of its batch, in eval mode"
    message += f", first in {where}" if where else ""
    message += "" if declared else "; say Spec(batch_independent=False) where that is meant"
    evidence = f"largest change {leak:.3g}, rounding allows {allowed:.3g}, batch of {base.shape[0]}"
    severity = Severity.FAIL if declared else Severity.WARN
    return [RULE.finding(severity, message, where, margin=RULE.margin(leak, allowed), evidence=evidence)]


def _edited(x: Tensor, axis: int) -> Tensor:
    changed, new = x.clone(), others(x, torch.Generator().manual_seed(6))
    changed.select(axis, 0).copy_(new.select(axis, 0))
    return changed


def _batch_is_second(subject: Probed, inputs: dict[Path, Tensor], base: Tensor) -> bool:
    """Whether the second axis behaves like samples: replacing its first entry leaves the others as they are."""
    if any(x.ndim == 2 and time_is_second(subject, x) for x in inputs.values()):
        return False
    deep = {path: x for path, x in inputs.items() if x.ndim >= 2 and x.shape[1] > 1}
    if not deep or base.ndim < 2 or any(x.shape[1] != base.shape[1] for x in deep.values()):
        return False
    changed = answer(subject, {path: _edited(x, 1) for path, x in deep.items()})
    return bool((changed - base)[:, 1:].abs().max() <= roughly(base))


def _where(subject: Probed, edits: dict[Path, Tensor], size: int) -> str:
    def differ(a: Tensor, b: Tensor) -> bool:
        return bool(a.ndim and a.shape[0] == size and (a - b)[1:].abs().max() > roughly(a))

    return first_difference(subject, differ, edits=edits)


PROBE = RULE.probe(look)
