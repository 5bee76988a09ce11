"""Bugs in what is carried on from step to step: rates of groups, gradients, weights that something else writes to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, batches, buggy, clean, labelled, mlp
from torch import Tensor, nn

STEPS = 60


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


class Parted(nn.Module):
    """A body that may run without gradients, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.still = nn.Linear(D, 32), nn.Linear(32, K), False
        self.added: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.still):
            h = self.body(x)
        return self.head(F.relu(h if self.added is None else h + self.added(h)))


@buggy("a group that joins late gets the rate the optimizer was made with, long after the others came down", "lr-groups",
       effect=40, source="optimizer.add_param_group({'params': backbone.parameters()})")  # fmt: skip
def joined_at_the_first_rate(attach: Attach, bug: bool) -> None:
    model = Parted()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step in (16, 32):
            optimizer.param_groups[0]["lr"] *= 0.3
        if step == 40:
            model.body.requires_grad_(True)
            optimizer.add_param_group({"params": model.body.parameters(), **({} if bug else {"lr": 0.01})})
        stepped(optimizer, F.cross_entropy(model(x), y))


@buggy("the body is unfrozen and given to the optimizer, and the forward still runs it without gradients", "gradient-reach",
       effect=32, source="the flag that made forward() use no_grad was not cleared")  # fmt: skip
def unfrozen_and_still_without_gradients(attach: Attach, bug: bool) -> None:
    model = Parted()
    model.body.requires_grad_(False)
    model.still = True
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 70)):
        if step == 32:
            model.body.requires_grad_(True)
            model.still = bug
            optimizer.add_param_group({"params": model.body.parameters(), "lr": 1e-3})
        stepped(optimizer, F.cross_entropy(model(x), y))


@buggy("hand-made milestones set the rate of the first of two groups, which began with different rates", "lr-groups",
       effect=20, source="optimizer.param_groups[0]['lr'] *= 0.1")  # fmt: skip
def milestones_of_one_group(attach: Attach, bug: bool) -> None:
    model = Parted()
    optimizer = torch.optim.SGD(
        [{"params": model.body.parameters(), "lr": 0.05}, {"params": model.head.parameters(), "lr": 0.1}]
    )
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step in (20, 40):
            for group in optimizer.param_groups[: 1 if bug else 2]:
                group["lr"] *= 0.1
        stepped(optimizer, F.cross_entropy(model(x), y))


@buggy("the batches left over at the end of an epoch go into the first step of the next", "accumulation", effect=2,
       source="https://github.com/timoschick/pet/issues/36")  # fmt: skip
def left_over_batches(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for _ in range(8):
        for k in range(11):  # 4, 4 and 3
            part = slice(20 * k, 20 * k + 20)
            size = 4 if bug or k < 8 else 3
            (F.cross_entropy(model(x[part]), y[part]) / size).backward()
            if (k + 1) % 4 == 0 or (k == 10 and not bug):
                optimizer.step()
                optimizer.zero_grad()


@buggy("a step whose gradient is too large is left out before zero_grad, and so are all after it", "gradient-fresh", effect=30,
       source="if norm > limit: continue")  # fmt: skip
def all_left_out_after_one(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 130)):
        x, y = (200 * x, y.roll(1)) if step == 30 else (x, y)  # a batch that went wrong
        F.cross_entropy(model(x), y).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        if norm > 20:
            if not bug:
                optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()


class Decayed(torch.optim.Optimizer):
    """SGD with decay, of a user's own."""

    def __init__(self, params: object, lr: float, decay: float, raw: bool) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})  # type: ignore[arg-type]
        self.raw = raw

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - (1 if self.raw else group["lr"]) * group["decay"])
                p.sub_(group["lr"] * p.grad)


@buggy("an optimizer of one's own multiplies by 1 - decay and leaves the rate out", "weight-decay",
       source="p.mul_(1 - weight_decay)")  # fmt: skip
