"""A budget beside the running model: every kind of layer, what each counter counts, and that a wrong formula is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from karat.core.errors import ConfigError
from karat.trainer.budget import checks as judged
from karat.trainer.budget import command, measure
from karat.trainer.budget.activations import peak
from karat.trainer.budget.checks import Check, checks, require_memory, too_large
from karat.trainer.budget.command import budget_of
from karat.trainer.budget.render import Budget
from karat.trainer.budget.terms import Term
from karat.trainer.cli import main
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.models import attention
from karat.trainer.objectives.next_token import LOGITS_AT_A_TIME

SMALL = ("batch_size=2", "model.context=16", "model.d_model=128", "model.d_ff=384", "model.n_layers=2")
PLAIN = (*SMALL, "model.streams=1", "model.gf16=false", "model.nca=false")
JEPA = (
    "jepa.enabled=true", "jepa.ratio=0.45", "jepa.span_low=2", "jepa.span_high=5", "jepa.width=24", "jepa.heads=3",
    "jepa.layers=3",
)  # fmt: skip
CASES = {
    "default": (SMALL),
    "swiglu, rmsnorm, dropout, qk-norm": (
        *SMALL, "model.activation=swiglu", "model.norm=rmsnorm", "model.dropout=0.1", "model.qk_norm=true",
    ),
    "gelu, learned positions": (*PLAIN, "model.activation=gelu", "model.positions=learned"),
    "bfloat16": (*PLAIN, "precision=bfloat16", "model.activation=swiglu", "model.norm=rmsnorm", "model.dropout=0.1"),
    "bfloat16, streams": (*PLAIN, "precision=bfloat16", "model.streams=4"),
    "bfloat16, dynamic streams": (
        *PLAIN, "precision=bfloat16", "model.streams=3", "model.dynamic_streams=true", "model.norm=rmsnorm",
    ),
    "ternary, streams, Muon and Lion": (
        *PLAIN, "model.ternary=true", "model.streams=2", "model.stream_biases=true", "optim.name=muon+lion",
    ),
    "dynamic streams, Lion": (*PLAIN, "model.streams=3", "model.dynamic_streams=true", "optim.name=lion"),
    "Muon, automaton": (*SMALL, "optim.name=muon", "model.qk_norm=true", "ema.enabled=false"),
    "T-JEPA": (*PLAIN, *JEPA),
    "T-JEPA, bfloat16": (*PLAIN, *JEPA, "precision=bfloat16"),
    "T-JEPA, bfloat16, swiglu, rmsnorm, dropout": (
        *PLAIN, *JEPA, "precision=bfloat16", "model.activation=swiglu", "model.norm=rmsnorm", "model.dropout=0.1",
    ),
    "T-JEPA, streams, GF16, automaton": (*SMALL, *JEPA),
    "T-JEPA, dynamic streams, Lion": (
        *PLAIN, *JEPA, "model.streams=3", "model.dynamic_streams=true", "optim.name=lion",
    ),
    "T-JEPA, ternary, streams, Muon and Lion": (
        *PLAIN, *JEPA, "model.ternary=true", "model.streams=2", "model.stream_biases=true", "optim.name=muon+lion",
    ),
    "T-JEPA as wide as the model, Muon, no penalty": (
        *PLAIN, "jepa.enabled=true", "jepa.layers=4", "model.d_ff=512", "optim.name=muon", "ema.enabled=false",
        "jepa.variance_weight=0.0", "jepa.covariance_weight=0.0",
    ),
    "T-JEPA, learned positions, context features, one masked token": (
        *PLAIN, "jepa.enabled=true", "jepa.ratio=0.0625", "jepa.span_low=1", "jepa.span_high=1", "jepa.layers=1",
        "model.positions=learned", "model.context_features=3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_running_model_is_as_printed(case: str) -> None:
    config = read_config(None, CASES[case])
    found = checks(config, measure.measure(config))
    ratios = {check.name: check.measured / check.printed for check in found}
    assert all(check.ok for check in found), ratios
    assert ratios["forward pass"] == ratios["backward pass"] == ratios.get("optimizer step", 1) == 1
    assert 0.95 < ratios["peak of a step"] < 1.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_head_that_is_taken_in_several_parts_is_as_printed(precision: str) -> None:
    config = read_config(None, (*PLAIN, "model.vocab=60000", f"precision={precision}"))
    assert 60_000 * config.batch_size * config.model.context > LOGITS_AT_A_TIME
    found = checks(config, measure.measure(config))
    assert {check.name: check.measured / check.printed for check in found}["forward pass"] == 1
    assert all(check.ok for check in found)


def counted(make: object, *inputs: Tensor) -> int:
    """What the counter says of one call."""
    with FlopCounterMode(display=False, custom_mapping=dict(measure.FORMULAS)) as counter:
        make(*inputs)  # type: ignore[operator]
    return int(counter.get_total_flops())


def test_what_torchs_counter_lacks_is_counted_by_its_definition() -> None:
    a, b = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 24, dtype=torch.int8)
    assert counted(torch._int_mm, a, b) == counted(torch.mm, a.float(), b.float()) == 2 * 32 * 16 * 24
    m, x, y = torch.ones(5, 7), torch.ones(7), torch.ones(5)
    assert counted(torch.mv, m, x) == counted(torch.addr, m, y, x) == 2 * 5 * 7
    assert counted(lambda: torch.ones(32, 24).addmm_(a.float(), b.float())) == 2 * 32 * 16 * 24
    q = torch.rand(2, 3, 16, 8, requires_grad=True)

    def attend(*_: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    scores = 2 * 2 * 3 * 16 * 16 * 8
    assert counted(attend) == 2 * scores
    loss = attend().sum()
    assert counted(lambda: loss.backward()) == 5 * scores  # the scores anew, and four gradients


def test_a_wrong_formula_is_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_head(config: RunConfig) -> list[Term]:
        return [line for line in honest(config) if not line.part.startswith("head")]

    honest = judged.forward_flops
    monkeypatch.setattr(judged, "forward_flops", without_head)
    assert main(["budget", *(part for setting in PLAIN for part in ("--set", setting))]) == 1
    out, err = capsys.readouterr()
    assert "OFF" in out and "the running model is not as printed: forward pass" in err


def test_a_model_that_keeps_more_than_printed_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = attention.F.scaled_dot_product_attention

    def by_hand(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float) -> Tensor:
        return plain(q, k, v, is_causal=is_causal, scale=scale) + 0 * (q @ k.transpose(-1, -2)).softmax(-1).mean()

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", by_hand)
    config = read_config(None, (*PLAIN, "model.context=64"))
    off = {check.name for check in checks(config, measure.measure(config)) if not check.ok}
    assert {"forward pass", "backward pass", "saved for backward"} <= off
    assert "parameters" not in off


def test_the_ends_of_what_is_let_pass() -> None:
    def ok(measured: int) -> bool:
        return Check("saved", "B", 1000, measured, judged.CLOSE).ok

    assert [ok(989), ok(990), ok(1010), ok(1011)] == [False, True, True, False]
    assert not Check("optimizer step", "FLOP", 0, 5, judged.CLOSE).ok


def test_what_is_too_large_or_does_not_run_cannot_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(None, [], preset="mini")
    assert "GFLOP" in too_large(read_config(None, ["batch_size=512"], preset="mini"), None)
    assert "that are free" in too_large(config, 10**8)
    assert not too_large(config, 10**12) and not too_large(config, None)

    def broken(_: RunConfig) -> measure.Measured:
        raise RuntimeError("addmv input tensors must have the same dtype\nmore")

    monkeypatch.setattr(command, "measure", broken)
    found = budget_of("mini", read_config(None, PLAIN), to_measure=True, console=Console(quiet=True))
    assert found.exit_code == 2 and found.why_not == "a step fails: addmv input tensors must have the same dtype"
    assert Budget("mini", config).exit_code == 0


@pytest.mark.parametrize(
    "pair", ["batch_size=100000000", "model.n_layers=10000000", "model.d_model=1000000", "model.d_ff=2147483647"]
)
def test_a_run_that_cannot_fit_into_memory_is_refused_before_anything_is_built(
    pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--set", pair, "--set", "model.n_heads=2", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "trainer: a step of this model and batch holds at least" in said and "trainer budget --no-measure" in said
    assert not (tmp_path / "run").exists()


def test_a_run_is_refused_only_where_it_surely_does_not_fit() -> None:
    config = read_config(None, [], preset="nano")
    least = int(judged.PEAK[0] * peak(config)[1])
    require_memory(config, least)
    require_memory(config, None)
    with pytest.raises(ConfigError, match="holds at least 25 MB, of 25 MB that are free"):
        require_memory(config, least - 1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "--all", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert out.count("T-JEPA: target's weights") == 1 and "M = 38, U = 90, W = 128, J = 2, A = 4" in out
    assert "2.69 MB = 2.56 MiB" in out and "4.496 GFLOP for 1,024 tokens, 4.391 MFLOP a token" in out
    assert "ternary-tiny: float32, muon+lion" in out and "not measured, as asked" in out
    (tmp_path / "run.toml").write_text("[model]\nd_model = 64\n")
    assert main(["budget", str(tmp_path / "run.toml"), "--preset", "nano", "micro", "--no-measure", "--json"]) == 0
    nano, micro = json.loads(capsys.readouterr().out)
    assert (nano["name"], micro["name"], nano["symbols"]["d"], micro["symbols"]["d"]) == ("nano", "micro", 64, 64)
    assert nano["parameters"]["total"] == sum(line["value"] for line in nano["parameters"]["terms"])
    assert nano["measured"] is None and nano["flops_per_token"] * nano["tokens_per_step"] == nano["flops_per_step"]
    assert main(["budget", str(tmp_path / "run.toml"), "--all"]) == 2
    assert main(["budget", "--preset", "nanno"]) == 2
    assert main(["budget", "--set", "jepa.enabled=true", "--set", "jepa.span_low=9", "--set", "model.context=9"]) == 2
    assert "model.context=10 or more" in capsys.readouterr().err
    assert main(["budget", "--set", "model.ternary=true"]) == 2
    assert "gf16 = false" in capsys.readouterr().err


def test_measuring_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure.measure(read_config(None, ["batch_size=1", "model.context=4", "model.d_model=8", "model.n_layers=1"]))
    assert torch.equal(torch.get_rng_state(), before)
