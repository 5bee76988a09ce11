"""The checks of what a model computes and what its loss is of: each rule on loops with the bug, and on twins that look alike."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus.loops import clean, modes, outputs, semantics, targets
from corpus.loops.blocks import Tokens, adam, blobs, next_token, text
from torch import Tensor, nn

from karat.invariants.runtime import watch
from karat.invariants.runtime.watch import Watch

MINE = {
    "causality", "batch-independence", "eval-determinism", "mode", "dropout", "first-loss", "softmax", "twins", "inputs",
    "collapse", "targets", "padding", "labels", "reduction", "accumulation",
}  # fmt: skip
CASES = [c for m in (modes, outputs, semantics, targets) for c in m.CASES if c.rules & MINE]
CLASSES, WIDTH = 5, 8
Loop = Callable[[Callable[..., Any]], None]


class Watches:
    """An attach that keeps the guards it makes."""

    def __init__(self) -> None:
        self.made: list[Watch] = []

    def __call__(self, model: Any, optimizer: Any, **declared: Any) -> Watch:
        self.made.append(watch(model, optimizer, policy="observe", **declared))
        return self.made[-1]

    def found(self) -> list[tuple[str, str, int, str]]:
        """Severity, slug, step and message of all that the rules of this file said."""
        reports = [guards.finish() for guards in self.made]
        raised = [why for r in reports for why in r.not_checked.values() if "its check raised" in why]
        assert not raised
        return [(v.severity, v.slug, v.step, v.message) for r in reports for v in r.violations if v.slug in MINE]


def found(loop: Loop) -> list[tuple[str, str, int, str]]:
    attach = Watches()
    loop(attach)
    return attach.found()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_loops_of_the_corpus(case: Any) -> None:
    told = found(lambda attach: case.run(attach, True))
    assert any(slug in case.rules for _, slug, _, _ in told), told
    if not case.rules & {"collapse", "labels"}:  # these take some steps to be seen
        first = min(step for _, slug, step, _ in told if slug in case.rules)
        assert case.first_effect is None or first <= case.first_effect + 1
    assert not found(lambda attach: case.run(attach, False))


@pytest.mark.parametrize("loop", clean.CLEAN, ids=lambda c: c.name)
def test_legitimate_loops_of_the_corpus(loop: Any) -> None:
    attach = Watches()
    try:
        loop.run(attach)
    except Exception as error:  # a rule of another kind that is not there yet
        pytest.skip(str(error).splitlines()[0])
    assert not attach.found()


# -- ways in which it goes wrong ----------------------------------------------------------------------------------------


def classifier(*more: nn.Module, out: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, out), *more)


def fitted(attach: Callable[..., Any], model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], *, steps: int = 20,
           label: Callable[[Tensor], Tensor] = lambda x: x[:, :CLASSES].argmax(1), **declared: Any) -> None:  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    attach(model, optimizer, **declared)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, WIDTH, generator=draw)
        optimizer.zero_grad()
        loss(model(x), label(x)).backward()
        optimizer.step()


def language(attach: Callable[..., Any], model: nn.Module, pairs: list[tuple[Tensor, Tensor]],
             loss: Callable[[Tensor, Tensor], Tensor] = next_token, **declared: Any) -> None:  # fmt: skip
    optimizer = adam(model)
    attach(model, optimizer, **declared)
    for x, y in pairs:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def masked(logits: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", ignore_index=-100)
    return each.mean()


def ignoring(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    for _, y in pairs:
        y[:, :4] = -100
    return pairs


def padded(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Filled with token 0 from the fifth position on, to unequal lengths; no other token is 0."""
    out = []
    for x, y in pairs:
        short = torch.arange(x.shape[1]) >= 4 + torch.arange(len(x))[:, None] % 6
        out.append((x.clamp_min(1).masked_fill(short, 0), y.clamp_min(1).masked_fill(short, 0)))
    return out


def with_padding_idx() -> nn.Module:
    model = Tokens()
    model.embedding.padding_idx = 0
    return model


def of_softmax(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(-1), y)


def unmasked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def half_ignored(attach: Callable[..., Any]) -> None:
    language(attach, Tokens(), ignoring(text(8)), masked)


