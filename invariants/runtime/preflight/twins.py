"""RUN-30: parallel modules give different outputs, and units of a layer have different weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.run30_twins import RULE as TWINS
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says, some
from karat.invariants.runtime.preflight.probed import Probed
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.trees import leaves

RULE = Says(TWINS)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
MOST_ELEMENTS = 2**26
MOST_CALLS = 32


def look(subject: Probed) -> Outcome:
    """Siblings of one class with equal inputs and equal outputs; rows of a weight that are equal and not zero."""
    findings = [*_siblings(subject), *_repeated(subject), *_rows(subject)]
    layers = sum(isinstance(m, LAYERS) for m in subject.model.modules())
    if not layers and not findings:
        raise NotRun("no linear map, convolution or embedding in the model")
    return findings or Held(f"no two branches or units of {layers} layers are equal")


def _siblings(subject: Probed) -> list[Finding]:
    modules = dict(subject.model.named_modules())
    families: dict[tuple[str, type], list[str]] = {}
    for name, module in modules.items():
        if name and any(p.requires_grad and p.dim() > 1 for p in module.parameters()):  # all norms start alike
            families.setdefault((name.rpartition(".")[0], type(module)), []).append(name)
    watched = {n: modules[n] for names in families.values() if len(names) > 1 for n in names}
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def note(name: str, args: Any, output: Any) -> None:
        seen.setdefault(name, ([t.detach().clone() for _, t in leaves(args)], [t for _, t in leaves(output)]))

    subject.forward(watched=watched, seen=note)
    findings = []
    for (parent, kind), names in families.items():
        told = [n for n in names if n in seen and _alive(seen[n][1]) and not _passes(seen[n])]
        twins = [n for k, n in enumerate(told) if any(_equal(seen[n], seen[m]) for m in told[:k])]
        if twins:
            message = f"{some(twins)} gives the same output as another {kind.__name__} of {parent or 'the model'}: "
            message += "equal branches get equal gradients and stay equal"
            evidence = f"equal bits for equal inputs, {len(told)} compared"
            findings.append(RULE.warn(message, twins[0], margin=RULE.margin(len(twins), 0), evidence=evidence))
    return findings


def _repeated(subject: Probed) -> list[Finding]:
    """One module under several names of one list that is called with equal inputs again and again, as of [expert] * 4. Layers
    that are shared one after the other have inputs that differ."""
    findings = []
    for parent, container in subject.model.named_modules():
        names: dict[int, list[str]] = {}
        for name, child in container._modules.items():
            if child is not None and any(p.requires_grad for p in child.parameters()):
                names.setdefault(id(child), []).append(name)
        for several in names.values():
            if len(several) < 2:
                continue
            name = f"{parent}.{several[0]}" if parent else several[0]
            calls: list[tuple[list[Tensor], list[Tensor]]] = []

            def note(name: str, args: Any, output: Any, calls: list[Any] = calls) -> None:
                calls.append(([t.detach().clone() for _, t in leaves(args)], [t for _, t in leaves(output)]))

            module = container._modules[several[0]]
            subject.forward(watched={name: module} if module is not None else {}, seen=note)
            alive = [call for call in calls[:MOST_CALLS] if _alive(call[1])]
            if len(alive) > 1 and any(_equal(alive[0], other) for other in alive[1:]):
                message = f"{some(several)} of {parent or 'the model'} are one module, and give the same output to equal inputs: "
                message += "a list times n repeats its member, it does not copy it"
                findings.append(RULE.warn(message, name, evidence=f"one object under {len(several)} names"))
    return findings


def _alive(outputs: list[Tensor]) -> bool:
    """Whether an output can tell two branches apart: one that is constant, such as zero at the start, cannot."""
    return any(t.numel() > 1 and bool((t != t.flatten()[0]).any()) for t in outputs)


def _passes(call: tuple[list[Tensor], list[Tensor]]) -> bool:
    """Whether a module gives what it was given: a residual branch that is scaled by zero at the start does, and so do all of
    its siblings."""
    given, gives = call
    return all(any(x.shape == y.shape and torch.equal(x, y) for x in given) for y in gives)


def _equal(a: tuple[list[Tensor], list[Tensor]], b: tuple[list[Tensor], list[Tensor]]) -> bool:
    pairs = [*zip(a[0], b[0], strict=False), *zip(a[1], b[1], strict=False)]
    return len(a[0]) == len(b[0]) and len(a[1]) == len(b[1]) and all(torch.equal(x, y) for x, y in pairs)


def _rows(subject: Probed) -> list[Finding]:
    findings = []
    for name, module in subject.model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, LAYERS) else None
        if weight is None or not weight.requires_grad or weight.shape[0] < 2 or not weight[0].numel() > 1:
            continue
        rows = weight.detach().flatten(1)
        rows = rows[rows.any(1)]  # rows that are all zero are padding, or a branch that starts at zero
        if rows.numel() > MOST_ELEMENTS or len(rows) < 2:
            continue
        distinct = len(torch.unique(rows, dim=0)) if _suspicious(rows) else len(rows)
        if distinct < len(rows):
            message = f"{len(rows) - distinct} of {len(rows)} units of {name} have the weights of another unit: they stay equal"
            margin, evidence = RULE.margin(len(rows) - distinct, 0), f"{distinct} distinct rows in {name}.weight"
            findings.append(RULE.warn(message, name, margin=margin, evidence=evidence))
    return findings


def _suspicious(rows: Tensor) -> bool:
    """Cheap and necessary for equal rows: two equal values in one column. Sorting rows is slow."""
    ordered = rows[:, 0].sort().values
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return False
    ordered = rows.double().sum(1).sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


PROBE = RULE.probe(look)
