"""RUN-26: training forwards in train mode, evaluations in eval mode, of models in which the two differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from karat.invariants.run.run26_mode import RULE
from karat.invariants.runtime.preflight.modes import DROPOUTS
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import callable_modules, plain_name, some, unwrapped

USUAL = 0.25
"""Forwards without gradients that come in more of the steps than this are part of the training: targets, rollouts."""
SETTLED = 4
"""Steps after which it is known what is usual."""
MOST_GIVEN, SAMPLES = 12, 3
"""Forwards of one evaluation whose inputs are compared, and how many of equal inputs are a sampling."""


class _Root:
    """One root module: what in it differs between the modes, and what its forwards were."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, unwrapped(module)
        parts = [
            (plain_name(n), m) for n, m in self.module.named_modules()
            if (isinstance(m, DROPOUTS) and m.p > 0) or isinstance(m, _BatchNorm)
        ]  # fmt: skip
        self.parts = dict(parts)
        self.at = -1
        """The step that is counted: forwards in train mode, and in eval mode with gradients."""
        self.trained = 0
        self.in_eval = 0
        self.was_trained = False
        self.occasions: list[int] = []
        self.pending: tuple[int, list[str]] | None = None
        """The step of an evaluation in train mode, and what acted: judged once it is known not to be a sampling."""
        self.given: list[tuple[Any, ...]] = []
        self.acted: list[str] = []
        """The parts that were in train mode in the last training step that was looked at."""
        self.evaluated = True
        """Whether there was an evaluation since: only then is it looked at again."""

    def stayed(self) -> list[str]:
        """Parts in eval mode within a model that trains, which acted before the evaluation and are not frozen."""
        acting = [n for n, m in self.parts.items() if m.training]
        before, self.acted, self.evaluated = self.acted, acting, False
        left = [n for n in before if not self.parts[n].training]
        own = {n: list(self.parts[n].parameters(recurse=False)) for n in left}
        return [n for n in left if not own[n] or any(p.requires_grad for p in own[n])]

    def active(self) -> list[str]:
        """The parts that are in train mode and act so: dropout, batch norms that keep statistics."""
        return [
            n for n, m in self.parts.items()
            if m.training and not (isinstance(m, _BatchNorm) and (m.running_mean is None or m.momentum is None))
        ]  # fmt: skip


class Mode(Check):
    rules = (RULE,)
    interval = "every forward"
    heard, heard_rules = True, (RULE,)

    def __init__(self) -> None:
        self._roots: dict[int, _Root] = {}

    def start(self, loop: Loop) -> None:
        for name, module in callable_modules(loop.model):
            found = _Root(name, module)
            if found.parts and any(p.requires_grad for p in module.parameters()):
                self._roots[id(module)] = found
        if not self._roots:
            loop.not_checked(RULE, "the model has no dropout and no batch norm: both modes are one")
            loop.off(self)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        root = self._roots.get(id(module))
        if root is None:
            return
        if root.at != loop.step:  # what was counted is of an earlier step, that nobody asked of
            root.at, root.trained, root.in_eval = loop.step, 0, 0
        training = root.module.training
        if not training or not torch.is_grad_enabled():
            root.evaluated = True
            loop.stir()
        if torch.is_grad_enabled():
            if training:
                root.trained += 1
            else:
                root.in_eval += 1
                root.trained += loop.so_far.untold
        elif training:
            self._evaluated(loop, root, (args, kwargs))

    def _evaluated(self, loop: Loop, root: _Root, given: Any) -> None:
        """A forward without gradients in train mode: an evaluation, unless that is usual here, or one input is given again
        and again, for the dropout to be sampled."""
        step = loop.step
        if root.occasions and root.occasions[-1] == step:
            if root.pending is not None and len(root.given) < MOST_GIVEN:
                root.given.append(_mark(given))
                if root.given.count(root.given[-1]) >= SAMPLES:
                    root.pending = None
            return
        root.occasions.append(step)
        active = root.active()
        if root.occasions[-2:-1] == [
            step - 1
        ]:  # in steps that follow each other: samples that are chosen by their loss
            root.pending = None
            return
        if step < SETTLED or len(root.occasions) > USUAL * (step + 1) or not active:
            return
        root.pending, root.given = (step, active), [_mark(given)]
        if any(isinstance(root.parts[name], _BatchNorm) for name in active):
            self._judge(loop, root)

    def _judge(self, loop: Loop, root: _Root) -> None:
        if root.pending is None:
            return
        (step, active), root.pending = root.pending, None
        loop.judge(
            RULE, step, RULE.margin(1, 0),
            lambda: {
                "message": f"an evaluation runs in train mode: {some(active)} act as in training. Call model.eval() before it",
                "where": root.name or "evaluation", "phase": "in a forward",
                "evidence": f"a forward without gradients after {step} steps, {len(root.occasions)} so far",
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        for root in self._roots.values():
            self._judge(loop, root)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        for root in self._roots.values():
            if root.pending is not None and root.pending[0] < moment.step:
                self._judge(loop, root)
            if not root.trained and not root.in_eval:
                continue
            wrong = root.in_eval and not root.trained and not any(m.training for m in root.parts.values())
            before, root.was_trained = root.was_trained, root.was_trained or bool(root.trained)
            root.trained = root.in_eval = 0
            if not wrong:
                loop.held_for(RULE, moment.step)
                if root.evaluated and root.module.training:
                    self._stayed(loop, moment.step, root)
                continue
            names = some(root.parts)
            since = "model.train() is missing after the evaluation" if before else "model.train() was never called"
            loop.judge(
                RULE, moment.step, RULE.margin(1, 0),
                lambda names=names, since=since, root=root: {  # type: ignore[misc]
                    "message": f"the model trains in eval mode: {names} do not act. {since}",
                    "where": root.name, "evidence": "every forward with gradients since the last step was in eval mode",
                },
            )  # fmt: skip

    def _stayed(self, loop: Loop, step: int, root: _Root) -> None:
        left = root.stayed()
        if left:
            loop.judge(
                RULE, step, RULE.margin(len(left), 0),
                lambda: {
                    "message": f"{some(left)} stay{'s' * (len(left) == 1)} in eval mode after the evaluation, while the rest "
                    "of the model trains: .train() is missing for that part",
                    "where": left[0], "evidence": f"{len(left)} of {len(root.parts)} parts were in train mode before it",
                },
            )  # fmt: skip

    def drop(self) -> None:
        self._roots = {}


def _mark(given: Any) -> tuple[Any, ...]:
    """What tells inputs apart: shapes and sums of the first few."""
    tensors = [t for _, t in leaves(given)][:2]
    return tuple((tuple(t.shape), float(t.detach().double().sum())) for t in tensors if not t.is_complex())
