"""RUN-19: the averaged model follows the model: once a step, after it, with the declared decay, and its buffers too.

Between two steps the sample p of an average becomes decay * p + (1 - decay) * m, with m the model's after the step. One
parameter is looked at in turn, all in the first steps and every K; what is found must be found twice in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run19_ema import RULE
from karat.invariants.runtime.watching.averaging import SAID, Kind, Numbers, classify
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import spoken
from karat.invariants.runtime.watching.lacking import Lacking
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain_name, unwrapped
from karat.invariants.runtime.watching.sampling import View, alike, fit

NEVER_SAID, NEVER_SURE, AT_END = 3, 100, 20
"""Steps without an update after which it is said; is certain; and is certain at the end of the run."""
LITTLE, COPIED = 0.05, 20
"""Share of itself below which an average of no declared decay is all but a copy, and steps in a row that are reported."""
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass
class Pair:
    """An averaged parameter and the model's own; the samples of both before a step, and of the model's after it."""

    name: str
    mean: Tensor
    value: Tensor
    means: View
    values: View
    old_mean: Tensor | None = None
    old_value: Tensor | None = None
    new_value: Tensor | None = None
    version: int = 0


class Averages(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._pairs: list[Pair] = []
        self._buffers: list[tuple[str, Tensor, Tensor, list[Tensor]]] = []
        self._kept: list[Pair] = []
        self._index = 0
        self._found: dict[Kind, tuple[int, int, float]] = {}
        self._late: list[int] = []
        self._missing: tuple[int, int] = (0, 0)
        self._streak, self._updates = 0, 0
        self._at_forward: int | None = None
        self._lag: tuple[int, int] = (0, 0)
        self._copies: tuple[int, int] = (0, 0)
        self._lacking = Lacking()
        self._near = 0

    def start(self, loop: Loop) -> None:
        if loop.ema is None:
            loop.not_checked(RULE, "no averaged model was given: watch(…, ema=averaged)")
            loop.off(self)
            return
        self._pairs = _paired(loop, loop.ema)
        if not self._pairs:
            loop.not_checked(
                RULE, "no parameter of the averaged model has the name, shape and device of one of the model"
            )
            loop.off(self)
            return
        same = [p.name for p in self._pairs if p.mean.data_ptr() == p.value.data_ptr()]
        if same:
            loop.found(
                RULE, step=0, margin=-1.0, where=same[0], phase="at the start",
                message=f"the averaged model is the model itself: {same[0]} is one tensor in both; copy.deepcopy(model)",
                evidence=f"{len(same)} of {len(self._pairs)} parameters are shared",
            )  # fmt: skip
            loop.off(self)
            return
        owners = [i for i, held in enumerate(loop.held) for h in held if h.name == self._pairs[0].name]
        self._index = owners[0] if owners else 0
        self._buffers = _paired_buffers(loop, loop.ema)
        self._lacking.begin(loop, [_inner(loop.ema)])

    def forward(self, loop: Loop, *_: object) -> None:
        if torch.is_grad_enabled():
            self._at_forward = self._pairs[0].mean._version

    def look(self, loop: Loop, moment: Moment) -> None:
        if moment.index != self._index or moment.closure:
            return
        self._lagging(loop, moment.step)
        if self._lacking.due(loop):
            self._grown(loop, moment.step)
        kept, self._kept = self._kept, []
        if kept:
            self._ask(loop, moment.step - 1, kept)
        if loop.dense(moment.step):
            due = self._pairs
        else:
            due = [self._pairs[moment.step % len(self._pairs)]]
        for pair in due:
            pair.old_mean, pair.old_value = pair.means.now().clone(), pair.values.now().clone()
            pair.version = pair.mean._version
        self._kept = due
        if self._buffers and loop.dense(moment.step):
            self._statistics(loop, moment.step)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index == self._index:
            for pair in self._kept:
                pair.new_value = pair.values.now().clone()

    def _ask(self, loop: Loop, step: int, kept: list[Pair]) -> None:
        """What became of the samples since the step: five norms of each, in float32."""
        asked, looked = [], []
        for pair in kept:
            if pair.old_mean is None or pair.old_value is None or pair.new_value is None:
                continue
            numbers = Numbers.of(pair.old_mean, pair.means.now(), pair.old_value, pair.new_value, loop.spec.ema)
            written = pair.mean._version != pair.version
            looked.append((pair, written, (pair.old_mean, pair.old_value, pair.new_value)))
            asked += numbers
            pair.old_mean = pair.old_value = pair.new_value = None
        if asked:
            loop.transfer.ask(asked, lambda numbers: self._answered(loop, step, looked, numbers))

    def _answered(
        self,
        loop: Loop,
        step: int,
        looked: list[tuple[Pair, bool, tuple[Tensor, Tensor, Tensor]]],
        numbers: list[float],
    ) -> None:
        kinds = []
        for n, (pair, written, samples) in enumerate(looked):
            given = Numbers(*numbers[5 * n : 5 * n + 5])
            kind, decay = classify(given, written, pair.mean.dtype, loop.spec.ema, samples, pair.mean)
            if kind is not None:
                kinds.append((kind, decay, pair.name))
        if kinds:
            self._conclude(loop, step, kinds)

    def _conclude(self, loop: Loop, step: int, kinds: list[tuple[Kind, float, str]]) -> None:
        missing = all(kind is Kind.MISSING for kind, _, _ in kinds)
        wrong = [k for k in kinds if k[0] not in (Kind.RIGHT, Kind.MISSING)]
        if missing:
            self._not_updated(loop, step)
            return
        self._updates += 1
        self._streak = self._streak + 1 if not self._missing[1] else 1
        self._missing = (0, 0)
        if not wrong:
            self._found.clear()
            if loop.spec.ema is None:
                self._copied(loop, step, max(kept for _, kept, _ in kinds))
            loop.held_for(RULE, step, RULE.margin(0.0, 0.05))
            return
        kind, decay, name = max(wrong, key=lambda k: sum(o[0] is k[0] for o in wrong))
        first, count, before = self._found.get(kind, (step, 0, decay))
        self._found = {kind: (first, count + 1, decay)}
        if kind is Kind.OTHER and (loop.spec.ema is None or (decay > before + 1e-4 and decay < loop.spec.ema)):
            return  # a decay that warms up
        says, patience, severity = SAID[kind]
        if loop.spec.ema is None:
            severity = Severity.WARN
        if count + 1 < patience:
            return
        declared = "" if loop.spec.ema is None else f", declared is {loop.spec.ema:g}"
        loop.judge(
            RULE, first, RULE.margin(1.0, 0.05),
            lambda: {
                "message": f"the average of {name} {says.format(decay=decay)}{declared}",
                "where": "", "severity": severity, "phase": "after the step",
                "evidence": f"seen {count + 1} times, steps {first} to {step}; {len(wrong)} of {len(kinds)} samples",
            },
        )  # fmt: skip

    def _copied(self, loop: Loop, step: int, kept: float) -> None:
        """With no decay declared: next to nothing of the average is kept, step after step."""
        self._near = self._near + 1 if kept < LITTLE else 0
        if self._near == COPIED:
            loop.found(
                RULE, step=step, margin=-1.0, where="copy", severity=Severity.WARN, phase="after the step",
                message=f"the average keeps {max(kept, 0.0):.3g} of itself at each step: it is all but a copy of the model",
                evidence=f"{COPIED} steps in a row; decay and 1 - decay exchanged, or copied in place of averaged",
            )  # fmt: skip

    def _not_updated(self, loop: Loop, step: int) -> None:
        first, count = self._missing if self._missing[1] else (step, 0)
        self._missing = (first, count + 1)
        if self._updates and self._streak < NEVER_SAID:
            return  # every few steps: by design
        if count + 1 not in (NEVER_SAID, NEVER_SURE):
            return
        if not self._updates:
            self._never(loop, first, count + 1, Severity.FAIL if count + 1 >= NEVER_SURE else Severity.WARN)
            return
        if count + 1 == NEVER_SAID:
            loop.judge(
                RULE, first, RULE.margin(1.0, 0.05),
                lambda: {
                    "message": f"the average is not updated any more since step {first}, after an update at every step",
                    "where": "", "phase": "after the step",
                    "evidence": f"{self._updates} updates were seen up to there, none in steps {first} to {step}",
                },
            )  # fmt: skip

    def _never(self, loop: Loop, first: int, count: int, severity: Severity) -> None:
        loop.judge(
            RULE, first, RULE.margin(1.0, 0.05),
            lambda: {
                "message": f"the average was not updated once in {count} steps, while the model moved",
                "where": "" if severity is Severity.FAIL else "start", "severity": severity,
                "evidence": f"{len(self._pairs)} parameters are watched",
            },
        )  # fmt: skip

    def _lagging(self, loop: Loop, step: int) -> None:
        """Whether the average was written to after the forward of this step and before its update: a step too early."""
        seen, self._at_forward = self._at_forward, None
        early = seen is not None and self._pairs[0].mean._version != seen
        if not early:
            self._lag = (0, 0)
            return
        first, count = self._lag if self._lag[1] else (step, 0)
        self._lag = (first, count + 1)
        if count + 1 >= 2:
            loop.judge(
                RULE, first, RULE.margin(1.0, 0.05),
                lambda: {
                    "message": "the average is updated before the step: it takes the weights of one step ago",
                    "where": "", "evidence": f"written to between the forward and the step, steps {first} to {step}",
                },
            )  # fmt: skip

    def _grown(self, loop: Loop, step: int) -> None:
        """The model has other parameters by now: those of the average are read anew, and what it lacks after a step is
        said."""
        assert loop.ema is not None
        lacks = self._lacking.now(loop, [_inner(loop.ema)], step)
        self._pairs, self._kept = _paired(loop, loop.ema) or self._pairs, []
        if lacks:
            loop.judge(
                RULE, step, RULE.margin(1.0, 0.05),
                lambda: {
                    "message": f"{spoken(lacks, list(loop.parameters))} came to the model after step {self._lacking.since - 1}, "
                    "and the average does not have it",
                    "where": lacks[0], "severity": Severity.WARN,
                    "evidence": f"by name; {len(self._pairs)} parameters of the average are followed",
                },
            )  # fmt: skip

    def _statistics(self, loop: Loop, step: int) -> None:
        """The running statistics of the model's norms move, those of the average do not."""
        behind = []
        for name, mean, value, old in self._buffers:
            now = [mean.detach().clone(), value.detach().clone()]
            if old and torch.equal(old[0], now[0]) and not torch.equal(old[1], now[1]):
                behind.append(name)
            old[:] = now
        if not behind:
            self._copies = (0, 0)
            return
        first, count = self._copies if self._copies[1] else (step - 1, 0)
        self._copies = (first, count + 1)
        if count and self._updates:
            loop.found(
                RULE, step=first, where=behind[0], margin=-1.0, severity=Severity.WARN,
                message=f"{behind[0]} of the average stands still while the model's moves: buffers are not copied",
                evidence=f"{len(behind)} running statistics, looked at before steps {first} to {step}",
            )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        loop.transfer.bring()
        if not self._updates and self._missing[1] >= AT_END:
            self._never(loop, self._missing[0], self._missing[1], Severity.FAIL)

    def drop(self) -> None:
        self._pairs, self._buffers, self._kept = [], [], []


