"""Bugs that stand behind something in its place: gradients that are made finite, a teacher that is the student, losses in sums
that are given probabilities, positions and sums in a type too short for them; and loops that look alike and are right."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, Language, T, V, batches, buggy, clean, labelled, mlp, text, windows
from torch import Tensor, nn

STEPS = 40
COUNTED = 320
"""Positions of a long sequence: more than bfloat16 can count."""


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def pulled(attach: Attach, bug: bool, coincide: int, cleaned: bool = True) -> None:
    """Pairs of one class are pulled together by their distance; from one step on some pair is of one point twice."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        other = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        if step >= coincide:
            other[0] = x[0]
        apart = (model(x) - model(other)).pow(2).sum(1)
        near = apart.sqrt() if bug else (apart + 1e-12).sqrt()
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + 0.1 * near.mean()).backward()
        for p in model.parameters():
            if cleaned and p.grad is not None:
                p.grad = torch.nan_to_num(p.grad)
        optimizer.step()


@buggy("a distance has a NaN gradient where two points are one, and the loop makes zeros of it", "finite", effect=20,
       source="p.grad = torch.nan_to_num(p.grad)")  # fmt: skip
def gradients_made_finite(attach: Attach, bug: bool) -> None:
    pulled(attach, bug, 20)


@buggy("the distances of a batch to itself have NaN gradients, set to zero in place: the head alone goes on", "finite",
       source="p.grad[p.grad.isnan()] = 0")  # fmt: skip
def gradients_of_the_trunk_masked(attach: Attach, bug: bool) -> None:
    trunk, head = mlp(0, out=8), nn.Linear(8, K)
    model = nn.ModuleDict({"trunk": trunk, "head": head})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        h = trunk(x)
        apart = (h[:, None] - h[None]).pow(2).sum(-1)
        optimizer.zero_grad()
        (F.cross_entropy(head(h), y) + 0.01 * (apart if bug else apart + 1e-9).sqrt().mean()).backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad[p.grad.isnan()] = 0
        optimizer.step()


def taught(attach: Attach, teacher: nn.Module, student: nn.Module, together: bool) -> None:
    """A mean teacher: its answers on clean inputs are the targets on noisy ones."""
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    attach([student, teacher] if together else student, optimizer)
    for x, y in batches(*labelled(), STEPS):
        with torch.no_grad():
            target = teacher(x).softmax(-1)
        noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        loss = F.cross_entropy(student(x), y) + F.mse_loss(student(noisy).softmax(-1), target)
        stepped(optimizer, loss)
        with torch.no_grad():
            for mean, p in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.mul_(0.95).add_(p, alpha=0.05)


@buggy("a mean teacher is made by copy.copy, which copies no parameters; both are watched", "ties", "ema",
       source="teacher = copy.copy(student)")  # fmt: skip
def teacher_is_the_student(attach: Attach, bug: bool) -> None:
    student = mlp()
    teacher = copy.copy(student) if bug else copy.deepcopy(student)
    taught(attach, teacher.requires_grad_(bug), student, True)


@buggy("the teacher is a shallow copy, and the student alone is watched", "ties", "ema",
       source="teacher = copy.copy(student)")  # fmt: skip
def shallow_teacher_called(attach: Attach, bug: bool) -> None:
    student = mlp()
    taught(attach, copy.copy(student) if bug else copy.deepcopy(student), student, False)


@buggy("a distilled student gives kl_div its probabilities, beside a cross-entropy", "softmax",
       source="F.kl_div(student.softmax(-1), teacher.softmax(-1))")  # fmt: skip
