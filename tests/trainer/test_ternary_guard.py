"""INV-12 in force: a ternary layer that rounds, scales or multiplies otherwise than it says is seen at that very step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from karat.core.formulas.ternary import GROUP, LEVELS, group_sum, largest_sum
from karat.core.verdict import Verdict
from karat.invariants.catalogue import find
from karat.invariants.runtime.probes import observe, ternary_layers
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import check_end, train
from karat.trainer.models import ternary_linear as running
from karat.trainer.models.ternary_linear import Codes, TernaryLinear, Trits
from karat.trainer.opening import open_session
from karat.trainer.session import Session

STEP, STEPS = 2, 4
TERNARY = (
    "model.d_model=128", "model.n_layers=1", "model.streams=1", "model.gf16=false", "model.ternary=true", "model.nca=false",
    "model.context=16", "batch_size=2", "eval.bytes=300", f"steps={STEPS}", "optim.warmup=1",
)  # fmt: skip
ENCODE, TERNARISE, PRODUCT = running.encode, running.ternarise, running.integer_product

Sabotage = Callable[[pytest.MonkeyPatch], None]


def judged(*layers: TernaryLinear, may_be_zero: bool = False) -> Verdict:
    reading = ternary_layers([layer.take_sample() for layer in layers], may_be_zero=may_be_zero)
    (observation,) = observe([reading])
    return find("INV-12").judge(observation.values, reading.declared)


def observed(layer: TernaryLinear) -> dict[str, float]:
    return dict(observe([ternary_layers([layer.take_sample()])])[0].values)


def used(d_in: int = 384, d_out: int = 24, rows: int = 40) -> TernaryLinear:
    torch.manual_seed(0)
    layer = TernaryLinear(d_in, d_out)
    layer(torch.randn(rows, d_in))
    return layer


def scale_of_another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight_OI: Tensor) -> Trits:
        trits, scales = TERNARISE(weight_OI)
        return Trits(trits, scales.roll(1, 0))

    monkeypatch.setattr(running, "ternarise", wrong)


def rounded_towards_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x_RI: Tensor) -> Codes:
        step = ENCODE(x_RI).step_R1
        return Codes((x_RI.detach() / step).trunc().to(torch.int8), step)

    monkeypatch.setattr(running, "encode", wrong)


def codes_clipped_at_63(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x_RI: Tensor) -> Codes:
        codes, step = ENCODE(x_RI)
        return Codes(codes.clamp(-63, 63), step)

    monkeypatch.setattr(running, "encode", wrong)


def seven_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and step agree with each other, and use half of the range."""

    def wrong(x_RI: Tensor) -> Codes:
        step = ENCODE(x_RI).step_R1 * (LEVELS / 63)
        return Codes((x_RI.detach() / step).round().to(torch.int8), step)

    monkeypatch.setattr(running, "encode", wrong)


def stale_trits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are made ternary once, as they are a step earlier, and never again."""
    kept: dict[int, Trits] = {}

    def wrong(weight_OI: Tensor) -> Trits:
        return kept.setdefault(weight_OI.data_ptr(), TERNARISE(weight_OI))

    monkeypatch.setattr(running, "ternarise", wrong)


def output_of_another_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is its neighbour's."""
    monkeypatch.setattr(running, "integer_product", lambda codes, weight: PRODUCT(codes, weight).roll(1, 1))


def output_off_by_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "integer_product", lambda codes, weight: PRODUCT(codes, weight) * 1.001)


def four_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight_OI: Tensor) -> Trits:
        trits, scales = TERNARISE(weight_OI)
        trits[0, 0, trits[0, 0] == 1] = 2
        return Trits(trits, scales)

    monkeypatch.setattr(running, "ternarise", wrong)


FAULTS: list[tuple[Sabotage, str]] = [
    (scale_of_another_group, "deviation"),
    (rounded_towards_zero, "excess"),
    (codes_clipped_at_63, "excess"),
    (seven_bits, "excess"),
    (output_of_another_product, "deviation"),
    (output_off_by_a_thousandth, "deviation"),
    (four_values, "trit"),
]


