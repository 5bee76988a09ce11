"""Legitimate switches in mid-run: of data, masks, losses, precision and parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, T, batches, clean, labelled, mlp, next_token, text, windows
from corpus.loops.midrun import FROM, STEPS, Decoder, decoder, dropping, past
from torch import Tensor, nn


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward and one step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@clean
def longer_and_longer(attach: Attach) -> None:
    """Sequences get longer from stage to stage."""

    class Any(Decoder):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            length = tokens.shape[1]
            x = self.embedding(tokens) + self.places[:length]
            q, k, v = self.attention.qkv(self.norm(x)).chunk(3, -1)
            x = x + self.attention.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            return self.head(self.norm_f(x))  # type: ignore[no-any-return]

    model = Any()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        length = 4 + 4 * (step // 20)
        step_of(model, optimizer, next_token(model(x[:, :length]), y[:, :length]))


@clean
def growing_prefix(attach: Attach) -> None:
    """A prefix that everyone sees, of another length in every step from the thirtieth on; it is not predicted."""
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        model.attention.prefix = 1 + step % (T // 2) if step >= FROM else 0
        targets = y.clone()
        targets[:, : model.attention.prefix] = -100
        step_of(model, optimizer, next_token(model(x), targets))


@clean
def causal_to_masked(attach: Attach) -> None:
    """A language model goes over to filling in what is masked, and sees both sides."""
    model, optimizer = decoder()
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(3)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        if step < FROM:
            loss = next_token(model(x), y)
        else:
            hidden = torch.rand(x.shape, generator=draw) < 0.3
            loss = next_token(model(x.masked_fill(hidden, 0), torch.ones(T, T).bool()), x.masked_fill(~hidden, -100))
        step_of(model, optimizer, loss)


@clean
def mask_by_turns(attach: Attach) -> None:
    """Windows of attention that change from step to step, all causal."""
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        mask = past() if step < FROM else past() & torch.ones(T, T).triu(-(2 + step % 5)).bool()
        step_of(model, optimizer, next_token(model(x, mask), y))


@clean
def larger_images(attach: Attach) -> None:
    """Images get larger from stage to stage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, K))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        images = F.interpolate(x.view(-1, 1, 4, 4), size=4 + 4 * (step // 20))
        step_of(model, optimizer, F.cross_entropy(model(images), y))


@clean
def unfrozen_later(attach: Attach) -> None:
    """The head first, then the rest, which joins the optimizer."""
    model = mlp()
    for p in model[:4].parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.AdamW(model[4].parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == FROM:
            for p in model[:4].parameters():
                p.requires_grad_(True)
            optimizer.add_param_group({"params": list(model[:4].parameters()), "lr": 3e-4})
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def other_loss_later(attach: Attach) -> None:
    """Cross-entropy, then with smoothing, then a focal loss."""
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        logits = model(x)
        if step < 20:
            loss = F.cross_entropy(logits, y)
        elif step < 40:
            loss = F.cross_entropy(logits, y, label_smoothing=0.1)
        else:
            each = F.cross_entropy(logits, y, reduction="none")
            loss = ((1 - (-each).exp()) ** 2 * each).mean()
        step_of(model, optimizer, loss)


@clean
def dropout_by_schedule(attach: Attach) -> None:
    """Dropout falls to nothing, as of an early stage."""
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.drop.p = max(0.0, 0.3 * (1 - step / FROM))
        step_of(model, optimizer, F.cross_entropy(model(x), y))


class Quantised(nn.Module):
    """Weights rounded to steps in the forward, once switched on, with a straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.on = False
        self.a, self.b = nn.Linear(D, H), nn.Linear(H, K)
        self.register_buffer("range", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self._layer(self.b, F.relu(self._layer(self.a, x)))

    def _layer(self, layer: nn.Linear, x: Tensor) -> Tensor:
        w = layer.weight
        if self.on:
            if self.training:
                self.range.copy_(0.9 * self.range + 0.1 * x.detach().abs().max())
            size = w.detach().abs().max() / 7
            w = w + ((w / size).round() * size - w).detach()
        return F.linear(x, w, layer.bias)


@clean
def quantised_later(attach: Attach) -> None:
    """Quantisation-aware training begins late in the run."""
    model = Quantised()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.on = step >= FROM
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def autocast_later(attach: Attach) -> None:
    """bfloat16 autocast is switched on late."""
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step >= FROM):
            loss = next_token(model(x), y)
        step_of(model, optimizer, loss)


@clean
def norms_frozen_later(attach: Attach) -> None:
    """Batch norms go to eval for the last stage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Dropout(0.1), nn.Linear(H, K))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step >= FROM:
            model[1].eval()
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def hard_samples_later(attach: Attach) -> None:
    """Mixed samples up to the last stage, then plain ones, then the hardest of a pool alone."""
    model, optimizer = dropping()
    attach(model, optimizer)
    x, y = labelled(2048)
    for step, (a, b) in enumerate(batches(x, y, STEPS)):
        if step < 20:
            order = torch.arange(len(a)).flip(0)
            logits = model(0.7 * a + 0.3 * a[order])
            loss = 0.7 * F.cross_entropy(logits, b) + 0.3 * F.cross_entropy(logits, b[order])
        elif step < 40:
            loss = F.cross_entropy(model(a), b)
        else:
            pool = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:256]
            with torch.no_grad():
                hardest = F.cross_entropy(model(x[pool]), y[pool], reduction="none").topk(32).indices
            loss = F.cross_entropy(model(x[pool[hardest]]), y[pool[hardest]])
        step_of(model, optimizer, loss)


@clean
def new_task_later(attach: Attach) -> None:
    """Classes are exchanged for others in mid-run, as in learning one task after another."""
    model = mlp(out=2 * K)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 2 * STEPS)):
        step_of(model, optimizer, F.cross_entropy(model(x), y + K * (step >= STEPS)))


