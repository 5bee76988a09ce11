"""Train, save, load into a fresh model, train on: the uninterrupted run, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint import (
    capture_rng,
    load_checkpoint,
    require_same_config,
    restore_model,
    restore_optimizer,
    restore_rng,
)
from karat.trainer.config import RunConfig


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, tensors bit for bit and of one type."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.train(0, 4)
    path = run.save(tmp_path, 4)
    losses = run.train(4, 9)

    resumed = make_run(seed=99)
    resumed.train(0, 2)  # another history, which must leave no trace
    checkpoint = load_checkpoint(path)
    restore_model(resumed.model, checkpoint)
    restore_optimizer(resumed.optimizer, checkpoint)
    restore_rng(checkpoint.rng)
    assert checkpoint.step == 4
    assert resumed.train(4, 9) == losses
    assert same(dict(resumed.model.state_dict()), dict(run.model.state_dict()))
    assert same(resumed.optimizer.state_dict(), run.optimizer.state_dict())


def test_the_saved_state_reads_back_equal_types_included(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.train(0, 3)
    extra = {"loss": float("nan"), "best": [1, 2.5, None, True, "ü"], "$odd": {"inf": float("-inf")}}
    checkpoint = load_checkpoint(run.save(tmp_path, 3, extra=extra))
    assert same(checkpoint.optimizer_state, run.optimizer.state_dict())
    assert checkpoint.optimizer_state["state"][0]["step"].dtype == torch.float32
    assert np.isnan(checkpoint.extra.pop("loss")) and np.isnan(extra.pop("loss"))
    assert same(checkpoint.extra, extra)
    state = run.model.state_dict()
    assert checkpoint.model_state.keys() == state.keys()
    assert all(same(checkpoint.model_state[name], state[name]) for name in state)


def test_a_tied_head_is_stored_once_and_is_tied_again(tmp_path: Path, make_run: Any) -> None:
    path = make_run().save(tmp_path, 0)
    state = load_checkpoint(path).model_state
    assert state["head.weight"] is state["embed.weight"]
    content = (path / "model.safetensors").read_bytes()
    assert b"embed.weight" in content and b"head.weight" not in content


def test_state_keeps_its_type_where_the_parameter_has_another(tmp_path: Path, make_run: Any) -> None:
    """torch's load_state_dict would round float32 moments to the parameter's bfloat16."""
    model = nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = AdamW(model.parameters())
    for parameter in model.parameters():
        moment = torch.full(parameter.shape, 1 + 2**-20)
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    path = make_run().save(tmp_path, 1, model_state=model.state_dict(), optimizer_state=optimizer.state_dict())
    fresh = AdamW(model.parameters())
    restore_optimizer(fresh, load_checkpoint(path))
    assert same(fresh.state_dict(), optimizer.state_dict())


# -- random generators ---------------------------------------------------------------------------------------------


def test_every_generator_goes_on_where_it_was(tmp_path: Path, make_run: Any) -> None:
    def generators() -> dict[str, Any]:
        return {
            "pcg": np.random.default_rng(3),
            "philox": np.random.Generator(np.random.Philox(3)),
            "twister": np.random.Generator(np.random.MT19937(3)),
            "torch": torch.Generator().manual_seed(3),
        }

    def draw(own: dict[str, Any]) -> list[Any]:
        numbers: list[Any] = [random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.rand(3).tolist()]
        numbers += [own[name].integers(2**32, dtype=np.uint32) for name in ("pcg", "philox", "twister")]
        return [*numbers, torch.rand(3, generator=own["torch"]).tolist()]

    own = generators()
    draw(own)  # Gaussians come in pairs and 32-bit integers in halves: the second one is part of the state
    path = make_run().save(tmp_path, 1, rng=capture_rng(**own))
    expected = draw(own)
    other = generators()
    restore_rng(load_checkpoint(path).rng, **other)
    assert draw(other) == expected


def test_capturing_moves_no_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    capture_rng()
    assert torch.equal(torch.rand(3), expected)


def test_other_generators_are_refused() -> None:
    state = capture_rng(data=np.random.default_rng(1))
    with pytest.raises(CheckpointError, match=r"holds the generators \['data'\], the run has \[\]"):
        restore_rng(state)
    with pytest.raises(CheckpointError, match="the generator data cannot take"):
        restore_rng(state, data=np.random.Generator(np.random.Philox(1)))


# -- what does not fit ---------------------------------------------------------------------------------------------


def test_another_model_is_refused_and_left_alone(tmp_path: Path, make_run: Any) -> None:
    checkpoint = load_checkpoint(make_run().save(tmp_path, 0))
    wide = make_run(width=7)
    before = {name: tensor.clone() for name, tensor in wide.model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        restore_model(wide.model, checkpoint)
    assert "hidden.weight: required float32 (7, 7), seen float32 (6, 6)" in raised.value.seen
    assert same(dict(wide.model.state_dict()), before)
    with pytest.raises(CheckpointError, match=r"weight: required float32 \(2, 2\), absent"):
        restore_model(nn.Linear(2, 2), checkpoint)
    with pytest.raises(CheckpointError, match=r"embed.weight: present as float32 \(8, 6\), not required"):
        restore_model(nn.Linear(2, 2), checkpoint)
    with pytest.raises(CheckpointError, match=r"hidden.bias: required bfloat16 \(6,\), seen float32"):
        restore_model(make_run().model.to(torch.bfloat16), checkpoint)


def test_another_optimizer_is_refused(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.train(0, 1)
    checkpoint = load_checkpoint(run.save(tmp_path, 1))
    parameters = list(run.model.parameters())
    with pytest.raises(CheckpointError, match=r"its groups have \[2, 1\] parameters, the optimizer's \[3\]"):
        restore_optimizer(SGD(parameters), checkpoint)
    swapped = AdamW(
        [{"params": [p for p in parameters if p.ndim == 2][::-1]}, {"params": [p for p in parameters if p.ndim == 1]}]
    )
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \(8, 6\), the parameter \(6, 6\)"):
        restore_optimizer(swapped, checkpoint)
    assert not swapped.state


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path: Path, make_run: Any) -> None:
    saved, now = RunConfig(seed=1), RunConfig(seed=2, validation="held.txt", out="elsewhere", policy="strict")
    path = make_run().save(tmp_path, 0, config_digest=saved.digest, settings=saved.trajectory)
    checkpoint = load_checkpoint(path)
    require_same_config(checkpoint, saved.digest, saved.trajectory)
    moved = RunConfig(seed=1, out="elsewhere", policy="strict")
    require_same_config(checkpoint, moved.digest, moved.trajectory)
    with pytest.raises(CheckpointError) as raised:
        require_same_config(checkpoint, now.digest, now.trajectory)
    assert raised.value.seen.splitlines()[1:] == [
        "  seed: 1 in the checkpoint, 2 now",
        "  validation: None in the checkpoint, 'held.txt' now",
    ]


@pytest.mark.parametrize("value", [object(), np.float32(1), {1, 2}, b"x", 1j])
def test_what_is_not_plain_data_is_refused_by_its_place(tmp_path: Path, make_run: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"at extra.deep.1 cannot be saved"):
        make_run().save(tmp_path, 0, extra={"deep": [0, value]})
    assert list(tmp_path.iterdir()) == []