@pytest.mark.parametrize(("fault", "seen_in"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_layer_that_does_otherwise_is_seen_in_the_number_that_says_so(
    fault: Sabotage, seen_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = observed(used())
    assert not find("INV-12").judge(clean).violated
    fault(monkeypatch)
    wrong = observed(used())
    assert find("INV-12").judge(wrong).violated
    assert find("INV-12").judge(clean | {seen_in: wrong[seen_in]}).violated, "seen by another number than expected"


def test_stale_trits_are_seen_once_the_weights_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    stale_trits(monkeypatch)
    layer = used()
    assert not judged(layer).violated
    with torch.no_grad():
        layer.weight += 0.01 * torch.randn_like(layer.weight)
    layer(torch.randn(9, 384))
    values = observed(layer)
    assert values["excess"] > 0.01 and values["deviation"] > 1e-5


def test_a_weight_changed_after_the_forward_is_seen() -> None:
    layer = used()
    with torch.no_grad():
        layer.weight[3, :GROUP] *= -1
    assert judged(layer).violated


def test_a_dead_layer_is_a_violation_but_for_a_start_at_zero() -> None:
    def dead() -> tuple[TernaryLinear, TernaryLinear]:
        layers = used(), TernaryLinear(GROUP, 8, init_std=0.0)
        layers[1](torch.randn(4, GROUP))
        return layers

    assert judged(*dead()).violated
    assert not judged(*dead(), may_be_zero=True).violated
    assert observed(dead()[1])["live"] == 0


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_a_violation(odd: float) -> None:
    layer = used()
    with torch.no_grad():
        layer.weight[1, 2] = odd
    layer(torch.randn(4, 384))
    assert judged(layer).violated
    layer = used()
    x = torch.randn(4, 384)
    x[2, 3] = odd
    layer(x)
    assert judged(layer).violated


def test_a_layer_that_was_not_run_is_a_violation_and_each_forward_is_looked_at_once() -> None:
    layer = used()
    assert not judged(layer).violated
    assert judged(layer).violated and judged().violated
    assert judged(used(), layer).violated


@pytest.mark.parametrize(("d_in", "d_out", "rows"), [(128, 1, 1), (128, 200, 3), (2048, 16, 8), (384, 24, 100)])
def test_sound_layers_of_any_size_and_scale_raise_no_alarm(d_in: int, d_out: int, rows: int) -> None:
    """Rows from 1e-20 to 1e20, zeros, one number far above the rest, weights of another size in each group."""
    torch.manual_seed(d_in + rows)
    layer = TernaryLinear(d_in, d_out)
    with torch.no_grad():
        layer.weight.view(d_out, -1, GROUP).mul_(torch.logspace(-6, 2, d_in // GROUP)[:, None])
    for size in (1e-20, 1e-7, 1.0, 1e6, 1e20):
        x = torch.randn(rows, d_in) * size
        x[0, 0] *= 1e6
        if rows > 1:
            x[1] = 0
        layer(x)
        assert not judged(layer).violated, size


def test_what_is_kept_of_a_forward_is_small() -> None:
    layer = used(rows=400)
    sample = layer.take_sample()
    assert sample is not None
    assert [len(part) for part in sample[3:]] == [running.SAMPLED] * 3
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in sample[3:])
    assert not any(part.requires_grad for part in sample)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_devices_integer_product_is_the_proved_sum(sign: int) -> None:
    """Random codes, and the extremes, whose sum is the bound."""
    torch.manual_seed(1)
    codes = torch.randint(-LEVELS, LEVELS + 1, (32, GROUP), dtype=torch.int8)
    trits = torch.randint(-1, 2, (GROUP, 8), dtype=torch.int8)
    codes[0], trits[:, 0] = sign * LEVELS, 1
    product = torch._int_mm(codes, trits)
    expected = [[group_sum(row, column) for column in trits.t().tolist()] for row in codes.tolist()]
    assert product.tolist() == expected and product[0, 0] == sign * largest_sum(GROUP)


@pytest.fixture
def session(text: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Callable[..., Session]:
    """A run of the tiny ternary configuration that observes: it needs no proof to begin."""

    def opened(*settings: str) -> Session:
        config = read_config(
            None, [*tiny_settings, *TERNARY, *settings], policy="observe", data=str(text), out=tmp_path
        )
        return open_session(config, tmp_path, Console(quiet=True))

    return opened


@pytest.mark.parametrize("settings", [("model.zero_outputs=true", "model.streams=2"), ("precision=bfloat16",)])
def test_a_sound_run_is_looked_at_in_every_step_and_holds(
    settings: tuple[str, ...], session: Callable[..., Session]
) -> None:
    run = session(*settings)
    train(run, lambda: True)
    check_end(run)
    assert run.monitor.guards["INV-12"].checks == STEPS + 1
    assert [v for v in run.monitor.violations if v.invariant == "INV-12"] == []


def test_a_model_without_ternary_layers_has_no_such_guard(session: Callable[..., Session]) -> None:
    assert "INV-12" not in session("model.ternary=false").monitor.guards


@pytest.mark.parametrize("fault", [scale_of_another_group, rounded_towards_zero, stale_trits], ids=lambda f: f.__name__)
def test_a_fault_is_seen_at_its_step_of_a_run(
    fault: Sabotage, session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session()
    at = STEP - 1 if fault is stale_trits else STEP  # from the next step on they are stale
    train(run, lambda: True, lambda step: fault(monkeypatch) if step == at else None)
    steps = [v.step for v in run.monitor.violations if v.invariant == "INV-12"]
    assert steps == list(range(STEP, STEPS))
