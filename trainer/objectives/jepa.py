"""T-JEPA: features of hidden spans, as a slow copy of the encoder sees them, predicted from what is left of the text.

    masks       exactly round(ratio · T) tokens of every row, in spans, by (seed, step): `jepa_masks`
    online      the model that is trained, with a learned vector in the place of every masked token
    target      an exponential moving average of it, on the whole text, without gradient: `jepa_target`
    predictor   cross-attention from the masked places to the online features of the visible ones: `jepa_predictor`
    loss        mean squared error per element to the layer-normalised target features: 1 for predicting nothing

Both encoders keep their causal masks: the features that are trained are the ones that the next-token head reads, with
one set of weights and one way of running. A visible feature so knows what is visible up to its place; the predictor
looks at visible places on both sides. A target is a function of the text up to its place, hidden token included.
Source: I-JEPA, Assran et al. 2023, arXiv 2301.08243; the seed's T-JEPA (ratio 0.30, spans of 3 to 9, weight 0.25),
whose mask ignored its ratio, whose predictor read the target, and whose loss reached no encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from karat.core.formulas import ema
from karat.invariants.inv02_asha_threshold import as_written
from karat.invariants.inv06_ema_decay import Averaging
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa_collapse import TINY, FeatureSpread, feature_spread, spread_penalty
from karat.trainer.objectives.jepa_masks import Spans
from karat.trainer.objectives.jepa_predictor import Predictor
from karat.trainer.objectives.jepa_target import TargetEncoder


class JepaConfig(BaseModel):
    """Lengths in tokens, widths in units, steps in optimizer steps; weights are factors of a term of the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    enabled: bool = Field(default=False, description="train with the JEPA objective")
    weight: float = Field(default=0.25, ge=0, allow_inf_nan=False, description="of the objective in the loss")
    ratio: float = Field(
        default=0.3, gt=0, lt=1, allow_inf_nan=False, description="share of the tokens that is masked, in every row"
    )
    span_low: int = Field(default=3, ge=1, description="shortest span")
    span_high: int = Field(default=9, ge=1, description="longest span")
    heads: int = Field(default=4, ge=1, description="attention heads of the predictor; divides width")
    layers: int = Field(default=2, ge=1, description="blocks of the predictor")
    width: int = Field(default=128, ge=2, description="width of the predictor")
    ema_start: float = Field(
        default=0.996, ge=0, lt=1, allow_inf_nan=False, description="decay of the target's first update"
    )
    ema_end: float = Field(
        default=1.0, gt=0, le=1, allow_inf_nan=False, description="decay of the target at the end of the run"
    )
    hull_every: int = Field(default=50, ge=1, description="updates between two comparisons of the target with its hull")
    warmup: int = Field(default=100, ge=0, description="steps in which the weight rises to its value; 0: none")
    variance_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="of the variance penalty")
    covariance_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="of the covariance penalty")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.span_low > self.span_high:
            raise ValueError(f"span_low must be at most span_high, got {self.span_low} and {self.span_high}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                "width / heads must be an even integer, since RoPE turns pairs of coordinates, got width = "
                f"{self.width} and heads = {self.heads}"
            )
        if not self.ema_start < self.ema_end or not self._decay_can_rise():
            raise ValueError(
                "ema_start must be below ema_end, with two float64 numbers between them, got "
                f"{self.ema_start} and {self.ema_end}"
            )
        return self

    def _decay_can_rise(self) -> bool:
        low, high = self.averaging.ends
        return low < high

    @property
    def averaging(self) -> Averaging:
        """The declared decay of the target as exact decimals, for INV-6."""
        return Averaging(as_written(self.ema_start), as_written(self.ema_end), self.hull_every)

    @property
    def spans(self) -> Spans:
        """The masks that are declared."""
        return Spans(self.ratio, self.span_low, self.span_high)

    def weight_at(self, step: int) -> float:
        """The weight of step `step` (from 0): weight · (step + 1) / warmup, and `weight` from the end of warmup on."""
        return self.weight * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True)
class JepaOutput:
    """What the objective gives; 0-dim tensors, without gradient unless said otherwise."""

    loss: Tensor
    """weight · (prediction_term + penalty), with gradient; the weight is that of the step."""
    prediction_term: Tensor
    """Mean squared error per element, with gradient, unweighted."""
    penalty: Tensor
    """Variance and covariance penalties by their own weights, with gradient; 0 where both weights are 0."""
    explained: Tensor
    """1 - error / variance of the targets over places: 0 for the best constant, 1 for perfection."""
    online: FeatureSpread
    """Of the online features at visible places."""
    target: FeatureSpread
    """Of the target features at masked places."""
    masked: int
    """Tokens that were masked in every row."""

    @property
    def collapsed(self) -> bool:
        """Whether the online or the target features are below a floor at this step; `CollapseWatch` says for how long."""
        return self.online.collapsed or self.target.collapsed


