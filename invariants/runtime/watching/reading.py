"""What the gradient at the logits tells of the loss: whether it is a cross-entropy of them, of which targets, and how weighted.

For cross-entropy over class indices the gradient of row i is w_i (softmax(logits_i) - onehot(target_i)): its smallest entry is
at the target, and w_i is the row's weight in the loss. With label smoothing e the one-hot row becomes (1 - e) onehot + e / C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST, MOST_LATER = 1 << 19, 1 << 16
"""Elements of the logits that are read, in the first steps and every K, and at later looks; beyond, the first samples, and of
one that is longer its first positions."""
LEAST_ROWS = 4
TELLING = 0.998
"""Where every row is as good as certain of a class, a margin loss has the same gradient: at least one is not."""
SHARP = 1e-3
"""A row in which 1 - p is below this for some class has a gradient too small to be told from rounding."""


@dataclass(frozen=True)
class Reading:
    """Rows are (B,), (B, T) or what the classes leave of the logits. targets: -1 where a row does not count.

    probabilities: softmax of the logits. weights: 0 where a row does not count. rows, counted: of all logits, also where only
    a part of them was read. share: the sum of all weights: 1 for a mean; None where it cannot be told.
    """

    logits: Tensor
    probabilities: Tensor
    targets: Tensor
    weights: Tensor
    smoothing: float
    rows: int
    counted: int
    uniform: bool
    share: float | None
    half: bool
    """Whether the gradient is of float16, which is hardly used without a scaled loss."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits.shape[-1]

    @property
    def counts(self) -> Tensor:
        """Whether a row counts."""
        return self.targets >= 0

    @property
    def loss(self) -> float:
        """The mean cross-entropy of the rows that count, in nats."""
        chosen = self.logits.log_softmax(-1).gather(-1, self.targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return -float(chosen[self.counts].mean())

    @property
    def against_each_other(self) -> bool:
        """Whether the classes are the samples themselves, as of a contrastive loss."""
        if self.targets.ndim != 1 or self.rows != self.classes:
            return False
        return bool((self.targets == torch.arange(len(self.targets), device=self.targets.device)).all())


def read(output: Tensor, gradient: Tensor, most: int = MOST) -> Reading | None:
    """The reading, with the classes last or second; None where the gradient is not that of such a cross-entropy."""
    if output.shape != gradient.shape or output.ndim < 2 or not output.numel():
        return None
    found = _read(output, gradient, most)
    if found is None and output.ndim > 2:
        found = _read(output.movedim(1, -1), gradient.movedim(1, -1), most)
    return found


def _read(output: Tensor, gradient: Tensor, most: int) -> Reading | None:
    if output.shape[-1] < 2:
        return None
    x, g = part(output, most).double(), part(gradient, most).double()
    rough = tolerance(gradient.dtype)
    if not _finite(x, g):
        return None
    sizes = g.abs()
    size, total = sizes.amax(-1), sizes.sum(-1)
    alive = size > 0
    if int(alive.sum()) < LEAST_ROWS:
        return None
    p = x.softmax(-1)
    at_target = p.gather(-1, g.argmin(-1, keepdim=True)).squeeze(-1)
    soft = alive & (at_target < 1 - SHARP)
    if int(soft.sum()) < LEAST_ROWS or not bool((soft & (p.amax(-1) < TELLING)).any()):
        return None
    if bool((g.sum(-1).abs() > (rough + 1e-4) * total)[soft].any()):
        return None
    fitted = _fit(p, g, size, soft, rough, 0.0)
    smoothing = 0.0
    if fitted is None:
        smoothing = _smoothing(p, g, soft)
        fitted = _fit(p, g, size, soft, rough, smoothing) if smoothing else None
    if fitted is None:
        return None
    target, weight = fitted
    counts, unsure = alive, ~alive & (p.amax(-1) >= 1 - SHARP)
    w = weight[soft]
    spread = float(w.max() - w.min()) / float(w.max())
    uniform = spread <= 20 * rough
    if output.shape[-1] == 2 and not (uniform and float(p[soft][:, 0].std()) > 1e-3):
        return None  # two classes: any loss of the difference of the logits has this form, with weights that vary
    whole = x.numel() == output.numel()
    counted = int(counts.sum()) if whole else int(gradient.any(-1).sum())
    share = None
    if not bool(unsure.any()):
        share = float(w.median()) * counted if uniform else (float(weight[counts].sum()) if whole else None)
    return Reading(
        x, p, torch.where(counts, target, -1), torch.where(counts, weight, 0.0), smoothing,
        output[..., 0].numel(), counted, uniform, share, gradient.dtype is torch.float16,
    )  # fmt: skip


def _finite(*tensors: Tensor) -> bool:
    """Whether all numbers are finite; in double precision the sum of some that are does not overflow."""
    return math.isfinite(sum(float(t.sum()) for t in tensors))


def _fit(
    p: Tensor, g: Tensor, size: Tensor, soft: Tensor, rough: float, smoothing: float
) -> tuple[Tensor, Tensor] | None:
    """Targets and weights under which every row has the form, to rounding; None where one does not."""
    target = g.argmin(-1)
    d = p - smoothing / p.shape[-1] if smoothing else p.clone()
    d.scatter_add_(-1, target.unsqueeze(-1), torch.full_like(d[..., :1], smoothing - 1))
    weight = torch.linalg.vecdot(g, d) / torch.linalg.vecdot(d, d).clamp_min(1e-300)
    rest = torch.addcmul(g, weight.unsqueeze(-1), d, value=-1).abs_().amax(-1)
    fits = (rest <= rough * size + 1e-6 * weight.abs()) & (weight > 0)
    return (target, weight) if bool(fits[soft].all()) else None


def read_squashed(output: Tensor, gradient: Tensor) -> bool:
    """Whether the gradient is that of a cross-entropy of the softmax of the outputs: a softmax of a softmax."""
    if output.shape != gradient.shape or output.ndim < 2 or output.shape[-1] < 3:
        return False
    x, g = part(output).double(), part(gradient).double()
    alive = g.any(-1)
    x, g = x[alive], g[alive]
    if len(x) < LEAST_ROWS or not bool(x.isfinite().all() & g.isfinite().all()):
        return False
    p = x.softmax(-1)
    ranked = p.sort(-1, descending=True).values
    telling = (ranked[:, 2] > 0.02) & (ranked[:, 0] - ranked[:, -1] > 0.02)  # rows of one or two classes fit anything
    if int(telling.sum()) < LEAST_ROWS:
        return False
    p, g = p[telling], g[telling]
    d = p.softmax(-1)
    d.scatter_add_(-1, g.argmin(-1, keepdim=True), torch.full_like(d[..., :1], -1.0))
    d = p * (d - (p * d).sum(-1, keepdim=True))
    weight = (g * d).sum(-1) / (d * d).sum(-1).clamp_min(1e-300)
    rest = (g - weight.unsqueeze(-1) * d).abs().amax(-1)
    rough = tolerance(gradient.dtype)
    return bool(((rest <= 3 * rough * g.abs().amax(-1)) & (weight > 0)).all())


def _smoothing(p: Tensor, g: Tensor, soft: Tensor) -> float:
    """The label smoothing that the rows agree on, from the entries beside the target; 0 where there is none."""
    if p.shape[-1] < 3:
        return 0.0
    p, g = p[soft], g[soft]
    beside = torch.ones_like(p).scatter_(-1, g.argmin(-1, keepdim=True), 0.0)
    count = p.shape[-1] - 1
    mean_p, mean_g = (p * beside).sum(-1) / count, (g * beside).sum(-1) / count
    dp = (p - mean_p.unsqueeze(-1)) * beside
    spread = (dp * dp).sum(-1)
    told = spread > 1e-8
    if int(told.sum()) < LEAST_ROWS:
        return 0.0
    weight = ((g * dp).sum(-1) / spread.clamp_min(1e-300))[told]
    smoothing = (mean_p[told] - mean_g[told] / weight) * p.shape[-1]
    middle = float(smoothing.median())
    return middle if 1e-3 < middle < 0.95 and bool(((smoothing - middle).abs() < 0.02).double().mean() > 0.9) else 0.0


def part(tensor: Tensor, most: int = MOST) -> Tensor:
    """The whole of it, or its first samples, or of a sample that is too large its first positions."""
    if tensor.numel() <= most:
        return tensor
    each = tensor[0].numel()
    if each <= most or tensor.ndim < 3:
        return tensor[: max(1, most // each)]
    return tensor[:1, : max(2, most // tensor[0, 0].numel())]


def tolerance(dtype: torch.dtype) -> float:
    """How far an entry may be off, over the largest of its row."""
    return {torch.bfloat16: 1.6e-2, torch.float16: 4e-3}.get(dtype, 1e-4)


def simplex(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether every row is of probabilities, with some that are not all equal."""
    off = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    if float(x.min()) < 0 or float(x.max()) > 1 or float((x.sum(-1) - 1).abs().max()) > off:
        return False
    return float((x.amax(-1) - x.amin(-1)).max()) > 0.02


@dataclass(frozen=True)
class BinaryReading:
    """Of one logit each: targets 0 or 1, and the weight of each class; NaN where a class does not occur."""

    logits: Tensor
    targets: Tensor
    weights: tuple[float, float]


def read_binary(output: Tensor, gradient: Tensor) -> BinaryReading | None:
    """Of a gradient w (sigmoid(x) - y) with y in {0, 1} and one weight to each y; None where it is not of this form."""
    x, g = part(output).double().flatten(), part(gradient).double().flatten()
    if not (bool(x.isfinite().all()) and bool(g.isfinite().all())):
        return None
    kept = (g != 0) & (x.abs() < 8)
    x, g = x[kept], g[kept]
    if len(x) < 2 * LEAST_ROWS or float(x.std()) < 1e-3:
        return None
    positive, s = g < 0, x.sigmoid()
    weight = torch.where(positive, -g / (1 - s), g / s)
    rough, told = 20 * tolerance(gradient.dtype), []
    for side in (~positive, positive):
        w = weight[side]
        if len(w) and float(w.max() - w.min()) > rough * float(w.max()):
            return None
        if len(w) > 1 and float(x[side].std()) < 1e-3:
            return None
        told.append(float(w.median()) if len(w) else float("nan"))
    return BinaryReading(x, positive.long(), (told[0], told[1]))
