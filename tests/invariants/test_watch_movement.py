"""RUN-16, 17, 18, 19, 20, 21, 22, 33, 35, 54: each goes wrong in the ways that the rule names, and its clean twin is quiet."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.report import Violation
from karat.invariants.run import run33_precision, run54_update_ratio
from karat.invariants.runtime import Stopped, watch
from karat.invariants.runtime.watching import averaging
from karat.invariants.runtime.watching.sampling import MOST, fit, spread, window

SLUGS = frozenset(
    [
        "parameter-moves",
        "frozen",
        "weight-decay",
        "ema",
        "ties",
        "replicas",
        "buffers",
        "precision",
        "overflow",
        "update-ratio",
    ]
)
Draw = Callable[[int], tuple[Tensor, Tensor]]


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    return x, (x[:, 0] > 0).long()


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 2))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 8,
    *,
    before: Callable[[int], None] | None = None,
    after: Callable[[int], None] | None = None,
    **declared: Any,
) -> list[Violation]:
    """The plain loop, watched; `before` runs between backward and step, `after` when the step is over."""
    with watch(model, optimizer, policy="observe", **declared) as guards:
        for step in range(steps):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y).backward()
            if before is not None:
                before(step)
            optimizer.step()
            if after is not None:
                after(step)
    raised = {slug: why for slug, why in guards.not_checked.items() if "raised" in why}
    assert not raised, raised
    return [v for v in guards.violations if v.slug in SLUGS]


def only(found: list[Violation], slug: str, severity: str, step: int, *words: str) -> Violation:
    mine = [v for v in found if v.slug == slug and v.severity == severity]
    assert mine and [v.slug for v in found if v.slug != slug] == [], found
    assert mine[0].step == step, mine[0]
    for word in words:
        assert word in mine[0].message, mine[0].message
    return mine[0]


# -- RUN-16 ----------------------------------------------------------------------------------------------------------


class Lazy(torch.optim.SGD):
    """Calls nothing, or only every other time."""

    every = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls = getattr(self, "calls", 0) + 1
        if self.every and self.calls % self.every == 0:
            super().step()


def lazy(parameters: Any, every: int) -> Lazy:
    optimizer = Lazy(parameters, lr=0.1)
    optimizer.every = every
    return optimizer


def test_an_optimizer_that_writes_nothing_is_found_from_its_first_step() -> None:
    model = net()
    found = train(model, lazy(model.parameters(), 0), 14)
    only(found, "parameter-moves", "FAIL", 0, "did not move", "Lazy.step() does not write to it")


def test_an_optimizer_that_collects_steps_is_none_of_it() -> None:
    model = net()
    assert train(model, lazy(model.parameters(), 4), 24) == []


def test_a_parameter_whose_step_is_skipped_by_torchs_own_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.SGD._init_group

    def without_the_first(self: Any, group: Any, params: Any, grads: Any, momenta: Any) -> Any:
        has = own(self, group, params, grads, momenta)
        if stuck:
            del params[0], grads[0]
        return has

    stuck = False
    monkeypatch.setattr(torch.optim.SGD, "_init_group", without_the_first)

    def from_five(step: int) -> None:
        nonlocal stuck
        stuck = step >= 5

    found = train(model, optimizer, 12, before=from_five)
    violation = only(found, "parameter-moves", "FAIL", 5, "0.weight did not move")
    assert violation.where == "0.weight"


def test_rates_of_zero_and_gradients_of_zero_need_no_move() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert train(model, optimizer) == []
    model = net()
    zero = lambda step: [p.grad.zero_() for p in model.parameters() if p.grad is not None]  # noqa: E731
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), before=zero) == []  # type: ignore[arg-type]


def test_an_optimizer_that_holds_nothing_that_trains() -> None:
    model = net()
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    only(train(model, optimizer), "parameter-moves", "FAIL", 0, "all 2 parameters", "requires_grad=False")


def test_a_write_between_steps_that_the_loop_did_not_do_from_the_start() -> None:
    model = net()
    again = lambda step: model[2].reset_parameters() if step == 6 else None  # type: ignore[operator]  # noqa: E731
    found = train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 12, after=again)
    only(found, "parameter-moves", "WARN", 7, "after step 6 and before step 7", "something else than the optimizer")


def test_a_loop_that_projects_after_every_step_is_none_of_it() -> None:
    model = net()

    @torch.no_grad()
    def clamp(step: int) -> None:
        for parameter in model.parameters():
            parameter.clamp_(-0.05, 0.05)

    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12, after=clamp) == []


def test_an_optimizer_that_writes_past_the_counters_moves_its_parameters() -> None:
    class Old(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad.data, alpha=-group["lr"])

    model = net()
    assert train(model, Old(model.parameters(), lr=0.1), 30) == []


@pytest.mark.parametrize(
    "kind", ["Adam", "RMSprop", "Adagrad", "Rprop", "NAdam", "RAdam", "Adadelta", "Adamax", "ASGD"]
)
def test_every_kind_of_optimizer_moves(kind: str) -> None:
    model = net()
    assert train(model, getattr(torch.optim, kind)(model.parameters()), 12) == []


# -- RUN-54 ----------------------------------------------------------------------------------------------------------


def test_a_step_larger_than_the_weights() -> None:
    model = net()
    wild = lambda step: [p.grad.fill_(1.0) for p in model.parameters() if p.grad is not None]  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    groups = optimizer.param_groups

    def doubling(step: int) -> None:
        wild(step)
        groups[0]["lr"] = 10.0**step * 3

    found = train(model, optimizer, 6, before=doubling)
    only(found, "update-ratio", "WARN", 0, "times its own norm")
    assert run54_update_ratio.RULE.severity == "WARN"


# -- RUN-33, RUN-35 --------------------------------------------------------------------------------------------------


def test_updates_below_the_spacing_of_bfloat16() -> None:
    model = net().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    only(train(model, optimizer), "precision", "FAIL", 0, "lost in rounding", "no master weights")
    model = net().bfloat16()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.5), 12) == []


def test_another_optimizer_in_bfloat16_may_round_stochastically() -> None:
    class Stochastic(torch.optim.SGD):
        """A stand-in that moves few elements at a step."""

    Stochastic.__module__ = "elsewhere"
    model = net().bfloat16()
    only(train(model, Stochastic(model.parameters(), lr=1e-5)), "precision", "WARN", 0)


def test_a_rate_that_rises_from_nothing_or_ends_there_is_none_of_it() -> None:
    for rate in (lambda s: 1e-7 * (s + 1), lambda s: max(0.5 * (1 - s / 12), 0.0)):
        model = net().bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

        def scheduled(step: int, optimizer: Any = optimizer, rate: Any = rate) -> None:
            optimizer.param_groups[0]["lr"] = rate(step + 1)

        optimizer.param_groups[0]["lr"] = rate(0)
        assert train(model, optimizer, 12, after=scheduled) == []


def test_the_declared_type() -> None:
    model = net()
    model[2].double()
    declared = watch(model, torch.optim.SGD(model.parameters(), lr=0.1), policy="observe", spec={"dtype": "float32"})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    next(iter(declared._loop.optimizers)).step()
    found = [v for v in declared.violations if v.slug == "precision"]
    assert found[0].step == 0 and "2 trainable parameters are float64, declared is float32" in found[0].message
    declared.finish()


def test_float16_near_its_end_and_epsilon_below_it() -> None:
    model = net().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.no_grad():
        model[2].bias.fill_(30000.0)
    found = train(model, optimizer, 3)
    assert any("30000" in v.message or "3e+04" in v.message for v in found if v.slug == "overflow")
    model = net().half()
    found = train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 1)
    assert [v.message for v in found if v.slug == "overflow" and "eps = 1e-08 of Adam is zero in float16" in v.message]


def test_a_scaled_loss_is_not_underflow() -> None:
    for enabled in (True, False):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, enabled=enabled)
        with watch(model, optimizer, policy="observe") as guards:
            for step in range(4):
                x, y = data(step)
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = F.cross_entropy(model(x), y) / 2**16
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        said = [v for v in guards.violations if v.slug == "overflow"]
        assert bool(said) is not enabled
        assert all(v.severity == "WARN" and v.step == 0 and "not scaled" in v.message for v in said)


class Bypass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


@pytest.mark.parametrize("bypass", [True, False])
def test_a_layer_that_does_not_follow_autocast(bypass: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential((Bypass if bypass else nn.Linear)(8, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = torch.get_rng_state()
    with watch(model, optimizer, policy="observe") as guards:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(data(0)[0]), data(0)[1])
        loss.backward()
        drawn = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), drawn) and not torch.equal(drawn, state)
    found = [v for v in guards.violations if v.slug == "precision"]
    assert [(v.severity, v.step, v.where) for v in found] == ([("WARN", 0, "0")] if bypass else [])


# -- RUN-17, RUN-18 --------------------------------------------------------------------------------------------------


def test_declared_frozen_and_held_with_a_gradient() -> None:
    model = net()
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec={"frozen": ["0"]})
    only(found, "frozen", "FAIL", 0, "0.weight is declared frozen and moved", "group 0 of SGD holds it")


def test_declared_frozen_and_written_past_the_optimizer() -> None:
    for write in (lambda p: p.add_(1e-3), lambda p: p.data.add_(1e-3)):
        model = net()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)

        @torch.no_grad()
        def follow(step: int, model: nn.Sequential = model, write: Any = write) -> None:
            if step == 5:
                write(model[0].weight)

        found = train(model, optimizer, 16, after=follow, spec={"frozen": ["0.*"]})
        assert [v.severity for v in found] == ["FAIL"] and 6 <= found[0].step <= 12, found
        assert found[0].where == "0.weight"


def test_frozen_parameters_that_are_loaded_again_with_equal_values_stand() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    load = lambda step: model.load_state_dict(model.state_dict()) if step == 4 else None  # noqa: E731
    assert train(model, optimizer, 12, after=load, spec={"frozen": ["0"]}) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum, decay, moves", [(0.9, 0.0, True), (0.0, 0.1, True), (0.0, 0.0, False)])
def test_frozen_in_mid_run_with_a_gradient_of_zeros(momentum: float, decay: float, moves: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)

    def freeze(step: int) -> None:
        if step >= 4:
            model[0].requires_grad_(False)
            for p in model[0].parameters():
                p.grad = torch.zeros_like(p)

    found = train(model, optimizer, 8, before=freeze)
    if moves:
        only(found, "frozen", "FAIL", 4, "0.weight was frozen", "zeros", "momentum" if momentum else "weight_decay")
    else:
        assert found == []


def test_weight_decay_by_group_and_when_it_changes() -> None:
    model = net()
    groups = [{"params": [model[0].weight, model[2].weight], "weight_decay": 0.1},
              {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}]  # fmt: skip
    declared = {"decay": ["*.weight"], "no_decay": ["*.bias"]}
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert train(model, optimizer, spec=declared) == []

    def later(step: int) -> None:
        if step == 5:
            optimizer.param_groups[1]["weight_decay"] = 0.1

    violation = only(
        train(model, optimizer, 8, before=later, spec=declared), "weight-decay", "FAIL", 5, "0.bias decays"
    )
    assert "2 parameters in all" in violation.message
    optimizer.param_groups[1]["weight_decay"] = 0.0
    only(train(model, optimizer, spec={"decay": ["2.bias"]}), "weight-decay", "FAIL", 0, "2.bias does not decay")


def test_a_negative_weight_decay() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["weight_decay"] = -0.1
    only(train(model, optimizer), "weight-decay", "WARN", 0, "group 0 is -0.1")


# -- RUN-19 ----------------------------------------------------------------------------------------------------------


def averaged(update: Callable[[int, Tensor, Tensor], None], steps: int = 16, **options: Any) -> list[Violation]:
    """The loop with an average of its own; update(step, mean, value) after the step."""
    model = net(norm=options.pop("norm", False))
    mean = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.no_grad()
    def follow(step: int) -> None:
        for m, v in zip(mean.parameters(), model.parameters(), strict=True):
            update(step, m, v)
        if options.get("buffers"):
            for m, v in zip(mean.buffers(), model.buffers(), strict=True):
                m.copy_(v)

    spec = {"ema": options["decay"]} if "decay" in options else None
    return train(model, optimizer, steps, after=follow, ema=mean, spec=spec)


def right(step: int, mean: Tensor, value: Tensor) -> None:
    mean.lerp_(value, 0.1)


@pytest.mark.parametrize("declared", [{"decay": 0.9}, {}])
def test_an_average_that_is_right(declared: dict[str, float]) -> None:
    assert averaged(right, **declared) == []


@pytest.mark.parametrize(
    "update, words",
    [
        (lambda s, m, v: m.lerp_(v, 0.9), "exchanged"),
        (lambda s, m, v: m.lerp_(v, 0.1).lerp_(v, 0.1), "twice"),
        (lambda s, m, v: m.lerp_(v, 0.02), "keeps 0.98 of itself"),
        (lambda s, m, v: m.lerp_(m.clone(), 0.1), "another model"),
        (lambda s, m, v: m.lerp_(-v, 0.1), "elsewhere"),
    ],
)
def test_an_average_that_is_wrong_from_the_start(update: Any, words: str) -> None:
    only(averaged(update, decay=0.9), "ema", "FAIL", 0, words)


def test_an_average_that_stops_never_starts_or_comes_every_few_steps() -> None:
    only(
        averaged(lambda s, m, v: right(s, m, v) if s < 6 else None, decay=0.9), "ema", "FAIL", 6, "not updated any more"
    )
    only(averaged(lambda s, m, v: None, 16, decay=0.9), "ema", "WARN", 0, "not updated once")
    found = averaged(lambda s, m, v: None, 40, decay=0.9)
    assert [v.severity for v in found] == ["WARN", "FAIL"]
    every_fifth = averaged(lambda s, m, v: right(s, m, v) if s % 5 == 4 else None, 30, decay=0.9)
    assert [v.severity for v in every_fifth] in ([], ["WARN"])


def test_an_average_whose_decay_warms_up_and_one_in_other_precision() -> None:
    def warming(step: int, mean: Tensor, value: Tensor) -> None:
        mean.lerp_(value, 1 - min(0.9, (1 + step) / (10 + step)))

    assert averaged(warming, 30, decay=0.9) == []


def test_torchs_own_average_and_its_buffers() -> None:
    model = net(norm=True)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follow = lambda step: mean.update_parameters(model)  # noqa: E731
    assert train(model, optimizer, 12, after=follow, ema=mean, spec={"ema": 0.9}) == []
    assert averaged(right, norm=True, decay=0.9, buffers=True) == []
    found = averaged(right, norm=True, decay=0.9)
    only(found, "ema", "WARN", 0, "buffers are not copied", "1.running_mean")


def test_an_average_before_the_step_and_one_that_is_the_model() -> None:
    model = net()
    mean = copy.deepcopy(model)

    @torch.no_grad()
    def early(step: int) -> None:
        for m, v in zip(mean.parameters(), model.parameters(), strict=True):
            right(step, m, v)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    only(train(model, optimizer, before=early, ema=mean, spec={"ema": 0.9}), "ema", "FAIL", 0, "before the step")
    only(train(model, optimizer, ema=model), "ema", "FAIL", 0, "the averaged model is the model itself")


def test_every_kind_of_average_has_its_words() -> None:
    assert set(averaging.SAID) == set(averaging.Kind) - {averaging.Kind.RIGHT, averaging.Kind.MISSING}


# -- RUN-20 ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x.argmax(1)))  # type: ignore[no-any-return]


PAIR = {"tied": [["embedding.weight", "head.weight"]]}


def test_ties() -> None:
    model = Tied()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec=PAIR) == []
    model = Tied(tie=False)
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1)) == []
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec=PAIR)
    only(found, "ties", "FAIL", 0, "two parameters", "declared is one")
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    only(train(model, torch.optim.SGD(model.parameters(), lr=0.1)), "ties", "WARN", 0, "head.weight is a copy")


@pytest.mark.parametrize("held, severity", [(False, "FAIL"), (True, "WARN")])
def test_a_tie_that_breaks_in_mid_run(held: bool, severity: str) -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def untie(step: int) -> None:
        if step == 4:
            model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
            if held:
                optimizer.add_param_group({"params": [model.head.weight]})

    found = [v for v in train(model, optimizer, 8, after=untie) if v.slug == "ties"]
    only(found, "ties", severity, 5, "they were one until step 5")


# -- RUN-21 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_first", [True, False])
@pytest.mark.parametrize("apart", [None, 5])
def test_replicas_in_one_process(other_first: bool, apart: int | None) -> None:
    model, other = net(), net()
    of_model = torch.optim.SGD(model.parameters(), lr=0.1)
    of_other = torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, of_model, replicas=[other], policy="observe") as guards:
        for step in range(10):
            for m in (model, other):
                m.zero_grad()
                x, y = data(step)
                F.cross_entropy(m(x), y).backward()
            if step == apart:
                for p in other.parameters():
                    assert p.grad is not None
                    p.grad.mul_(0.5)
            for optimizer in (of_other, of_model) if other_first else (of_model, of_other):
                optimizer.step()
    found = [v for v in guards.violations if v.slug == "replicas"]
    if apart is None:
        assert found == []
        assert next(g for g in guards.finish() if g.slug == "replicas").checks >= 10
    else:
        only(found, "replicas", "FAIL", 5, "replica 1 differs")


SCRIPT = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from karat.invariants.runtime import watch

rank, part = int(sys.argv[1]), sys.argv[2]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
torch.manual_seed(0)
ddp = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
alone = part == "one" and rank == 1
guards = None if alone else watch(ddp, optimizer, policy="observe", every=4)
for step in range(10):
    torch.manual_seed(10 * step + rank)
    optimizer.zero_grad()
    (ddp.module if part == "past" else ddp)(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    dist.barrier()
if guards is not None:
    report = guards.finish()
    print([(v.slug, v.severity, v.step) for v in guards.violations if v.slug == "replicas"],
          guards.not_checked.get("replicas", ""))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["right", "past", "one"])
def test_replicas_in_two_processes(part: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank), part, str(tmp_path / "meet")], text=True, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    if part == "right":
        assert said == ["[]", "[]"]
    elif part == "past":
        assert all("[('replicas', 'FAIL', 0)]" in text for text in said), said
    else:
        assert said[0].startswith("[]") and "not every one of the 2 processes watches" in said[0]


# -- RUN-22 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_statistics_of_a_frozen_part(declared: bool, mode: bool) -> None:
    model = net(norm=True)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False).train(mode)
    spec = {"frozen": ["0", "1"]} if declared else None
    found = train(model, torch.optim.SGD(model[3].parameters(), lr=0.1), spec=spec)
    if mode:
        only(found, "buffers", "FAIL" if declared else "WARN", 0, "1.running_mean", "train mode")
    else:
        assert found == []


def test_statistics_of_a_norm_that_trains_and_masks_of_infinities() -> None:
    model = net(norm=True)
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12) == []


def test_a_buffer_that_becomes_nan() -> None:
    model = net(norm=True)
    poison = lambda step: model(torch.full((4, 8), torch.nan)) if step == 6 else None  # noqa: E731
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12, after=poison)  # type: ignore[arg-type]
    only(found, "buffers", "FAIL", 7, "1.running_mean is NaN since step 7")


# -- all together ----------------------------------------------------------------------------------------------------


def test_a_watched_run_is_bit_for_bit_the_unwatched_one() -> None:
    states = []
    for watched in (True, False):
        model = net(norm=True)
        mean, twin = copy.deepcopy(model), copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(5)
        guards = None
        if watched:
            guards = watch(model, optimizer, ema=mean, replicas=[twin], policy="observe", every=4,
                           spec={"frozen": ["0.bias"], "decay": ["0.weight"], "ema": 0.9, "dtype": "float32"})  # fmt: skip
        for step in range(12):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(F.dropout(model(x), 0.2), y).backward()
            optimizer.step()
        if guards is not None:
            guards.finish()
        states.append([*model.state_dict().values(), *mean.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_strict_stops_before_the_next_step_changes_anything() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guards = watch(model, optimizer, policy="strict", spec={"no_decay": ["0.bias"]})
    optimizer.param_groups[0]["weight_decay"] = 0.5
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(data(0)[0]), data(0)[1]).backward()
    with pytest.raises(Stopped, match="RUN-18 weight-decay at step 0"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert guards.violations[0].where == "0.bias"
    guards.finish()


def test_samples_spread_over_rows_and_columns() -> None:
    matrix = torch.arange(1024.0 * 512).reshape(1024, 512)
    places = spread(matrix)
    assert (
        len(places) == MOST and len({int(p) % 512 for p in places}) > 100 and len({int(p) // 512 for p in places}) > 100
    )
    assert spread(torch.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert fit(matrix.t()) and not fit(matrix[:, ::2]) and not fit(matrix.long()) and not fit(torch.empty(0))
    assert torch.equal(spread(matrix.t()), places)
    seen = [n for step in range(4) for n in window(100, 32, step)]
    assert sorted(seen) == list(range(100)) and list(window(5, 32, 9)) == list(range(5))


def test_margins_are_those_of_the_rules() -> None:
    assert run33_precision.RULE.holds_for(0.95, 0.95) and not run33_precision.RULE.holds_for(0.96, 0.95)


def test_a_line_search_that_finds_nothing_moves_nothing() -> None:
    torch.manual_seed(18)
    points = torch.linspace(0, 2, 80).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")
    still = 0
    with watch(model, optimizer, policy="observe") as guards:
        for _ in range(60):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (model(points) - points.cos()).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            before = model[2].bias.detach().clone()
            optimizer.step(closure)  # type: ignore[arg-type]
            still += torch.equal(before, model[2].bias)
    assert still and not [v for v in guards.violations if v.severity == "FAIL"]
