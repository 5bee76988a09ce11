"""Low precision, rounding without a gradient, numbers near the ends of their range, and outputs that collapse."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import CLASSES, HIDDEN, WIDTH, Batch, Classifier, Loss, adam, blobs, fit
from .case import Attach, Case

STEPS = 40


def fit_in(dtype: torch.dtype, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch],
           loss: Loss = F.cross_entropy, scheduler: Any = None) -> None:  # fmt: skip
    """The loop with autocast: the forward and the loss in `dtype`, where autocast sees fit."""
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            value = loss(model(x), y)
        value.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


# -- precision -------------------------------------------------------------------------------------------------------


def pure_bf16(attach: Attach, buggy: bool) -> None:
    """The parameters themselves are bfloat16, and the learning rate of a fine-tuning is below half their spacing."""
    model = Classifier()
    if buggy:
        model = model.bfloat16()
    optimizer = adam(model, lr=1e-5, weight_decay=0.0)
    with attach(model, optimizer):
        fit_in(torch.bfloat16, model, optimizer, blobs(STEPS))


def pure_bf16_after_decay(attach: Attach, buggy: bool) -> None:
    """bfloat16 parameters learn at the peak, and stand still once the rate has fallen, after 20 steps."""
    model = Classifier()
    if buggy:
        model = model.bfloat16()
    optimizer = adam(model, lr=1e-2, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 1e-3)
    with attach(model, optimizer):
        fit_in(torch.bfloat16, model, optimizer, blobs(STEPS), scheduler=scheduler)


def ema_in_bf16(attach: Attach, buggy: bool) -> None:
    """The average is kept in bfloat16, to save memory: with a decay of 0.999 no update is large enough to change it."""
    model = Classifier()
    ema, optimizer = copy.deepcopy(model), adam(model)
    if buggy:
        ema = ema.bfloat16()
    with attach(model, optimizer, ema=ema, spec={"ema": 0.999}):
        for batch in blobs(STEPS):
            fit(model, optimizer, [batch])
            with torch.no_grad():
                for mean, value in zip(ema.parameters(), model.parameters(), strict=True):
                    mean.mul_(0.999).add_(value.to(mean.dtype), alpha=0.001)


def loaded_as_bf16(attach: Attach, buggy: bool) -> None:
    """A checkpoint in bfloat16, loaded with assign=True, makes the parameters bfloat16; autocast hides it."""
    model = Classifier()
    half = {name: value.bfloat16() for name, value in Classifier(seed=1).state_dict().items()}
    model.load_state_dict(half, assign=buggy)
    optimizer = adam(model, lr=1e-4)
    with attach(model, optimizer, spec={"dtype": "float32"}):
        fit_in(torch.bfloat16, model, optimizer, blobs(STEPS))


class Product(torch.autograd.Function):
    """x @ w.T with its own backward, which autocast does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return x.float() @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x.float()


class Fused(nn.Linear):
    """A linear layer through `Product`."""

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight) + self.bias


def autocast_bypassed(attach: Attach, buggy: bool) -> None:
    """A layer replaced by a faster one, which computes in float32 whatever autocast says."""
    torch.manual_seed(0)
    first = (Fused if buggy else nn.Linear)(WIDTH, HIDDEN)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit_in(torch.bfloat16, model, optimizer, blobs(STEPS))


# -- straight-through ------------------------------------------------------------------------------------------------