class Prediction(NamedTuple):
    """Predicted features at the masked places (B, M, D), those places (B, M), online features at visible places."""

    predicted_BMD: Tensor
    masked_BM: Tensor
    seen_BVD: Tensor


class JepaObjective(nn.Module):
    """The parts that the objective adds to a model: mask embedding, predictor, target encoder.

    Build it after the model is on its device: the target follows the weights where they lie. steps: of the run, over
    which the target's decay rises. seed: of the masks. ConfigError where no mask of this shape fits the model's context.
    After each optimizer step call `update_target(step)`. `mask_embedding` and `predictor` are trained with the model;
    the target's weights want no gradient. The state_dict holds all three and what INV-6 reads.
    """

    def __init__(self, model: Transformer, config: JepaConfig | None = None, *, steps: int, seed: int) -> None:
        super().__init__()
        self.config = JepaConfig() if config is None else config
        self.steps, self.seed = steps, seed
        self.config.spans.plan(model.config.context)
        embedding = model.embedding.weight.detach()
        self.mask_embedding = nn.Parameter(torch.randn(embedding.shape[-1]) * float(embedding.std()))
        shape = self.config
        self.predictor = Predictor(embedding.shape[-1], width=shape.width, heads=shape.heads, layers=shape.layers)
        self.to(embedding.device)
        first, _ = shape.averaging.ends
        self.target = TargetEncoder(model, self.decay, every=shape.hull_every, first=first)

    def forward(self, model: Transformer, tokens_BT: Tensor, step: int) -> JepaOutput:
        """The loss of step `step` (from 0) on tokens (B, T). `model` is the one that this was built with."""
        self.target.require_follows(model)
        predicted_BMD, masked_BM, seen_BVD = self.predict(model, tokens_BT, self.masks(tokens_BT, step))
        whole_BTD = self.target(tokens_BT).float()
        target_BMD = _at(F.layer_norm(whole_BTD, whole_BTD.shape[-1:]), masked_BM)
        error = F.mse_loss(predicted_BMD.float(), target_BMD)
        seen_RD = seen_BVD.flatten(0, 1)
        penalty = error.new_zeros(())
        if self.config.variance_weight or self.config.covariance_weight:
            penalty = spread_penalty(seen_RD, self.config.variance_weight, self.config.covariance_weight)
        return JepaOutput(
            loss=self.config.weight_at(step) * (error + penalty),
            prediction_term=error,
            penalty=penalty,
            explained=1 - error.detach() / target_BMD.var((0, 1), correction=0).mean().clamp_min(TINY),
            online=feature_spread(seen_RD.detach()),
            target=feature_spread(target_BMD.flatten(0, 1)),
            masked=masked_BM.shape[1],
        )

    def masks(self, tokens_BT: Tensor, step: int) -> Tensor:
        """(B, T), true where masked: a function of (seed, step) and the shape alone."""
        rows, length = tokens_BT.shape
        mask = self.config.spans.masks(rows, length, seed=self.seed, step=step)
        return torch.from_numpy(mask).to(tokens_BT.device)

    def predict(self, model: Transformer, tokens_BT: Tensor, mask_BT: Tensor) -> Prediction:
        """Predictions under a mask with equally many masked tokens in every row; no masked token is looked at."""
        hidden_BTD = masked_features(model, tokens_BT, mask_BT, self.mask_embedding)
        masked_BM, visible_BV = _places(mask_BT), _places(~mask_BT)
        seen_BVD = _at(hidden_BTD, visible_BV)
        return Prediction(self.predictor(masked_BM, visible_BV, seen_BVD), masked_BM, seen_BVD)

    def decay(self, step: int) -> float:
        """The decay of the target's update after optimizer step `step` (from 0), by the proved formula."""
        return float(ema.decay_at(step, self.steps, *self.config.averaging.ends))

    def update_target(self, step: int) -> None:
        """Moves the target towards the model; call it after optimizer step number `step`."""
        self.target.follow(step)


def masked_features(model: Transformer, tokens_BT: Tensor, mask_BT: Tensor, mask_embedding_D: Tensor) -> Tensor:
    """(B, T, D): the model's features with the embedding of every masked token replaced, its content never passed in."""

    def replace(module: nn.Module, arguments: tuple[Tensor, ...], embedded_BTD: Tensor) -> Tensor:
        return torch.where(mask_BT[..., None], mask_embedding_D.to(embedded_BTD.dtype), embedded_BTD)

    handle = model.embedding.register_forward_hook(replace)
    try:
        hidden: Tensor = model(tokens_BT.masked_fill(mask_BT, 0)).hidden_BTD
    finally:
        handle.remove()
    return hidden


def _places(chosen_BT: Tensor) -> Tensor:
    """(B, N): the positions that are true, in order; equally many in every row."""
    return chosen_BT.nonzero()[:, 1].view(len(chosen_BT), -1)


def _at(features_BTD: Tensor, places_BN: Tensor) -> Tensor:
    return features_BTD.gather(1, places_BN[..., None].expand(-1, -1, features_BTD.shape[-1]))
