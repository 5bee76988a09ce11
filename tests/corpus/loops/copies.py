"""Averages, ties, replicas and buffers: values that must follow other values, or must not change at all."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import CLASSES, HIDDEN, WIDTH, Classifier, Tokens, adam, blobs, fit, next_token, text, validate
from .case import Attach, Case

STEPS = 40


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float, buffers: bool = True) -> None:
    """ema <- decay * ema + (1 - decay) * model; buffers are copied."""
    for mean, value in zip(ema.parameters(), model.parameters(), strict=True):
        mean.mul_(decay).add_(value, alpha=1 - decay)
    if buffers:
        for mean, value in zip(ema.buffers(), model.buffers(), strict=True):
            mean.copy_(value)


def ema_before_the_step(attach: Attach, buggy: bool) -> None:
    """The average is taken of the parameters of one step ago."""
    model = Classifier()
    optimizer, ema = adam(model), copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for x, y in blobs(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if buggy:
                average(ema, model, 0.9)
            optimizer.step()
            if not buggy:
                average(ema, model, 0.9)


def ema_swapped(attach: Attach, buggy: bool) -> None:
    """Weight and complement are exchanged: the average is nearly the model itself."""
    model = Classifier()
    optimizer, ema = adam(model), copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for batch in blobs(STEPS):
            fit(model, optimizer, [batch])
            average(ema, model, 1 - 0.9 if buggy else 0.9)


def ema_stops(attach: Attach, buggy: bool) -> None:
    """The update stands under a condition that holds in the first epoch only (15 steps)."""
    model = Classifier()
    optimizer, ema = adam(model), copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for step, batch in enumerate(blobs(STEPS)):
            fit(model, optimizer, [batch])
            if not buggy or step // 15 == 0:
                average(ema, model, 0.9)


def ema_without_buffers(attach: Attach, buggy: bool) -> None:
    """The average is of parameters only: its batch norm keeps the statistics of the start."""
    model = Classifier(norm=nn.BatchNorm1d(HIDDEN))
    optimizer, ema = adam(model), copy.deepcopy(model).eval()
    held_out = blobs(1, seed=9000)[0]
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for batch in blobs(STEPS):
            fit(model, optimizer, [batch])
            average(ema, model, 0.9, buffers=not buggy)
        validate(ema, held_out)


def ema_of_another(attach: Attach, buggy: bool) -> None:
    """The average follows the model as it was before it was prepared, which no step changes."""
    original = Classifier()
    model = copy.deepcopy(original)
    optimizer, ema = adam(model), copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for batch in blobs(STEPS):
            fit(model, optimizer, [batch])
            average(ema, original if buggy else model, 0.9)


def ema_is_the_model(attach: Attach, buggy: bool) -> None:
    """The averaged model was assigned, not copied: both names are one module."""
    model = Classifier()
    optimizer = adam(model)
    ema = model if buggy else copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for batch in blobs(STEPS):
            fit(model, optimizer, [batch])
            average(ema, model, 0.9)


def backup_by_reference(attach: Attach, buggy: bool) -> None:
    """Validation with the averaged weights: the backup holds references, so nothing is restored, and the training
    goes on from the average. First after the validation that follows step 9."""
    model, held_out = Classifier(), blobs(1, seed=9000)[0]
    optimizer, ema = adam(model), copy.deepcopy(model)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}):
        for step, batch in enumerate(blobs(STEPS)):
            fit(model, optimizer, [batch])
            average(ema, model, 0.9)
            if step % 10 == 9:
                backup = {k: v if buggy else v.clone() for k, v in model.state_dict().items()}
                model.load_state_dict(ema.state_dict())
                model.eval()
                validate(model, held_out)
                model.train()
                model.load_state_dict(backup)


def tied_by_a_clone(attach: Attach, buggy: bool) -> None:
    """The head starts with the values of the embedding, in a parameter of its own."""
    model = Tokens()
    weight = model.embedding.weight
    model.head.weight = nn.Parameter(weight.clone()) if buggy else weight
    optimizer = adam(model)
    with attach(model, optimizer, spec={"tied": [["embedding.weight", "head.weight"]]}):
        fit(model, optimizer, text(STEPS), next_token)


def tied_then_copied(attach: Attach, buggy: bool) -> None:
    """A student takes copies of the teacher's tied parts, one by one: the tie is not copied."""
    teacher, model = Tokens(tied=True), Tokens()
    memo: dict[int, object] = {}
    model.embedding = copy.deepcopy(teacher.embedding, memo)
    model.head = copy.deepcopy(teacher.head) if buggy else copy.deepcopy(teacher.head, memo)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"tied": [["embedding.weight", "head.weight"]]}):
        fit(model, optimizer, text(STEPS), next_token)


def tie_broken_by_loading(attach: Attach, buggy: bool) -> None:
    """At the end of the epoch, after 20 steps, the state is saved and loaded back, with assign=True."""
    model = Tokens(tied=True)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, text(20), next_token)
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(saved, assign=buggy)
        fit(model, optimizer, text(20, seed=2500), next_token)


