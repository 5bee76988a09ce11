"""Bugs in the shape of a loss, in masks, in batches and in what an optimizer is made to do; and loops that look alike."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, T, V, batches, buggy, clean, labelled, mlp
from torch import Tensor, nn

STEPS = 30


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@buggy("log_softmax is taken over the batch before nll_loss, not over the classes", "softmax",
       source="https://discuss.pytorch.org/t/implicit-dimension-choice-for-softmax-warning/12314")  # fmt: skip
def log_softmax_over_the_batch(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        loss = F.nll_loss(F.log_softmax(model(x), dim=0 if bug else 1), y)
        stepped(optimizer, loss)


@buggy("log-probabilities of a sequence are normalised over its positions and flattened for nll_loss", "softmax",
       source="F.log_softmax(logits, dim=1) of (batch, time, classes)")  # fmt: skip
def log_softmax_over_positions(attach: Attach, bug: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(V, 16), nn.Linear(16, V))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        x = torch.randint(V, (16, T), generator=draw)
        said = F.log_softmax(model(x), dim=1 if bug else -1)
        loss = F.nll_loss(said.view(-1, V), ((x + 1) % V).view(-1))
        stepped(optimizer, loss)


def contrasted(attach: Attach, *, masked: bool = True, same: bool = False, dropped: float = 0.0) -> None:
    """Two noisy views of each sample are to be nearest to each other."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Dropout(dropped), nn.Linear(32, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(4)
    for x, _ in batches(*labelled(), STEPS):
        first = x + 0.3 * torch.randn(x.shape, generator=draw)
        second = first if same else x + 0.3 * torch.randn(x.shape, generator=draw)
        z = F.normalize(model(torch.cat([first, second])), dim=1)
        scores = z @ z.T / 0.2
        if masked:
            scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        loss = F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))
        stepped(optimizer, loss)


@buggy("a contrastive loss leaves each sample among its own negatives: the diagonal is not masked", "softmax",
       source="sim = z @ z.T / t; F.cross_entropy(sim, other)")  # fmt: skip
def similarities_with_their_diagonal(attach: Attach, bug: bool) -> None:
    contrasted(attach, masked=not bug)


@buggy("both views of a contrastive pair are drawn with one state of the generator", "inputs",
       source="https://github.com/pytorch/pytorch/issues/5059")  # fmt: skip
def views_drawn_alike(attach: Attach, bug: bool) -> None:
    contrasted(attach, same=bug)


@buggy("the states of a replay buffer are one tensor, which the environment changes in place", "inputs",
       source="buffer.append((state, action, reward, next_state)) without copies")  # fmt: skip
