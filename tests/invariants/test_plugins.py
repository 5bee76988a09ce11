"""Entry points: what is found, what is broken and said to be, where the lock of each is, and guards in a loop of one's own."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from karat.core.errors import ConfigError, EvidenceError, KaratError
from karat.core.report import Proof, ProofLock, write_text
from karat.invariants import catalogue as catalogue_module
from karat.invariants import standing, template
from karat.invariants.catalogue import BUILT_IN, catalogue, find, found
from karat.invariants.plugins import PluginError, demand_sound
from karat.invariants.runtime import Stopped, watch
from karat.proofs import verify
from karat.proofs.plugin_locks import plugin_lock
from karat.proofs.worker import decide

Offer = Callable[..., None]


def renamed(id_: str, slug: str) -> Any:
    """The template under another name."""
    obligations = tuple(dataclasses.replace(o, id=o.id.replace("INV-900", id_)) for o in template.INVARIANT.obligations)
    return dataclasses.replace(template.INVARIANT, id=id_, slug=slug, family=id_.split("-")[0], obligations=obligations)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Offer]:
    """offer(invariants={name: value}, probes={…}): these are the entry points that are installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def install(**groups: dict[str, str]) -> None:
        named = SimpleNamespace(name="some-package")
        entries = EntryPoints(
            EntryPoint(name, value, f"karat.{group}")._for(named)  # type: ignore[attr-defined]
            for group, offers in groups.items()
            for name, value in offers.items()
        )
        monkeypatch.setattr("karat.invariants.plugins.metadata.entry_points", lambda group: entries.select(group=group))
        catalogue_module.found.cache_clear()

    (tmp_path / "offered.py").write_text(
        "import dataclasses\n"
        "from karat.invariants.template import INVARIANT\n"
        "def named(id_, slug):\n"
        "    o = tuple(dataclasses.replace(o, id=o.id.replace('INV-900', id_)) for o in INVARIANT.obligations)\n"
        "    return dataclasses.replace(INVARIANT, id=id_, slug=slug, family=id_.split('-')[0], obligations=o)\n"
        "ONE, TWO, SAME = named('ACME-1', 'one'), named('ACME-2', 'two'), named('ACME-1', 'other')\n"
        "SLUG, TAKEN, KARATS = named('ACME-3', 'LR-band'), named('ACME-4', 'inv-2'), named('INV-8', 'mine')\n"
        "COPY = INVARIANT\n"
        "def read(view): return {'norm': 1.0}\n"
    )
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "rules.py").write_text("from offered import ONE\n")
    yield install
    catalogue_module.found.cache_clear()
    for name in ("offered", "leaves", "package", "package.rules"):
        sys.modules.pop(name, None)


def test_what_is_offered_is_found_in_the_order_of_its_names(offer: Offer) -> None:
    offer(invariants={"b": "offered:ONE", "a": "offered:TWO"})
    assert [i.id for i in catalogue()] == [*(i.id for i in BUILT_IN), "ACME-2", "ACME-1"]
    assert find("acme-1").slug == "one" and not found().broken
    assert found().plugins[0].package == "some-package" and found().plugins[0].entry == "a = offered:TWO"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("absent_module:ONE", "cannot be loaded: ModuleNotFoundError: No module named 'absent_module'"),
        ("offered:NOT_THERE", "cannot be loaded: AttributeError"),
        ("leaves:ONE", "cannot be loaded: SystemExit: 3"),
        ("offered:named", "is of type function"),
        ("offered:KARATS", "defines INV-8, which is defined already"),
        ("offered:SLUG", "defines LR-band, which is defined already"),
        ("offered:TAKEN", "defines inv-2, which is defined already"),
        ("offered:COPY", "defines INV-900, template, INV-900.guard"),
    ],
)
def test_a_broken_one_is_named_and_left_out(value: str, why: str, offer: Offer) -> None:
    offer(invariants={"bad": value, "good": "offered:ONE"})
    assert [i.id for i in catalogue()] == [*(i.id for i in BUILT_IN), "ACME-1"]
    (error,) = found().broken
    assert error.seen.startswith(
        f"the entry point bad = {value} (group karat.invariants) of the package some-package {why}"
    )
    assert "pip uninstall some-package" in error.next_step and error.exit_code == 2
    with pytest.raises(PluginError, match="bad = "):
        demand_sound(found().broken)
    with pytest.raises(KaratError, match="left out: the entry point bad"):
        find("ACME-77")
    assert find("INV-8").slug == "lr-band"


def test_of_two_with_one_id_the_first_by_name_is_used(offer: Offer) -> None:
    offer(invariants={"a": "offered:ONE", "b": "offered:SAME"})
    assert [p.invariant.slug for p in found().plugins] == ["one"]
    assert "b = offered:SAME" in found().broken[0].seen and "ACME-1, ACME-1.guard" in found().broken[0].seen