class Rounded(nn.Module):
    """A classifier whose first weight is rounded to sixteenths, once `on`; with or without straight-through."""

    def __init__(self, through: bool, on: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.through, self.on = through, on
        self.first, self.head = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        if self.on:
            rounded = torch.round(weight * 16) / 16
            weight = weight + (rounded - weight).detach() if self.through else rounded
        return self.head(F.linear(x, weight).relu())


def rounded_weights(attach: Attach, buggy: bool) -> None:
    model = Rounded(through=not buggy)
    optimizer = adam(model, weight_decay=0.0)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def rounding_starts_late(attach: Attach, buggy: bool) -> None:
    """Quantisation-aware training begins after 20 steps; from then on the weight has no gradient."""
    model = Rounded(through=not buggy, on=False)
    optimizer = adam(model, weight_decay=0.0)
    with attach(model, optimizer):
        for step, batch in enumerate(blobs(STEPS)):
            if step == 20:
                model.on = True
            fit(model, optimizer, [batch])


class Signs(nn.Module):
    """Binary activations, with or without the gradient of tanh."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() + (x.sign() - x.tanh()).detach() if self.through else x.sign()


def binary_activations(attach: Attach, buggy: bool) -> None:
    model = Classifier(drop=Signs(through=not buggy))
    optimizer = adam(model, weight_decay=0.0)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


class Quantizer(nn.Module):
    """An autoencoder with a codebook: the nearest code goes to the decoder; the loss of the codes goes to both."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.through = through
        self.encoder, self.decoder = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.codes = nn.Parameter(torch.randn(8, HIDDEN))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        passed = z + (code - z).detach() if self.through else code
        return self.decoder(passed), F.mse_loss(code, z.detach())


def codes_without_a_way_back(attach: Attach, buggy: bool) -> None:
    """The encoder of a vector quantizer is cut off by argmin."""
    model = Quantizer(through=not buggy)
    optimizer = adam(model, lr=3e-3)
    with attach(model, optimizer):
        for x, _ in blobs(STEPS):
            optimizer.zero_grad()
            output, codes = model(x)
            (F.mse_loss(output, x) + codes).backward()
            optimizer.step()


class Gated(nn.Module):
    """Hidden units switched by learned gates, open above zero."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.through, self.gate = through, nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        score = self.gate(x)
        gate = (score > 0).float()
        if self.through:
            gate = score.sigmoid() + (gate - score.sigmoid()).detach()
        return x * gate


def hard_gates(attach: Attach, buggy: bool) -> None:
    """The comparison passes no gradient: the gates stay as they were initialised."""
    torch.manual_seed(0)
    model = Classifier(drop=Gated(through=not buggy))
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


# -- the ends of the range -------------------------------------------------------------------------------------------


def raw_units_in_fp16(attach: Attach, buggy: bool) -> None:
    """From step 20 on the features come in raw units, ten thousand times larger: in float16 the activations stand just
    below its end, 65504, and nothing is NaN yet."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    units = [10_000.0 if buggy and step >= 20 else 1.0 for step in range(STEPS)]
    with attach(model, optimizer):
        batches = [(x * unit, y) for (x, y), unit in zip(blobs(STEPS), units, strict=True)]
        fit_in(torch.float16, model, optimizer, batches)


def gradients_below_fp16(attach: Attach, buggy: bool) -> None:
    """The loss is divided by the pixels of an image, 4096 by 4096; float16 gradients end at 6e-8, and there is no scaler:
    most of them are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-15)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=not buggy)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y, reduction="sum") / 4096**2
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def epsilon_below_fp16(attach: Attach, buggy: bool) -> None:
    """Adam on float16 parameters: squared gradients and epsilon are below the smallest number, the quotient is not."""
    model = Classifier()
    if buggy:
        model = model.half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8)
    with attach(model, optimizer):
        for x, y in blobs(STEPS):
            fit(model, optimizer, [(x.to(model.head.weight.dtype), y)], lambda out, t: F.cross_entropy(out.float(), t))


# -- collapse --------------------------------------------------------------------------------------------------------


def views_without_negatives(attach: Attach, buggy: bool) -> None:
    """Two views of a row are drawn together, and nothing keeps different rows apart: one vector for all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
    optimizer = adam(model, lr=2e-2)
    noise = torch.Generator().manual_seed(3)
    with attach(model, optimizer):
        for x, _ in blobs(60):
            views = [x + 0.3 * torch.randn(x.shape, generator=noise) for _ in range(2)]
            optimizer.zero_grad()
            a, b = model(torch.cat(views)).chunk(2)
            alike = F.mse_loss(a, b)
            apart = F.relu(1 - torch.cat([a, b]).std(0)).mean()
            (alike if buggy else alike + apart).backward()
            optimizer.step()


def entropy_bonus_subtracted(attach: Attach, buggy: bool) -> None:
    """The bonus for entropy has the wrong sign: within 20 steps the policy is certain, and one action of four is never
    tried again."""
    model = Classifier()
    optimizer = adam(model, lr=2e-2)
    with attach(model, optimizer) as guards:
        for x, y in blobs(60):
            optimizer.zero_grad()
            policy = torch.distributions.Categorical(logits=model(x))
            action = policy.sample()
            reward = 0.3 * (action == y).float()
            entropy = policy.entropy().mean()
            chosen = -(policy.log_prob(action) * (reward - reward.mean())).mean()
            loss = chosen + 0.1 * entropy if buggy else chosen - 0.1 * entropy
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item(), entropy=entropy.item(), reward=reward.mean().item())


