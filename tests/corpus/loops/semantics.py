"""What an output may depend on: the future, and the other rows of the batch. Modes and dropout are in modes.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    CLASSES,
    HIDDEN,
    VOCABULARY,
    WIDTH,
    Attend,
    Classifier,
    Tokens,
    adam,
    blobs,
    fit,
    next_token,
    sequences,
    text,
)
from .case import Attach, Case

STEPS = 40
Run = Callable[[Attach, bool], None]


# -- causality -------------------------------------------------------------------------------------------------------


def language_model(wrong: Callable[[], nn.Module], right: Callable[[], nn.Module] = Tokens) -> Run:
    """The loop of a language model declared causal."""

    def run(attach: Attach, buggy: bool) -> None:
        model = wrong() if buggy else right()
        optimizer = adam(model)
        with attach(model, optimizer, spec={"causal": True}):
            fit(model, optimizer, text(STEPS), next_token)

    return run


def attending(attend: Attend) -> Callable[[], nn.Module]:
    return lambda: Tokens(attend)


def without_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def mask_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask of what to leave out, where the function wants what to keep; the diagonal was added to avoid NaN."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(q.shape[1], q.shape[1]).triu().bool())


def mask_off_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(q.shape[1], q.shape[1]).tril(1).bool())


def mask_added_as_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask of ones and zeros given as floats is added to the scores: the future is only less likely."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(q.shape[1], q.shape[1]).tril())


def mask_after_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scores are masked after the softmax: the future is not read, but it is in the normaliser."""
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return weights.tril() @ v


