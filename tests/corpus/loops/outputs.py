"""The first loss, what the loss is given, branches that stay the same, and inputs without effect."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    CLASSES,
    HIDDEN,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Classifier,
    Tokens,
    adam,
    blobs,
    causal,
    fit,
    next_token,
    text,
)
from .case import Attach, Case

STEPS = 40


# -- the first loss --------------------------------------------------------------------------------------------------


def head_too_large(attach: Attach, buggy: bool) -> None:
    """The head is initialised with a standard deviation of five: the first loss is ten times ln 4."""
    model = Classifier()
    nn.init.normal_(model.head.weight, std=5.0 if buggy else 0.02)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"classes": CLASSES}):
        fit(model, optimizer, blobs(STEPS))


def tied_to_a_wide_embedding(attach: Attach, buggy: bool) -> None:
    """The embedding keeps its default standard deviation of one; tied to the head, so do the weights of the logits,
    which are sqrt(width) times too large."""
    model = Tokens(tied=True)
    nn.init.normal_(model.embedding.weight, std=1.0 if buggy else 0.02)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, text(STEPS), next_token)


# -- what the loss is given ------------------------------------------------------------------------------------------


class Ending(nn.Module):
    """A classifier with something after the logits."""

    def __init__(self, last: nn.Module, outputs: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, outputs), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.first(x).relu()))


def softmax_in_the_model(attach: Attach, buggy: bool) -> None:
    """The model ends in a softmax, the loss takes another."""
    model = Ending(nn.Softmax(dim=-1) if buggy else nn.Identity())
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def softmax_in_the_loop(attach: Attach, buggy: bool) -> None:
    """The probabilities of the report are passed on to the loss, in a language model."""
    model = Tokens()
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in text(STEPS):
            optimizer.zero_grad()
            logits = model(x)
            probabilities = logits.softmax(-1)
            next_token(probabilities if buggy else logits, y).backward()
            optimizer.step()


def sigmoid_twice(attach: Attach, buggy: bool) -> None:
    """A sigmoid in the model before the loss with logits: nothing can become less likely than a half."""
    model = Ending(nn.Sigmoid() if buggy else nn.Identity())
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            fit(model, optimizer, [(x, F.one_hot(y, CLASSES).float())], F.binary_cross_entropy_with_logits)


def nll_of_logits(attach: Attach, buggy: bool) -> None:
    """nll_loss of raw logits: the loss has no lower end."""
    model = Ending(nn.Identity() if buggy else nn.LogSoftmax(dim=-1))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS), F.nll_loss)


def softmax_over_the_batch(attach: Attach, buggy: bool) -> None:
    """log_softmax over dimension 0: the rows of the batch compete, not the classes."""
    model = Ending(nn.LogSoftmax(dim=0 if buggy else 1))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS), F.nll_loss)


def softmax_of_one(attach: Attach, buggy: bool) -> None:
    """A softmax over the one output of a binary model is always one, with no gradient."""
    model = Ending(nn.Softmax(dim=1) if buggy else nn.Sigmoid(), outputs=1)
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            fit(model, optimizer, [(x, (y < 2).float().unsqueeze(1))], F.binary_cross_entropy)


# -- twins -----------------------------------------------------------------------------------------------------------


def new_expert() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


class Branches(nn.Module):
    """Several branches side by side (n, B, CLASSES), or their mean (B, CLASSES)."""

    def __init__(self, branches: list[nn.Module], mean: bool) -> None:
        super().__init__()
        self.branches, self.mean = nn.ModuleList(branches), mean

    def forward(self, x: Tensor) -> Tensor:
        every = torch.stack([branch(x) for branch in self.branches])
        return every.mean(0) if self.mean else every


def experts_copied(attach: Attach, buggy: bool) -> None:
    """Four experts, deep copies of one: equal gradients keep them equal for good."""
    torch.manual_seed(0)
    expert = new_expert()
    model = Branches([copy.deepcopy(expert) if buggy else new_expert() for _ in range(4)], mean=True)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def members_of_one_seed(attach: Attach, buggy: bool) -> None:
    """The members of an ensemble are built by a function that sets the seed, always the same; each has its own loss."""

    def member(index: int) -> nn.Module:
        torch.manual_seed(0 if buggy else index)
        return new_expert()

    model = Branches([member(index) for index in range(3)], mean=False)
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(logits, y) for logits in model(x)]).mean().backward()
            optimizer.step()


def constant_weights(attach: Attach, buggy: bool) -> None:
    """Every weight starts at 0.1, every bias at zero: all hidden units are one unit."""
    torch.manual_seed(0)
    model = new_expert()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        elif buggy:
            nn.init.constant_(parameter, 0.1)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


class Streams(nn.Module):
    """Hyper-connections: `n` residual streams, each layer reads a weighted sum of them and writes to all.

    Read evenly and mixed evenly, the streams get equal gradients and stay one stream; read one by one, they part.
    """

    def __init__(self, even: bool, n: int = 3, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(layers))
        one_by_one = torch.eye(n)[torch.arange(layers) % n]
        self.read = nn.Parameter(torch.full((layers, n), 1 / n) if even else one_by_one)
        self.write = nn.Parameter(torch.ones(layers, n))
        self.mix = nn.Parameter((torch.full((n, n), 1 / n) if even else torch.eye(n)).repeat(layers, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        streams = self.enter(x).unsqueeze(0).repeat(self.read.shape[1], 1, 1)
        for layer, read, write, mix in zip(self.layers, self.read, self.write, self.mix, strict=True):
            update = layer(torch.einsum("n,nbd->bd", read, streams)).relu()
            streams = torch.einsum("mn,nbd->mbd", mix, streams) + write[:, None, None] * update
        return self.head(streams.mean(0))


def streams_as_one(attach: Attach, buggy: bool) -> None:
    model = Streams(even=buggy)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


# -- inputs ----------------------------------------------------------------------------------------------------------


def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that is given every position as a sequence of length one: whatever it attends to, it is itself."""
    return F.scaled_dot_product_attention(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2)).squeeze(2)


