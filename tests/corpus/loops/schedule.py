"""Loops whose learning rate or number of steps is not the planned one: bugs in the formula and in its counter."""

from __future__ import annotations

import math

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, cnn, data_set, epoch, images, lines, mlp, points, texts
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR


def cosine_past_t_max(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, planned = mlp(), 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=planned, eta_min=1e-4)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(50)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if buggy or step < planned:
                scheduler.step()


def cosine_by_hand_not_clamped(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, warmup, total, peak, floor = Language(), 5, 35, 3e-3, 3e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95))

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step > total and not buggy:
            return floor
        done = (step - warmup) / (total - warmup)
        return floor + 0.5 * (1 + math.cos(math.pi * done)) * (peak - floor)

    with attach(model, optimizer):
        for step, (tokens, following) in enumerate(texts(50)):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def linear_below_zero(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = mlp(), 56
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = LambdaLR(optimizer, lambda n: 1 - n / total if buggy else max(0.0, 1 - n / total))
    with attach(model, optimizer):
        for inputs, targets in points(60):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            scheduler.step()


def decay_phase_upside_down(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, warmup, stable_end, total, peak, floor = mlp(), 5, 30, 50, 3e-3, 3e-4
    optimizer = torch.optim.Adam(model.parameters(), lr=peak)

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step < stable_end:
            return peak
        left = (total - step) / (total - stable_end)
        return floor + (peak - floor) * (1 - left if buggy else left)

    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(total)):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def warmup_counts_epochs(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data = mlp(), data_set(320)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 20))  # a warm-up of 20 steps
    with attach(model, optimizer):
        for number in range(5):
            for inputs, targets in epoch(data, 32, number):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                if not buggy:
                    scheduler.step()
            if buggy:
                scheduler.step()


def warmup_divides_integers(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, warmup = mlp(), data_set(256), 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = LambdaLR(optimizer, lambda n: min(1, (n + 1) // warmup if buggy else (n + 1) / warmup))  # in epochs
    with attach(model, optimizer):
        for number in range(7):
            for inputs, targets in epoch(data, 32, number):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            scheduler.step()


def one_cycle_counts_micro_batches(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts, steps = mlp(), 4, 40
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    planned = steps * parts if buggy else steps
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=planned + 1, cycle_momentum=False)
    with attach(model, optimizer):
        for index, (inputs, targets) in enumerate(points(steps * parts, size=8)):
            (F.cross_entropy(model(inputs), targets) / parts).backward()
            if (index + 1) % parts == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()


def cosine_counts_micro_batches(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts, steps, warmup = Language(), 2, 40, 4

    def factor(step: int) -> float:
        total, rising = (steps * parts, warmup * parts) if buggy else (steps, warmup)
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / (total - rising))))

    def declared(step: int) -> float:
        return 4e-3 * ((step + 1) / warmup if step < warmup
                       else 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup)))))  # fmt: skip

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scheduler = LambdaLR(optimizer, factor)
    with attach(model, optimizer, spec={"schedule": declared}):
        for index, (tokens, following) in enumerate(texts(steps * parts, size=4)):
            (F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()) / parts).backward()
            if index % parts == parts - 1:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()