def heads_by_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads split by shape alone, without a transpose, and merged with one: a head is a stretch of positions."""
    rows, positions, width = q.shape
    split = [t.reshape(rows, 4, positions, width // 4) for t in (q, k, v)]
    return F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).reshape(rows, positions, width)


def heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, positions, width = q.shape
    split = [t.view(rows, positions, 4, width // 4).transpose(1, 2) for t in (q, k, v)]
    return F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).reshape(rows, positions, width)


class Convolution(nn.Module):
    """tokens -> logits through one convolution of width three, padded on the left or on both sides, and a norm."""

    def __init__(self, pad: tuple[int, int] = (2, 0), over_time: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad, self.over_time = pad, over_time
        self.embedding, self.mix = nn.Embedding(VOCABULARY, HIDDEN), nn.Conv1d(HIDDEN, HIDDEN, 3, bias=False)
        self.norm = nn.GroupNorm(1, HIDDEN) if over_time else nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.mix(F.pad(self.embedding(tokens).transpose(1, 2), self.pad))
        x = self.norm(x).transpose(1, 2) if self.over_time else self.norm(x.transpose(1, 2))
        return self.head(x.relu())


def decoder_not_shifted(attach: Attach, buggy: bool) -> None:
    """The decoder is given the very tokens it has to say; they should come one later, after a first token 0."""
    model = Tokens()
    optimizer = adam(model)
    with attach(model, optimizer):
        for _, y in text(STEPS):
            given = y if buggy else F.pad(y[:, :-1], (1, 0))
            fit(model, optimizer, [(given, y)], next_token)


# -- batch independence ----------------------------------------------------------------------------------------------


class OverSequences(nn.Module):
    """x (B, T, WIDTH) -> logits (B, CLASSES), through `mix`, which keeps the shape, and the mean over positions."""

    def __init__(self, mix: nn.Module, bug: bool) -> None:
        super().__init__()
        self.bug, self.mix = bug, mix
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.mix, nn.MultiheadAttention):
            y = self.mix(x, x, x, need_weights=False)[0]
        elif self.bug:  # (B, T) and (T, B) have the same number of rows, so a reshape raises nothing
            y = self.mix(x.reshape(x.shape[1], x.shape[0], WIDTH))[0].reshape(x.shape)
        else:
            y = self.mix(x.transpose(0, 1))[0].transpose(0, 1)
        return self.head((x + y).mean(1))


def independent_rows(attach: Attach, model: nn.Module) -> None:
    optimizer = adam(model)
    with attach(model, optimizer, spec={"batch_independent": True}):
        fit(model, optimizer, sequences(STEPS))


def batch_first_forgotten(attach: Attach, buggy: bool) -> None:
    """nn.MultiheadAttention takes positions first unless told: it attends from row to row of the batch."""
    torch.manual_seed(0)
    independent_rows(attach, OverSequences(nn.MultiheadAttention(WIDTH, 2, batch_first=not buggy), buggy))


def reshaped_not_transposed(attach: Attach, buggy: bool) -> None:
    """Positions are brought to the front for a recurrent net with reshape: rows of the batch are read one after
    another."""
    torch.manual_seed(0)
    independent_rows(attach, OverSequences(nn.GRU(WIDTH, WIDTH), buggy))


class Centred(nn.Module):
    """Subtracts a mean: over the features, or over the batch."""

    def __init__(self, over: int) -> None:
        super().__init__()
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.over, keepdim=True)


def of_rows(attach: Attach, buggy: bool, wrong: nn.Module, right: nn.Module) -> None:
    model = Classifier(norm=wrong if buggy else right)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"batch_independent": True}):
        fit(model, optimizer, blobs(STEPS))


def centred_over_the_batch(attach: Attach, buggy: bool) -> None:
    """The mean is taken over dimension 0, in evaluation as well."""
    of_rows(attach, buggy, Centred(0), Centred(1))


def batch_norm_undeclared(attach: Attach, buggy: bool) -> None:
    """A batch norm in a model whose rows are declared not to see each other (a contrastive one)."""
    of_rows(attach, buggy, nn.BatchNorm1d(HIDDEN), nn.LayerNorm(HIDDEN))


CAUSAL, ROWS = frozenset({"causality"}), frozenset({"batch-independence"})
PAST, APART = "causal", "batch_independent"
CASES: tuple[Case, ...] = (
    Case("without-mask", "attention without a mask", CAUSAL, 0, language_model(attending(without_mask)), needs=PAST),
    Case("mask-transposed", "the mask keeps the future", CAUSAL, 0, language_model(attending(mask_transposed)),
         needs=PAST),
    Case("mask-off-by-one", "the mask lets the next position in", CAUSAL, 0, language_model(attending(mask_off_by_one)),
         needs=PAST),
    Case("mask-added", "ones and zeros are added to the scores", CAUSAL, 0,
         language_model(attending(mask_added_as_numbers)), needs=PAST),
    Case("mask-after-softmax", "the future is in the normaliser", CAUSAL, 0,
         language_model(attending(mask_after_softmax)), needs=PAST),
    Case("heads-by-view", "heads are split across positions", CAUSAL, 0,
         language_model(attending(heads_by_view), attending(heads)), needs=PAST),
    Case("convolution-both-sides", "a convolution padded on both sides", CAUSAL, 0,
         language_model(lambda: Convolution((1, 1)), Convolution), needs=PAST),
    Case("norm-over-time", "a group norm over all positions", CAUSAL, 0,
         language_model(lambda: Convolution(over_time=True), Convolution), needs=PAST),
    Case("decoder-not-shifted", "the input of the decoder is its target", CAUSAL | {"targets"}, 0,
         decoder_not_shifted),
    Case("batch-first-forgotten", "attention from row to row of the batch", ROWS, 0, batch_first_forgotten,
         needs=APART),
    Case("reshaped-not-transposed", "reshape where transpose was meant", ROWS, 0, reshaped_not_transposed,
         needs=APART),
    Case("centred-over-the-batch", "a mean over the wrong dimension", ROWS, 0, centred_over_the_batch, needs=APART),
    Case("batch-norm-undeclared", "a batch norm where rows are independent", ROWS, 0, batch_norm_undeclared,
         needs=APART),
)  # fmt: skip