def decay_without_the_rate(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = Decayed(model.parameters(), 0.01, 0.05, bug)
    attach(model, optimizer)
    for x, y in batches(*labelled(), 20):
        stepped(optimizer, F.cross_entropy(model(x), y))


@buggy("the fake samples are not detached for the discriminator, and the generator goes along with it", "gradient-fresh",
       source="https://github.com/pytorch/examples/issues/116")  # fmt: skip
def generator_goes_along(attach: Attach, bug: bool) -> None:
    torch.manual_seed(1)
    maker, judge = nn.Linear(4, D), mlp(out=1)
    make, tell = torch.optim.Adam(maker.parameters(), lr=1e-3), torch.optim.Adam(judge.parameters(), lr=1e-3)
    attach(maker, make)
    attach(judge, tell)
    score = F.binary_cross_entropy_with_logits
    for x, _ in batches(*labelled(), 30):
        make.zero_grad()
        tell.zero_grad()
        fake = maker(torch.randn(len(x), 4))
        real, other = judge(x), judge(fake if bug else fake.detach())
        (score(real, torch.ones_like(real)) + score(other, torch.zeros_like(other))).backward()
        tell.step()
        said = judge(maker(torch.randn(len(x), 4)))
        score(said, torch.ones_like(said)).backward()
        make.step()


@buggy("ReduceLROnPlateau waits for the validation loss to rise, and lowers the rate while it falls", "scheduler-steps",
       effect=32, source="ReduceLROnPlateau(optimizer, mode='max').step(val_loss)")  # fmt: skip
def plateau_of_a_falling_loss(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max" if bug else "min", factor=0.3, patience=2
    )
    attach(model, optimizer)
    for step, (a, b) in enumerate(batches(x, y, STEPS)):
        stepped(optimizer, F.cross_entropy(model(a), b))
        if step % 8 == 7:
            with torch.no_grad():
                plateau.step(F.cross_entropy(model(x), y).item())


@buggy("the initialisation of a part that is added goes over the whole trained network", "parameter-moves", effect=24,
       source="model.apply(init_weights) after model.adapter = Adapter()")  # fmt: skip
def whole_network_drawn_anew(attach: Attach, bug: bool) -> None:
    model = Parted()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 40)):
        if step == 24:
            added = nn.Linear(32, 32)
            torch.manual_seed(2)
            for part in (model.body, model.head) if bug else ():
                nn.init.kaiming_uniform_(part.weight, a=1)
                nn.init.zeros_(part.bias)
            nn.init.zeros_(added.weight)
            model.added = added
            optimizer.add_param_group({"params": added.parameters()})
        stepped(optimizer, F.cross_entropy(model(x), y))


@buggy("the averaged weights are put in for an evaluation, and the trained ones are not put back", "parameter-moves", effect=8,
       source="for p, q in zip(model.parameters(), average): p.copy_(q)")  # fmt: skip
def average_left_in_place(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    average = [p.detach().clone() for p in model.parameters()]
    for step, (a, b) in enumerate(batches(x, y, 40)):
        stepped(optimizer, F.cross_entropy(model(a), b))
        with torch.no_grad():
            for p, q in zip(model.parameters(), average, strict=True):
                q.lerp_(p, 0.02)
            if step % 8 == 7:
                trained = [p.clone() for p in model.parameters()]
                for p, q in zip(model.parameters(), average, strict=True):
                    p.copy_(q)
                model.eval()
                model(x)
                model.train()
                for p, q in zip(model.parameters(), trained if not bug else average, strict=True):
                    if not bug:
                        p.copy_(q)


@buggy("the classes of the validation are numbered in another order than those of the training", "validation", effect=8,
       needs="guards.log(loss=…, val_loss=…)", source="class_to_idx of two folders")  # fmt: skip
def classes_numbered_otherwise(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    other = (y + 1) % K if bug else y
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    guards = attach(model, optimizer)
    for step, (a, b) in enumerate(batches(x, y, 40)):
        loss = F.cross_entropy(model(a), b)
        stepped(optimizer, loss)
        guards.log(loss=loss.item())
        if step % 8 == 7:
            with torch.no_grad():
                guards.log(val_loss=F.cross_entropy(model(x), other).item())


@clean
def another_number_of_batches_each_time(attach: Attach) -> None:
    """batches are added up until there are enough tokens: three, four or five of them"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    counts = iter([4, 3, 5, 4, 4, 5, 3, 4] * 4)
    due = next(counts)
    for x, y in batches(*labelled(), 100):
        (F.cross_entropy(model(x), y) / 4).backward()
        due -= 1
        if not due:
            optimizer.step()
            optimizer.zero_grad()
            due = next(counts)


@clean
def trunk_of_two_heads(attach: Attach) -> None:
    """two heads step after their own losses, the trunk that they share after both"""
    torch.manual_seed(3)
    trunk, heads = nn.Linear(D, 32), [nn.Linear(32, K), nn.Linear(32, K)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (*heads, trunk)]
    for module, optimizer in zip((*heads, trunk), optimizers, strict=True):
        attach(module, optimizer)
    for x, y in batches(*labelled(), 30):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for head, optimizer in zip(heads, optimizers, strict=False):
            F.cross_entropy(head(trunk(x).relu()), y).backward()
            optimizer.step()
        optimizers[-1].step()


@clean
def frozen_for_one_stage_longer(attach: Attach) -> None:
    """a head of its own rate, lowered once by hand, and a body that is unfrozen later with a rate of its own"""
    model = Parted()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [{"params": model.head.parameters(), "lr": 0.1}, {"params": model.body.parameters(), "lr": 0.01}]
    )
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == 20:
            optimizer.param_groups[0]["lr"] = 0.05
        if step == 30:
            model.body.requires_grad_(True)
        stepped(optimizer, F.cross_entropy(model(x), y))


CASES = (
    joined_at_the_first_rate, unfrozen_and_still_without_gradients, milestones_of_one_group, left_over_batches,
    all_left_out_after_one, decay_without_the_rate, generator_goes_along, plateau_of_a_falling_loss, whole_network_drawn_anew,
    average_left_in_place, classes_numbered_otherwise,
)  # fmt: skip
CLEAN = (another_number_of_batches_each_time, trunk_of_two_heads, frozen_for_one_stage_longer)
