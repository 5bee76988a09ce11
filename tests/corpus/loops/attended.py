"""Sequences that are not seen as meant: heads cut in time, a mask the wrong way round, a memory without its graph in mid-run;
and branches and losses that look alike and are right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import SIZE, Language, T, V, buggy, clean, next_token, text, windows
from torch import Tensor, nn


class Heads(nn.Module):
    """Causal attention of four heads; `cut`: the heads are made by a view alone, so that each has a quarter of the time."""

    def __init__(self, width: int = 16, cut: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(V, width), nn.Linear(width, V)
        self.qkv, self.out, self.cut = nn.Linear(width, 3 * width), nn.Linear(width, width), cut

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        b, t, c = x.shape
        shape = (b, 4, t, c // 4) if self.cut else (b, t, 4, c // 4)
        q, k, v = (part.reshape(shape) for part in self.qkv(x).chunk(3, -1))
        if not self.cut:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed if self.cut else mixed.transpose(1, 2)
        return self.head(x + self.out(mixed.reshape(b, t, c)))  # type: ignore[no-any-return]


@buggy("heads are made by a view without transpose, and each has a piece of the time for its own", "inputs",
       source="q.view(B, H, T, D) in place of q.view(B, T, H, D).transpose(1, 2)")  # fmt: skip
def heads_that_cut_the_time(attach: Attach, bug: bool) -> None:
    model = Heads(cut=bug)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attach(model, optimizer)
    for x, y in windows(text(), 12):
        optimizer.zero_grad()
        next_token(model(x), y).backward()
        optimizer.step()


class Padded(nn.Module):
    """A classifier of padded sequences: attention, then the mean of what is no padding."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inverted = inverted
        self.embedding = nn.Embedding(V, 16, padding_idx=0)
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, pad = self.embedding(tokens), tokens == 0
        mixed = self.attention(x, x, x, key_padding_mask=~pad if self.inverted else pad, need_weights=False)[0]
        keep = (~pad).unsqueeze(-1).float()
        return self.out(((x + mixed) * keep).sum(1) / keep.sum(1))  # type: ignore[no-any-return]


@buggy("key_padding_mask is given the tokens to keep, and the attention sees the padding alone", "padding",
       source="key_padding_mask=(tokens != pad)")  # fmt: skip
def mask_of_padding_inverted(attach: Attach, bug: bool) -> None:
    model = Padded(bug)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attach(model, optimizer)
    draw = torch.Generator().manual_seed(1)
    for _ in range(12):
        x = torch.randint(1, V, (SIZE, T), generator=draw)
        length = torch.randint(3, T, (SIZE,), generator=draw)
        x = x.masked_fill(torch.arange(T) >= length[:, None], 0)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, 0] % 3).backward()
        optimizer.step()


class Coder(nn.Module):
    """An encoder and a decoder that the loop calls one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.encoder = nn.Embedding(V, 16), nn.GRU(16, 16, batch_first=True)
        self.mixer, self.out = nn.Linear(16, 16), nn.Linear(16, V)


def coded(attach: Attach, detached: range) -> None:
    model = Coder()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(windows(text(), 40)):
        memory = model.encoder(model.embedding(x))[0]
        if step in detached:
            memory = memory.detach()
        optimizer.zero_grad()
        next_token(model.out(torch.tanh(model.mixer(memory))), y).backward()
        optimizer.step()


@buggy("from step 12 on the decoder is given the memory that was detached for a plot", "gradient-reach", effect=12,
       source="self.memory = memory.detach(); decoder(self.memory)")  # fmt: skip
def memory_detached_in_mid_run(attach: Attach, bug: bool) -> None:
    coded(attach, range(12, 40) if bug else range(0))


@clean
def encoder_left_out_of_some_steps(attach: Attach) -> None:
    """a decoder that is trained alone in every fourth step, on a memory that is detached"""
    coded(attach, range(3, 40, 4))


class Scaled(nn.Module):
    """A residual block whose branches are scaled by zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        self.alpha = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.alpha[0] * self.up(self.norm(x)).cumsum(1)
        return x + self.alpha[1] * torch.tanh(self.down(self.second(x)))


@clean
def residual_blocks_that_start_as_nothing(attach: Attach) -> None:
    """residual blocks, all of which give at first what they are given, for their branches are scaled by zero"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 16), Scaled(), Scaled(), nn.Linear(16, V))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attach(model, optimizer)
    for x, y in windows(text(), 12):
        optimizer.zero_grad()
        next_token(model(x), y).backward()
        optimizer.step()


@clean
def language_model_under_autocast(attach: Attach) -> None:
    """a language model under autocast to bfloat16, whose gradients are rounded and whose logits all learn the same at first"""
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    attach(model, optimizer)
    for x, y in windows(text(), 40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
        next_token(logits.float(), y).backward()
        optimizer.step()


CASES = (heads_that_cut_the_time, mask_of_padding_inverted, memory_detached_in_mid_run)
CLEAN = (
    encoder_left_out_of_some_steps, residual_blocks_that_start_as_nothing, language_model_under_autocast,
)  # fmt: skip
