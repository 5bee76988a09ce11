"""Legitimate loops that put back, copy, reset or share what others should keep."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.keeping import STEPS, Growing, adversaries, judged, normed, one_step
from corpus.loops.materials import batches, clean, labelled, mlp
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, MultiStepLR


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


@clean
def adam_then_sgd(attach: Attach) -> None:
    """the second half is trained by another optimizer, which nobody watches"""
    model = mlp()
    optimizer = adam(model)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
            one_step(model, optimizer, x, y)


@clean
def best_loaded_with_its_moments(attach: Attach) -> None:
    """at a plateau the best weights and their moments are loaded, and the rate is halved"""
    model = mlp()
    optimizer = adam(model, lr=1e-2)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                best = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            if step == 30:
                model.load_state_dict(best[0])
                optimizer.load_state_dict(best[1])
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
            one_step(model, optimizer, x, y)


@clean
def folds_of_a_cross_validation(attach: Attach) -> None:
    """each fold begins from the first weights and an optimizer without moments, watched as one run"""
    model = mlp()
    optimizer = adam(model)
    start = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with attach(model, optimizer):
        for fold in range(3):
            model.load_state_dict(start[0])
            optimizer.load_state_dict(start[1])
            for x, y in batches(*labelled(seed=fold), 15, seed=fold):
                one_step(model, optimizer, x, y)


@clean
def average_loaded_for_each_evaluation(attach: Attach) -> None:
    """the averaged weights are loaded to be evaluated, and the live ones loaded back"""
    model = normed()
    average = copy.deepcopy(model)
    optimizer = adam(model)
    with attach(model, optimizer, ema=average):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            one_step(model, optimizer, x, y)
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.1)
                for mean, value in zip(average.buffers(), model.buffers(), strict=True):
                    mean.copy_(value)
            if step % 10 == 9:
                live = copy.deepcopy(model.state_dict())
                model.load_state_dict(average.state_dict())
                model.eval()
                with torch.no_grad():
                    model(x)
                model.load_state_dict(live)
                model.train()


@clean
def low_rank_restarts(attach: Attach) -> None:
    """an adapter is merged and begins anew, and the moments of what it was are dropped"""
    model = mlp()
    optimizer = adam(model)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(0.99)
                optimizer.state.clear()
            one_step(model, optimizer, x, y)


@clean
def two_rhythms(attach: Attach) -> None:
    """one part steps at each batch, the other accumulates four"""
    model = mlp()
    often = torch.optim.SGD(model[0].parameters(), lr=0.05)
    rarely = torch.optim.SGD(model[2:].parameters(), lr=0.05)
    with attach(model, [often, rarely]):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            (F.cross_entropy(model(x), y) / 4).backward()
            often.step()
            often.zero_grad()
            if step % 4 == 3:
                rarely.step()
                rarely.zero_grad()


@clean
def adversaries_that_clear_to_zero(attach: Attach) -> None:
    """the discriminator's loss reaches the generator, whose gradients are then set to zero, not to None"""
    generator, critic = adversaries()
    for_generator, for_critic = adam(generator), adam(critic)
    with attach([generator, critic], [for_generator, for_critic]):
        for x, _ in batches(*labelled(), STEPS):
            for_critic.zero_grad(set_to_none=False)
            (judged(critic(x), 1.0) + judged(critic(generator(torch.randn(len(x), 4))), 0.0)).backward()
            for_critic.step()
            for_generator.zero_grad(set_to_none=False)
            judged(critic(generator(torch.randn(len(x), 4))), 1.0).backward()
            for_generator.step()


@clean
def parts_clipped_by_themselves(attach: Attach) -> None:
    """two networks in one optimizer, each clipped to its own norm"""
    model = nn.ModuleDict({"policy": mlp(), "value": mlp(1)})
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            (F.cross_entropy(model["policy"](x), y) + F.cross_entropy(model["value"](x), y)).backward()
            for part in model.values():
                nn.utils.clip_grad_norm_(part.parameters(), 0.05)
            optimizer.step()


@clean
def average_grows_after_the_step(attach: Attach) -> None:
    """the average gets the new layer once it was trained for a step"""
    model = Growing()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer, ema=average):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            if step == 20:
                model.grow(optimizer)
            one_step(model, optimizer, x, y)
            if step == 20:
                average.further = copy.deepcopy(model.further)
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.1)


@clean
def statistics_made_again(attach: Attach) -> None:
    """before each evaluation the statistics are reset and read from the data again, by the model that trains"""
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = labelled()[0].split(8)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            one_step(model, optimizer, x, y)
            if step % 10 == 9:
                torch.optim.swa_utils.update_bn(data, model)
                model.eval()
                with torch.no_grad():
                    model(x)
                model.train()


@clean
def milestones_in_batches(attach: Attach) -> None:
    """milestones at 60 and 80 hundredths of the run, counted in batches"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = MultiStepLR(optimizer, [24, 32], gamma=0.1)
    with attach(model, optimizer):
        for x, y in batches(*labelled(), STEPS):
            one_step(model, optimizer, x, y)
            scheduler.step()


@clean
def exponential_in_batches(attach: Attach) -> None:
    """a decay by a tenth at each batch, to a seventieth"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, 0.9)
    with attach(model, optimizer):
        for x, y in batches(*labelled(), STEPS):
            one_step(model, optimizer, x, y)
            scheduler.step()


CLEAN = (
    adam_then_sgd, best_loaded_with_its_moments, folds_of_a_cross_validation, average_loaded_for_each_evaluation,
    low_rank_restarts, two_rhythms, adversaries_that_clear_to_zero, parts_clipped_by_themselves,
    average_grows_after_the_step, statistics_made_again, milestones_in_batches, exponential_in_batches,
)  # fmt: skip