def kl_div_of_probabilities(attach: Attach, bug: bool) -> None:
    teacher, student = mlp(5).requires_grad_(False), mlp(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    attach(student, optimizer)
    for x, y in batches(*labelled(), STEPS):
        z = student(x)
        said = (z / 2).softmax(-1) if bug else (z / 2).log_softmax(-1)
        with torch.no_grad():
            target = (teacher(x) / 2).softmax(-1)
        loss = 4 * F.kl_div(said, target, reduction="batchmean") + 0.3 * F.cross_entropy(z, y)
        stepped(optimizer, loss)


@buggy("one of two losses takes the logits of a sigmoid's answer", "softmax",
       source="F.binary_cross_entropy_with_logits(torch.sigmoid(z), y)")  # fmt: skip
def sigmoid_in_one_of_two_losses(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        z = model(x)
        first = torch.sigmoid(z[:, 0]) if bug else z[:, 0]
        loss = F.cross_entropy(z, y) + 0.5 * F.binary_cross_entropy_with_logits(first, (y == 0).float())
        stepped(optimizer, loss)


class Waves(nn.Module):
    """Tokens and sines of their positions, which are counted in a type: (B, L) -> (B, L, V)."""

    def __init__(self, dtype: torch.dtype, cast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype, self.cast = dtype, cast
        self.embedding, self.mix, self.out = nn.Embedding(V, D), nn.Linear(2, D), nn.Linear(D, V)

    def forward(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        places = torch.arange(count).to(self.dtype) if self.cast else torch.arange(count, dtype=self.dtype)
        waves = torch.stack([(places.float() / 8).sin(), (places.float() / 8).cos()], -1)
        return self.out(F.relu(self.embedding(tokens) + self.mix(waves)))  # type: ignore[no-any-return]


def counted(attach: Attach, dtype: torch.dtype, *, cast: bool, length: int = COUNTED) -> None:
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(V, (32, length), generator=draw)
    model = Waves(dtype, cast)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for _ in range(12):
        rows = tokens[torch.randperm(32, generator=draw)[:4]]
        stepped(
            optimizer, F.cross_entropy(model(rows).flatten(0, 1), ((rows + torch.arange(length) % 4) % V).flatten())
        )


@buggy("positions are counted in bfloat16, in which neighbours beyond 256 are one", "precision",
       source="torch.arange(length, dtype=torch.bfloat16)")  # fmt: skip
def positions_counted_in_bfloat16(attach: Attach, bug: bool) -> None:
    counted(attach, torch.bfloat16 if bug else torch.float32, cast=False)


@buggy("positions are cast to the model's bfloat16 before their sines are taken", "precision",
       source="position_ids.to(x.dtype) before the sines")  # fmt: skip
def positions_cast_to_bfloat16(attach: Attach, bug: bool) -> None:
    counted(attach, torch.bfloat16 if bug else torch.float32, cast=True)


def penalised(attach: Attach, dtype: torch.dtype, growth: float) -> None:
    """The sum of the squares of the logits is kept small; an infinity is replaced by the largest number of float16."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with attach(model, optimizer) as guards:
        for x, y in batches(*labelled(), STEPS):
            z = model(x)
            squares = (growth * z).to(dtype).pow(2).sum()
            penalty = 1e-6 * torch.nan_to_num(squares, posinf=65504.0).float()
            ce = F.cross_entropy(z, y)
            guards.log(loss=ce + penalty, losses={"ce": ce, "penalty": penalty})
            stepped(optimizer, ce + penalty)


@buggy("a penalty is summed in float16, overflows and is replaced by a number without a gradient", "overflow",
       source="torch.nan_to_num(h.half().pow(2).sum(), posinf=65504)", needs="the terms of the loss")  # fmt: skip
def penalty_beyond_float16(attach: Attach, bug: bool) -> None:
    penalised(attach, torch.float16 if bug else torch.float32, 200.0)


@clean
def made_finite_in_vain(attach: Attach) -> None:
    """a loop that makes its gradients finite at each step, as all of them are"""
    pulled(attach, False, 10)


@clean
def penalty_within_float16(attach: Attach) -> None:
    """a penalty summed in float16 that stays far below its end, and nan_to_num after it"""
    penalised(attach, torch.float16, 1.0)


@clean
def counted_as_far_as_it_goes(attach: Attach) -> None:
    """200 positions in bfloat16, which counts to 256"""
    counted(attach, torch.bfloat16, cast=True, length=200)


@clean
def own_answers_as_targets(attach: Attach) -> None:
    """consistency: the model's own answers, without gradients, are the targets of its answers on noisy inputs"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        with torch.no_grad():
            target = model(x).softmax(-1)
        noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        said = model(noisy).log_softmax(-1)
        stepped(optimizer, F.cross_entropy(model(x), y) + F.kl_div(said, target, reduction="batchmean"))


@clean
def expected_matches(attach: Attach) -> None:
    """losses made of probabilities that are no kl_div: dice, expected accuracy, the margin to a constant, squared"""
    model = Language()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for x, y in windows(text(), STEPS):
        p = model(x).softmax(-1)
        hot = F.one_hot(y, V).float()
        dice = 1 - (2 * (p * hot).sum() + 1) / (p.sum() + hot.sum() + 1)
        stepped(optimizer, dice + (1 - p * hot).mean() + (hot - 0.5 * p).pow(2).mean() + (hot - p).abs().mean() / T)


CASES = (
    gradients_made_finite, gradients_of_the_trunk_masked, teacher_is_the_student, shallow_teacher_called,
    kl_div_of_probabilities, sigmoid_in_one_of_two_losses, positions_counted_in_bfloat16, positions_cast_to_bfloat16,
    penalty_beyond_float16,
)  # fmt: skip
CLEAN = (
    made_finite_in_vain, penalty_within_float16, counted_as_far_as_it_goes, own_answers_as_targets, expected_matches,
)  # fmt: skip
