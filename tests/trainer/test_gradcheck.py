"""`trainer gradcheck`: what it compares, what counts as tested, exit codes 0, 1 and 2."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from karat.trainer.cli import main
from karat.trainer.gradcheck.case import Case, Draw, Own
from karat.trainer.gradcheck.check import checked, gradcheck
from karat.trainer.gradcheck.compare import (
    DIFFERENCES,
    NOTHING,
    OUTPUT,
    OWN,
    TORCH,
    Result,
    compared,
    norm,
    relative_error,
)
from karat.trainer.models.attention import Attention
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.reference import linear

ATTENTION_ALONE = {
    "causal attention": ["q", "k", "gain"],
    "masked attention": ["q", "k", "gain"],
    "attention": ["gain", "query", "key"],
}


def as_json(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["gradcheck", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def tensors(data: dict[str, Any], result: str) -> dict[str, list[str]]:
    """The tensors of each part that had this result."""
    of = {p["part"]: [t["tensor"] for t in p["tensors"] if t["result"] == result] for p in data["parts"]}
    return {part: names for part, names in of.items() if names}


def test_every_gradient_holds_against_each_opinion(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = as_json(capsys, "--seed", "3")
    assert (code, data["verdict"], data["seed"], data["length"]) == (0, "HOLDS", 3, 5)
    assert tensors(data, "held") == {p["part"]: [t["tensor"] for t in p["tensors"]] for p in data["parts"]}
    for part in data["parts"]:
        for row in part["tensors"]:
            voices = {c["with"] for c in row["comparisons"]}
            assert TORCH in voices and (DIFFERENCES in voices) == (row["tensor"] != OUTPUT)
            own = part["trainers_module"] is not None
            assert (OWN in voices) == own or (part["part"], row["tensor"]) == ("attention", "gain")
            assert row["norm"] > 0 and all(c["error"] <= c["limit"] for c in row["comparisons"])
            assert all(c["limit"] <= 1e-9 for c in row["comparisons"] if c["with"] == TORCH)


def test_the_trainers_own_modules_are_among_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    _, data = as_json(capsys, "--length", "2")
    places = {part["part"]: part["trainers_module"] for part in data["parts"] if part["trainers_module"]}
    modules = {place.split(",")[0].split()[-1] for place in places.values()}
    assert modules == {"GF16Linear", "head_loss", "Norm", "rotary_table", "rotate", "Attention", "squared_relu",
                       "FeedForward", "Transformer"}  # fmt: skip
    own = {
        p["part"]: c["limit"] for p in data["parts"] for t in p["tensors"] for c in t["comparisons"] if c["with"] == OWN
    }
    assert own.pop("rotary table") == 2**-24 and set(own.values()) == {1e-9}


def test_the_whole_models_have_a_gradient_for_every_weight_of_the_trainers() -> None:
    check = gradcheck(0, 2)
    rows = {p.part: [r.tensor for r in p.rows] for p in check.parts}["transformer (LayerNorm, RoPE, SwiGLU)"]
    config = ModelConfig(n_layers=2, activation="swiglu", streams=1, gf16=False)
    names = {name for name, _ in Transformer(config).named_parameters()}
    packed = sum(name.endswith("qkv.weight") for name in names)  # three weights of the reference
    assert len(rows) == 1 + len(names) + 2 * packed == 21


def test_at_length_one_attention_is_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = as_json(capsys, "--length", "1")
    assert (code, data["verdict"]) == (2, "CANNOT JUDGE")
    open_ = tensors(data, "not tested")
    assert {part: names for part, names in open_.items() if "transformer" not in part} == ATTENTION_ALONE
    models = [names for part, names in open_.items() if "transformer" in part]
    assert models == [[f"blocks.{i}.{name}" for i in range(2) for name in ("query", "key")]] * 3
    assert not tensors(data, "FAILED")
    main(["gradcheck", "--length", "1"])
    out = capsys.readouterr().out
    assert "not tested: attention: gain, query, key: the gradient is zero on both sides" in out
    assert "one token: a softmax over one score is 1" in out and "next      trainer gradcheck --length 5" in out


@pytest.mark.parametrize(("length", "matters"), [(1, False), (2, True), (5, True)])
def test_the_trainers_query_and_key_have_a_gradient_from_two_tokens_on(length: int, matters: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(ModelConfig(d_model=8, n_heads=2, context=5, qk_gain=2.0))
    layer(torch.randn(2, length, 8)).square().sum().backward()
    assert layer.qkv.weight.grad is not None
    query, key, value = (float(part.norm()) for part in layer.qkv.weight.grad.chunk(3))
    assert value > 0.1
    assert (query > 1e-3 * value, key > 1e-3 * value) == (matters, matters)
    assert matters or max(query, key) < 1e-6 * value


def test_table_and_verdict_are_the_result_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", "--length", "2"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert out.splitlines()[-1] == "HOLDS: 118 tensors of 20 parts"
    assert "2.0e-08 <= 6.0e-08" in out and "models/attention.py Attention" in out


@pytest.mark.parametrize(
    ("option", "given", "required"),
    [("--seed", "x", "0 to 4294967295"), ("--seed", "-1", "0 to"), ("--seed", "4294967296", "0 to"), ("--seed", "²", "0 to"),
     ("--length", "0", "1 to 16"), ("--length", "17", "1 to 16"), ("--length", "9" * 5000, "1 to 16")],
)  # fmt: skip
def test_a_bad_option_ends_with_2(option: str, given: str, required: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", f"{option}={given}"]) == 2
    out, err = capsys.readouterr()
    assert not out and f"{option} " in err and f"a whole number from {required}" in err and len(err) < 300


def test_the_same_seed_gives_the_same_numbers_and_leaves_torchs_generator_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (as_json(capsys, "--length", "2", "--seed", seed)[1] for seed in ("7", "7", "8"))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again and first["parts"] != other["parts"]


def test_gradients_are_found_where_they_are_switched_off() -> None:
    with torch.no_grad():
        assert gradcheck(0, 2).exit_code == 0


@pytest.mark.parametrize("opinion", [TORCH, DIFFERENCES])
def test_a_zero_gradient_on_both_sides_is_never_held(opinion: str) -> None:
    zero, tiny = np.zeros(3), np.full(3, 0.1 * NOTHING[opinion])
    for ours, theirs in ((zero, zero), (zero, tiny), (tiny, zero), (tiny, tiny)):
        assert compared(opinion, ours, theirs, 1.0, 1.0).result is Result.NOT_TESTED
    assert compared(opinion, zero, zero, 0.0, 1.0).result is Result.NOT_TESTED


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([0.0], [1.0]), ([1.0], [0.0]), ([1.0], [1 + 2e-9]), ([-1.0], [1.0]), ([math.nan], [1.0]), ([0.0], [math.nan]),
     ([math.inf], [math.inf]), ([0.0, 1e-8], [0.0, 2e-8])],
)  # fmt: skip
def test_what_differs_fails(ours: list[float], theirs: list[float]) -> None:
    assert compared(TORCH, np.array(ours), np.array(theirs), 1.0, 1e-9).result is Result.FAILED


def test_the_error_is_relative_to_the_tensor_not_to_its_neighbours() -> None:
    small = np.array([1e-9, 0.0])
    assert compared(TORCH, small, small * (1 + 1e-8), 1.0, 1e-9).result is Result.FAILED
    assert compared(TORCH, small, small * (1 + 1e-10), 1.0, 1e-9).result is Result.HELD
    assert relative_error(np.array([3.0, 4.0]), np.array([0.0, 0.0])) == 1
    assert norm(np.array([3e200, 4e200])) == pytest.approx(5e200) and norm(np.array([3e-200, 4e-200])) == pytest.approx(
        5e-200
    )


def test_equal_numbers_in_another_shape_fail() -> None:
    found = compared(TORCH, np.ones(3), np.ones((1, 3)), 1.0, 1e-9)
    assert (found.result, found.reason) == (Result.FAILED, "its shape is (1, 3), the reference's (3,)")


def line(**changes: Any) -> Case:
    """x W^T, with what a test makes wrong of it."""
    draw = Draw(0, "line", 3)
    right = Case(
        "line",
        {"x": draw.hidden(), "weight": draw.weight(4, 8)},
        lambda a: linear.linear(a["x"], a["weight"]),
        lambda dy, a: {n: linear.linear_backward(dy, a["x"], a["weight"])._asdict()[n] for n in ("x", "weight")},
        lambda t: t["x"] @ t["weight"].T,
        Own("a module", lambda t: torch.nn.functional.linear(t["x"], t["weight"])),
    )
    return dataclasses.replace(right, **changes)


def results(case: Case) -> dict[str, Result]:
    return {row.tensor: row.result for row in checked(case, 0).rows}


def test_a_gradient_that_reference_and_torch_both_lack_is_found_by_differences() -> None:
    assert set(results(line()).values()) == {Result.HELD}
    lacking = line(
        backward=lambda dy, a: {"x": linear.linear_backward(dy, a["x"], a["weight"]).x, "weight": 0 * a["weight"]},
        torch=lambda t: t["x"] @ t["weight"].detach().T,
        own=None,
    )
    assert results(lacking) == {"output": Result.HELD, "x": Result.HELD, "weight": Result.FAILED}


def test_a_module_whose_output_is_detached_fails() -> None:
    own = Own("a module", lambda t: (t["x"] @ t["weight"].T).detach())
    found = checked(line(own=own), 0)
    assert [row.result for row in found.rows] == [Result.HELD, Result.FAILED, Result.FAILED]
    assert {found.suspect(row) for row in found.rows[1:]} == {"the trainer's module stands alone"}


def test_a_module_that_raises_is_not_tested_and_the_others_are_heard() -> None:
    def raises(t: Any) -> torch.Tensor:
        raise KeyError("qkv.weight")

    found = checked(line(own=Own("a module", raises)), 0)
    assert found.result is Result.NOT_TESTED
    assert {c.opinion: c.result for c in found.rows[1].comparisons} == {
        OWN: Result.NOT_TESTED, TORCH: Result.HELD, DIFFERENCES: Result.HELD,
    }  # fmt: skip
    assert found.rows[1].comparisons[0].reason == "cannot be run: KeyError: 'qkv.weight'"


def test_a_module_in_float32_fails() -> None:
    own = Own("a module", lambda t: (t["x"].float() @ t["weight"].float().T).double())
    assert set(results(line(own=own)).values()) == {Result.FAILED}


def test_an_output_of_another_shape_is_not_tested_as_equal() -> None:
    longer = checked(line(own=Own("a module", lambda t: (t["x"] @ t["weight"].T)[None])), 0)
    assert {row.result for row in longer.rows} == {Result.NOT_TESTED}
    cut = checked(line(own=Own("a module", lambda t: (t["x"] @ t["weight"].T)[None].detach())), 0)
    assert {row.result for row in cut.rows} == {Result.FAILED}


def test_autograd_that_is_wrong_in_both_is_told_from_the_reference() -> None:
    def wrong(t: Any) -> torch.Tensor:
        y: torch.Tensor = t["x"] @ t["weight"].T
        return y.detach() + 2 * (y - y.detach())

    found = checked(line(torch=wrong, own=Own("a module", wrong)), 0)
    told = "autograd does not give the gradient of the forward pass that all agree on"
    assert [found.suspect(row) for row in found.rows if row.result is Result.FAILED] == [told, told]
