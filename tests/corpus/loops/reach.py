"""Loops in which the gradient does not reach a part of the model, from the start or from some step on."""

from __future__ import annotations

import warnings

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, images, lines, mlp, points, texts
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def encoder_detached(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            hidden = model.encoder(inputs)
            if buggy:
                hidden = hidden.detach()  # left over from training the head alone
            optimizer.zero_grad()
            F.cross_entropy(model.head(hidden), targets).backward()
            optimizer.step()


class Residual(nn.Module):
    """A convolutional stem, a residual branch taken as .data, and a head."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.stem(inputs)), 2)
        branch = self.branch(hidden)
        return self.head(F.relu(hidden + (branch.data if self.cut else branch)).flatten(1))


def residual_branch_as_data(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Residual(cut=buggy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with attach(model, optimizer):
        for inputs, targets in images(40):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def encoder_stays_frozen(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, tuning, head_first = Pair(), False, 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(50)):
            if step == head_first and not buggy:
                tuning = True
            with torch.set_grad_enabled(tuning):  # the head alone at first
                hidden = model.encoder(inputs)
            optimizer.zero_grad()
            F.cross_entropy(model.head(hidden), targets).backward()
            optimizer.step()


def export_switches_gradients_off(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def export() -> Tensor:
        """The embeddings, for a plot."""
        model.tokens.requires_grad_(False)
        table = model.tokens.weight.clone()
        model.tokens.requires_grad_(not buggy)
        return table

    with attach(model, optimizer):
        for step, (tokens, following) in enumerate(texts(50)):
            if step == 20:
                export()
            optimizer.zero_grad()
            F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()).backward()
            optimizer.step()


class Codes(nn.Module):
    """A classifier through a small table of codes: softly mixed, or by the index of the largest."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16))
        self.codes = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.encoder(inputs)
        if self.hard:
            return self.head(self.codes(logits.argmax(dim=-1)))
        return self.head(torch.softmax(logits, dim=-1) @ self.codes.weight)


def cut_by_argmax(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Codes(hard=buggy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer):
        for inputs, targets in points(50):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def cut_by_round(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair(classes=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer):
        for inputs, targets in lines(50):
            hidden = model.encoder(inputs)
            rounded = torch.round(8 * hidden) / 8
            hidden = rounded if buggy else hidden + (rounded - hidden).detach()  # straight-through
            optimizer.zero_grad()
            F.mse_loss(model.head(hidden), targets).backward()
            optimizer.step()


class Adapted(nn.Module):
    """A frozen layer with a trained low-rank correction of it."""

    def __init__(self, base: nn.Linear, rank: int, both_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        if both_zero:
            nn.init.zeros_(self.down)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.down.T @ self.up.T


def adapter_starts_at_zero_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp()
    model[2] = Adapted(model[2], 4, both_zero=buggy)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def checkpointed_without_gradient(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for table in (model.tokens, model.places):
        table.requires_grad_(False)  # pre-trained embeddings, kept

    def logits(tokens: Tensor) -> Tensor:
        hidden = model.embed(tokens)
        for block in model.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=buggy)
        return model.head(model.norm(hidden))

    frozen = ["tokens.weight", "places.weight"]
    with attach(model, optimizer, spec={"frozen": frozen}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "None of the inputs have requires_grad=True": it scrolled by
        for tokens, following in texts(40):
            optimizer.zero_grad()
            F.cross_entropy(logits(tokens).flatten(0, 1), following.flatten()).backward()
            optimizer.step()


def frozen_by_prefix(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Linear(8, 16), "encoder": nn.Linear(16, 32), "head": nn.Linear(32, 4)})
    for name, parameter in model.named_parameters():
        if name.startswith("e" if buggy else "embed"):
            parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, spec={"frozen": ["embed.*"]}):
        for inputs, targets in points(40):
            hidden = F.gelu(model["encoder"](F.gelu(model["embed"](inputs))))
            optimizer.zero_grad()
            F.cross_entropy(model["head"](hidden), targets).backward()
            optimizer.step()


class Tasks(nn.Module):
    """One trunk and a head for each of three tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(3))


def one_head_for_all_tasks(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Tasks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer):
        for inputs, targets in lines(50):
            hidden = model.trunk(inputs)
            answers = (targets, 0.5 * targets + 1, -targets)
            outputs = [model.heads[0 if buggy else task](hidden) for task in range(3)]
            optimizer.zero_grad()
            sum(F.mse_loss(output, answer) for output, answer in zip(outputs, answers, strict=True)).backward()
            optimizer.step()


def units_dead_at_birth(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    if buggy:
        nn.init.constant_(model[2].bias, -10.0)  # meant for the last layer, as a prior of rare classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("encoder-detached", "The head is trained on encoder(x).detach(): the encoder never gets a gradient.",
         frozenset({"gradient-reach"}), 0, encoder_detached),
    Case("residual-branch-as-data", "The residual branch enters the sum as .data: its convolutions never get a gradient.",
         frozenset({"gradient-reach"}), 0, residual_branch_as_data),
    Case("encoder-stays-frozen", "The head is trained alone for ten steps; the flag that lets the encoder learn is never set.",
         frozenset({"gradient-reach"}), 10, encoder_stays_frozen),
    Case("export-switches-gradients-off", "A function that exports the embeddings leaves requires_grad off, at step 20.",
         frozenset({"gradient-reach", "parameter-moves"}), 20, export_switches_gradients_off),
    Case("cut-by-argmax", "The encoder's logits become an index by argmax: nothing before it gets a gradient.",
         frozenset({"gradient-reach", "straight-through"}), 0, cut_by_argmax),
    Case("cut-by-round", "Hidden values are rounded without straight-through: the encoder's gradient is exactly zero.",
         frozenset({"gradient-reach", "straight-through"}), 0, cut_by_round),
    Case("adapter-starts-at-zero-twice", "Both factors of a low-rank adapter start at zero: both gradients are zero for ever.",
         frozenset({"gradient-reach", "parameter-moves"}), 0, adapter_starts_at_zero_twice),
    Case("checkpointed-without-gradient", "Reentrant checkpointing behind frozen embeddings: the first block gets no gradient.",
         frozenset({"gradient-reach"}), 0, checkpointed_without_gradient, "huggingface/transformers#21381",
         "spec: the frozen parameters (they are also requires_grad=False)"),
    Case("frozen-by-prefix", "The layer to freeze is picked by a prefix that fits the encoder too.",
         frozenset({"gradient-reach", "frozen", "parameter-moves"}), 0, frozen_by_prefix, needs="spec: the frozen parameters"),
    Case("one-head-for-all-tasks", "The loop over tasks uses heads[0] for all of them: two heads never get a gradient.",
         frozenset({"gradient-reach"}), 0, one_head_for_all_tasks),
    Case("units-dead-at-birth", "A bias of -10 on the wrong layer: its ReLU is closed for all inputs, gradients end there.",
         frozenset({"gradient-reach"}), 0, units_dead_at_birth),
)  # fmt: skip
