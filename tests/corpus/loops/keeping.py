"""Loops that lose on the way what they should keep: moments, statistics, modes, gradients of the other network's turn."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, batches, buggy, labelled, mlp
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, StepLR

STEPS, EPOCH = 40, 10


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Clears, goes forward and back, steps."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def normed(seed: int = 0) -> nn.Sequential:
    """A classifier with two batch norms."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(D, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Linear(H, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Linear(H, K)
    )


@buggy("the optimizer is built again at the start of each epoch, and its moments with it", "resume", effect=EPOCH)
def optimizer_made_in_the_epoch_loop(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if bug and step and step % EPOCH == 0:
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            one_step(model, optimizer, x, y)


@buggy("after a spike the weights of an earlier step are loaded, the optimizer's state is not", "resume", effect=25)
def rolled_back_without_the_moments(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 15:
                kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            if step == 25:
                model.load_state_dict(kept[0])
                if not bug:
                    optimizer.load_state_dict(kept[1])
            one_step(model, optimizer, x, y)


@buggy("to free memory the state of the optimizer is emptied in the middle of the run", "resume", effect=20)
def moments_emptied(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if bug and step == 20:
                optimizer.state = defaultdict(dict)
            one_step(model, optimizer, x, y)


@buggy("a run goes on with its weights and its schedule, and without the state of AdamW", "resume", effect=0)
def resumed_without_moments(attach: Attach, bug: bool) -> None:
    resumed(attach, forget="optimizer" if bug else "")


@buggy("a run goes on with its weights and its moments, and warms up again", "resume", "lr-decay", effect=0)
def resumed_without_the_schedule(attach: Attach, bug: bool) -> None:
    resumed(attach, forget="scheduler" if bug else "")


def resumed(attach: Attach, forget: str) -> None:
    """Trains for 25 steps, and goes on with new objects into which all but `forget` is loaded."""

    def made(seed: int) -> dict[str, nn.Module | torch.optim.Optimizer | LambdaLR]:
        model = mlp(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5) * (1 - step / 60))
        return {"model": model, "optimizer": optimizer, "scheduler": schedule}

    def train(run: dict[str, nn.Module | torch.optim.Optimizer | LambdaLR], seed: int) -> None:
        for x, y in batches(*labelled(), 25, seed=seed):
            one_step(run["model"], run["optimizer"], x, y)  # type: ignore[arg-type]
            run["scheduler"].step()  # type: ignore[operator, union-attr]

    first, second = made(0), made(3)
    train(first, seed=1)
    for name, part in second.items():
        if name != forget:
            part.load_state_dict(copy.deepcopy(first[name].state_dict()))  # type: ignore[arg-type]
    with attach(second["model"], second["optimizer"], scheduler=second["scheduler"]):
        train(second, seed=2)


@buggy("StepLR in epochs is stepped at each batch: after two epochs nothing moves", "scheduler-steps", effect=3)
def epochs_stepped_as_batches(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 3, gamma=0.1)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            one_step(model, optimizer, x, y)
            if bug or step % EPOCH == EPOCH - 1:
                scheduler.step()


@buggy("milestones in epochs are passed within the first ten batches", "scheduler-steps", effect=3)
def milestones_passed_at_once(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = MultiStepLR(optimizer, [3, 5], gamma=0.1)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            one_step(model, optimizer, x, y)
            if bug or step % EPOCH == EPOCH - 1:
                scheduler.step()


@buggy("a cosine as long as the run in batches is stepped once an epoch", "scheduler-steps", effect=1)
def batches_stepped_as_epochs(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            one_step(model, optimizer, x, y)
            if not bug or step % EPOCH == EPOCH - 1:
                scheduler.step()


@buggy("the head has its own rate, and the schedule by hand forgets it", "lr-groups", effect=1)
def head_keeps_its_rate(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW([
        {"params": model[:4].parameters(), "lr": 1e-3}, {"params": model[4].parameters(), "lr": 1e-2},
    ])  # fmt: skip
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            for rate, group in zip((1e-3,) if bug else (1e-3, 1e-2), optimizer.param_groups, strict=False):
                group["lr"] = rate * (1 - step / STEPS)
            one_step(model, optimizer, x, y)


def adversaries() -> tuple[nn.Module, nn.Module]:
    """A generator of points, and what judges them."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, H), nn.ReLU(), nn.Linear(H, D))
    return generator, nn.Sequential(nn.Linear(D, H), nn.LeakyReLU(0.2), nn.Linear(H, 1))


def judged(scores: Tensor, real: float) -> Tensor:
    """The loss of scores that should say real, 1, or made, 0."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, real))


@buggy(
    "what the generator's backward leaves in the discriminator is added to its next gradient",
    "gradient-fresh",
    effect=1,
)
def discriminator_keeps_the_generators_gradient(attach: Attach, bug: bool) -> None:
    generator, critic = adversaries()
    for_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
    for_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)
    with attach([generator, critic], [for_generator, for_critic]):
        for x, _ in batches(*labelled(), STEPS):
            if not bug:
                for_critic.zero_grad()
            made = generator(torch.randn(len(x), 4))
            (judged(critic(x), 1.0) + judged(critic(made.detach()), 0.0)).backward()
            for_critic.step()
            for_critic.zero_grad()
            for_generator.zero_grad()
            judged(critic(made), 1.0).backward()
            for_generator.step()


@buggy(
    "the discriminator's loss is not cut from the generator, whose gradients were cleared before it", "gradient-fresh"
)
def generator_learns_for_the_discriminator(attach: Attach, bug: bool) -> None:
    generator, critic = adversaries()
    for_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
    for_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)
    with attach([generator, critic], [for_generator, for_critic]):
        for x, _ in batches(*labelled(), STEPS):
            for_generator.zero_grad()
            for_critic.zero_grad()
            made = generator(torch.randn(len(x), 4))
            (judged(critic(x), 1.0) + judged(critic(made if bug else made.detach()), 0.0)).backward()
            for_critic.step()
            judged(critic(generator(torch.randn(len(x), 4))), 1.0).backward()
            for_generator.step()


@buggy("only the head is clipped, and nothing is declared", "clipping")
def clipped_in_part_undeclared(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer):
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_((model[4] if bug else model).parameters(), 0.1)
            optimizer.step()


@buggy("scaled gradients are clipped, and nothing is declared", "clipping", "loss-scale")
def clipped_while_scaled_undeclared(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu")
    with attach(model, optimizer):
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if not bug:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()


class Growing(nn.Module):
    """A classifier that gets a further layer in the middle of its training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(D, H), nn.Linear(H, K)
        self.further: nn.Module | None = None

    def grow(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the layer, and gives it to the optimizer."""
        self.further = nn.Linear(H, H)
        optimizer.add_param_group({"params": self.further.parameters()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(x if self.further is None else x + self.further(x))  # type: ignore[no-any-return]


@buggy("the average was copied before the model grew", "ema", effect=20, needs="ema=average")
def average_misses_the_new_layer(attach: Attach, bug: bool) -> None:
    model = Growing()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer, ema=average):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                model.grow(optimizer)
                if not bug:
                    average.further = copy.deepcopy(model.further)
            one_step(model, optimizer, x, y)
            live = dict(model.named_parameters())
            with torch.no_grad():
                for name, mean in average.named_parameters():
                    mean.lerp_(live[name], 0.1)


@buggy("an evaluation resets the statistics of the batch norms", "buffers", effect=20)
def statistics_reset(attach: Attach, bug: bool) -> None:
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if bug and step == 20:
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d):
                        module.reset_running_stats()
            one_step(model, optimizer, x, y)


@buggy("after the evaluation train() is called on a part of the model only", "mode", effect=20)
def one_block_stays_in_evaluation(attach: Attach, bug: bool) -> None:
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    held_out = labelled(64, seed=7)[0]
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                model.eval()
                with torch.no_grad():
                    model(held_out)
                model.train()
                if bug:
                    model[4].eval()
            one_step(model, optimizer, x, y)


@buggy("torch.manual_seed stands within the loop: dropout has one mask", "repeats", effect=1)
def seeded_in_the_loop(attach: Attach, bug: bool) -> None:
    model = mlp()
    model.insert(2, nn.Dropout(0.3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if bug or not step:
                torch.manual_seed(0)
            one_step(model, optimizer, x, y)


@buggy("the checkpoint records the loss of the last batch, though its weights were evaluated", "checkpoint", effect=9,
       needs="guards.checkpoint(state, loss=…) and guards.log(val_loss=…)")  # fmt: skip
def loss_of_a_batch_recorded(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held_out = labelled(64, seed=7)
    with attach(model, optimizer) as guards:
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            loss = one_step(model, optimizer, x, y).item()
            guards.log(loss=loss)
            if step % EPOCH == EPOCH - 1:
                with torch.no_grad():
                    validation = F.cross_entropy(model(held_out[0]), held_out[1]).item()
                guards.log(val_loss=validation)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                guards.checkpoint(state, loss=loss if bug else validation)


CASES = (
    optimizer_made_in_the_epoch_loop, rolled_back_without_the_moments, moments_emptied, resumed_without_moments,
    resumed_without_the_schedule, epochs_stepped_as_batches, milestones_passed_at_once, batches_stepped_as_epochs,
    head_keeps_its_rate, discriminator_keeps_the_generators_gradient, generator_learns_for_the_discriminator,
    clipped_in_part_undeclared, clipped_while_scaled_undeclared, average_misses_the_new_layer, statistics_reset,
    one_block_stays_in_evaluation, seeded_in_the_loop, loss_of_a_batch_recorded,
)  # fmt: skip
