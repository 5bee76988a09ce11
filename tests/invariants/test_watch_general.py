"""Variations on bugs that are easily missed, each with the twin that is right: told targets, labels that the model takes,
scalers of other loops, groups by hand, terms of rounding, no step at all, inputs of zeros, directions that collapse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.watched import watched
from torch import Tensor, nn

from karat.invariants.runtime import watch

Run = Callable[[Callable[..., Any]], None]
WORDS = 13


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, out))


def drawn(size: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 6)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


# -- RUN-39 to 41 -----------------------------------------------------------------------------------------------------


def sentences(count: int = 10, length: int = 9) -> Tensor:
    rows = 1 + (torch.randint(0, 12, (count, 1)) + torch.randint(1, 4, (count, 1)) * torch.arange(length)) % 12
    short = torch.arange(length) >= torch.randint(4, length + 1, (count, 1))
    return rows.masked_fill(short, 0)


def reader(loss: Callable[[Tensor, Tensor], Tensor], late: bool = False) -> Run:
    """Padded sentences whose targets are told; the loss alone knows whether padding counts."""

    def run(attach: Callable[..., Any]) -> None:
        model = nn.Sequential(nn.Embedding(WORDS, 12), nn.Linear(12, WORDS))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        guards = attach(model, optimizer, spec={"padding": 0})
        for _ in range(10):
            rows = sentences()
            x, y = rows[:, :-1], rows[:, 1:]
            value = loss(model(x), y)
            if not late:
                guards.log(loss=value, inputs=x, targets=y)
            stepped(optimizer, value)
            if late:
                guards.log(loss=value.item(), inputs=x, targets=y)

    return run


def plain(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def ignoring(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), y, ignore_index=0)


def by_hand(logits: Tensor, y: Tensor) -> Tensor:
    mask = (y != 0).float()
    return (F.cross_entropy(logits.transpose(1, 2), y, reduction="none") * mask).sum() / mask.sum()


def focal(logits: Tensor, y: Tensor) -> Tensor:
    """No plain cross-entropy, so that targets cannot be read off its gradient."""
    each = F.cross_entropy(logits.transpose(1, 2), y, reduction="none", ignore_index=0)
    return ((1 - (-each).exp()).square() * each).sum() / (y != 0).sum()


def test_padding_that_is_told_counts_only_where_the_loss_counts_it() -> None:
    for loss in (ignoring, by_hand, focal):
        assert not [v for v in watched(reader(loss)) if v.slug in ("padding", "labels")], loss
        assert not [v for v in watched(reader(loss, late=True)) if v.slug in ("padding", "labels")], loss
    found = [v for v in watched(reader(plain)) if v.slug == "padding"]
    assert [(v.severity, v.step) for v in found] == [("FAIL", 0)] and "count in the loss" in found[0].message


def segmented(loss: Callable[[Tensor, Tensor], Tensor], void: int, **declared: Any) -> Run:
    def run(attach: Callable[..., Any]) -> None:
        model = nn.Conv2d(3, 3, 3, padding=1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        guards = attach(model, optimizer, spec={"classes": 3, **declared})
        for _ in range(6):
            y = torch.randint(0, 3, (4, 6, 6))
            x = F.one_hot(y, 3).movedim(-1, 1).float() + 0.1 * torch.randn(4, 3, 6, 6)
            y[:, 0] = void
            value = loss(model(x), y)
            guards.log(loss=value, targets=y)
            stepped(optimizer, value)

    return run


def overlap(logits: Tensor, y: Tensor) -> Tensor:
    """Of the pixels that are no void: no cross-entropy."""
    known = (y <= 2).unsqueeze(1).float()
    p, t = logits.softmax(1) * known, F.one_hot(y.clamp(0, 2), 3).movedim(-1, 1) * known
    return 1 - (2 * (p * t).sum() / (p + t).sum())


@pytest.mark.parametrize("declared", [{}, {"padding": 255}, {"ignore_index": 255}])
def test_labels_that_do_not_count_may_have_any_value(declared: dict[str, int]) -> None:
    for loss in (lambda x, y: F.cross_entropy(x, y, ignore_index=255), overlap):
        assert not [v for v in watched(segmented(loss, 255, **declared)) if v.slug == "labels"]


def test_a_label_beyond_the_classes_that_counts_is_one() -> None:
    def clamped(logits: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(logits, F.one_hot(y.clamp(max=2), 3).movedim(-1, 1).float())

    found = [v for v in watched(segmented(clamped, 3)) if v.slug == "labels"]
    assert found and found[0].severity == "FAIL" and "the highest is 3" in found[0].message


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 8), nn.Embedding(WORDS, 8)
        self.first, self.second = nn.GRU(8, 12, batch_first=True), nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, WORDS)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        state = self.first(self.source(source))[1]
        return self.head(self.second(self.target(shifted), state)[0])  # type: ignore[no-any-return]


def translated(fed: Callable[[Tensor], Tensor], copied: bool = False) -> Run:
    def run(attach: Callable[..., Any]) -> None:
        model = Decoder()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach(model, optimizer)
        for _ in range(8):
            source = torch.randint(2, WORDS, (12, 7))
            y = source if copied else source.flip(1)
            stepped(optimizer, F.cross_entropy(model(source, fed(y)).flatten(0, 1), y.flatten()))

    return run


def right(y: Tensor) -> Tensor:
    return F.pad(y[:, :-1], (1, 0), value=1)


def test_a_decoder_that_is_given_its_answer() -> None:
    for copied in (False, True):
        found = [v for v in watched(translated(lambda y: y, copied)) if v.slug == "targets"]
        if not copied:  # both inputs are the targets: an autoencoder, as far as can be told
            assert [(v.severity, v.step) for v in found] == [("WARN", 0)] and "shifted" in found[0].message
        assert not [v for v in watched(translated(right, copied)) if v.slug == "targets"]


class WithLoss(nn.Module):
    """Tokens and labels in, logits and loss out; the labels act on the loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = (
            nn.Embedding(WORDS, 12),
            nn.GRU(12, 12, batch_first=True),
            nn.Linear(12, WORDS),
        )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.mix(self.embedding(x))[0])
        return logits, plain(logits, y)


