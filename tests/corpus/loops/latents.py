"""Latents that are drawn: with their gradient, without it, and heads that are trained beside them on purpose."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach
from corpus.loops.materials import D, batches, buggy, clean, labelled
from torch import Tensor, nn

STEPS = 30


class Latent(nn.Module):
    """A small VAE; or one whose second head reads what the first part gives, detached on purpose."""

    def __init__(self, cut: bool, aside: bool = False) -> None:
        super().__init__()
        self.cut, self.aside = cut, aside
        self.encode, self.mean, self.width = nn.Linear(D, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decode = nn.Linear(4, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x).relu()
        mean, width = self.mean(h), self.width(h)
        drawn = torch.distributions.Normal(mean, (0.5 * width).exp())
        if self.aside:
            return self.decode(mean.detach()), mean, width
        return self.decode(drawn.sample() if self.cut else drawn.rsample()), mean, width


def coded(attach: Attach, model: Latent) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    for x, _ in batches(*labelled(), STEPS):
        made, mean, width = model(x)
        apart = -0.5 * (1 + width - mean.square() - width.exp()).sum(1).mean()
        optimizer.zero_grad()
        ((made - x).square().sum(1).mean() + apart).backward()
        optimizer.step()


@buggy("a VAE draws its latent with sample(), so that only the divergence trains its encoder", "gradient-reach",
       source="https://discuss.pytorch.org/t/what-is-the-difference-between-rsample-and-sample/52003")  # fmt: skip
def latent_without_reparametrisation(attach: Attach, bug: bool) -> None:
    torch.manual_seed(13)
    coded(attach, Latent(bug))


@clean
def decoder_that_looks_on(attach: Attach) -> None:
    """a decoder that is trained beside an encoder, on its means without their graph"""
    torch.manual_seed(14)
    coded(attach, Latent(False, aside=True))


CASES = (latent_without_reparametrisation,)
CLEAN = (decoder_that_looks_on,)
