"""What attention is told to leave out, beside where the padding of its inputs is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from karat.invariants.run.run40_padding import RULE as PADDING
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.watching.replay import Replay

RULE = Says(PADDING)
MOST_MASKS = 16


def reversed_masks(replay: Replay, masks: Iterable[Tensor]) -> Outcome:
    """Whether some attention leaves out just what is no padding: a mask of keys to keep, given where those to leave are
    meant, or the other way round."""
    seen = list(masks)[:MOST_MASKS]
    if not seen:
        raise NotRun("no attention with a mask of keys was seen")
    pads = {m.padding_idx for m in replay.model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None}
    pads |= {replay.spec.padding} if replay.spec.padding is not None else set()
    tokens = [t for t in replay.captured.inputs.values() if t.ndim == 2 and not t.is_floating_point()]
    compared = 0
    for t in tokens:
        for pad in pads:
            padding = t == pad
            if not bool(padding.any()) or not bool((~padding).any()):
                continue
            fitting = [mask for mask in seen if mask.shape == t.shape and mask.device == t.device]
            compared += len(fitting)
            wrong = sum(bool(torch.equal(mask, ~padding)) for mask in fitting)
            if wrong:
                message = (
                    f"the attention leaves out all {int((~padding).sum())} tokens of the batch, and looks at its "
                    f"{int(padding.sum())} positions of padding alone: the mask is inverted"
                )
                evidence = f"in {wrong} of {len(fitting)} calls the keys left out are those whose token is not {pad}"
                return [RULE.warn(message, "mask", margin=RULE.margin(int(padding.sum()), 0), evidence=evidence)]
    if not compared:
        raise NotRun("no token of padding is known: Spec(padding=…), or padding_idx of an embedding")
    return Held("the attention does not leave out what is no padding")
