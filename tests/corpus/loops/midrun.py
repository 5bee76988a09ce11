"""Bugs that begin in mid-run, when what is looked at in the first steps has long been found in order: a mask that is switched
off, data that turn bad, a part that falls out of the forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import (
    D,
    H,
    K,
    Language,
    T,
    V,
    batches,
    buggy,
    labelled,
    mlp,
    next_token,
    text,
    windows,
)
from torch import Tensor, nn

STEPS, FROM = 60, 30
"""Steps of a run, and the one at which it goes wrong."""
FUSED = {"causal": True}
"""What a configuration of the whole program may look like."""


def past(length: int = T) -> Tensor:
    """True where a position may look: at itself and back."""
    return torch.ones(length, length).tril().bool()


class Attention(nn.Module):
    """Causal attention of one head, as its attributes have it."""

    def __init__(self) -> None:
        super().__init__()
        self.causal, self.prefix = True, 0
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.register_buffer("mask", past())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if mask is None:
            mask = self.mask if self.causal else torch.ones_like(self.mask)
        mask = mask | (torch.arange(T) < self.prefix)
        return self.out((q @ k.mT / D**0.5).masked_fill(~mask, float("-inf")).softmax(-1) @ v)


class Decoder(nn.Module):
    """tokens (B, T) -> logits (B, T, V); a mask may be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.places = nn.Embedding(V, D), nn.Parameter(0.1 * torch.randn(T, D))
        self.norm, self.attention = nn.LayerNorm(D), Attention()
        self.norm_f, self.head = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens) + self.places
        return self.head(self.norm_f(x + self.attention(self.norm(x), mask)))  # type: ignore[no-any-return]


def decoder() -> tuple[Decoder, torch.optim.Optimizer]:
    """A small language model and its optimizer."""
    model = Decoder()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


