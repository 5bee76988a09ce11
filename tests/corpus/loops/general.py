"""Bugs without one wrong line to look at: a module many times over, an input of zeros, a decoder that is given its answer,
steps that are never taken, a schedule by hand that forgets a group, the best state kept by reference."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, batches, buggy, labelled, mlp
from torch import Tensor, nn

STEPS = 30


class Voters(nn.Module):
    """An ensemble whose logits are averaged."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


@buggy("an ensemble is a list times four: one network under four names", "twins", source="nn.ModuleList([net] * n)")
def one_network_four_times(attach: Attach, bug: bool) -> None:
    model = Voters([mlp(0)] * 4 if bug else [mlp(seed) for seed in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class Conditioned(nn.Module):
    """A classifier with a condition of one number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.condition, self.body, self.head = nn.Linear(1, 16), nn.Linear(D, 16), nn.Linear(16, K)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x) + self.condition(level)))  # type: ignore[no-any-return]


@buggy("a level of noise is divided as whole numbers are: it is always 0", "inputs", source="t // T in place of t / T")
def condition_of_zeros(attach: Attach, bug: bool) -> None:
    model = Conditioned()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(5)
    for x, y in batches(*labelled(), STEPS):
        level = torch.randint(0, 10, (len(x), 1), generator=draw)
        part = (level // 10 if bug else level / 10).float()
        noisy = x + part * torch.randn(x.shape, generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(noisy, part), y).backward()
        optimizer.step()


class Reverser(nn.Module):
    """An encoder and a decoder of tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.write = nn.Embedding(11, 12), nn.Embedding(11, 12)
        self.encoder, self.decoder = nn.GRU(12, 16, batch_first=True), nn.GRU(12, 16, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        return self.head(self.decoder(self.write(written), self.encoder(self.read(source))[1])[0])  # type: ignore[no-any-return]


@buggy(
    "the decoder is given its targets, not what was written before them", "targets", source="tgt[:, 1:] as the input"
)
def decoder_reads_its_targets(attach: Attach, bug: bool) -> None:
    model = Reverser()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(6)
    for _ in range(STEPS):
        source = torch.randint(2, 11, (12, 6), generator=draw)
        told = F.pad(source.flip(1), (1, 0), value=1)
        optimizer.zero_grad()
        F.cross_entropy(model(source, told[:, 1:] if bug else told[:, :-1]).transpose(1, 2), told[:, 1:]).backward()
        optimizer.step()


@buggy("a new GradScaler for each batch: its first scale is too large, and every step is skipped", "parameter-moves",
       "loss-scale", source="the scaler is made inside the loop")  # fmt: skip
def scaler_for_each_batch(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for x, y in batches(*labelled(), STEPS):
        if bug:
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        optimizer.zero_grad()
        scaler.scale(16 * F.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


@buggy(
    "a cosine by hand is written to the first group alone", "lr-groups", effect=1, source="optimizer.param_groups[0]"
)
def cosine_for_one_group(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        rate = 3e-3 * min((step + 1) / 5, (1 + math.cos(math.pi * step / STEPS)) / 2)
        for group in optimizer.param_groups[: 1 if bug else 2]:
            group["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy("the best weights are a state_dict() that was not copied, and loading it back changes nothing", "checkpoint",
       effect=None, source="best = model.state_dict()")  # fmt: skip
def best_loaded_back(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    best, lowest = model.state_dict(), math.inf
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if loss.item() < lowest:
            lowest = loss.item()
            best = model.state_dict() if bug else copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


CASES = (
    one_network_four_times, condition_of_zeros, decoder_reads_its_targets, scaler_for_each_batch, cosine_for_one_group,
    best_loaded_back,
)  # fmt: skip
