"""A decoder-only transformer, one family: pre-norm, tied head; positions, activation, streams and formats by configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.trainer.models.attention import Attention, Sample
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.context_features import ContextFeatures
from karat.trainer.models.dynamic_streams import DynamicStreams, sublayer_input, updated, worst_token
from karat.trainer.models.feedforward import FeedForward
from karat.trainer.models.gf16_linear import GF16Linear
from karat.trainer.models.normalization import Norm
from karat.trainer.models.residual import ResidualStreams, collapse, expand, mix_and_add, spread
from karat.trainer.models.starts import start_of
from karat.trainer.models.ternary_linear import Sample as TernarySample
from karat.trainer.models.ternary_linear import TernaryLinear


def float32() -> torch.autocast:
    """Out of autocast: the residual streams are kept and mixed in the precision of the weights."""
    return torch.autocast("cpu", enabled=False)


@dataclass(frozen=True)
class Output:
    """What one forward pass gives; shapes by suffix: B sequences, T tokens, D width, V vocabulary."""

    hidden_BTD: Tensor
    """After the final norm: what the head reads, and what auxiliary objectives read."""
    head_VD: Tensor
    """The head's weight, which is the embedding's: logits = hidden · headᵀ."""
    stream_spread: Tensor | None
    """Largest relative difference between streams at the last layer, 0-dim, detached; None for one."""
    mixing_SNN: Tensor | None
    """The residual mixing matrices of the S = 2 n_layers sublayers, detached; None for one stream. Where they depend on
    the token: those of the token with the worst one."""

    @cached_property
    def logits_BTV(self) -> Tensor:
        """The scores of all tokens, with gradient: made when first asked for. Training takes the loss without them."""
        return F.linear(self.hidden_BTD, self.head_VD)


class Sublayer(nn.Module):
    """F(norm(x)): a norm and the attention or feed-forward behind it, (B, T, D) -> (B, T, D), dropped out in training."""

    def __init__(self, config: ModelConfig, body: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, start_of(config).sublayer_gain, config.norm)
        self.body = body
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        y: Tensor = self.body(self.norm(x_BTD))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class Transformer(nn.Module):
    """tokens (B, T) of int64 -> Output, T <= context. The first loss is ln(vocab) to within 0.1 nats (vocab >= 64).

    The tied head cannot start by predicting its own input, because the logits start small (see `starts`). The seed's
    run did, with an embedding of deviation 1 and gain 1: first loss 173.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.d_model)
        start = start_of(config)
        nn.init.normal_(self.embedding.weight, std=start.embedding)
        self.positions_TD: nn.Parameter | None = None
        if config.positions == "learned":
            self.positions_TD = nn.Parameter(torch.empty(config.context, config.d_model))
            nn.init.normal_(self.positions_TD, std=start.embedding)
        self.features: ContextFeatures | None = None
        if config.context_features:
            self.features = ContextFeatures(config.context_features, config.vocab, config.d_model, start.embedding)
        bodies = [body for _ in range(config.n_layers) for body in (Attention(config), FeedForward(config))]
        self.sublayers = nn.ModuleList([Sublayer(config, body) for body in bodies])
        self.residual: ResidualStreams | DynamicStreams | None = None
        if config.dynamic_streams:
            self.residual = DynamicStreams(len(bodies), config.streams, config.d_model)
        elif config.streams > 1:
            self.residual = ResidualStreams(len(bodies), config.streams, biases=config.stream_biases)
        self.final_norm = Norm(config.d_model, start.final_gain, config.norm)
        self.last_mixing_SNN: Tensor | None = None

    def forward(self, tokens_BT: Tensor) -> Output:
        self._require_fits(tokens_BT)
        x_BTD = self.embedding(tokens_BT)
        if self.features is not None:
            x_BTD = x_BTD + self.features(tokens_BT)
        if self.positions_TD is not None:
            x_BTD = x_BTD + self.positions_TD[: tokens_BT.shape[1]]
        if self.residual is None:
            stream_spread = mixing = None
            for sublayer in self.sublayers:
                x_BTD = x_BTD + sublayer(x_BTD)
        elif isinstance(self.residual, DynamicStreams):
            x_BTD, stream_spread, mixing = self._through_dynamic_streams(x_BTD, self.residual)
        else:
            x_BTD, stream_spread, mixing = self._through_streams(x_BTD, self.residual)
        self.last_mixing_SNN = mixing
        hidden = self.final_norm(x_BTD)
        return Output(hidden, self.embedding.weight, stream_spread, mixing)

    def gf16_inputs(self) -> list[Tensor]:
        """The largest magnitude of each input that went through GF16 in the last forward, 0-dim; empty where none does."""
        layers = [module for module in self.modules() if isinstance(module, GF16Linear)]
        return [layer.seen for layer in layers if layer.seen is not None]

    def gf16_parameters(self) -> list[tuple[str, Tensor]]:
        """Names and float32 masters of the weights that go through GF16; empty when gf16 = False."""
        return [
            (f"{name}.weight", module.weight)
            for name, module in self.named_modules()
            if isinstance(module, GF16Linear) and module.gf16
        ]

    def attentions(self) -> list[Attention]:
        """The attention layers, in the order of depth."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def gains(self) -> list[float]:
        """The gain of the scores in force in each attention layer."""
        return [layer.gain for layer in self.attentions()]

    def attention_samples(self) -> list[Sample | None]:
        """What each attention layer did at a few positions of its last forward; None where it has not run since."""
        return [layer.take_sample() for layer in self.attentions()]

    def ternary_samples(self) -> list[TernarySample | None]:
        """What each ternary matrix did at a few rows of its last forward; None where it has not run since."""
        return [module.take_sample() for module in self.modules() if isinstance(module, TernaryLinear)]

    def _through_streams(self, x_BTD: Tensor, residual: ResidualStreams) -> tuple[Tensor, Tensor, Tensor]:
        coefficients = residual.coefficients()
        steps = zip(self.sublayers, *(tensor.unbind(0) for tensor in coefficients), strict=True)
        x_NR = expand(x_BTD, residual.streams)
        for sublayer, mixing_NN, pre_N, post_N in steps:
            with float32():
                u_BTD = (pre_N @ x_NR).view_as(x_BTD)
            y_BTD = sublayer(u_BTD)
            with float32():
                x_NR = mix_and_add(x_NR, mixing_NN, post_N, y_BTD.to(x_NR.dtype).reshape(-1))
        x_NBTD = x_NR.view(-1, *x_BTD.shape)
        return collapse(x_NR).view_as(x_BTD), spread(x_NBTD), coefficients.mixing_SNN.detach()

    def _through_dynamic_streams(self, x_BTD: Tensor, residual: DynamicStreams) -> tuple[Tensor, Tensor, Tensor]:
        x_RND = x_BTD.reshape(-1, 1, x_BTD.shape[-1]).expand(-1, residual.streams, -1)
        seen = []
        for depth, sublayer in enumerate(self.sublayers):
            with float32():
                coefficients = residual.coefficients(depth, x_RND)
                u_BTD = sublayer_input(x_RND, coefficients.pre_RN).view_as(x_BTD)
            y_BTD = sublayer(u_BTD)
            with float32():
                x_RND = updated(x_RND, coefficients, y_BTD.to(x_RND.dtype).reshape(-1, x_BTD.shape[-1]))
            seen.append(coefficients.mixing_RNN.detach())
        first_NBTD = x_RND[: x_BTD.shape[1]].transpose(0, 1).unsqueeze(1)
        return x_RND.mean(1).view_as(x_BTD), spread(first_NBTD), worst_token(torch.stack(seen))

    def _require_fits(self, tokens_BT: Tensor) -> None:
        if tokens_BT.ndim != 2 or tokens_BT.shape[1] > self.config.context:
            raise ValueError(
                f"tokens must be (batch, length <= context = {self.config.context}), got {tuple(tokens_BT.shape)}"
            )