def epochs_rounded_down(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, parts, epochs = mlp(), data_set(9 * 8), 2, 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = math.ceil(len(data[0]) / 8)  # 9 in each epoch
    done, total, number = 0, epochs * math.ceil(batches / parts), 0
    limit = epochs * (batches // parts) if buggy else total
    with attach(model, optimizer, total_steps=total):
        while done < limit:
            for index, (inputs, targets) in enumerate(epoch(data, 8, number)):
                group = parts if index < batches - batches % parts else batches % parts
                (F.cross_entropy(model(inputs), targets) / group).backward()
                if (index + 1) % parts == 0 or index + 1 == batches:
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
                    if done == limit:
                        break
            number += 1


def one_epoch_too_many(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, total = mlp(), data_set(320), 45
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    done = 0
    with attach(model, optimizer, spec={"total_steps": total}):
        for number in range(5):
            for inputs, targets in epoch(data, 32, number):
                if done == total and not buggy:
                    break
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                done += 1
            if done >= total:  # looked at between epochs only
                break


def only_the_first_group(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total, peak = cnn(), 50, 5e-3
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=peak)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(images(total)):
            for group in optimizer.param_groups[:1] if buggy else optimizer.param_groups:
                group["lr"] = peak * (1 - step / total)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def groups_levelled_on_resume(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, rate = mlp(features=8, classes=1), 1e-2
    groups = [{"params": model[0].parameters(), "lr": 0.1 * rate}, {"params": model[2:].parameters(), "lr": rate}]
    optimizer = torch.optim.AdamW(groups)
    with attach(model, optimizer, spec={"group_ratios": (1.0, 10.0)}):
        for step, (inputs, targets) in enumerate(lines(40)):
            if step == 20:  # goes on from a checkpoint, at half the rate that the configuration now says
                optimizer.load_state_dict(optimizer.state_dict())
                for group in optimizer.param_groups:
                    group["lr"] = rate / 2 if buggy else group["lr"] / 2
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("cosine-past-t-max", "CosineAnnealingLR is stepped past T_max, where its cosine climbs again.",
         frozenset({"lr-decay", "lr-schedule"}), 31, cosine_past_t_max),
    Case("cosine-by-hand-not-clamped", "A hand-written cosine lacks the clamp after its last step, so the rate rises.",
         frozenset({"lr-decay", "lr-schedule"}), 36, cosine_by_hand_not_clamped),
    Case("linear-below-zero", "A linear decay lacks its max(0, .): past the end the rate is negative and the loss is climbed.",
         frozenset({"lr-range"}), 57, linear_below_zero),
    Case("decay-phase-upside-down", "The decay after a plateau runs backwards: the rate falls to its floor at once, then rises.",
         frozenset({"lr-decay", "lr-schedule"}), 30, decay_phase_upside_down),
    Case("warmup-counts-epochs", "A warm-up of 20 steps is stepped once an epoch, and the run ends within it.",
         frozenset({"warmup-ends", "scheduler-steps", "lr-schedule"}), 1, warmup_counts_epochs),
    Case("warmup-divides-integers", "epoch // warmup is zero until the warm-up is over: for four epochs the rate is 0.",
         frozenset({"lr-range", "warmup-ends"}), 0, warmup_divides_integers),
    Case("one-cycle-counts-micro-batches", "OneCycleLR is planned in micro-batches, stepped once an optimizer step: it never "
         "leaves its warm-up.", frozenset({"warmup-ends", "lr-schedule", "schedule-fit"}), 1, one_cycle_counts_micro_batches,
         "huggingface/diffusers#4387"),
    Case("cosine-counts-micro-batches", "A warm-up and cosine planned in micro-batches: twice too slow in optimizer steps.",
         frozenset({"lr-schedule", "schedule-fit"}), 0, cosine_counts_micro_batches, "axolotl-ai-cloud/axolotl#977",
         "spec: the schedule, a function of the step"),
    Case("epochs-rounded-down", "Steps of an epoch are rounded down, 9 batches in pairs make 4: training ends short of its plan.",
         frozenset({"step-budget"}), None, epochs_rounded_down, "huggingface/transformers#33455", "total_steps"),
    Case("one-epoch-too-many", "The budget is looked at between epochs only: the run goes on past its last step.",
         frozenset({"step-budget"}), 45, one_epoch_too_many, needs="spec: total_steps"),
    Case("only-the-first-group", "A hand-written schedule sets param_groups[0]: the other group keeps its first rate.",
         frozenset({"lr-groups", "lr-schedule"}), 1, only_the_first_group),
    Case("groups-levelled-on-resume", "After loading, one rate is written to all groups: the ratio between them is lost.",
         frozenset({"lr-groups"}), 20, groups_levelled_on_resume, needs="spec: group_ratios"),
)  # fmt: skip
