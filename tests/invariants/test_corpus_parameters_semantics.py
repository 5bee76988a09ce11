"""The loops with wrong parameters, meanings and numbers: they run, and each bug changes something, from its step on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from corpus.loops import copies, modes, numerics, outputs, parameters, semantics
from corpus.loops.case import Case
from torch import Tensor, nn

CASES: tuple[Case, ...] = (
    *parameters.CASES,
    *copies.CASES,
    *semantics.CASES,
    *modes.CASES,
    *outputs.CASES,
    *numerics.CASES,
)
OTHER_FROM_THE_START = {"pure-bf16-after-decay"}
"""Whose clean twin is another computation before the bug begins as well: the numbers cannot be compared up to there."""


class StandIn:
    """In the place of `watch`: does nothing to the loop, and keeps a digest of what happened up to each step.

    trace[k]: the parameters, buffers, averages, replicas and groups after optimizer step k, and every forward of the
    watched models since step k - 1; the last entry is what came after the last step.
    """

    def __init__(self, model: Any, optimizer: Any, **declared: Any) -> None:
        self.models = list(model) if isinstance(model, (list, tuple)) else [model]
        self.copies = [m for m in [declared.get("ema"), *declared.get("replicas", ())] if m is not None]
        self.optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        self.declared, self.logged = declared, 0
        self.trace: list[str] = []
        self.forwards: list[str] = []
        self.handles = [m.register_forward_hook(self._forward) for m in self.models]
        self.handles.append(self.optimizers[-1].register_step_post_hook(self._stepped))

    def _forward(self, module: nn.Module, _: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        self.forwards.append(f"{module.training} {digest(o for o in outputs if isinstance(o, Tensor))}")

    def _stepped(self, *_: Any) -> None:
        self.trace.append(self._state())

    def _state(self) -> str:
        state = digest(chain.from_iterable(m.state_dict().values() for m in [*self.models, *self.copies]))
        groups = [[(len(g["params"]), g["lr"], g["weight_decay"]) for g in o.param_groups] for o in self.optimizers]
        seen, self.forwards = self.forwards, []
        return f"{state} {groups} {seen}"

    def log(self, **_: Any) -> None:
        self.logged += 1

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: Any) -> None:
        self.trace.append(self._state())
        for handle in self.handles:
            handle.remove()


def digest(tensors: Iterable[Tensor]) -> str:
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(tensor.detach().double().contiguous().numpy().tobytes())
    return h.hexdigest()[:12]


@cache
def ran(case: Case, buggy: bool) -> StandIn:
    torch.set_num_threads(1)  # a test of the trainer may have set another number, which rounds sums in another order
    stands: list[StandIn] = []

    def attach(*given: Any, **declared: Any) -> StandIn:
        stands.append(StandIn(*given, **declared))
        return stands[-1]

    case.run(attach, buggy)
    assert len(stands) == 1, "a loop attaches once"
    return stands[0]


every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@every_case
def test_the_loop_is_short_and_the_bug_begins_within_it(case: Case) -> None:
    steps = {buggy: len(ran(case, buggy).trace) - 1 for buggy in (True, False)}
    assert all(0 < n <= 60 for n in steps.values()), steps
    assert case.first_effect is None or case.first_effect < min(steps.values())
    assert case.rules


@every_case
def test_the_bug_changes_something_from_its_step_on_and_nothing_before(case: Case) -> None:
    """A difference shows at latest in the step after the first effect: what a loop does after step k is in k + 1."""
    buggy, clean, first = ran(case, True).trace, ran(case, False).trace, case.first_effect
    if first is None:
        assert buggy != clean
        return
    if case.name not in OTHER_FROM_THE_START:
        assert buggy[:first] == clean[:first]
    assert buggy[first : first + 2] != clean[first : first + 2]


@every_case
def test_the_same_loop_twice_is_the_same(case: Case) -> None:
    for buggy in (True, False):
        assert ran.__wrapped__(case, buggy).trace == ran(case, buggy).trace


@every_case
def test_what_is_declared_is_said(case: Case) -> None:
    declared = ran(case, False)
    assert bool(declared.declared or declared.logged) == bool(case.needs)
    assert ran(case, True).declared.keys() == declared.declared.keys()


def leaks(stand: StandIn) -> bool:
    """Whether logits before the last position follow the last token: by exchange, without any guard."""
    model = stand.models[0].eval()
    tokens = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(5))
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 11
    with torch.no_grad():
        return not torch.allclose(model(tokens)[:, :-1], model(other)[:, :-1], atol=1e-6)


def rows_meet(stand: StandIn) -> bool:
    """Whether the output of one row follows another row, in training mode."""
    model = stand.models[0].train()
    shape = (6, 5, 8) if hasattr(model, "mix") else (6, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    other = x.clone()
    other[0] += 1.0
    with torch.no_grad():
        return not torch.allclose(model(x)[1:], model(other)[1:], atol=1e-6)


def not_what_it_trains(stand: StandIn) -> bool:
    """Whether what the optimizers hold, each once, is other than the parameters that the model trains."""
    held = [id(p) for optimizer in stand.optimizers for group in optimizer.param_groups for p in group["params"]]
    trained = [p for m in stand.models[0].modules() for p in m.parameters(recurse=False) if p.requires_grad]
    trained += [p for layer in getattr(stand.models[0], "layers", []) for p in layer.parameters()]
    return sorted(held) != sorted({id(p) for p in trained})


def same_parts(stand: StandIn) -> bool:
    """Whether branches, hidden units or streams are, after all the steps, still one."""
    model = stand.models[0]
    if hasattr(model, "branches"):
        return len({digest(branch.parameters()) for branch in model.branches}) == 1
    parts = model.write.T if hasattr(model, "write") else model[0].weight
    return torch.allclose(parts, parts[:1].expand_as(parts), atol=1e-5)


def not_twice_the_same(stand: StandIn) -> bool:
    """Whether evaluation of the same input gives two outputs."""
    model = stand.models[0].eval()
    x = torch.ones(3, 8) if hasattr(model, "body") else torch.ones(3, 12, dtype=torch.long)
    return not torch.equal(model(x), model(x))


ORACLES = {
    "causality": leaks,
    "batch-independence": rows_meet,
    "optimizer-parameters": not_what_it_trains,
    "twins": same_parts,
    "eval-determinism": not_twice_the_same,
}
ELSEWHERE = {"decoder-not-shifted", "softmax-over-the-batch"}
"""The model is right: it is the data or the loss that break the rule."""


@pytest.mark.parametrize(
    ("rule", "case"),
    [(rule, c) for rule in ORACLES for c in CASES if rule in c.rules and c.name not in ELSEWHERE],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_the_bug_is_what_it_is_said_to_be(rule: str, case: Case) -> None:
    assert ORACLES[rule](ran.__wrapped__(case, True))
    assert not ORACLES[rule](ran.__wrapped__(case, False))