def replicas(attach: Attach, *, apart_from: int | None = None, clip: tuple[bool, bool] = (False, False),
             other_seed: bool = False) -> None:  # fmt: skip
    """Two replicas on halves of each batch, gradients averaged by hand, each with its own optimizer."""
    models = [Classifier(), Classifier(seed=int(other_seed))]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    with attach(models[0], optimizers[0], replicas=[models[1]]):
        for step, (x, y) in enumerate(blobs(STEPS)):
            for model, optimizer, part, labels in zip(models, optimizers, x.chunk(2), y.chunk(2), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(part), labels).backward()
            for a, b in zip(*(m.parameters() for m in models), strict=True):
                mean = (a.grad + b.grad) / 2
                a.grad.copy_(mean)
                if apart_from is None or step < apart_from:
                    b.grad.copy_(mean)
            for model, optimizer, clipped in zip(models, optimizers, clip, strict=True):
                if clipped:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()


def replica_misses_the_mean(attach: Attach, buggy: bool) -> None:
    """From step 15 on the second replica is called past its wrapper, and keeps its own gradients."""
    replicas(attach, apart_from=15 if buggy else None)


def replica_clips_alone(attach: Attach, buggy: bool) -> None:
    """Only the first replica clips."""
    replicas(attach, clip=(True, not buggy))


def replicas_start_apart(attach: Attach, buggy: bool) -> None:
    """Each replica is initialised from its own seed, and nobody broadcasts."""
    replicas(attach, other_seed=buggy)


def statistics_poisoned(attach: Attach, buggy: bool) -> None:
    """A batch with NaN after 12 steps: its loss is skipped, but it went through the batch norm, whose statistics are
    NaN for good. The training loss never shows it."""
    model, held_out = Classifier(norm=nn.BatchNorm1d(HIDDEN)), blobs(1, seed=9000)[0]
    optimizer, batches = adam(model), blobs(STEPS)
    batches[12][0][3, 2] = torch.nan
    with attach(model, optimizer):
        for x, y in batches:
            if not buggy and not x.isfinite().all():
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if not loss.isfinite():
                continue
            loss.backward()
            optimizer.step()
        model.eval()
        validate(model, held_out)


class Waves(nn.Module):
    """x (B, WIDTH) -> features at fixed frequencies -> logits; the frequencies are a buffer."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.register_buffer("frequency", torch.logspace(0, -2, 4))
        self.head = nn.Linear(WIDTH * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.frequency
        frequency = frequency.div_(1.05) if self.in_place else frequency / 1.05
        angle = (x.unsqueeze(-1) * frequency).flatten(1)
        return self.head(torch.cat([angle.sin(), angle.cos()], 1))


def buffer_scaled_in_place(attach: Attach, buggy: bool) -> None:
    """A table that should stay is divided in place, again at every forward."""
    model = Waves(in_place=buggy)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"frozen": ["frequency"]}):
        fit(model, optimizer, blobs(STEPS))


EMA, TIES, REPLICAS = frozenset({"ema"}), frozenset({"ties"}), frozenset({"replicas"})
AVERAGED, TIED, BOTH = "ema=, and its decay", "tied: embedding and head", "replicas="
CASES: tuple[Case, ...] = (
    Case("ema-before-the-step", "the average is updated before the step", EMA, 0, ema_before_the_step, needs=AVERAGED),
    Case("ema-swapped", "decay and 1 - decay are exchanged", EMA, 0, ema_swapped, needs=AVERAGED),
    Case("ema-stops", "the average stops after the first epoch", EMA, 15, ema_stops, needs=AVERAGED),
    Case("ema-without-buffers", "the average keeps the buffers of the start", EMA | {"buffers"}, 0,
         ema_without_buffers, needs=AVERAGED),
    Case("ema-of-another", "the average follows a model that does not train", EMA, 0, ema_of_another, needs=AVERAGED),
    Case("ema-is-the-model", "the average is the model itself", EMA, 0, ema_is_the_model, needs=AVERAGED),
    Case("backup-by-reference", "after validation the weights stay those of the average", EMA | {"parameter-moves"}, 10,
         backup_by_reference, needs=AVERAGED),
    Case("tied-by-a-clone", "the head is a clone of the embedding", TIES, 0, tied_by_a_clone, needs=TIED),
    Case("tied-then-copied", "tied parts are copied one by one", TIES, 0, tied_then_copied, needs=TIED),
    Case("tie-broken-by-loading", "loading with assign=True unties, and leaves the optimizer behind",
         TIES | {"optimizer-parameters"}, 20, tie_broken_by_loading),
    Case("replica-misses-the-mean", "a replica keeps its own gradients", REPLICAS, 15, replica_misses_the_mean,
         "TrainCheck, jxmnop's DDP", BOTH),
    Case("replica-clips-alone", "one of two replicas clips", REPLICAS | {"clipping"}, 0, replica_clips_alone,
         "TrainCheck DS-1801 (BLOOM)", BOTH),
    Case("replicas-start-apart", "two replicas start from two seeds", REPLICAS, 0, replicas_start_apart, needs=BOTH),
    Case("statistics-poisoned", "NaN in the statistics of a batch norm", frozenset({"buffers", "finite"}), 12,
         statistics_poisoned),
    Case("buffer-scaled-in-place", "a constant table changes at every forward", frozenset({"buffers", "frozen"}), 0,
         buffer_scaled_in_place, needs="frozen: the table"),
)  # fmt: skip
