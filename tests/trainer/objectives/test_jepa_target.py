"""The target: the proved average of the online weights, outside the optimizer, inside the checkpoint, as INV-6 wants it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from karat.core.formulas import ema
from karat.core.verdict import accepts
from karat.invariants import inv06_ema_decay as inv06
from karat.invariants.runtime.torch_ops import TORCH
from karat.trainer.checkpoint import capture_rng, load_checkpoint, restore_model, restore_optimizer, save_checkpoint
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaConfig, JepaObjective
from karat.trainer.optim.build import Rates, build_optimizer

STEPS = 12


class Both(nn.Module):
    """A model and its objective, as a run holds them."""

    def __init__(self, seed: int = 0, *, streams: int = 1, gf16: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shape = {"vocab": 32, "d_model": 16, "n_layers": 1, "n_heads": 2, "context": 24}
        self.model = Transformer(ModelConfig(**shape, streams=streams, gf16=gf16))
        config = JepaConfig(width=8, heads=2, layers=1, warmup=2, hull_every=2)
        self.jepa = JepaObjective(self.model, config, steps=STEPS, seed=1)
        self.optimizer = build_optimizer(self, Rates(lr=0.01))

    def train_from(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            tokens = torch.randint(32, (3, 24), generator=torch.Generator().manual_seed(step))
            output = self.jepa(self.model, tokens, step)
            self.optimizer.zero_grad()
            output.loss.backward()
            self.optimizer.step()
            self.jepa.update_target(step)
            losses.append(output.loss.item())
        return losses


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def margins(both: Both, steps: int) -> list[float]:
    """INV-6's margin after each update, from what the target says of itself."""
    seen = []
    for step in range(steps):
        both.train_from(step, step + 1)
        target = both.jepa.target
        assert target.used is not None
        values = {"decay": target.used, "scheduled": both.jepa.decay(step), "previous": target.previous}
        seen.append(inv06.margin({**values, "outside": float(target.outside.max())}, both.jepa.config.averaging))
    return seen


@pytest.mark.parametrize("streams", [1, 4])
def test_every_weight_of_the_target_is_the_proved_average(streams: int) -> None:
    both = Both(streams=streams, gf16=streams == 4)
    before = weights(both.jepa.target.encoder)
    assert all(torch.equal(before[name], weight) for name, weight in both.model.named_parameters())
    both.train_from(0, 1)
    decay = ema.decay_at(0, STEPS, *inv06.DEFAULT.ends)
    for name, weight in both.model.named_parameters():
        now = both.jepa.target.encoder.get_parameter(name)
        expected = ema.averaged(before[name].double(), weight.detach().double(), decay, TORCH)
        torch.testing.assert_close(now.double(), expected, rtol=1e-6, atol=1e-9)
        assert not torch.equal(now, before[name]) and not torch.equal(now, weight), name


def test_the_decay_is_the_cosine_to_one_and_inv6_accepts_every_update() -> None:
    both = Both()
    assert both.jepa.target.used is None
    assert [both.jepa.decay(step) for step in (0, STEPS, 5 * STEPS)] == [inv06.DEFAULT.ends[0], 1.0, 1.0]
    middle = 1 - 0.004 * (1 + math.cos(math.pi * 5 / STEPS)) / 2
    assert both.jepa.decay(5) == pytest.approx(middle, abs=1e-15)
    assert all(accepts(margin) for margin in margins(both, STEPS))


def test_inv6_refuses_a_target_whose_decay_is_stuck_as_the_seeds_is() -> None:
    both = Both()
    both.jepa.target._average.decay = lambda step: inv06.DEFAULT.ends[0]
    found = margins(both, 4)
    assert accepts(found[0]) and not any(accepts(margin) for margin in found[1:])


def test_no_optimizer_takes_the_target_and_training_leaves_it_to_the_average() -> None:
    both = Both()
    taken = {id(weight) for group in both.optimizer.param_groups for weight in group["params"]}
    assert taken == {id(weight) for name, weight in both.named_parameters() if not name.startswith("jepa.target.")}
    before = weights(both.jepa.target)
    both.jepa.update_target = lambda step: None  # type: ignore[method-assign]
    both.train_from(0, 2)
    assert all(torch.equal(weight, before[name]) for name, weight in both.jepa.target.named_parameters())


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = Both()
    straight.train_from(0, 3)
    path = save_checkpoint(
        tmp_path, step=3, model_state=straight.state_dict(), optimizer_state=straight.optimizer.state_dict(),
        extra={}, rng=capture_rng(), config_digest="d", keep_last=1,
    )  # fmt: skip
    losses = straight.train_from(3, 6)
    resumed = Both(seed=9)
    checkpoint = load_checkpoint(path)
    restore_model(resumed, checkpoint)
    restore_optimizer(resumed.optimizer, checkpoint)
    assert resumed.jepa.target.used == straight.jepa.decay(2)
    again = resumed.train_from(3, 4)
    assert resumed.jepa.target.previous == straight.jepa.decay(2)  # what INV-6 compares the next decay with
    assert again + resumed.train_from(4, 6) == losses
    ours, theirs = straight.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {"jepa.target.last_update_3", "jepa.target.encoder.embedding.weight", "jepa.mask_embedding"} <= ours.keys()


def test_the_online_model_can_be_judged_without_the_target() -> None:
    both = Both()
    assert not any("target" in name for name, _ in both.model.named_parameters())
    both.train()
    assert both.model.training and not both.jepa.target.encoder.training


def test_a_model_that_was_moved_or_is_another_is_refused() -> None:
    both, other = Both(), Both()
    tokens = torch.randint(32, (2, 24))
    with pytest.raises(ValueError, match="follows other weights"):
        both.jepa(other.model, tokens, 0)
    with pytest.raises(ValueError, match="make JepaObjective after the model"):
        copied = copy.deepcopy(both)
        copied.jepa(copied.model, tokens, 0)
    both.double()
    with pytest.raises(ValueError, match="follows other weights"):
        both.jepa(both.model, tokens, 0)
