"""RUN-25 and RUN-27: eval mode is deterministic; dropout works in train mode."""

from __future__ import annotations

import torch
from torch import nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run25_eval_determinism import RULE as EVAL_DETERMINISM
from karat.invariants.run.run27_dropout import RULE as DROPOUT_ACTS
from karat.invariants.runtime.preflight.inputs import NO_CALL, answer, called
from karat.invariants.runtime.preflight.listen import DropoutListener
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says, some
from karat.invariants.runtime.preflight.probed import Probed
from karat.invariants.runtime.preflight.traces import first_difference

EVAL, DROPOUT = Says(EVAL_DETERMINISM), Says(DROPOUT_ACTS)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def look_at_eval(subject: Probed) -> Outcome:
    """Two forwards in eval mode, with the generators seeded differently, must give the same bits."""
    if subject.spec.deterministic is False:
        raise NotRun("Spec(deterministic=False)")
    first, second = called(subject)[1], answer(subject, seed=2)
    if first.shape == second.shape and bool(torch.equal(first, second)):
        return Held("two forwards in eval mode give the same bits")
    with DropoutListener() as listener:
        repeated = answer(subject)
    same_seed = bool(torch.equal(repeated, first))
    if same_seed and not listener.active and not subject.spec.deterministic:
        raise NotRun(
            "it draws random numbers in eval mode, none of dropout's: sampling; Spec(deterministic=True) forbids it"
        )
    where = first_difference(subject, lambda a, b: not torch.equal(a, b), seeds=(0, 2))
    if listener.active:
        cause = f"{some(dict.fromkeys(listener.active))} drops in eval mode (training=self.training is missing)"
    elif same_seed:
        cause = "it draws random numbers"
    else:
        cause = "not by a seeded generator: a buffer that moves in eval mode, or a kernel that is not deterministic"
    message = f"in eval mode equal inputs give different outputs{f', first in {where}' if where else ''}: {cause}"
    change = float((first - second).abs().max()) if first.shape == second.shape else float("inf")
    severity = Severity.FAIL if subject.spec.deterministic else Severity.WARN
    return [
        EVAL.finding(severity, message, where, margin=EVAL.margin(change, 0.0), evidence=f"largest change {change:.3g}")
    ]


def look_at_dropout(subject: Probed) -> Outcome:
    """Two forwards in train mode must differ where a module of dropout has p > 0, and none of them is left in eval."""
    drops = {n: m for n, m in subject.model.named_modules() if isinstance(m, DROPOUTS) and m.p > 0}
    if not drops:
        raise NotRun("no module of dropout with p > 0")
    left = [n for n, m in drops.items() if subject.model.training and not m.training]
    trained = [n for n in left if _trains(subject, n)]
    if trained:
        message = f"{some(trained)} stays in eval mode while the model is in train mode: it drops nothing"
        margin, evidence = DROPOUT.margin(len(trained), 0), f"{len(trained)} of {len(drops)} modules of dropout"
        return [DROPOUT.warn(message, trained[0], margin=margin, evidence=evidence)]
    used: set[str] = set()
    first = subject.forward(training=True, seed=1, watched=drops, seen=lambda name, args, output: used.add(name))
    if first is None:
        raise NotRun(NO_CALL)
    second = answer(subject, training=True, seed=2)
    if not used:
        message = f"{some(drops)} is never called: the model declares dropout and does not use it"
        margin, evidence = DROPOUT.margin(len(drops), 0), "no call in a forward in train mode"
        return [DROPOUT.warn(message, next(iter(drops)), margin=margin, evidence=evidence)]
    if first.output is not None and bool(torch.equal(first.output, second)):
        if len(left) == len(drops):
            raise NotRun("every module of dropout is in a frozen part, in eval mode")
        message = f"dropout ({some(used)}) changes nothing in train mode"
        margin, evidence = DROPOUT.margin(len(used), 0), "two forwards with different seeds give the same bits"
        return [DROPOUT.warn(message, sorted(used)[0], margin=margin, evidence=evidence)]
    return Held(f"two forwards in train mode differ; {len(used)} modules of dropout called")


def _trains(subject: Probed, name: str) -> bool:
    """Whether the part that holds a module of dropout is trained: a frozen part may well stay in eval mode."""
    parent = name.rpartition(".")[0]
    return any(n.startswith(f"{parent}." if parent else "") for n in subject.trainable)


EVAL_PROBE, DROPOUT_PROBE = EVAL.probe(look_at_eval), DROPOUT.probe(look_at_dropout)
