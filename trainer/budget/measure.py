"""A configuration's own model, optimizer and averages, run for a few steps on random tokens: what is counted of them.

Operations: torch's FlopCounterMode, with formulas for what it lacks (integer products, products with a vector,
products added in place, attention on a CPU). Saved: the hooks through which autograd saves, by unique storage.
Memory: every allocation and release of a tensor while model, optimizer and two steps are made, from the profiler; the
peak is their running sum's. What a matrix library allocates for itself is not in it. Only torch's own generator is
used, and it is put back.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from karat.trainer.config import RunConfig
from karat.trainer.loop import precision
from karat.trainer.models.gf16_linear import GF16Linear
from karat.trainer.objectives.nca import NcaObjective
from karat.trainer.objectives.training import Losses, TrainingObjective
from karat.trainer.opening import objective_of, rates
from karat.trainer.optim.build import build_optimizer
from karat.trainer.optim.ema import WeightAverage

Shape = tuple[int, ...]
STEPS = 2
"""Steps whose memory is looked at: the first makes the optimizer's state, the second has it from its start."""


def _matrix(a: Shape, b: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _added_matrix(_: Shape, a: Shape, b: Shape, *__: Any, out_shape: Any = None, **___: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _matrix_vector(a: Shape, b: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * a[0] * a[1]


def _outer(_: Shape, a: Shape, b: Shape, *__: Any, out_shape: Any = None, **___: Any) -> int:
    return 2 * a[0] * b[0]


def _attention(q: Shape, k: Shape, v: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def _attention_backward(_: Shape, q: Shape, k: Shape, v: Shape, *__: Any, out_shape: Any = None, **___: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (3 * width + 2 * v[3])


FORMULAS: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten._int_mm: _matrix,
    torch.ops.aten.addmm_: _added_matrix,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.addr: _outer,
    torch.ops.aten.addr_: _outer,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What FlopCounterMode of torch 2.13 counts as nothing, and a step does."""


@dataclass(frozen=True)
class Measured:
    """What the running model was seen to have and to do: numbers, operations of one step, bytes."""

    parameters: int
    forward_flops: int
    backward_flops: int
    update_flops: int
    saved: int
    peak: int
    by_operation: Mapping[str, int]


class Subject:
    """The objects that a run of this configuration trains with, and one batch of random tokens for it."""

    def __init__(self, config: RunConfig) -> None:
        model = config.model
        self.config = config
        nca = NcaObjective(model.d_model, model.vocab) if model.nca else None
        self.objective: TrainingObjective = objective_of(config, nca)
        self.optimizer: Optimizer = build_optimizer(self.objective, rates(config))
        self.average: WeightAverage | None = None
        if config.ema.enabled:
            weights = self.objective.model.named_parameters()
            self.average = WeightAverage(weights, config.decay, every=config.ema.hull_every, first=config.ema.start)
        self.tokens, self.targets = (torch.randint(model.vocab, (config.batch_size, model.context)) for _ in range(2))
        self.losses: Losses | None = None

    def forward(self, number: int = 0) -> None:
        """The loss of the batch at step `number`; as in a run, that of the last step is let go of when this one is there."""
        self.optimizer.zero_grad(set_to_none=True)
        with precision(self.config):
            self.losses = self.objective(self.tokens, self.targets, number)

    def backward(self) -> None:
        """The gradients of the loss."""
        assert self.losses is not None
        self.losses.total.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Clipping and the optimizer's step."""
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optim.clip)
        self.optimizer.step()

    def step(self, number: int) -> None:
        """One whole step."""
        self.forward(number)
        self.backward()
        self.update()
        if self.average is not None:
            self.average.update(number)
        if self.objective.jepa is not None:
            self.objective.jepa.update_target(number)

    def lasting_storages(self) -> set[int]:
        """Where parameters, buffers and the rounded weights of GF16 layers are."""
        layers = [module for module in self.objective.modules() if isinstance(module, GF16Linear)]
        rounded = [layer._rounded for layer in layers if layer._rounded is not None]
        held = [*self.objective.parameters(), *self.objective.buffers(), *rounded]
        return {tensor.untyped_storage().data_ptr() for tensor in held}


def measure(config: RunConfig) -> Measured:
    """Runs the configuration's model: two steps under the profiler, one under the counters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        subject, peak = _with_memory(config)
        counters = {part: _counter() for part in ("forward", "backward", "update")}
        with counters["forward"], saved_bytes(subject) as saved:
            subject.forward()
        with counters["backward"]:
            subject.backward()
        with counters["update"]:
            subject.update()
    by_operation: Counter[str] = Counter()
    for counter in counters.values():
        by_operation.update({str(name): int(n) for name, n in counter.get_flop_counts().get("Global", {}).items()})
    return Measured(
        parameters=sum(p.numel() for p in subject.objective.parameters() if p.requires_grad),
        forward_flops=int(counters["forward"].get_total_flops()),
        backward_flops=int(counters["backward"].get_total_flops()),
        update_flops=int(counters["update"].get_total_flops()),
        saved=sum(saved.values()),
        peak=peak,
        by_operation=by_operation,
    )


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))


def _with_memory(config: RunConfig) -> tuple[Subject, int]:
    """The subject after its first steps, and the most bytes of tensors that were there at once."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes of its own stages to standard error
    gc.collect()  # what an earlier model left in cycles would be released, and counted as released, in between
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        subject = Subject(config)
        for number in range(STEPS):
            subject.step(number)
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    if results is None:
        raise RuntimeError("the profiler kept no events")
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return subject, most


@contextmanager
def saved_bytes(subject: Subject) -> Iterator[dict[int, int]]:
    """Within it, the bytes of every storage that autograd saves a tensor of, once, by its place."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    for lasting in subject.lasting_storages():  # after the forward pass: it may have rounded the weights anew
        sizes.pop(lasting, None)