def buffer_of_one_state(attach: Attach, bug: bool) -> None:
    torch.manual_seed(5)
    model = mlp(out=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    draw, state, kept = torch.Generator().manual_seed(6), torch.zeros(D), []
    for step in range(STEPS * 4 + 64):
        state.mul_(0.8).add_(torch.randn(D, generator=draw))
        kept.append(state if bug else state.clone())
        if step >= 64 and step % 4 == 0:
            x = torch.stack([kept[i] for i in torch.randint(len(kept), (32,), generator=draw).tolist()])
            loss = F.mse_loss(model(x).squeeze(1), x.sum(1))
            stepped(optimizer, loss)


@buggy("the old log-probabilities of a clipped policy loss are taken anew in every inner step", "softmax", effect=1,
       source="old = log_prob.detach() inside the loop over the inner epochs")  # fmt: skip
def ratio_to_itself(attach: Attach, bug: bool) -> None:
    torch.manual_seed(7)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(8)
    for x, y in batches(*labelled(), 5):
        with torch.no_grad():
            policy = torch.distributions.Categorical(logits=model(x))
            action = torch.multinomial(policy.probs, 1, generator=draw).squeeze(1)
            old = policy.log_prob(action)
        advantage = (action == y).float() - 0.25
        for _ in range(6):
            said = torch.distributions.Categorical(logits=model(x)).log_prob(action)
            if bug:
                old = said.detach()
            ratio = (said - old).exp()
            loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            stepped(optimizer, loss)


class Reader(nn.Module):
    """Classifies short sequences of tokens by attention; 0 is padding."""

    def __init__(self, turned: bool, fused: bool) -> None:
        super().__init__()
        self.turned, self.fused = turned, fused
        self.embed, self.qkv = nn.Embedding(V, 24, padding_idx=0), nn.Linear(24, 72)
        self.at, self.head = nn.Parameter(0.1 * torch.randn(T, 24)), nn.Linear(24, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.at
        q, k, v = self.qkv(h).chunk(3, -1)
        keep = (x == 0 if self.turned else x != 0)[:, None]
        if self.fused:
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=keep[:, None])[:, 0]
        else:
            mixed = (q @ k.mT / math.sqrt(24)).masked_fill(~keep, -1e9).softmax(-1) @ v
        real = (x != 0).float()[..., None]
        return self.head(((h + mixed) * real).sum(1) / real.sum(1))


def read(attach: Attach, turned: bool, fused: bool) -> None:
    torch.manual_seed(9)
    model = Reader(turned, fused)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(10)
    for _ in range(STEPS):
        x = torch.randint(1, V, (16, T), generator=draw)
        length = torch.randint(4, T, (16,), generator=draw)
        x = x.masked_fill(torch.arange(T) >= length[:, None], 0)
        stepped(optimizer, F.cross_entropy(model(x), x[:, 0] % K))


@buggy("the mask of padding is the other way round: attention looks at the padding alone", "padding",
       source="https://discuss.pytorch.org/t/nn-multiheadattention-key-padding-mask/51146")  # fmt: skip
def padding_mask_turned_round(attach: Attach, bug: bool) -> None:
    read(attach, bug, False)


@buggy("scaled_dot_product_attention is given True where it is not to look", "padding",
       source="attn_mask=(tokens == pad), which means the opposite in MultiheadAttention")  # fmt: skip
def fused_padding_mask_turned_round(attach: Attach, bug: bool) -> None:
    read(attach, bug, True)


@buggy("noise is added in place to slices of the data, and piles up from epoch to epoch", "inputs", effect=8,
       source="x = data[i : i + n]; x += noise")  # fmt: skip
def noise_piled_up(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(11)
    for epoch in range(5):
        for k in torch.randperm(8, generator=torch.Generator().manual_seed(epoch)).tolist():
            part = x[32 * k : 32 * k + 32]
            noise = 0.7 * torch.randn(part.shape, generator=draw)
            part = part.add_(noise) if bug else part + noise
            stepped(optimizer, F.cross_entropy(model(part), y[32 * k : 32 * k + 32]))


class Smooth(torch.autograd.Function):
    """x sigmoid(x)."""

    @staticmethod
    def forward(ctx, x, whole):  # type: ignore[no-untyped-def]
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        ctx.whole = whole
        return x * s

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, s = ctx.saved_tensors
        slope = s * (1 + x * (1 - s))
        return gradient * slope if ctx.whole else slope, None


class Smoothed(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole, self.a, self.b = whole, nn.Linear(D, 64), nn.Linear(64, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(Smooth.apply(self.a(x), self.whole))  # type: ignore[no-untyped-call]


@buggy("the backward of a hand-written activation forgets to multiply by the gradient it is given", "gradient-reach",
       source="https://pytorch.org/docs/stable/notes/extending.html")  # fmt: skip
def backward_without_the_chain_rule(attach: Attach, bug: bool) -> None:
    torch.manual_seed(12)
    model = Smoothed(not bug)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        stepped(optimizer, F.cross_entropy(model(x), y))


@clean
def the_same_twice_with_dropout(attach: Attach) -> None:
    """two copies of each sample in a batch, of which dropout makes two views"""
    contrasted(attach, same=True, dropped=0.2)


@clean
def softmax_over_the_batch_on_purpose(attach: Attach) -> None:
    """both directions of a contrastive loss between two encoders, and weights of attention over the rows"""
    model = nn.ModuleList([mlp(), mlp(1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for x, _ in batches(*labelled(), STEPS):
        a, b = model[0](x), model[1](x + 0.1)
        scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.2
        at = torch.arange(len(x))
        pooled = (a[:, :1].softmax(0) * b).sum(0)
        stepped(optimizer, F.cross_entropy(scores, at) + F.cross_entropy(scores.T, at) + 0.01 * pooled.square().sum())


@clean
def ratio_of_one_inner_step(attach: Attach) -> None:
    """a clipped policy loss with one step for each batch: its ratio is 1, for its gradient"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        said = model(x).log_softmax(-1).gather(1, y[:, None]).squeeze(1)
        ratio = (said - said.detach()).exp()
        loss = -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean()
        stepped(optimizer, loss)


@clean
def buffer_filled_anew(attach: Attach) -> None:
    """batches that are halves of one tensor, filled with other samples in each step"""
    x, y = labelled()
    held = torch.zeros(64, D)
    model = copy.deepcopy(mlp())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for step in range(STEPS):
        part = held[32 * (step % 2) : 32 * (step % 2) + 32]
        chosen = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(step))
        part.copy_(x[chosen])
        stepped(optimizer, F.cross_entropy(model(part), y[chosen]))


CASES = (
    log_softmax_over_the_batch, log_softmax_over_positions, similarities_with_their_diagonal, views_drawn_alike,
    buffer_of_one_state, ratio_to_itself, padding_mask_turned_round, fused_padding_mask_turned_round, noise_piled_up,
    backward_without_the_chain_rule,
)  # fmt: skip
CLEAN = (
    the_same_twice_with_dropout, softmax_over_the_batch_on_purpose, ratio_of_one_inner_step, buffer_filled_anew,
)  # fmt: skip
