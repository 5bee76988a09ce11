"""Legitimate loops that train a part of the model: frozen, unfrozen in mid-run, a new head, several optimizers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import K, batches, clean, labelled, mlp
from torch import Tensor, nn

STEPS = 40


class Backbone(nn.Module):
    """A convolutional backbone with batch norm, and a head."""

    def __init__(self, classes: int = K) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 14, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x.unsqueeze(1)))  # type: ignore[no-any-return]


@clean
def frozen_backbone(attach: Attach) -> None:
    """a frozen backbone whose batch norm stays in eval mode; only the head is in the optimizer; frozen is declared"""
    model = Backbone()
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
    attach(model, optimizer, spec={"frozen": ["backbone.*"]})
    model.train()
    model.backbone.eval()
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def frozen_but_handed_over(attach: Attach) -> None:
    """a frozen backbone under no_grad in forward; every parameter was handed to the optimizer; nothing declared"""
    model = Backbone()
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    attach(model, optimizer)
    model.backbone.eval()
    for x, y in batches(*labelled(), STEPS):
        with torch.no_grad():
            features = model.backbone(x.unsqueeze(1))
        loss = F.cross_entropy(model.head(features), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@clean
def new_head(attach: Attach) -> None:
    """the head is replaced before the optimizer is built, as every fine-tuning script does"""
    model = Backbone(classes=10)
    model.head = nn.Linear(model.head.in_features, K)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    with attach(model, optimizer, spec={"classes": K}) as guards:
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.detach(), inputs=x, targets=y)


@clean
def gradual_unfreezing(attach: Attach) -> None:
    """layers are unfrozen from the top, every 12 steps; the optimizer has held them from the start"""
    model = mlp()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == 12:
            model[2].requires_grad_(True)
        if step == 24:
            model[0].requires_grad_(True)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def unfreezing_by_group(attach: Attach) -> None:
    """the backbone joins the optimizer by add_param_group when it is unfrozen, after 25 steps"""
    model = Backbone()
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == 25:
            model.backbone.requires_grad_(True)
            optimizer.add_param_group({"params": model.backbone.parameters(), "lr": 1e-3})
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def two_kinds_of_optimizer(attach: Attach) -> None:
    """Muon for the hidden matrices, Adam for all else, each with its own rate and decay"""
    model = mlp()
    hidden = [model[2].weight]
    rest = [p for p in model.parameters() if p is not hidden[0]]
    muon, adam_ = torch.optim.Muon(hidden, lr=0.02), torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.0)
    attach(model, [muon, adam_])
    for x, y in batches(*labelled(), STEPS):
        muon.zero_grad()
        adam_.zero_grad()
        F.cross_entropy(model(x), y).backward()
        muon.step()
        adam_.step()


CLEAN = (
    frozen_backbone,
    frozen_but_handed_over,
    new_head,
    gradual_unfreezing,
    unfreezing_by_group,
    two_kinds_of_optimizer,
)