def accumulated(attach: Callable[..., Any], part: float, scale: float = 1.0) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    attach(model, optimizer, spec={"accumulation": 2}, scaler=scaler)
    for first, second in zip(blobs(8), blobs(8, seed=50), strict=True):
        optimizer.zero_grad()
        for x, y in (first, second):
            scaler.scale(F.cross_entropy(model(x), y) * part).backward()
        scaler.step(optimizer)
        scaler.update()


WRONG: list[tuple[str, str, str, Loop]] = [
    ("causality", "FAIL", "its target", lambda a: language(a, Tokens(unmasked), text(4))),
    ("causality", "FAIL", "change when inputs after", lambda a: language(a, Tokens(unmasked), text(4), spec={"causal": True})),
    ("targets", "WARN", "first token", lambda a: language(a, Tokens(), [(x, x.roll(-1, 1)) for x, _ in text(4)])),
    ("targets", "WARN", "one position back", lambda a: language(a, Tokens(), [(x[:, 1:], x[:, :-1]) for x, _ in text(4)])),
    ("padding", "FAIL", "count in the loss", lambda a: language(a, Tokens(), padded(text(4)), spec={"padding": 0})),
    ("padding", "WARN", "count in the loss", lambda a: language(a, with_padding_idx(), padded(text(4)))),
    ("padding", "WARN", "count in the loss", lambda a: language(a, Tokens(), padded(text(4)))),
    ("reduction", "WARN", "averaged over all", half_ignored),
    ("reduction", "WARN", "summed over", lambda a: fitted(a, classifier(), lambda x, y: F.cross_entropy(x, y, reduction="sum"))),
    ("reduction", "WARN", "divided once more", lambda a: fitted(a, classifier(), lambda x, y: F.cross_entropy(x, y) / len(y))),
    ("accumulation", "FAIL", "undivided", lambda a: accumulated(a, 1.0)),
    ("accumulation", "FAIL", "undivided", lambda a: accumulated(a, 1.0, 2.0**12)),
    ("accumulation", "FAIL", "twice", lambda a: accumulated(a, 0.25)),
    ("softmax", "FAIL", "takes their softmax again", lambda a: fitted(a, classifier(nn.Softmax(-1)), F.cross_entropy)),
    ("softmax", "FAIL", "the loop takes the softmax", lambda a: fitted(a, classifier(), of_softmax)),
    ("softmax", "FAIL", "sigmoid", lambda a: fitted(
        a, classifier(nn.Sigmoid()), lambda x, y: F.binary_cross_entropy_with_logits(x, F.one_hot(y, CLASSES).float()))),
    ("softmax", "WARN", "broadcast", lambda a: fitted(
        a, classifier(out=1), lambda x, y: (x - y).square().mean(), label=lambda x: 2.7 * x[:, 0] + 0.3)),
    ("labels", "FAIL", "the highest is 4", lambda a: fitted(a, classifier(), F.cross_entropy, spec={"classes": 4})),
    ("labels", "WARN", "one class only", lambda a: fitted(
        a, classifier(), F.cross_entropy, steps=30, label=lambda x: torch.full((16,), 2))),
    ("first-loss", "WARN", "too large", lambda a: fitted(a, classifier(nn.Sequential(Scaled())), F.cross_entropy)),
    ("first-loss", "FAIL", "too large", lambda a: fitted(a, classifier(Scaled()), F.cross_entropy, spec={"classes": CLASSES})),
]  # fmt: skip


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 40 * x


@pytest.mark.parametrize(("slug", "severity", "words", "loop"), WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_wrong_is_named(slug: str, severity: str, words: str, loop: Loop) -> None:
    told = found(loop)
    assert any(t[0] == severity and t[1] == slug and words in t[3] and t[2] <= 4 for t in told), told


# -- twins that look alike ----------------------------------------------------------------------------------------------


class PrefixLanguage(Tokens):
    """Positions 0 to 3 see each other; the loss counts those from 3 on."""

    def __init__(self) -> None:
        super().__init__(self.look)

    def look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[1], q.shape[1]).tril().bool()
        mask[:, :4] = True
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def prefix(attach: Callable[..., Any]) -> None:
    pairs = text(6)
    for _, y in pairs:
        y[:, :3] = -100
    language(attach, PrefixLanguage(), pairs)


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 16)
        self.both = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.both(self.embedding(source), self.embedding(target), tgt_mask=mask))  # type: ignore[no-any-return]


