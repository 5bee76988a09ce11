"""Legitimate loops whose model comes in an odd form: low precision, recomputed, wrapped, compiled, called as a function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.clean_models import Residual, classify
from corpus.loops.materials import D, H, K, batches, clean, labelled, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

STEPS = 40


@clean
def bfloat16_autocast(attach: Attach) -> None:
    """bfloat16 autocast over float32 weights"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"dtype": "float32"}) as guards:
        for x, y in batches(*labelled(), STEPS):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss)


@clean
def pure_bfloat16(attach: Attach) -> None:
    """weights in bfloat16 at a rate large enough that no update is lost"""
    model = mlp().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    attach(model, optimizer, spec={"dtype": "bfloat16"})
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()


@clean
def recomputed(attach: Attach) -> None:
    """gradient checkpointing: the forward of the blocks runs twice to a step"""

    class Recomputing(Residual):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + checkpoint(block, x, use_reentrant=False)
            return self.head(x)  # type: ignore[no-any-return]

    classify(attach, Recomputing())


@clean
def parametrised(attach: Attach) -> None:
    """spectral norm on one layer and weight norm on another: parameters and buffers under other names"""
    model = mlp()
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[2])
    classify(attach, model)


@clean
def complex_weights(attach: Attach) -> None:
    """a complex parameter, as in spectral layers and state-space models"""

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.filter = nn.Parameter(torch.randn(D // 2 + 1, dtype=torch.cfloat))
            self.head = nn.Linear(D, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=D))  # type: ignore[no-any-return]

    classify(attach, Spectral())


class Wrapper(nn.Module):
    """What data-parallel wrappers do: the model becomes `.module`, the batch goes through it in two halves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.module(half) for half in x.chunk(2)])


@clean
def wrapped(attach: Attach) -> None:
    """the optimizer is built of the bare model, the wrapper is what runs and is watched: forward runs twice to a step"""
    bare = mlp()
    model, optimizer = Wrapper(bare), torch.optim.Adam(bare.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def compiled(attach: Attach) -> None:
    """the compiled model is watched, the optimizer holds the parameters of the model it was compiled from"""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, K))
    model = torch.compile(bare, backend="eager")
    optimizer = torch.optim.AdamW(bare.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), 25):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def functional(attach: Attach) -> None:
    """functional_call with perturbed copies of the parameters: the module's own forward gets other tensors"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        moved = {name: p * (1 + 0.01 * torch.randn_like(p)) for name, p in model.named_parameters()}
        optimizer.zero_grad()
        F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y).backward()
        optimizer.step()


CLEAN = (
    bfloat16_autocast,
    pure_bfloat16,
    recomputed,
    parametrised,
    complex_weights,
    wrapped,
    compiled,
    functional,
)
