"""Loops in which a term of the loss does not train what it is meant to train."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, lines, points, texts
from torch import Tensor, nn
from torch.nn import functional as F


class WithAuxiliary(Pair):
    """An encoder, a head for the classes and a second head that rebuilds the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rebuild = nn.Linear(32, 8)


class Autoencoder(nn.Module):
    """A small variational autoencoder: inputs to (their reconstruction, the divergence from the prior)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(inputs).chunk(2, dim=-1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1).mean()
        return self.decoder(latent), divergence


class Experts(nn.Module):
    """Two experts mixed by a router, and the router's balance: outputs and a number that is least when both are used alike."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)) for _ in range(2))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(self.router(inputs), dim=-1)
        outputs = torch.stack([expert(inputs) for expert in self.experts], dim=1)
        return (shares[:, :, None] * outputs).sum(dim=1), 2 * shares.mean(dim=0).square().sum()


def auxiliary_made_of_numbers(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Experts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer) as guards:
        for inputs, targets in points(40):
            logits, balance = model(inputs)
            terms = {"ce": F.cross_entropy(logits, targets), "balance": balance}
            if buggy:
                terms["balance"] = torch.tensor(balance.item())  # kept as a number for the log, then summed
            guards.log(losses=terms)
            optimizer.zero_grad()
            (terms["ce"] + terms["balance"]).backward()
            optimizer.step()


def auxiliary_without_gradient(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = WithAuxiliary()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            hidden = model.encoder(inputs)
            with torch.set_grad_enabled(not buggy):  # was a metric once, under no_grad
                rebuilt = F.mse_loss(model.rebuild(hidden), inputs)
            optimizer.zero_grad()
            (F.cross_entropy(model.head(hidden), targets) + 0.5 * rebuilt).backward()
            optimizer.step()


def divergence_under_no_grad(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer) as guards:
        for inputs, _ in points(40):
            rebuilt, divergence = model(inputs)
            if buggy:
                with torch.no_grad():
                    divergence = 0.1 * divergence
            else:
                divergence = 0.1 * divergence
            terms = {"rebuilt": F.mse_loss(rebuilt, inputs), "divergence": divergence}
            guards.log(losses=terms)
            optimizer.zero_grad()
            (terms["rebuilt"] + terms["divergence"]).backward()
            optimizer.step()


def weight_is_zero_for_ever(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, warmup = Autoencoder(), 60
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer) as guards:
        for step, (inputs, _) in enumerate(points(60)):
            rebuilt, divergence = model(inputs)
            weight = min(1, step // warmup if buggy else 2 * step / warmup)
            terms = {"rebuilt": F.mse_loss(rebuilt, inputs), "divergence": 0.2 * weight * divergence}
            guards.log(losses=terms)
            optimizer.zero_grad()
            (terms["rebuilt"] + terms["divergence"]).backward()
            optimizer.step()


def second_loss_overwritten(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = WithAuxiliary()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            hidden = model.encoder(inputs)
            loss = F.mse_loss(model.rebuild(hidden), inputs)
            if buggy:
                loss = F.cross_entropy(model.head(hidden), targets)  # = in place of +=
            else:
                loss = loss + F.cross_entropy(model.head(hidden), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def penalty_on_a_copy(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair(classes=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with attach(model, optimizer) as guards:
        for inputs, targets in lines(50):
            weights = model.state_dict() if buggy else dict(model.named_parameters())  # state_dict() is detached
            terms = {
                "mse": F.mse_loss(model(inputs), targets),
                "l1": 1e-3 * sum(weight.abs().sum() for weight in weights.values()),
            }
            guards.log(losses=terms)
            optimizer.zero_grad()
            (terms["mse"] + terms["l1"]).backward()
            optimizer.step()


def consistency_of_detached_views(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    with attach(model, optimizer) as guards:
        for tokens, following in texts(40):
            logits = model(tokens)
            noisy = model.head(model.norm(model.embed(tokens) + 0.1 * torch.randn(*tokens.shape, 16)))
            target = torch.log_softmax(logits, dim=-1).detach()
            student = torch.log_softmax(noisy.detach() if buggy else noisy, dim=-1)  # both sides of it detached
            terms = {
                "ce": F.cross_entropy(logits.flatten(0, 1), following.flatten()),
                "consistency": 0.1 * F.kl_div(student, target, log_target=True, reduction="batchmean"),
            }
            guards.log(losses=terms)
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("auxiliary-made-of-numbers", "A router's balance enters the sum as torch.tensor(balance.item()): it trains nothing.",
         frozenset({"loss-terms"}), 0, auxiliary_made_of_numbers, needs="log: the terms of the loss"),
    Case("auxiliary-without-gradient", "The reconstruction is computed with gradients off: its head never gets a gradient.",
         frozenset({"loss-terms", "gradient-reach"}), 0, auxiliary_without_gradient),
    Case("divergence-under-no-grad", "The divergence is weighted under no_grad, which cuts it from the encoder.",
         frozenset({"loss-terms"}), 0, divergence_under_no_grad, needs="log: the terms of the loss"),
    Case("weight-is-zero-for-ever", "The divergence's weight is step // warmup: zero for the whole run.",
         frozenset({"loss-terms"}), 1, weight_is_zero_for_ever, needs="log: the weighted terms of the loss"),
    Case("second-loss-overwritten", "loss = in place of loss +=: the first loss is lost, its head gets no gradient.",
         frozenset({"loss-terms", "gradient-reach"}), 0, second_loss_overwritten),
    Case("penalty-on-a-copy", "The L1 penalty sums state_dict(), which is detached: the weights never feel it.",
         frozenset({"loss-terms"}), 0, penalty_on_a_copy, needs="log: the terms of the loss"),
    Case("consistency-of-detached-views", "Teacher and student are both detached in the consistency term.",
         frozenset({"loss-terms"}), 0, consistency_of_detached_views, needs="log: the terms of the loss"),
)  # fmt: skip