def copying(attach: Callable[..., Any]) -> None:
    """Encoder and decoder have inputs of one shape; the source may be seen whole, and is the target."""
    model = EncoderDecoder()
    optimizer = adam(model)
    attach(model, optimizer, spec={"causal": True})
    for x, _ in text(6):
        optimizer.zero_grad()
        next_token(model(x, F.pad(x[:, :-1], (1, 0))), x).backward()
        optimizer.step()


def adversarial(attach: Callable[..., Any]) -> None:
    """Least squares against one and zero, batch norm, an activation in place, and a graph that lives through a step."""
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Linear(16, 6))
    judge = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 1))
    of_maker, of_judge = torch.optim.Adam(maker.parameters(), 1e-3), torch.optim.Adam(judge.parameters(), 1e-3)
    attach({"maker": maker, "judge": judge}, [of_judge, of_maker])
    for _ in range(12):
        fake, real = maker(torch.randn(16, 4)), torch.randn(16, 6)
        of_judge.zero_grad()
        ((judge(real) - 1).square().mean() + judge(fake.detach()).square().mean()).backward()
        of_judge.step()
        of_maker.zero_grad()
        (judge(fake) - 1).square().mean().backward()
        of_maker.step()


class Memory:
    """What a module holds that is no module, no tensor and no container."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, [0.0]


class Stateful(nn.Module):
    """Everything that a forward can move: counters, lists, objects, buffers, generators, spectral norms, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 16))
        self.second = nn.utils.spectral_norm(nn.Linear(16, 16))
        self.norm, self.drop, self.head = nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, CLASSES)
        self.count, self.history, self.memory = 0, [0.0], Memory()
        self.own = torch.Generator().manual_seed(4)
        self.register_buffer("running", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.memory.calls += 1
        x = self.norm(self.second(self.first(x).relu()))
        self.history.append(float(x.detach().mean()))
        self.memory.seen.append(self.history[-1])
        self.running = 0.9 * self.running + 0.1 * x.detach().mean(0)
        noise = random.random() + float(np.random.rand()) + torch.rand((), generator=self.own)
        return self.head(self.drop(x + self.running)) * (1 + 1e-3 * noise * self.count / (self.memory.calls + 1))  # type: ignore[no-any-return]


def stateful(attach: Callable[..., Any]) -> None:
    model = Stateful()
    fitted(attach, model, F.cross_entropy)
    assert model.count == model.memory.calls == 20 and len(model.history) == len(model.memory.seen) == 21


def two_backward_passes(attach: Callable[..., Any]) -> None:
    """The graph of a step is used again after it, so that no tensor in it may have been written to."""
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 16), nn.ReLU(inplace=True))
    head = nn.Linear(16, CLASSES)
    optimizer, other = torch.optim.SGD(head.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)
    attach(nn.ModuleDict({"body": model, "head": head}), [optimizer, other])
    for x, y in blobs(6):
        hidden = model(x)
        loss = F.cross_entropy(head(hidden.detach()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        other.zero_grad()
        F.cross_entropy(F.linear(hidden, head.weight.detach().clone()), y).backward()
        other.step()


ALIKE: dict[str, Loop] = {
    "a prefix that does not count may see itself": prefix,
    "an encoder sees its source": copying,
    "least squares against one": adversarial,
    "state in every form": stateful,
    "a graph that outlives a step": two_backward_passes,
    "margin loss": lambda a: fitted(a, classifier(), F.multi_margin_loss, spec={"classes": CLASSES}),
    "square of probabilities": lambda a: fitted(
        a, classifier(nn.Softmax(-1)), lambda x, y: (x - F.one_hot(y, CLASSES)).square().mean()),
    "two probabilities, squared": lambda a: fitted(
        a, classifier(nn.Softmax(-1), out=2), lambda x, y: (x - F.one_hot(y % 2, 2)).square().mean()),
    "nll of the logarithm": lambda a: fitted(a, classifier(nn.Softmax(-1)), lambda x, y: F.nll_loss(x.log(), y)),
    "nll of log_softmax": lambda a: fitted(a, classifier(nn.LogSoftmax(-1)), F.nll_loss),
    "cross-entropy of log_softmax": lambda a: fitted(a, classifier(nn.LogSoftmax(-1)), F.cross_entropy),
    "label smoothing": lambda a: fitted(
        a, classifier(), lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), spec={"classes": CLASSES}),
    "a weighted loss": lambda a: fitted(
        a, classifier(), lambda x, y: 0.3 * F.cross_entropy(x, y, weight=torch.arange(1.0, 6.0)), spec={"classes": CLASSES}),
    "binary targets": lambda a: fitted(
        a, classifier(), lambda x, y: F.binary_cross_entropy_with_logits(x, F.one_hot(y, CLASSES).float())),
    "binary cross-entropy of a sigmoid": lambda a: fitted(
        a, classifier(nn.Sigmoid()), lambda x, y: F.binary_cross_entropy(x, F.one_hot(y, CLASSES).float())),
    "regression of a column": lambda a: fitted(
        a, classifier(out=1), lambda x, y: (x.squeeze(1) - y).square().mean(), label=lambda x: 2.7 * x[:, 0] + 0.3),
    "accumulated, divided": lambda a: accumulated(a, 0.5),
    "accumulated under a scaler": lambda a: accumulated(a, 0.5, 2.0**12),
    "ignored targets": lambda a: language(a, Tokens(), ignoring(text(8))),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_what_looks_alike_is_left_alone(name: str) -> None:
    told = found(ALIKE[name])
    assert not [t for t in told if t[0] == "FAIL"], told
    assert not told or name == "state in every form", told  # that one draws numbers in eval mode, and says so


@pytest.mark.parametrize("name", ALIKE)
def test_a_watched_run_is_the_run(name: str) -> None:
    traces = []
    for watched in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        held: list[nn.Module] = []

        def attach(model: Any, optimizer: Any, watched: bool = watched, held: list[nn.Module] = held, **d: Any) -> Any:
            held.extend([model] if isinstance(model, nn.Module) else model.values())
            return watch(model, optimizer, policy="observe", every=5, **d) if watched else None

        ALIKE[name](attach)
        state = [t.clone() for m in held for t in m.state_dict().values()]
        modes_now = [m.training for root in held for m in root.modules()]
        generators = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        traces.append((state, modes_now, generators))
    (a, modes_a, rng_a), (b, modes_b, rng_b) = traces
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert modes_a == modes_b and rng_a == rng_b


# -- modes --------------------------------------------------------------------------------------------------------------


def test_evaluation_in_train_mode_is_no_alarm_where_each_step_does_it() -> None:
    attach = Watches()
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.1), nn.Linear(16, CLASSES))
    optimizer = adam(model)
    attach(model, optimizer)
    for x, _ in blobs(20):
        with torch.no_grad():
            taught = model(x).softmax(-1)
        optimizer.zero_grad()
        F.cross_entropy(model(x), taught).backward()
        optimizer.step()
    assert "mode" not in {slug for _, slug, _, _ in attach.found()}