def attention_to_itself(attach: Attach, buggy: bool) -> None:
    model = Tokens(alone if buggy else causal)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, text(STEPS), next_token)


class Positioned(Tokens):
    """Positions are added to the embedding, or take its place."""

    def __init__(self, instead: bool) -> None:
        super().__init__()
        self.instead = instead

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        place = self.place[:LENGTH].expand_as(x)
        x = place if self.instead else x + place
        return self.head(self.norm(x + self.out(self.attend(*self.qkv(x).chunk(3, -1)))))


def positions_instead_of_tokens(attach: Attach, buggy: bool) -> None:
    model = Positioned(instead=buggy)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, text(STEPS), next_token)


class TwoInputs(nn.Module):
    """Two inputs side by side, cut to a width: of both, or of the first alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, self.net = width, nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat([x, context], 1)[:, : self.width])


def second_input_cut_off(attach: Attach, buggy: bool) -> None:
    """The second input is cut off before the first layer."""
    model = TwoInputs(4 if buggy else WIDTH)
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x[:, :4], x[:, 4:]), y).backward()
            optimizer.step()


class Pooled(nn.Module):
    """tokens (B, T), 0 is padding -> logits of two classes, pooled by a learned query that skips what the mask says."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inverted = inverted
        self.embedding, self.query = nn.Embedding(VOCABULARY, HIDDEN), nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.attention = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        skipped = tokens.ne(0) if self.inverted else tokens.eq(0)
        x, query = self.embedding(tokens), self.query.expand(len(tokens), 1, HIDDEN)
        return self.head(self.attention(query, x, x, key_padding_mask=skipped, need_weights=False)[0].squeeze(1))


def only_padding_is_read(attach: Attach, buggy: bool) -> None:
    """The padding mask is the wrong way round: what is read is padding, the same in every row."""
    model = Pooled(inverted=buggy)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"padding": 0}):
        for x, _ in text(STEPS):
            tokens = x.clamp(min=1)
            y = (tokens[:, :4] > VOCABULARY // 2).float().mean(1).round().long()
            lengths = 4 + torch.arange(len(x)) % 6
            tokens[torch.arange(LENGTH) >= lengths[:, None]] = 0
            fit(model, optimizer, [(tokens, y)])


def cast_to_bytes(attach: Attach, buggy: bool) -> None:
    """Features in [0, 1) are stored as bytes, which are all zero: the model sees one input."""
    model = Ending(nn.Identity())
    optimizer = adam(model)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            scaled = x.sigmoid() if not buggy else x.sigmoid().to(torch.uint8).float()
            fit(model, optimizer, [(scaled, y)])


FIRST, SOFTMAX, TWINS, INPUTS = (frozenset({slug}) for slug in ("first-loss", "softmax", "twins", "inputs"))
CASES: tuple[Case, ...] = (
    Case("head-too-large", "the head starts far too large", FIRST, 0, head_too_large, needs="classes"),
    Case("tied-to-a-wide-embedding", "logits of a tied head start far too large", FIRST, 0, tied_to_a_wide_embedding),
    Case("softmax-in-the-model", "softmax, then cross entropy", SOFTMAX, 0, softmax_in_the_model,
         "pytorch forums, perennial"),
    Case("softmax-in-the-loop", "softmax outside the model, then cross entropy", SOFTMAX, 0, softmax_in_the_loop),
    Case("sigmoid-twice", "sigmoid, then the loss with logits", SOFTMAX, 0, sigmoid_twice),
    Case("nll-of-logits", "nll_loss without log_softmax", SOFTMAX, 0, nll_of_logits),
    Case("softmax-over-the-batch", "log_softmax over the batch", SOFTMAX | {"batch-independence"}, 0,
         softmax_over_the_batch),
    Case("softmax-of-one", "softmax over a single output", SOFTMAX | {"collapse"}, 0, softmax_of_one),
    Case("experts-copied", "experts are copies of one", TWINS, 0, experts_copied),
    Case("members-of-one-seed", "members of an ensemble start from one seed", TWINS | {"seeds"}, 0,
         members_of_one_seed),
    Case("constant-weights", "all hidden units start equal", TWINS, 0, constant_weights),
    Case("streams-as-one", "residual streams stay identical", TWINS, 0, streams_as_one),
    Case("attention-to-itself", "attention sees sequences of length one", INPUTS, 0, attention_to_itself),
    Case("positions-instead-of-tokens", "positions overwrite the embedding", INPUTS | {"gradient-reach"}, 0,
         positions_instead_of_tokens),
    Case("second-input-cut-off", "an input is cut off", INPUTS, 0, second_input_cut_off),
    Case("only-padding-is-read", "the padding mask is inverted", INPUTS | {"padding", "collapse"}, 0,
         only_padding_is_read, needs="padding"),
    Case("cast-to-bytes", "features become zero on the way", INPUTS | {"collapse"}, 0, cast_to_bytes),
)  # fmt: skip
