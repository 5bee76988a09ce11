"""Bugs in which something is left that a loop goes on from: gradients of a tail or of a look, NaN, an optimizer of a model
that is no more, a scheduler of another optimizer, other weights; and beside each what looks alike and is right."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, Language, V, batches, buggy, clean, labelled, mlp, next_token, text
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau


@buggy("two of fourteen batches are left over at each epoch's end, and join the next group of four", "accumulation", effect=3,
       source="if (i + 1) % 4 == 0: optimizer.step(); optimizer.zero_grad()")  # fmt: skip
def tail_that_joins_the_next_group(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    x, y = labelled(448)
    for epoch in range(5):
        order = torch.randperm(448, generator=torch.Generator().manual_seed(epoch)).split(32)
        for i, rows in enumerate(order):
            n = 4 if i < 12 or bug else 2
            (F.cross_entropy(model(x[rows]), y[rows]) / n).backward()
            if (i + 1) % 4 == 0 or (i == 13 and not bug):
                optimizer.step()
                optimizer.zero_grad()


def looked_at(attach: Attach, between: bool, again: str) -> None:
    """In every eighth step a second backward, of the loss or of a penalty, before that of the step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 30)):
        out = model(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        if step % 8 == 7:
            (loss if again == "loss" else model[0].weight.square().sum() - out.square().mean()).backward(
                retain_graph=True
            )
            if between:
                optimizer.zero_grad()
        (loss + 0.01 * out.square().mean()).backward()
        optimizer.step()


@buggy("every eighth step looks at its gradient by a backward of its own, and does not clear it", "gradient-fresh", effect=7,
       source="loss.backward(retain_graph=True); norm = grad_norm(model); (loss + z).backward()")  # fmt: skip
def gradient_of_a_look_is_left(attach: Attach, bug: bool) -> None:
    looked_at(attach, between=not bug, again="loss")


@clean
def lazy_penalty_by_its_own_backward(attach: Attach) -> None:
    """a penalty that every eighth step adds by a backward of its own, through the same forward"""
    looked_at(attach, between=False, again="penalty")


@buggy("a rollback builds the model anew, and the optimizer holds the parameters of the old one", "gradient-fresh", effect=15,
       source="model = build(); model.load_state_dict(best)  # optimizer is the old one's")  # fmt: skip
def rollback_to_another_model(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    best = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for step, (x, y) in enumerate(batches(*labelled(), 30)):
        if step == 8:
            best = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if step == 15:
            model = mlp() if bug else model
            model.load_state_dict(best[0])
            if not bug:
                optimizer.load_state_dict(best[1])
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@buggy("the optimizer of a second stage is made anew, and the scheduler goes on with that of the first", "scheduler-steps",
       source="optimizer = AdamW(...); ...; scheduler.step()  # of the first optimizer")  # fmt: skip
def scheduler_of_the_first_stage(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler: LambdaLR | CosineAnnealingLR = LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 5))
    for x, y in batches(*labelled(), 10, seed=3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    first = optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    if not bug:
        scheduler = CosineAnnealingLR(optimizer, 20)
    attach(model, optimizer)
    for x, y in batches(*labelled(), 20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    assert first is not optimizer


@buggy("a scheduler that waits for a rise gets the validation loss, and nothing is logged", "scheduler-steps", effect=16,
       source="ReduceLROnPlateau(optimizer, 'max'); scheduler.step(val_loss)")  # fmt: skip
def plateau_that_waits_for_a_rise(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    scheduler = ReduceLROnPlateau(optimizer, mode="max" if bug else "min", factor=0.5, patience=2)
    attach(model, optimizer)
    x_val, y_val = labelled(200, seed=5)
    for step, (x, y) in enumerate(batches(*labelled(), 60)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 4 == 3:
            with torch.no_grad():
                scheduler.step(F.cross_entropy(model(x_val), y_val).item())


@buggy("a part is thawed by an attribute of the module, which no parameter sees", "gradient-reach", effect=12,
       source="model.encoder.requires_grad = True")  # fmt: skip
def thawed_by_an_attribute(attach: Attach, bug: bool) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 24)):
        if step == 12:
            if bug:
                model[0].requires_grad = True
            else:
                model[0].requires_grad_(True)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class Spread(nn.Module):
    """A classifier of the mean and the spread of a few frames; the root of a variance of zero has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frame, self.out = nn.Sequential(nn.Linear(D, 24, bias=False), nn.Tanh()), nn.Linear(25, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.frame(x)
        return self.out(torch.cat([h.mean(1), h.flatten(1).var(1, keepdim=True).sqrt()], -1))  # type: ignore[no-any-return]


@buggy("a step is left out for its NaN, and the NaN is never cleared: no step comes any more", "gradient-fresh", effect=10,
       source="if not torch.isfinite(norm): continue  # before zero_grad()")  # fmt: skip
def nan_kept_by_a_skipped_step(attach: Attach, bug: bool) -> None:
    model = Spread()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(2)
    for step, (x, y) in enumerate(batches(*labelled(), 30)):
        frames = x[:, None] + 0.3 * torch.randn(len(x), 4, D, generator=draw)
        if step == 10:
            frames[3] = 0.0
        F.cross_entropy(model(frames), y).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if not torch.isfinite(norm):
            if not bug:
                optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()


def averaged(attach: Attach, back: bool, slow: int = 0) -> None:
    """An average that is put into the model by hand and evaluated; slow: steps after which the weights become the average."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    attach(model, optimizer)
    average = [p.detach().clone() for p in model.parameters()]
    x_val, y_val = labelled(100, seed=5)
    for step, (x, y) in enumerate(batches(*labelled(), 40)):
        if step and step % 15 == 0:
            with torch.no_grad():
                own = [p.detach().clone() for p in model.parameters()]
                for p, mean in zip(model.parameters(), average, strict=True):
                    p.copy_(mean)
                F.cross_entropy(model(x_val), y_val)
                if back:
                    for p, mean in zip(model.parameters(), own, strict=True):
                        p.copy_(mean)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for p, mean in zip(model.parameters(), average, strict=True):
                mean.lerp_(p, 0.1)
                if slow and step % slow == slow - 1:
                    p.copy_(mean)


@buggy("an average is copied into the model for an evaluation, and the weights are not put back", "parameter-moves", effect=15,
       source="for p, e in zip(model.parameters(), ema): p.copy_(e)  # and validate(model)")  # fmt: skip
def average_left_in_the_model(attach: Attach, bug: bool) -> None:
    averaged(attach, back=not bug)


@buggy("four batches of lines of other lengths are accumulated, each by its own mean", "reduction",
       source="(F.cross_entropy(logits, y, ignore_index=pad) / 4).backward()")  # fmt: skip
def lines_of_other_lengths(attach: Attach, bug: bool) -> None:
    model = Language(vocabulary=V + 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(4)
    for _ in range(8):
        group = [text(8, length, seed=length) + 1 for length in (4, 6, 9, 12)]
        for rows in group:
            rows[:3, torch.randint(2, rows.shape[1], (), generator=draw) :] = 0
        counted = sum(int((rows[:, 1:] != 0).sum()) for rows in group)
        optimizer.zero_grad()
        for rows in group:
            logits, y = model(rows[:, :-1]), rows[:, 1:]
            if bug:
                (next_token(logits, y, ignore_index=0) / 4).backward()
            else:
                (next_token(logits, y, ignore_index=0, reduction="sum") / counted).backward()
        optimizer.step()


class ActorCritic(nn.Module):
    """A policy over four actions and a value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.policy, self.value = mlp(1), mlp(2, out=1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(state), self.value(state).squeeze(-1)


@buggy("the advantage that weighs the log-probabilities keeps the graph of the critic", "softmax",
       source="policy_loss = -(log_prob * (returns - values)).mean()")  # fmt: skip
def advantage_with_its_graph(attach: Attach, bug: bool) -> None:
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(6)
    for _ in range(12):
        state = torch.randn(32, D, generator=draw)
        logits, value = model(state)
        action = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)
        returns = state.gather(1, action).squeeze(1) + 1.0
        advantage = returns - value
        chosen = logits.log_softmax(-1).gather(1, action).squeeze(1)
        policy = -(chosen * (advantage if bug else advantage.detach())).mean()
        loss = policy + 0.5 * F.mse_loss(value, returns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@clean
def slow_weights_by_hand(attach: Attach) -> None:
    """weights that become their average at every fifth step, evaluated after some of these steps"""
    averaged(attach, back=True, slow=5)


@clean
def two_optimizers_in_turn_each_watched(attach: Attach) -> None:
    """two optimizers of one model that step in turn, each with guards of its own, and gradients cleared before each"""
    model = mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[2:].parameters(), lr=3e-3)
    attach(model, first)
    attach(model, second)
    for step, (x, y) in enumerate(batches(*labelled(), 40)):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        (second if step % 2 else first).step()


@clean
def part_frozen_in_mid_run(attach: Attach) -> None:
    """the first layer of a classifier that is frozen half way, its gradients set to None"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 30)):
        if step == 15:
            model[0].requires_grad_(False)
            model[0].zero_grad()
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


CASES = (
    tail_that_joins_the_next_group, gradient_of_a_look_is_left, rollback_to_another_model, scheduler_of_the_first_stage,
    plateau_that_waits_for_a_rise, thawed_by_an_attribute, nan_kept_by_a_skipped_step, average_left_in_the_model,
    lines_of_other_lengths, advantage_with_its_graph,
)  # fmt: skip
CLEAN = (
    lazy_penalty_by_its_own_backward, slow_weights_by_hand, two_optimizers_in_turn_each_watched, part_frozen_in_mid_run,
)  # fmt: skip