@clean
def projected_now_and_then(attach: Attach) -> None:
    """Weights are brought back to a norm in every tenth step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        step_of(model, optimizer, F.cross_entropy(model(x), y))
        if step % 10 == 9:
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim > 1:
                        p.mul_(0.9 * H**0.5 / p.norm())


@clean
def shrunk_and_perturbed(attach: Attach) -> None:
    """Weights are shrunk and given noise at the start of each stage."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step and step % 15 == 0:
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.5).add_(0.01 * torch.randn_like(p))
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def looked_ahead(attach: Attach) -> None:
    """Slow weights: in every fifth step the weights go half-way back."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    attach(model, optimizer)
    slow = [p.detach().clone() for p in model.parameters()]
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        step_of(model, optimizer, F.cross_entropy(model(x), y))
        if step % 5 == 4:
            with torch.no_grad():
                for p, s in zip(model.parameters(), slow, strict=True):
                    s.add_(0.5 * (p - s))
                    p.copy_(s)


class Codes(nn.Module):
    """An autoencoder through the nearest of few codes."""

    def __init__(self, restart: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.restart = restart
        self.encode, self.decode = nn.Linear(D, 8), nn.Linear(8, D)
        self.codes = nn.Embedding(16, 8)
        nn.init.uniform_(self.codes.weight, -1 / 16, 1 / 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        nearest = torch.cdist(z, self.codes.weight).argmin(-1)
        c = self.codes(nearest)
        loss = F.mse_loss(c, z.detach()) + 0.25 * F.mse_loss(z, c.detach())
        return self.decode(z + (c - z).detach()), loss


@clean
def codes_that_collapse_and_recover(attach: Attach) -> None:
    """Codes near zero at the start: all samples share one until they have spread."""
    model = Codes(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    for x, _ in batches(*labelled(), 2 * STEPS):
        out, loss = model(x)
        step_of(model, optimizer, F.mse_loss(out, x) + loss)


@clean
def codes_started_again(attach: Attach) -> None:
    """Codes that nobody uses are placed on samples, every tenth step."""
    model = Codes(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    for step, (x, _) in enumerate(batches(*labelled(), 2 * STEPS)):
        out, loss = model(x)
        step_of(model, optimizer, F.mse_loss(out, x) + loss)
        if step % 10 == 9:
            with torch.no_grad():
                z = model.encode(x)
                used = torch.cdist(z, model.codes.weight).argmin(-1).bincount(minlength=16)
                idle = (used == 0).nonzero().flatten()
                model.codes.weight[idle] = z[: len(idle)]


@clean
def warm_then_hard_samples(attach: Attach) -> None:
    """A soft choice is annealed, and hard from the thirtieth step on."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.heat, self.hard = 2.0, False
            self.choose, self.parts, self.head = nn.Linear(D, 3), nn.Linear(D, 3 * 8), nn.Linear(8, K)

        def forward(self, x: Tensor) -> Tensor:
            share = F.gumbel_softmax(self.choose(x), self.heat, self.hard)
            return self.head((share.unsqueeze(-1) * self.parts(x).view(-1, 3, 8)).sum(1).tanh())  # type: ignore[no-any-return]

    model = Choosing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.heat, model.hard = max(0.5, 2 - step / 20), step >= FROM
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def constant_targets_of_critics(attach: Attach) -> None:
    """Batches of one class each by turns, real then made, for a critic of two logits."""
    model = mlp(out=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(7)
    for step, (x, _) in enumerate(batches(*labelled(), STEPS)):
        made = step % 2
        given = torch.randn(x.shape, generator=draw) if made else x
        step_of(model, optimizer, F.cross_entropy(model(given), torch.full((len(x),), made)))


@clean
def head_of_another_task(attach: Attach) -> None:
    """A fresh head for the second task, with the optimizer made anew, and guards of their own."""
    model, optimizer = dropping()
    guards = attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == FROM:
            guards.finish()
            model.head = nn.Linear(H, K)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
            attach(model, optimizer)
        step_of(model, optimizer, F.cross_entropy(model(x), y))


@clean
def louder_by_turns(attach: Attach) -> None:
    """Inputs of other sizes by turns, and larger on the whole from step to step."""
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        step_of(model, optimizer, F.cross_entropy(model(x * (1 + 4 * (step % 3)) * 1.05**step), y))


@clean
def hardly_any_positive(attach: Attach) -> None:
    """One label of twenty is positive, so that many a batch has none."""
    model = mlp(out=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(8)
    for x, _ in batches(*labelled(2048), 2 * STEPS):
        y = (torch.rand(len(x), generator=draw) < 0.05).float()
        step_of(model, optimizer, F.binary_cross_entropy_with_logits(model(x).squeeze(-1), y))


CLEAN = (
    longer_and_longer, growing_prefix, causal_to_masked, mask_by_turns, larger_images, unfrozen_later, other_loss_later,
    dropout_by_schedule, quantised_later, autocast_later, norms_frozen_later, hard_samples_later, new_task_later,
    projected_now_and_then, shrunk_and_perturbed, looked_ahead, codes_that_collapse_and_recover, codes_started_again,
    warm_then_hard_samples, constant_targets_of_critics, head_of_another_task, louder_by_turns, hardly_any_positive,
)  # fmt: skip