def test_probes(offer: Offer) -> None:
    offer(invariants={"a": "offered:ONE"}, probes={"ACME-1": "offered:read"})
    probe = found(with_probes=True).plugins[0].probe
    assert probe is not None and probe(None) == {"norm": 1.0}
    offer(invariants={"a": "offered:ONE"}, probes={"ACME-1": "offered:ONE"})
    assert "(group karat.probes)" in found(with_probes=True).broken[0].seen and not found(with_probes=True).plugins
    offer(invariants={"a": "offered:ONE"}, probes={"ACME-9": "offered:read"})
    assert "belongs to no invariant that was found" in found(with_probes=True).broken[0].seen
    offer(invariants={"a": "offered:ONE"}, probes={"ACME-1": "leaves:read"})
    assert found().plugins and not found().broken  # nothing but a trainer needs the probe
    assert "(group karat.probes)" in found(with_probes=True).broken[0].seen


def test_where_the_lock_is(offer: Offer, tmp_path: Path) -> None:
    offer(invariants={"a": "package.rules:ONE", "b": "offered:TWO"})
    first, second = found().plugins
    assert first.lock == tmp_path / "package" / "proofs.lock"
    assert second.lock == tmp_path / "offered.proofs.lock"
    assert standing.lock_path(first.invariant) == first.lock
    assert {standing.lock_path(i) for i in BUILT_IN} == {standing.LOCK}


def test_verify_proves_the_rest_beside_a_broken_one(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("karat.proofs.verify.invariants", lambda: (template.INVARIANT,))
    command = ["--no-lock", "--jobs", "1", "--out", str(tmp_path / "out")]
    offer(invariants={})
    assert verify.main(command) == 0
    capsys.readouterr()
    offer(invariants={"bad": "leaves:ONE"})
    assert verify.main(command) == 2
    out, err = capsys.readouterr()
    assert "1 obligations: 1 proved" in out and "left out: the entry point bad = leaves:ONE" in err
    assert verify.main(["--only", "INV-2", "--only", "nothing", *command]) == 2


def proved(invariant: Any) -> list[Any]:
    return [decide(o) for o in invariant.obligations]


def test_a_lock_keeps_what_still_holds_and_nothing_else(offer: Offer) -> None:
    one, two = renamed("ACME-1", "one"), renamed("ACME-2", "two")
    first = plugin_lock([one, two], proved(one), {"z3": "1"}, None)
    assert list(first.proofs) == list(first.guards) == ["ACME-1"]
    both = plugin_lock([one, two], proved(two), {"z3": "1"}, first)
    assert list(both.proofs) == ["ACME-1", "ACME-2"]
    assert all(standing.standing(i, both).current for i in (one, two))
    assert list(plugin_lock([one, two], proved(two), {"z3": "2"}, first).proofs) == ["ACME-2"]
    stale = Proof(**{**first.proofs["ACME-1"]["ACME-1.guard"].model_dump(), "about": {"margin": "0"}})
    old = ProofLock(solver={"z3": "1"}, proofs={"ACME-1": {"ACME-1.guard": stale}}, guards=first.guards)
    assert list(plugin_lock([one, two], proved(two), {"z3": "1"}, old).proofs) == ["ACME-2"]


def test_declared_parameters_are_part_of_what_was_proved() -> None:
    one = renamed("ACME-1", "one")
    lock = plugin_lock([one], proved(one), {}, None)
    wider = dataclasses.replace(one, parameters=template.Limit(99.0))
    assert standing.standing(wider, lock).stale == ("declared parameters",)


def test_watch_takes_others_by_id(offer: Offer) -> None:
    offer(invariants={"a": "offered:ONE"})
    model = torch.nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def norms(step: int) -> dict[str, Any]:
        assert model.weight.grad is not None
        return {"norm": model.weight.grad.norm() * (100 if step == 2 else 1)}

    def loop(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model.weight.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    with pytest.raises(EvidenceError, match="ACME-1 is UNPROVED"):
        watch(model, optimizer, policy="strict", invariants={"one": norms})
    (mine,) = found().plugins
    write_text(mine.lock, plugin_lock([mine.invariant], proved(mine.invariant), {}, None).model_dump_json())
    guards = watch(model, optimizer, policy="strict", invariants={"one": norms})
    loop(2)
    before = model.weight.detach().clone()
    with pytest.raises(Stopped, match=r"ACME-1 one violated at step 2 .*\n  observed   norm = 200 "):
        loop(1)
    assert torch.equal(model.weight, before)
    assert [(s.invariant, s.checks, s.violations) for s in guards.finish() if s.invariant[:3] != "RUN"] == [
        ("ACME-1", 3, 1)
    ]
    with pytest.raises(ConfigError, match="ACME-1 is declared twice"):
        watch(model, optimizer, invariants={"one": norms, "ACME-1": norms})
    with pytest.raises(KaratError, match="no invariant 'twelve'"):
        watch(model, optimizer, invariants={"twelve": norms})
