"""What the trainer offers: values, units, moments; read once and only when asked for; the page lists exactly these."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from karat.core.errors import KaratError
from karat.core.observation import Phase, Quantity
from karat.invariants import template
from karat.invariants.plugins import Plugin
from karat.invariants.runtime.by_name import reading_by_name
from karat.invariants.runtime.probes import observe
from karat.trainer import observables
from karat.trainer.observables import OFFERED, View, missing, moments, readings, why_not

BEFORE, FINISH = Phase.BEFORE_STEP, Phase.FINISH


def view(**changed: Any) -> View:
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}])
    losses: Any = SimpleNamespace(cross_entropy=torch.tensor(2.0), total=torch.tensor(2.5))
    return View(
        **{"model": model, "optimizer": optimizer, "losses": losses, "step": 7, "gradient_norm": 0.5, **changed}
    )


def plugin(*names: str, phases: tuple[Phase, ...] = (BEFORE,), probe: Any = None, **changed: Any) -> Plugin:
    units = {name: OFFERED[name].unit if name in OFFERED else "" for name in names}
    quantities = tuple(Quantity(name, name, units[name], "a test", **changed) for name in names)
    invariant = dataclasses.replace(template.INVARIANT, phases=phases, quantities=quantities)
    return Plugin(invariant, "some-package", "a = b:C", Path("proofs.lock"), probe)


def seen(*names: str, **changed: Any) -> dict[str, Any]:
    return dict(observe(readings([plugin(*names)], BEFORE, view(**changed)))[0].values)


def test_values() -> None:
    assert seen(*OFFERED) == {
        "step": 7.0, "lr": 0.1, "loss": 2.0 / math.log(2), "total_loss": 2.5, "gradient_norm": 0.5, "weight_norm": 5.0,
        "weight_absmax": 4.0,
    }  # fmt: skip


def test_the_loss_is_per_byte_where_a_token_stands_for_several() -> None:
    assert seen("loss", "total_loss", bytes_per_token=3.2) == {"loss": 2.0 / 3.2 / math.log(2), "total_loss": 2.5}


def test_what_is_not_finite_stays_so() -> None:
    odd = torch.nn.Linear(2, 2)
    odd.weight.data[0, 0] = math.nan
    got = seen("weight_absmax", "weight_norm", model=odd)
    assert math.isnan(got["weight_absmax"]) and math.isnan(got["weight_norm"])
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, math.nan, 0.3)]
    assert math.isnan(seen("lr", optimizer=torch.optim.SGD(groups))["lr"])
    assert seen("lr", optimizer=torch.optim.SGD([groups[0], groups[2]]))["lr"] == 0.3


def test_each_is_read_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(name: str) -> Any:
        honest = OFFERED[name]
        return dataclasses.replace(honest, read=lambda v: (calls.append(name), honest.read(v))[1])

    monkeypatch.setattr(observables, "OFFERED", {name: counting(name) for name in OFFERED})
    pair = [plugin("loss", "step"), plugin("loss", "weight_norm")]
    assert len(readings(pair, BEFORE, view())) == 2 and calls == ["step", "loss", "weight_norm"]
    assert readings(pair, FINISH, view()) == [] and readings([], BEFORE, view()) == [] and len(calls) == 3


def test_moments() -> None:
    both = (BEFORE, FINISH)
    assert moments(plugin("loss", phases=both)) == both
    assert moments(plugin("gradient_norm", phases=both)) == (BEFORE,)
    assert moments(plugin("gradient_norm", phases=(FINISH,))) == ()
    assert moments(plugin("loss", phases=(Phase.RUNG,))) == () and moments(plugin("elsewhere")) == ()
    assert moments(plugin("elsewhere", probe=lambda v: {})) == (BEFORE,)


def test_why_one_is_not_on_duty() -> None:
    assert why_not(plugin("loss")) == ""
    assert why_not(plugin("loss", "a", "b")) == "the trainer does not offer a, b"
    assert "not offered at the end" in why_not(plugin("gradient_norm", phases=(FINISH,)))
    assert why_not(plugin("loss", phases=(Phase.RUNG,))).startswith(
        "looks at a rung; the trainer calls on it before the step"
    )
    assert "observed with shape" in why_not(plugin("loss", shape=("n",)))
    nats = dataclasses.replace(template.INVARIANT, quantities=(Quantity("loss", "loss", "nats", "a test"),))
    assert missing(nats, BEFORE) == ["loss (observed in nats, offered in bits per byte)"]


def test_a_probe_gives_numbers_and_tensors_of_any_shape() -> None:
    read = {"a": 1.5, "b": torch.tensor(2.5, requires_grad=True), "c": torch.arange(6.0).reshape(2, 3)}
    own = plugin("a", "b", "c", probe=lambda v: read)
    values = observe(readings([own], BEFORE, view()))[0].values
    assert values == {"a": 1.5, "b": 2.5, "c": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
    assert observe([reading_by_name("X-1", "p", {"e": torch.zeros(0, 3)})])[0].values == {"e": []}


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        (lambda v: {"b": 1.0}, "did not give a"),
        (lambda v: 1 / 0, "failed: ZeroDivisionError"),
        (lambda v: 3, "failed: TypeError"),
    ],
)
def test_a_probe_that_fails_is_named(probe: Any, why: str) -> None:
    with pytest.raises(KaratError, match=f"the probe of INV-900, of the package some-package, {why}"):
        readings([plugin("a", probe=probe)], BEFORE, view())


def test_the_page_lists_what_is_offered(repository: Path) -> None:
    page = (repository / "docs" / "adding-an-invariant.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*?) \| yes \| (yes|no) \|$", page, re.M)
    listed = [(name, unit, meaning, end == "yes") for name, unit, meaning, end in rows]
    assert listed == [(o.name, o.unit, o.meaning, FINISH in o.moments) for o in OFFERED.values()]