def _inner(given: nn.Module) -> nn.Module:
    """The averaged network, out of what keeps it."""
    for key in ("ema_model", "module"):
        inner = given._modules.get(key)
        if inner is not None:
            return unwrapped(inner)
    return unwrapped(given)


def _prefix(names: list[str], known: list[str]) -> str:
    """What stands before the names of the average in those of the model, where it is of a part of it."""
    if not names:
        return ""
    fit_in = [k[: -len(names[0])] for k in known if k == names[0] or k.endswith("." + names[0])]
    return max(fit_in, key=lambda p: sum(p + n in known for n in names), default="")


def _paired(loop: Loop, given: nn.Module) -> list[Pair]:
    means = {plain_name(n): p for n, p in _inner(given).named_parameters()}
    prefix = _prefix(list(means), list(loop.parameters))
    pairs = []
    for name, mean in means.items():
        value = loop.parameters.get(prefix + name)
        if value is None or mean.shape != value.shape or not value.requires_grad or not (fit(mean) and fit(value)):
            continue
        ours, theirs = View(mean), View(value)
        if alike(ours.now(), theirs.now()):
            pairs.append(Pair(prefix + name, mean, value, ours, theirs))
    return pairs


def _paired_buffers(loop: Loop, given: nn.Module) -> list[tuple[str, Tensor, Tensor, list[Tensor]]]:
    mine = {n: m for n, m in unwrapped(loop.model).named_modules() if isinstance(m, NORMS)}
    found: list[tuple[str, Tensor, Tensor, list[Tensor]]] = []
    for name, module in _inner(given).named_modules():
        own = mine.get(name)
        if isinstance(module, NORMS) and own is not None and own.running_mean is not None:
            mean = module.running_mean
            if mean is not None and mean.shape == own.running_mean.shape and mean.device == own.running_mean.device:
                found.append((f"{name}.running_mean", mean, own.running_mean, []))
    return found