def test_a_frozen_batch_norm_is_no_training_in_eval_mode() -> None:
    attach = Watches()
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))
    optimizer = adam(model)
    attach(model, optimizer)
    for x, y in blobs(8):
        model.train()[1].eval()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert not attach.found()


def test_what_cannot_be_replayed_is_not_checked() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError("training only")
            return self.net(x)  # type: ignore[no-any-return]

    attach = Watches()
    fitted(attach, Strict(), F.cross_entropy)
    report = attach.made[0].finish()
    assert "training only" in report.not_checked["eval-determinism"]
    assert not attach.found()


def test_own_hooks_are_not_set_off() -> None:
    kept: list[Tensor] = []
    model = classifier()
    model[0].register_forward_hook(lambda m, a, out: kept.append(out.detach()))
    attach = Watches()
    fitted(attach, model, F.cross_entropy)
    report = attach.made[0].finish()
    assert len(kept) == 20 and "hooks of its own" in report.not_checked["causality"]


def test_no_copy_of_the_model_outlives_the_probes() -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    guards = watch(model, optimizer, policy="observe")
    F.cross_entropy(model(torch.randn(16, WIDTH)), torch.arange(16) % CLASSES).backward()
    versions = [p._version for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert [p._version for p in model.parameters()] == [v + 1 for v in versions]  # the step's own change alone
    guards.finish()
