"""Bad input to preflight: what was seen, what is required, what to type next; and loops of other shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.errors import ConfigError, KaratError
from karat.invariants.runtime import Spec, preflight
from karat.invariants.runtime.preflight import PROBES, Suppression, steps
from karat.invariants.runtime.preflight.trees import leaves, replaced

D, V, B = 8, 5, 4


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, V))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, D), torch.randint(0, V, (B,))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def refused(model: Any = None, loss: Any = loss_of, optimizer: Any = None, given: Any = None, **spec: Any) -> str:
    model = made() if model is None else model
    held = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    with pytest.raises(KaratError) as error:
        preflight(model, batch() if given is None else given, loss, held, spec=spec)
    assert error.value.required
    return str(error.value)


def test_models_and_optimizers_that_cannot_be_judged() -> None:
    some = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert "no parameters" in refused(nn.ReLU(), optimizer=some)
    assert "model is str" in refused("model", optimizer=some)
    assert "no parameter of the model has requires_grad" in refused(made().requires_grad_(False), optimizer=some)
    assert "optimizer is str" in refused(optimizer="adam")
    assert "optimizer is list" in refused(optimizer=[])
    some.param_groups.clear()
    assert "no groups" in refused(optimizer=some)


def test_parameters_of_kinds_that_cannot_be_judged() -> None:
    wave = nn.Module()
    wave.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    assert "weight is complex" in refused(wave)
    with torch.device("meta"):
        ghost = nn.Linear(2, 2)
    assert "device meta" in refused(ghost)
    assert "not initialised" in refused(nn.LazyLinear(3), optimizer=torch.optim.SGD(made().parameters(), lr=0.1))
    rare = nn.Module()
    rare.weight = nn.Parameter(torch.eye(2).to_sparse())
    assert "weight is sparse" in refused(rare)


def test_names_that_do_not_exist_are_answered_with_the_nearest() -> None:
    named = nn.Sequential()
    named.add_module("encoder", nn.Linear(D, D))
    named.add_module("head", nn.Linear(D, V))
    assert "did you mean 'encoder'" in refused(named, frozen=["encodr.*"])
    assert "did you mean 'head.weight'" in refused(named, tied=[("head.wieght", "encoder.weight")])
    assert "did you mean 'head'" in refused(named, network="heads")
    assert "did you mean 'head.bias'" in refused(named, detached=["head.bais"])
    rule = refused(named, suppress=[{"rule": "causalty", "reason": "known"}])
    assert "did you mean 'causality'" in rule


def test_a_spec_that_is_wrong_lists_every_problem() -> None:
    text = refused(casual=True, classes=1, seconds=0)
    assert "there is no key 'casual' (did you mean 'causal'?)" in text and "classes" in text and "seconds" in text
    assert "reason" in refused(suppress=[{"rule": "RUN-23"}])
    with pytest.raises(ValueError, match="reason"):
        Suppression(rule="RUN-23", reason="")


def test_a_loss_function_that_cannot_be_run_says_what_to_pass() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(D, V)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.last(x * mask)  # type: ignore[no-any-return]

    text = refused(Masked())
    assert "missing 1 required positional argument: 'mask'" in text and "every argument its forward needs" in text
    assert "returned NoneType" in refused(loss=lambda m, b: None)
    assert "shape (4, 5)" in refused(loss=lambda m, b: m(b[0]))
    assert "returned dict" in refused(loss=lambda m, b: {"accuracy": 0.5})
    assert "KeyError" in refused(loss=lambda m, b: {}["x"])
    assert "Spec.example" in refused(example=(torch.zeros(1, D + 1),))


def test_a_batch_on_another_device_is_named() -> None:
    x, y = batch()
    text = refused(given=(x.to("meta"), y.to("meta")))
    assert "model on cpu, batch on meta" in text and "one device" in text


def test_a_loss_that_cannot_be_differentiated_twice_is_told() -> None:
    model = made()
    once = loss_of(model, batch())
    report = preflight(model, batch(), lambda m, b: once, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "cannot be differentiated" in report.not_run["RUN-32"]


def test_an_optimizer_that_breaks_in_its_step_is_named() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("no step")

    model = made()
    assert "Broken.step() raised RuntimeError: no step" in refused(model, optimizer=Broken(model.parameters(), lr=0.1))


def test_sparse_gradients_are_judged() -> None:
    model = nn.Sequential(nn.Embedding(7, D, sparse=True), nn.Flatten(), nn.Linear(3 * D, V))
    optimizers = [torch.optim.SparseAdam(model[0].parameters()), torch.optim.Adam(model[2].parameters())]
    given = torch.randint(0, 7, (B, 3)), torch.randint(0, V, (B,))
    report = preflight(model, given, loss_of, optimizers)
    assert not report.failures and "RUN-8" in report.held and "RUN-16" in report.held, str(report)


def test_an_optimizer_that_wants_a_closure() -> None:
    model = made()
    report = preflight(model, batch(), loss_of, torch.optim.LBFGS(model.parameters(), max_iter=2))
    assert not report.failures and "RUN-16" in report.held


def test_dictionaries_keyword_arguments_and_modes_set_by_the_loop() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.drop = nn.Linear(D, V), nn.Dropout(0.5)

        def forward(self, *, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.drop(self.last(values))}

    def loop(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model.train()
        return {"loss": F.cross_entropy(model(values=batch["values"])["logits"], batch["labels"])}

    model = Named()
    given = dict(zip(("values", "labels"), batch(), strict=True))
    optimizer = torch.optim.Adam(model.parameters())
    report = preflight(model, given, loop, optimizer, spec=Spec(deterministic=True, batch_independent=True))
    assert not report.findings, str(report)
    assert {"RUN-25", "RUN-24", "RUN-27", "RUN-31"} <= set(report.held)


def test_a_model_that_is_not_called_itself_needs_a_network_or_an_example() -> None:
    parts = nn.ModuleDict({"encoder": nn.Linear(D, D), "head": nn.Linear(D, V)})
    optimizer = torch.optim.Adam(parts.parameters())

    def loop(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model["head"](model["encoder"](batch[0])), batch[1])

    report = preflight(parts, batch(), loop, optimizer)
    assert not report.failures and "Spec(network=" in report.not_run["RUN-24"]
    named = preflight(parts, batch(), loop, optimizer, spec={"network": "encoder"})
    assert "RUN-24" in named.held
    shown = preflight(parts, batch(), loop, optimizer, spec={"network": "head", "example": (torch.randn(3, D),)})
    assert shown.held["RUN-24"].startswith("2 samples")


def test_what_there_is_no_time_for_is_listed() -> None:
    model = made()
    report = preflight(model, batch(), loss_of, torch.optim.Adam(model.parameters()), spec={"seconds": 1e-6})
    assert report.exit_code == 2 and {probe.id for probe in PROBES} <= set(report.not_run)
    assert all("time budget" in report.not_run[probe.id] for probe in PROBES)


def test_a_part_of_the_batch_is_its_first_samples() -> None:
    x, y = torch.randn(16, D), torch.randint(0, V, (16,))
    part = steps._first_samples({"x": x, "y": (y, "name")})
    assert torch.equal(part["x"], x[:4]) and torch.equal(part["y"][0], y[:4]) and part["y"][1] == "name"
    assert steps._first_samples((x, y[:3]))[0] is x
    assert steps._first_samples((x[:2], y[:2]))[0].shape[0] == 2


def test_tensors_are_found_and_replaced_by_path() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    nested = ([a, 3], {"x": (b, None)})
    assert [path for path, _ in leaves(nested)] == [("0", "0"), ("1", "x", "0")]
    changed = replaced(nested, {("1", "x", "0"): a})
    assert changed[1]["x"][0] is a and changed[0][0] is a and nested[1]["x"][0] is b  # type: ignore[index, call-overload]


def test_each_probe_is_of_a_rule_of_its_own() -> None:
    assert len({probe.id for probe in PROBES}) == len(PROBES) == 16
    assert all("preflight" in probe.rule.seen_by for probe in PROBES)


def test_errors_are_those_of_karat() -> None:
    with pytest.raises(ConfigError):
        preflight(made(), batch(), loss_of, "sgd")  # type: ignore[arg-type]
