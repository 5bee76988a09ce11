"""Bits per byte on the validation split: every token but the first predicted once, nothing smoothed, no minimum taken.

A token may stand for several bytes. Then the nats of all targets are divided by the bytes that those targets stand
for, counted one by one: the number is that of bytes, whatever the tokenizer, and two runs with different tokens can
be compared. The first token is given, so its bytes are in neither sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from karat.trainer.data.baseline import trigram_bpb
from karat.trainer.data.batches import Ids, validation_windows
from karat.trainer.data.corpus import Corpus
from karat.trainer.data.synthetic import KINDS
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.next_token import head_loss

EVALUATION_BATCH = 32


class Interrupted(Exception):
    """A signal asked the run to end; what was done is in a checkpoint."""


@dataclass(frozen=True)
class Validation:
    """The tokens that a run is judged on, and how to say which they are.

    total: bytes of the whole split; of synthetic data, tokens. lengths: the bytes that each token of the vocabulary
    stands for; None where each counts as one. row: tokens of a sequence, where the split is sequences of its own (the
    first token of each is given); None for one text.
    """

    tokens: Ids
    total: int
    lengths: npt.NDArray[np.int64] | None = None
    row: int | None = None

    @property
    def size(self) -> int:
        """Bytes that the tokens stand for, the given ones included; of synthetic data, tokens."""
        return self._bytes(self.tokens)

    @property
    def given(self) -> int:
        """Bytes that are given and not predicted: those of the first token, or a token of each sequence."""
        return self._bytes(self.tokens[:1]) if self.row is None else len(self.tokens) // self.row

    @property
    def target_bytes(self) -> int:
        """Bytes that all targets stand for: what the nats are divided by."""
        return self.size - self.given

    @property
    def text(self) -> str:
        """`all 111,540 bytes of the validation split`, or which part, and which of them are given."""
        unit = "bytes" if self.row is None else "tokens"
        part = (
            f"all {self.total:,} {unit} of the validation split"
            if self.size == self.total
            else f"the first {self.size:,} of {self.total:,} {unit} of the validation split"
        )
        if self.row is not None:
            return f"{part}; the first of {self.row:,} of a sequence is given"
        if self.lengths is None:
            return part
        return f"{part}; the first token, {self.given} byte{'' if self.given == 1 else 's'}, is given"

    def of_kind(self, kind: int) -> Validation:
        """The sequences of one kind of a synthetic split."""
        assert self.row is not None
        tokens = self.tokens.reshape(-1, self.row)[kind :: len(KINDS)].ravel()
        return replace(self, tokens=tokens, total=len(tokens))

    def _bytes(self, tokens: Ids) -> int:
        return len(tokens) if self.lengths is None else int(self.lengths[tokens].sum())


def validation_part(corpus: Corpus, limit: int | None) -> Validation:
    """The first `limit` bytes of the split, all of it when None or longer; whole tokens and whole sequences only.

    A limit that cuts through a token leaves it out, but two tokens, or a sequence of each kind, there are at least.
    """
    tokens, total = corpus.validation, len(corpus.validation)
    if corpus.synthetic is not None:
        row = corpus.synthetic.row
        three = row * len(KINDS)
        kept = total if limit is None else min(total, max(1, limit // three) * three)
        return Validation(tokens[:kept], total, row=row)
    if corpus.tokenizer is None:
        return Validation(tokens if limit is None else tokens[:limit], total)
    lengths = corpus.tokenizer.lengths
    ends = np.cumsum(lengths[tokens])
    kept = total if limit is None else max(2, int(np.searchsorted(ends, limit, side="right")))
    return Validation(tokens[:kept], int(ends[-1]), lengths)


@torch.no_grad()
def bits_per_byte(
    model: Transformer, validation: Validation, context: int, go_on: Callable[[], bool] = lambda: True
) -> float:
    """Nats of all targets over ln 2 over the bytes that they stand for; Interrupted when go_on() turns false."""
    nats = 0.0
    model.eval()
    try:
        windows = validation_windows(validation.tokens, context, EVALUATION_BATCH, validation.row is not None)
        for inputs, targets in windows:
            if not go_on():
                raise Interrupted
            output = model(torch.from_numpy(inputs))
            loss = head_loss(output.hidden_BTD, output.head_VD, torch.from_numpy(targets))
            nats += float(loss) * targets.size
    finally:
        model.train()
    return nats / validation.target_bytes / math.log(2)


def nats_by_kind(
    model: Transformer, validation: Validation, context: int, go_on: Callable[[], bool] = lambda: True
) -> dict[str, float]:
    """The loss in nats per token of each kind of synthetic sequence; empty for a text."""
    if validation.row is None:
        return {}
    parts = {name: validation.of_kind(kind) for kind, name in enumerate(KINDS)}
    return {name: bits_per_byte(model, part, context, go_on) * math.log(2) for name, part in parts.items()}


def baseline_bpb(corpus: Corpus, validation: Validation) -> float | None:
    """The byte-trigram model on the very bytes that the run is scored on; None where tokens stand for no bytes."""
    if corpus.synthetic is not None:
        return None
    return trigram_bpb(corpus.train_text, corpus.validation_text[: validation.size], validation.given)