def sigmoid_for_bytes(attach: Attach, buggy: bool) -> None:
    """A sigmoid is to give values from 0 to 255: it saturates at one for every input."""
    torch.manual_seed(0)
    ending = nn.Sigmoid() if buggy else nn.Identity()
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), ending)
    optimizer = adam(model, lr=5e-2)
    with attach(model, optimizer):
        for x, _ in blobs(60):
            fit(model, optimizer, [(x, 255 * x[:, :1].sigmoid())], F.mse_loss)


PRECISION, THROUGH, RANGE, COLLAPSE = (
    frozenset({slug}) for slug in ("precision", "straight-through", "overflow", "collapse")
)
CASES: tuple[Case, ...] = (
    Case("pure-bf16", "updates are below the spacing of bfloat16", PRECISION, 0, pure_bf16),
    Case("pure-bf16-after-decay", "updates fall below the spacing once the rate has fallen", PRECISION, 20,
         pure_bf16_after_decay),
    Case("ema-in-bf16", "an average in bfloat16 stands still", PRECISION | {"ema"}, 0, ema_in_bf16,
         needs="ema=, and its decay"),
    Case("loaded-as-bf16", "loading changes the type of the parameters", PRECISION, 0, loaded_as_bf16, needs="dtype"),
    Case("autocast-bypassed", "a layer does not follow autocast", PRECISION, 0, autocast_bypassed,
         "TrainCheck LT-725"),
    Case("rounded-weights", "rounding without straight-through", THROUGH, 0, rounded_weights),
    Case("rounding-starts-late", "rounding without straight-through, from the middle on", THROUGH, 20,
         rounding_starts_late),
    Case("binary-activations", "sign without straight-through", THROUGH, 0, binary_activations),
    Case("codes-without-a-way-back", "argmin cuts the encoder off", THROUGH | {"gradient-reach"}, 0,
         codes_without_a_way_back),
    Case("hard-gates", "a comparison cuts the gates off", THROUGH | {"gradient-reach"}, 0, hard_gates),
    Case("raw-units-in-fp16", "activations just below the end of float16", RANGE, 20, raw_units_in_fp16),
    Case("gradients-below-fp16", "float16 gradients underflow without a scaler", RANGE | {"loss-scale"}, 0,
         gradients_below_fp16),
    Case("epsilon-below-fp16", "Adam's epsilon is zero in float16", RANGE | {"finite", "precision"}, 0,
         epsilon_below_fp16),
    Case("views-without-negatives", "representations collapse to a point", COLLAPSE, 0, views_without_negatives),
    Case("entropy-bonus-subtracted", "the entropy of a policy collapses", COLLAPSE, 0, entropy_bonus_subtracted,
         needs="logs loss, entropy, reward"),
    Case("sigmoid-for-bytes", "outputs saturate at one", COLLAPSE, 0, sigmoid_for_bytes),
)  # fmt: skip
