"""RUN-39, 40, 41: the targets, read off the gradient at the logits or told by guards.log, against inputs, padding and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run39_targets import RULE as TARGETS
from karat.invariants.run.run40_padding import RULE as PADDING
from karat.invariants.run.run41_labels import RULE as LABELS
from karat.invariants.runtime.preflight.inputs import argument, is_other
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.trees import Path, spelled
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.looks import follows_in_place
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.reading import Reading
from karat.invariants.runtime.watching.replay import Replay
from karat.invariants.runtime.watching.tokens import counted_padding, relation, token_inputs, trailing

MOST_CLASSES = 1000
PER_CLASS = 24
"""Labels to each declared class, after which one that never occurred is missed."""
FEW_LOOKS = 2
BATCHES = 3
"""Batches in which one token looks like padding before it is taken for it."""
ONE_ONLY = {True: 40, False: 500}
"""Labels after which a single one is odd: of three classes or more, and of two."""
SHIFTED = {
    "two": (1, "two positions on, not one: they are shifted twice, and the model learns the token after the next"),
    "previous": (-2, "one position back: the model learns the token that it saw before"),
    "rolled": (1, "shifted around: the last target of each sequence is its own first token"),
}


class Labels(Check):
    rules = (TARGETS, PADDING, LABELS)
    interval = LOOKS
    of_forward = True

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._looks = 0
        self._known = False
        self._told: tuple[int, Tensor, Any] | None = None
        """Targets and inputs that were logged in a step, until its gradient tells which of them count."""
        self._trailing: list[int | None] = []
        self._padded, self._near = False, 0
        self._asked: set[str] = set()
        self._lay: dict[str, str] = {}
        """How the targets of each root lay to its inputs when last seen."""
        self._why = (
            "the gradient at the outputs is not that of a cross-entropy of class indices, and no targets were logged"
        )

    def before_step(self, loop: Loop, moment: Moment) -> None:
        told, self._told = self._told, None
        captured = loop.captured
        if captured is None or captured.main is None:
            return
        reading = captured.readings.get(captured.main)
        if reading is None:
            if told is not None and told[0] == moment.step and not self._known:
                self._as_told(loop, told, _counting(captured, told[1]))
            return
        self._known = True
        self._labels(loop, moment.step, reading.targets[reading.counts], reading.classes, len(captured.readings) == 1)
        tokens = token_inputs(captured.inputs, reading.targets.shape)
        inputs = {path: t for path, t in tokens.items() if not is_other(captured.module, path)}
        if not inputs:
            self._why = "the model has no input of tokens, one for each target"
            return
        found = {path: relation(tokens, reading.targets) for path, tokens in inputs.items()}
        names = set(found.values())
        if names != {""}:
            now = "same" if names == {"same"} else "other"
            if now == "same" and self._lay.get(captured.root) == "other":
                loop.news = loop.news or "the targets, which are the inputs themselves now"
            self._lay[captured.root] = now
        if len(names) == 1 and "" not in names:
            self._relation(loop, moment.step, names.pop(), int(reading.counts.sum()))
        elif "next" in names:
            loop.held_for(TARGETS, moment.step)
        elif "same" in names and captured.root not in self._asked:
            self._fed(loop, moment.step, captured, found)
        following = [path for path, name in found.items() if name == "next"] or list(found)
        if len(following) == 1:
            self._padding(loop, moment.step, inputs[following[0]], reading, captured.module)

    def _fed(self, loop: Loop, step: int, captured: Captured, found: Mapping[Path, str]) -> None:
        """Of several inputs one is the targets, and none is shifted against them: a decoder that is given its answer, where
        its outputs follow that input in place. The first input may be the targets too: what is copied or restored."""
        self._asked.add(captured.root)
        fed = [path for path in list(found)[1:] if found[path] == "same"]
        if not fed or loop.spec.causal is False:
            return
        try:
            with captured.undisturbed():
                fed = [path for path in fed if follows_in_place(Replay(captured, loop.spec, {}), path)]
        except NotRun:
            return
        for path in fed:
            name = argument(captured.module, path) or spelled(path[1:])
            loop.judge(
                TARGETS, step, TARGETS.margin(-1, 0, 0),
                lambda name=name: {  # type: ignore[misc]
                    "message": f"the input {name} is the targets themselves, not shifted: each output is given its answer",
                    "evidence": "at least 98% of the targets are this input at their own position, and the outputs "
                    "there change with it",
                    "severity": Severity.WARN,
                },
            )  # fmt: skip

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """Told targets are looked at where the gradient does not tell them: before the step, for what it says of which
        count; at once where the step is over."""
        targets, inputs = logged.get("targets"), logged.get("inputs")
        if self._known or not isinstance(targets, Tensor) or not _whole(targets):
            return
        if not loop.looked(loop.step):
            return
        told = (loop.step, targets, inputs)
        if loop.captured is not None:
            self._told = told
        else:
            self._as_told(loop, told, None)

    def _as_told(self, loop: Loop, told: tuple[int, Tensor, Any], counting: Tensor | None) -> None:
        """counting: which of the targets the loss has a gradient for; None where that is not known."""
        step, targets, inputs = told
        classes, padding = loop.spec.classes, loop.spec.padding
        counts = (targets != loop.spec.ignore_index) & (targets >= 0)
        if padding is not None and classes is not None and padding >= classes:
            counts &= targets != padding
        if counting is not None:
            counts = counting & (targets >= 0)
        if bool(counts.any()):
            labels = targets[counts]
            if counting is None and classes is not None:
                labels = _without_ignored(labels, classes)
            self._labels(loop, step, labels, classes, classes is not None)
        if isinstance(inputs, Tensor) and _whole(inputs) and inputs.ndim == 2 and inputs.shape == targets.shape:
            seen = torch.where(counts, targets, -1)
            name = relation(inputs, seen)
            if name:
                self._relation(loop, step, name, int(counts.sum()))
            if counting is not None:
                self._declared_padding(loop, step, inputs, seen)

    # -- 39 -----------------------------------------------------------------------------------------------------------

    def _relation(self, loop: Loop, step: int, name: str, count: int) -> None:
        if loop.spec.causal is False:
            return
        if name == "same":
            if not loop.spec.causal:
                return  # an autoencoder, unless the probes find that the model is causal
            off, text = -1, "the inputs themselves, not shifted: the model learns to copy the token that it is given"
        elif name == "next":
            off, text = 0, ""
        else:
            off, text = SHIFTED[name]
            text = f"the inputs {text}"
        loop.judge(
            TARGETS, step, TARGETS.margin(off, 0, 0),
            lambda: {
                "message": f"the targets are {text}",
                "evidence": f"{count} targets of one batch, at least 98% of them so",
                "severity": Severity.FAIL if name == "same" else Severity.WARN,
            },
        )  # fmt: skip

    # -- 40 -----------------------------------------------------------------------------------------------------------

    def _padding(self, loop: Loop, step: int, inputs: Tensor, reading: Reading, module: nn.Module) -> None:
        if loop.spec.padding is not None:
            self._declared_padding(loop, step, inputs, reading.targets)
            return
        known = {m.padding_idx for m in module.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None}
        if len(known) == 1:
            pad = known.pop()
            count, held = counted_padding(inputs, reading.targets, pad)
            if held:
                self._counted(loop, step, pad, count, held, "padding_idx of the model's embedding", Severity.WARN)
            return
        if self._padded:
            return
        token = trailing(inputs, reading.targets)
        self._trailing = [*self._trailing[1 - BATCHES :], token]
        if token is not None:
            self._near += 1
            loop.capture_next |= self._near <= 4 * BATCHES  # to be sure soon
            told = set(self._trailing)
            if len(self._trailing) == BATCHES and len(told) == 1:
                self._padded = True
                count, held = counted_padding(inputs, reading.targets, token)
                why = f"it fills the ends of sequences in {BATCHES} batches and stands nowhere else"
                self._counted(loop, step, token, count, held, why, Severity.WARN)

    def _declared_padding(self, loop: Loop, step: int, inputs: Tensor, targets: Tensor) -> None:
        if loop.spec.padding is None:
            return
        count, held = counted_padding(inputs, targets, loop.spec.padding)
        if held:
            self._counted(loop, step, loop.spec.padding, count, held, "Spec(padding)", Severity.FAIL)

    def _counted(self, loop: Loop, step: int, pad: int, count: int, held: int, why: str, severity: Severity) -> None:
        loop.judge(
            PADDING, step, PADDING.margin(count, 0),
            lambda: {
                "message": f"{count} positions of padding (token {pad}) count in the loss: their targets are not ignored",
                "evidence": f"{held} inputs of the batch are padding; known from {why}", "severity": severity,
            },
        )  # fmt: skip

    # -- 41 -----------------------------------------------------------------------------------------------------------

    def _labels(self, loop: Loop, step: int, labels: Tensor, classes: int | None, only: bool) -> None:
        declared = loop.spec.classes
        if labels.numel() == 0:
            return
        if declared is not None and (classes is None or classes >= declared):
            beyond = int((labels >= declared).sum())
            highest = int(labels.max())
            held = loop.judge(
                LABELS, step, LABELS.margin(beyond, 0),
                lambda: {
                    "message": f"{beyond} labels of a batch are {declared} or more, the highest is {highest}: "
                    f"Spec(classes={declared}) allows 0 to {declared - 1}",
                    "evidence": f"{labels.numel()} labels, the lowest is {int(labels.min())}",
                    "severity": Severity.FAIL if only else Severity.WARN,
                },
            )  # fmt: skip
            if not held:
                return
        self._coverage(loop, step, labels, classes, declared)

    def _coverage(self, loop: Loop, step: int, labels: Tensor, classes: int | None, declared: int | None) -> None:
        size = classes or declared or int(labels.max()) + 1
        if size > MOST_CLASSES:
            size = 0
            several = bool((labels != labels.flatten()[0]).any())
            here = torch.tensor([labels.numel() - several, int(several)], dtype=torch.long)
        else:
            here = torch.bincount(labels.flatten().long().cpu(), minlength=size)
        longer = max(len(here), 0 if self._seen is None else len(self._seen))
        total = torch.zeros(longer, dtype=torch.long)
        total[: len(here)] += here
        if self._seen is not None:
            total[: len(self._seen)] += self._seen
        self._seen, self._looks = total, self._looks + 1
        if self._looks < FEW_LOOKS:
            return
        count, kinds = int(total.sum()), int((total > 0).sum())
        if kinds == 1 and count >= ONE_ONLY[(classes or 3) > 2]:
            only = int(total.argmax()) if size else int(labels.flatten()[0])
            text = f"all {count} labels seen so far are {only}: one class only"
        elif declared is not None and size and declared <= len(total) and count >= PER_CLASS * declared:
            missing = [k for k in range(declared) if not total[k]]
            many = len(missing) >= max(2, declared / 4)  # one or a few may be rare
            text = f"of {declared} classes {missing[:8]} never occurred in {count} labels" if many else ""
        else:
            text = ""
        if kinds > 1 and not text and count < PER_CLASS * (declared or 0):
            return
        loop.judge(
            LABELS, step, LABELS.margin(float(bool(text)), 0.0),
            lambda: {
                "message": text, "where": "coverage", "evidence": f"{self._looks} batches looked at",
                "severity": Severity.WARN,
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        reasons = {TARGETS.id: self._why, LABELS.id: self._why, PADDING.id: self._why}
        if self._known and loop.spec.padding is None:
            reasons[PADDING.id] = "no padding is declared: Spec(padding=…)"
        if self._known:
            reasons[TARGETS.id] = "the targets are not the input tokens, shifted or not"
            reasons[LABELS.id] = "too few labels were seen"
        for rule in self.rules:
            if not loop.tallies[rule.id].checks:
                loop.not_checked(rule, reasons[rule.id])

    def drop(self) -> None:
        self._seen = self._told = None


def _whole(t: Tensor) -> bool:
    return not t.is_floating_point() and not t.is_complex() and t.dtype is not torch.bool and t.numel() > 0


def _counting(captured: Captured, targets: Tensor) -> Tensor | None:
    """Which targets the loss has a gradient for, where the outputs have a row of numbers for each, with the classes last or
    second; None where they have not."""
    gradient = captured.gradients.get(captured.main or ())
    if gradient is None:
        return None
    shapes = {-1: gradient.shape[:-1], 1: (*gradient.shape[:1], *gradient.shape[2:])}
    for axis in (-1, 1):
        if gradient.ndim > 1 and tuple(shapes[axis]) == tuple(targets.shape):
            return gradient.any(axis).to(targets.device)
    flat = gradient.shape[:-1].numel() if gradient.ndim > 1 else 0
    return gradient.any(-1).reshape(targets.shape).to(targets.device) if flat == targets.numel() > 0 else None


def _without_ignored(labels: Tensor, classes: int) -> Tensor:
    """Without one value that lies apart beyond the classes, as 255 does: it stands for no class."""
    beyond = labels[labels >= classes]
    if beyond.numel() and int(beyond.min()) == int(beyond.max()) > classes:
        return labels[labels < classes]
    return labels