@buggy("after an evaluation that scores both sides the attention is not set back to causal", "causality", effect=FROM)
def mask_flag_off(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        if step == FROM:
            model.attention.causal = False
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
            model.attention.causal = not bug
        optimizer.zero_grad()
        next_token(model(x), y).backward()
        optimizer.step()


@buggy("a second stage of training calls the model without the mask", "causality", effect=FROM)
def mask_not_given(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    model.attention.causal = False  # it is the caller who masks
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        logits = model(x) if bug and step >= FROM else model(x, mask=past())
        optimizer.zero_grad()
        next_token(logits, y).backward()
        optimizer.step()


@buggy("the mask of the second stage is made of ones", "causality", effect=FROM, source="torch.ones(T, T).bool()")
def mask_of_ones(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        mask = torch.ones(T, T).bool() if bug and step >= FROM else past()
        optimizer.zero_grad()
        next_token(model(x, mask), y).backward()
        optimizer.step()


@buggy("the buffer of the mask is filled with ones in mid-run", "causality", effect=FROM)
def mask_buffer_filled(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        if step == FROM:
            model.attention.mask.copy_(torch.ones(T, T) if bug else past())
        optimizer.zero_grad()
        next_token(model(x), y).backward()
        optimizer.step()


class Fused(Language):
    """As its base, with the causal mask as the program's configuration has it."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places.weight[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=FUSED["causal"]))
        x = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return self.head(self.norm_f(x))  # type: ignore[no-any-return]


@buggy("a flag of the program's configuration, read in the forward, goes over to attention to both sides", "causality",
       effect=FROM)  # fmt: skip
def mask_by_configuration(attach: Attach, bug: bool) -> None:
    model = Fused()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    try:
        for step, (x, y) in enumerate(windows(text(), STEPS)):
            FUSED["causal"] = not (bug and step >= FROM)
            optimizer.zero_grad()
            next_token(model(x), y).backward()
            optimizer.step()
    finally:
        FUSED["causal"] = True


@buggy(
    "a prefix that everyone may see is switched on, and its own tokens are still predicted", "causality", effect=FROM
)
def prefix_is_predicted(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        model.attention.prefix = T // 2 if step >= FROM else 0
        targets = y.clone()
        if not bug:
            targets[:, : model.attention.prefix] = -100
        optimizer.zero_grad()
        next_token(model(x), targets).backward()
        optimizer.step()


@buggy("from the second stage on the targets are shifted twice", "targets", effect=FROM)
def shifted_twice_later(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        targets = F.pad(y[:, 1:], (0, 1), value=-100) if bug and step >= FROM else y
        optimizer.zero_grad()
        next_token(model(x), targets).backward()
        optimizer.step()


@buggy("from the second stage on the targets are the inputs", "targets", "causality", effect=FROM)
def not_shifted_later(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        targets = x if bug and step >= FROM else y
        optimizer.zero_grad()
        next_token(model(x), targets).backward()
        optimizer.step()


@buggy("the second shard of the data is sorted by class, and read in order", "labels", effect=FROM)
def one_class_later(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    x, y = labelled(4096)
    ordered = y.argsort(stable=True)
    for step, (a, b) in enumerate(batches(x, y, STEPS)):
        if bug and step >= FROM:
            rows = ordered[32 * (step - FROM) : 32 * (step - FROM + 1)]
            a, b = x[rows], y[rows]
        optimizer.zero_grad()
        F.cross_entropy(model(a), b).backward()
        optimizer.step()


@buggy("a cache of the loader shuffles the labels and not the inputs, from the second epoch on", "loss-trend", "labels",
       "targets", effect=FROM)  # fmt: skip
def labels_shuffled_later(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(2048), 2 * STEPS)):
        if bug and step >= FROM:
            y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class Dropping(nn.Module):
    """A classifier with dropout that can be told to sample in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sampling = self.mixing = self.probabilities = False
        self.scale = 1.0
        self.body, self.drop, self.head = nn.Linear(D, H), nn.Dropout(0.2), nn.Linear(H, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.relu(self.body(x)))
        if self.sampling:
            h = F.dropout(h, 0.2)
        if self.mixing:
            h = h - h.mean(0)
        x = self.scale * self.head(h)
        return x.softmax(-1) if self.probabilities else x


def dropping() -> tuple[Dropping, torch.optim.Optimizer]:
    """The classifier and its optimizer."""
    model = Dropping()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


@buggy("the dropout is set to eval to look at features, and left so", "dropout", "mode", effect=FROM)
def dropout_left_off(attach: Attach, bug: bool) -> None:
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == FROM:
            model.drop.eval()
            with torch.no_grad():
                model(x)
            model.drop.train(not bug)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy("samples are drawn for an estimate of the uncertainty, and drawn ever after, in evaluation too", "eval-determinism",
       effect=FROM)  # fmt: skip
def sampling_left_on(attach: Attach, bug: bool) -> None:
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == FROM:
            model.sampling = bug
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy("a normalisation that is switched on later takes the mean over the batch", "batch-independence", effect=FROM)
def rows_mixed_later(attach: Attach, bug: bool) -> None:
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.mixing = bug and step >= FROM
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy(
    "the model is switched to give probabilities, as for an export, and the loss takes logits", "softmax", effect=FROM
)
def softmax_later(attach: Attach, bug: bool) -> None:
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.probabilities = bug and step >= FROM
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy("the loader falls back to zeros from the second epoch on", "inputs", "repeats", "collapse", effect=FROM)
def zeros_later(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.zeros_like(x) if bug and step >= FROM else x), y).backward()
        optimizer.step()


@buggy("the features of a regression are zeros from the second epoch on", "inputs", "repeats", "collapse", effect=FROM)
def zeros_of_a_regression(attach: Attach, bug: bool) -> None:
    model = mlp(out=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, _) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        given = x * 0 if bug and step >= FROM else x
        F.mse_loss(model(given).squeeze(-1), x[:, 0] - x[:, 1]).backward()
        optimizer.step()


class Two(nn.Module):
    """Two inputs, joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detached = self.alone = False
        self.a, self.b, self.head = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(2 * H, K)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(z))
        if self.detached:
            b = b.detach()
        if self.alone:
            b = a
        return self.head(torch.cat([a, b], -1))  # type: ignore[no-any-return]


@buggy("the second input is zeros from the second epoch on", "inputs", effect=FROM)
def second_input_zeros(attach: Attach, bug: bool) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        z = torch.zeros_like(x) if bug and step >= FROM else x.flip(1)
        optimizer.zero_grad()
        F.cross_entropy(model(x, z), y).backward()
        optimizer.step()


@buggy("one branch is given out for the other", "inputs", "gradient-reach", effect=FROM)
def branch_falls_out(attach: Attach, bug: bool) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.alone = bug and step >= FROM
        optimizer.zero_grad()
        F.cross_entropy(model(x, x.flip(1)), y).backward()
        optimizer.step()


@buggy("one branch is detached from the second stage on", "gradient-reach", effect=FROM)
def branch_detached_later(attach: Attach, bug: bool) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.detached = bug and step >= FROM
        optimizer.zero_grad()
        F.cross_entropy(model(x, x.flip(1)), y).backward()
        optimizer.step()


@buggy("sequences of other lengths come later, and their padding counts", "padding", effect=FROM)
def padding_later(attach: Attach, bug: bool) -> None:
    model, optimizer = decoder()
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(5)
    for step, (x, y) in enumerate(windows(text() % (V - 1) + 1, STEPS)):
        x, y = x % V, y % V
        if step >= FROM:
            lengths = torch.randint(T // 2, T + 1, (len(x), 1), generator=draw)
            beyond = torch.arange(T) >= lengths
            x, y = x.masked_fill(beyond, 0), y.masked_fill(torch.arange(T) >= lengths - 1, 0)
        optimizer.zero_grad()
        next_token(model(x), y, ignore_index=-100 if bug else 0).backward()
        optimizer.step()


@buggy("the model is cast to bfloat16 in mid-run, and small updates are lost", "precision", effect=FROM)
def cast_later(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if step == FROM and bug:
            model.bfloat16()
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(model[0].weight.dtype)).float(), y).backward()
        optimizer.step()


@buggy(
    "a scale that is annealed goes to zero, and the outputs are one for all", "collapse", "gradient-reach", effect=FROM
)
def scaled_away(attach: Attach, bug: bool) -> None:
    model, optimizer = dropping()
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        model.scale = max(0.0 if bug else 0.5, 1 - step / FROM)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@buggy("pixels are divided by 255 a second time, in the transform of the second stage", "inputs", effect=FROM)
def scaled_twice_later(attach: Attach, bug: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        F.cross_entropy(model(x / 255 if bug and step >= FROM else x), y).backward()
        optimizer.step()


@buggy("a threshold that is moved in mid-run makes all labels of two negative", "labels", effect=FROM)
def all_negative_later(attach: Attach, bug: bool) -> None:
    model = mlp(out=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        threshold = K if bug and step >= FROM else 1
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x).squeeze(-1), (y > threshold).float()).backward()
        optimizer.step()


CASES = (
    mask_flag_off, mask_not_given, mask_of_ones, mask_buffer_filled, mask_by_configuration, prefix_is_predicted,
    shifted_twice_later, not_shifted_later, one_class_later, labels_shuffled_later, dropout_left_off, sampling_left_on,
    rows_mixed_later, softmax_later, zeros_later, zeros_of_a_regression, second_input_zeros, branch_falls_out,
    branch_detached_later, padding_later, cast_later, scaled_away, scaled_twice_later, all_negative_later,
)  # fmt: skip