@pytest.mark.parametrize("shift", [0, 1])
def test_labels_that_the_model_takes_are_no_dead_input(shift: int) -> None:
    def run(attach: Callable[..., Any]) -> None:
        model = WithLoss()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach(model, optimizer, spec={"causal": True})
        for _ in range(5):
            rows = torch.randint(0, WORDS, (8, 9))
            stepped(optimizer, model(rows[:, :-1], rows[:, shift : shift + 8])[1])

    found = [(v.severity, v.slug) for v in watched(run) if v.slug in ("inputs", "targets")]
    assert found == ([] if shift else [("FAIL", "targets")])


# -- RUN-31: zeros ----------------------------------------------------------------------------------------------------


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.body, self.head = nn.Linear(1, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x) + self.time(t)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("whole", [True, False])
def test_an_input_of_zeros_is_named_in_the_first_steps(whole: bool) -> None:
    def run(attach: Callable[..., Any]) -> None:
        model = Timed()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach(model, optimizer)
        for _ in range(6):
            x, y = drawn()
            t = torch.randint(0, 9, (16, 1))
            stepped(optimizer, F.cross_entropy(model(x, (t // 9 if whole else t / 9).float()), y))

    found = [v for v in watched(run) if v.slug == "inputs"]
    assert [(v.severity, v.step, v.where) for v in found] == ([("WARN", 2, "time")] if whole else [])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.cell, self.head = kind(width, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        out, state = self.cell(x, state)
        return self.head(out[:, -1]), state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrence_over_one_position(kind: type[nn.RNNBase]) -> None:
    def run(attach: Callable[..., Any], exchanged: bool) -> None:
        model = Recurrent(kind, 6 if exchanged else 1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach(model, optimizer)
        for _ in range(5):
            x, y = drawn()
            stepped(optimizer, F.cross_entropy(model(x.unsqueeze(1 if exchanged else 2))[0], y))

    def by_step(attach: Callable[..., Any]) -> None:
        model = Recurrent(kind, 1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach(model, optimizer)
        for _ in range(5):
            (x, y), state, total = drawn(), None, torch.zeros(())
            for t in range(6):
                out, state = model(x[:, t : t + 1, None], state)
                total = total + F.cross_entropy(out, y)
            stepped(optimizer, total)

    lengths = [v for v in watched(lambda a: run(a, True)) if "length one" in v.observed]
    assert [(v.severity, v.slug, v.step) for v in lengths] == [("WARN", "inputs", 2)]
    for twin in (lambda a: run(a, False), by_step):
        assert not [v for v in watched(twin) if v.slug == "inputs"]


# -- RUN-30, 36 -------------------------------------------------------------------------------------------------------


class Committee(nn.Module):
    def __init__(self, members: list[nn.Module], in_turn: bool = False) -> None:
        super().__init__()
        self.members, self.head, self.in_turn = nn.ModuleList(members), nn.Linear(6, 3), in_turn

    def forward(self, x: Tensor) -> Tensor:
        if self.in_turn:
            for member in self.members:
                x = x + torch.tanh(member(x))
            return self.head(x)  # type: ignore[no-any-return]
        return self.head(torch.stack([torch.tanh(member(x)) for member in self.members]).mean(0))  # type: ignore[no-any-return]


def test_one_module_many_times_over() -> None:
    def of(model: Callable[[], nn.Module]) -> Run:
        def run(attach: Callable[..., Any]) -> None:
            made = model()
            optimizer = torch.optim.Adam(made.parameters(), 1e-2)
            attach(made, optimizer)
            for _ in range(4):
                x, y = drawn()
                stepped(optimizer, F.cross_entropy(made(x), y))

        return run

    found = [v for v in watched(of(lambda: Committee([nn.Linear(6, 6)] * 3))) if v.slug == "twins"]
    assert [(v.severity, v.step) for v in found] == [("WARN", 0)] and "are one module" in found[0].message
    for twin in (
        lambda: Committee([nn.Linear(6, 6)] * 3, True),
        lambda: Committee([nn.Linear(6, 6) for _ in range(3)]),
    ):
        assert not [v for v in watched(of(twin)) if v.slug == "twins"]


@pytest.mark.parametrize("stopped", [False, True])
def test_directions_that_collapse(stopped: bool) -> None:
    """Two views are pulled together and nothing holds samples apart; with the labels beside it something does."""

    def run(attach: Callable[..., Any]) -> None:
        model = small(8)
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        centres = torch.randn(3, 8)
        attach(model, optimizer)
        for _ in range(66):
            x, y = drawn(32)
            z = model(x + 0.4 * torch.randn_like(x))
            other = centres[y] if stopped else model(x + 0.4 * torch.randn_like(x))
            stepped(optimizer, -F.cosine_similarity(z, other).mean())

    found = [v for v in watched(run) if v.slug == "collapse"]
    assert bool(found) is not stopped
    assert stopped or (found[0].severity == "WARN" and "point one way" in found[0].message)


# -- RUN-7, 10, 14, 16, 26, 43 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rates", "warns"), [((1e-2, 1e-2), True), ((1e-3, 1e-2), False)])
def test_a_warm_up_by_hand_of_the_first_group_alone(rates: tuple[float, float], warns: bool) -> None:
    """The first group is below the other before the first step; it counts what they were when the guards came."""

    def run(attach: Callable[..., Any]) -> None:
        model = small()
        optimizer = torch.optim.SGD(
            [{"params": m.parameters(), "lr": r} for m, r in zip((model[0], model[2]), rates, strict=True)]
        )
        attach(model, optimizer)
        for step in range(10):
            optimizer.param_groups[0]["lr"] = rates[0] * (step + 1) / 10
            x, y = drawn()
            stepped(optimizer, F.cross_entropy(model(x), y))

    assert [v.slug for v in watched(run) if v.slug == "lr-groups"] == (["lr-groups"] if warns else [])


@pytest.mark.parametrize("same", [True, False])
def test_a_term_that_compares_a_thing_with_itself(same: bool) -> None:
    def run(attach: Callable[..., Any]) -> None:
        student = small()
        teacher = student if same else copy.deepcopy(student).requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        guards = attach(student, optimizer)
        for _ in range(24):
            x, y = drawn()
            with torch.no_grad():
                told = teacher(x).softmax(1)
            out = student(x)
            ce, kd = F.cross_entropy(out, y), F.kl_div(out.log_softmax(1), told, reduction="batchmean")
            guards.log(loss=ce + kd, losses={"ce": ce, "kd": kd})
            stepped(optimizer, ce + kd)

    found = [v for v in watched(run) if v.slug == "loss-terms"]
    assert [v.where for v in found] == (["kd"] if same else [])
    assert not same or "zero in all" in found[0].message


def scaled(order: str) -> Run:
    """An unscaled loop that is watched, beside a scaled one that is not; or after it, when its scaler lives on."""

    def run(attach: Callable[..., Any]) -> None:
        model, other = small(), small()
        optimizer, theirs = (torch.optim.SGD(m.parameters(), 0.05) for m in (model, other))
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)

        def scaled_step() -> None:
            x, y = drawn()
            theirs.zero_grad()
            scaler.scale(F.cross_entropy(other(x), y)).backward()
            scaler.step(theirs)
            scaler.update()

        if order == "before":
            scaled_step()
        attach(model, optimizer)
        for _ in range(8):
            x, y = drawn()
            loss = F.cross_entropy(model(x), y)
            if order == "between":
                scaler.scale(F.cross_entropy(other(x), y)).backward()
            stepped(optimizer, loss)
            if order == "between":
                scaler.step(theirs)
                scaler.update()

    return run


@pytest.mark.parametrize("order", ["before", "between"])
def test_a_scaler_of_another_loop_says_nothing_of_this_one(order: str) -> None:
    assert not [v for v in watched(scaled(order)) if v.slug in ("loss-scale", "clipping")]


def test_a_stale_record_under_an_id_that_is_used_again() -> None:
    """The scaler knows an optimizer by its id alone, and still does when the optimizer is dead."""

    def run(attach: Callable[..., Any]) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
        scaler.scale(torch.ones(1))
        scaler._per_optimizer_states[id(optimizer)]["stage"] = torch.amp.grad_scaler.OptState.STEPPED
        attach(model, optimizer)
        for _ in range(4):
            x, y = drawn()
            stepped(optimizer, F.cross_entropy(model(x), y))

    assert not [v for v in watched(run) if v.slug == "loss-scale"]


def test_a_loop_in_which_no_step_is_ever_taken() -> None:
    other = torch.amp.GradScaler("cpu", init_scale=2.0**8)  # of another loop, and alive
    other.scale(torch.ones(()))

    def run(attach: Callable[..., Any], how: str) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        passes = {"few": 2, "accumulated": 40}.get(how, 30)
        scaler: Any = None
        for _ in range(passes):
            x, y = drawn()
            if how != "accumulated":
                optimizer.zero_grad(set_to_none=how != "zeros")
            if "scaler" in how:
                if scaler is None or how == "scaler":
                    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
                scaler.scale(F.cross_entropy(model(1e12 * x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                F.cross_entropy(model(x * math.inf if how == "not finite" else x), y).backward()
        if how == "accumulated":
            optimizer.step()

    for how, words in (
        ("none", "never called"), ("zeros", "never called"), ("not finite", "are not finite, and the loop"),
        ("scaler", "GradScaler, which is made anew"), ("one scaler", "GradScaler, whose scale fell from"),
    ):  # fmt: skip
        found = [v for v in watched(lambda a, how=how: run(a, how)) if v.slug == "parameter-moves"]  # type: ignore[misc]
        assert [(v.severity, v.step) for v in found] == [("WARN", 0)] and words in found[0].message, how
    assert float(other.get_scale()) == 2.0**8
    for how in ("few", "accumulated"):
        assert not [v for v in watched(lambda a, how=how: run(a, how)) if v.slug == "parameter-moves"], how  # type: ignore[misc]


@pytest.mark.parametrize(("times", "warns"), [(1, True), (2, True), (6, False)])
def test_dropout_that_is_sampled_is_no_evaluation(times: int, warns: bool) -> None:
    def run(attach: Callable[..., Any]) -> None:
        model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        held = torch.randn(9, 6)
        for step in range(24):
            x, y = drawn()
            stepped(optimizer, F.cross_entropy(model(x), y))
            if step % 8 == 7:
                with torch.no_grad():
                    for _ in range(times):
                        model(held)

    assert [v.severity for v in watched(run) if v.slug == "mode"] == (["WARN"] if warns else [])


@pytest.mark.parametrize("kept", [copy.deepcopy, lambda state: state])
def test_the_best_weights_are_kept_by_reference(kept: Callable[[Any], Any]) -> None:
    def run(attach: Callable[..., Any]) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        for step in range(6):
            x, y = drawn()
            stepped(optimizer, F.cross_entropy(model(x), y))
            if step == 2:
                best = kept(model.state_dict())
        model.load_state_dict(best)

    found = [v for v in watched(run) if v.slug == "checkpoint"]
    assert [v.severity for v in found] == ([] if kept is copy.deepcopy else ["WARN"])


def test_outputs_that_are_losses_alone_are_taken() -> None:
    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"ce": F.cross_entropy(self.body(x), y), "size": self.body(x).square().mean()}

    def run(attach: Callable[..., Any]) -> None:
        model = Losses()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        for _ in range(5):
            stepped(optimizer, sum(model(*drawn()).values(), torch.zeros(())))

    assert watched(run) == []


@pytest.mark.parametrize("at", range(17, 40))
def test_eval_mode_is_said_at_its_step_whichever_that_is(at: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer, policy="observe") as guards:
        for step in range(at + 2):
            if step == at:
                model.eval()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(3, (8,))).backward()
            optimizer.step()
    assert [(v.slug, v.step) for v in guards.violations] == [("mode", at)]


def test_a_loss_that_is_not_finite_is_told_from_a_layer() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, policy="observe") as guards:
        optimizer.zero_grad()
        (model(torch.randn(8, 4)).sum() * float("nan")).backward()
        optimizer.step()
    (found,) = [v for v in guards.violations if v.slug == "finite"]
    assert found.where == "loss" and "it begins in the loss, after the model" in found.message
