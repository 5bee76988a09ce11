"""Probes, monitor, ledger and watch on live torch objects."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from karat.core.errors import ConfigError, EvidenceError, StorageError
from karat.core.invariant import Invariant
from karat.core.observation import Phase
from karat.core.policy import Policy
from karat.core.report import ProofLock, read_lock
from karat.core.verdict import Status, Verdict
from karat.invariants import inv02_asha_threshold as inv02
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import standing
from karat.invariants.catalogue import BUILT_IN, find
from karat.invariants.runtime import Monitor, Stopped, watch
from karat.invariants.runtime.ledger import Ledger, plain, read_rows
from karat.invariants.runtime.probes import (
    gf16_absmax,
    learning_rate,
    mixing_matrices,
    nca_entropy,
    observe,
    prune_certificate,
    schedule_peak,
)


def values(reading: Any) -> dict[str, Any]:
    return dict(observe([reading])[0].values)


D = inv08.DEFAULT
MUON = inv08.Band(7, 1)


def banded(*rates: float) -> list[tuple[float, inv08.Band]]:
    return [(rate, D) for rate in rates]


def test_learning_rate_reads_the_worst_group() -> None:
    assert values(learning_rate(banded(0.004, 0.5, 0.003), True))["lr"] == 0.5
    assert values(learning_rate(banded(0.004, 0.0001), True))["lr"] == 0.0001
    assert math.isnan(values(learning_rate(banded(0.004, math.nan), False))["lr"])


def test_every_group_is_judged_by_its_own_band() -> None:
    reading = learning_rate([(0.004, D), (0.02, MUON)], True)
    assert inv08.INVARIANT.judge(values(reading), reading.declared).status is Status.HOLDS
    for rates, lr, band in (([(0.02, D), (0.02, MUON)], 0.02, D), ([(0.004, D), (0.004, MUON)], 0.004, MUON)):
        reading = learning_rate(rates, True)
        assert (values(reading)["lr"], reading.declared) == (lr, band)
        assert inv08.INVARIANT.judge(values(reading), reading.declared).violated


def test_the_worst_group_is_the_nearest_to_its_bound_for_the_size_of_its_band() -> None:
    """0.004 is nearer to its bound in absolute terms, by 0.0015 against 0.0021, but not for the size of its band."""
    low, high = D.ends[0], MUON.ends[1]
    near, far = low + 0.0015, high - 0.0021
    for rates in ([(near, D), (far, MUON)], [(far, MUON), (near, D)]):
        reading = learning_rate(rates, True)
        assert (values(reading)["lr"], reading.declared) == (far, MUON)


def test_the_monitor_judges_and_reports_by_the_band_of_the_reading() -> None:
    guards = Monitor.of([(inv08.INVARIANT, D)], Policy.OBSERVE)
    guards.check(Phase.BEFORE_STEP, 0, [learning_rate([(0.02, MUON)], True)])
    assert not guards.violations
    guards.check(Phase.BEFORE_STEP, 1, [learning_rate([(0.004, MUON)], True)])
    assert guards.violations[0].required == inv08.INVARIANT.required(MUON)


def test_schedule_peak_reads_the_worst_step() -> None:
    assert values(schedule_peak([(0.001, False, D), (0.004, True, D), (0.0041, True, D)])) == {
        "lr": 0.001, "on_plateau": 0.0,
    }  # fmt: skip
    assert values(schedule_peak([(0.001, True, D), (0.004, True, D)]))["lr"] == 0.001


def test_gf16_absmax_reads_the_worst_tensor() -> None:
    fine, huge, tiny = torch.full((3, 3), 0.5), torch.tensor([[-1e10, 1.0]]), torch.full((2,), 1e-12)
    assert values(gf16_absmax([fine, huge], inv03.DEFAULT))["absmax"] == 1e10
    assert values(gf16_absmax([fine, tiny], inv03.DEFAULT))["absmax"] == pytest.approx(1e-12)
    assert math.isnan(values(gf16_absmax([fine, torch.tensor([math.nan, 1.0])], inv03.DEFAULT))["absmax"])
    assert values(gf16_absmax([fine, torch.tensor([math.inf])], inv03.DEFAULT))["absmax"] == math.inf


def test_nca_entropy_reads_a_histogram_of_81_cells_only() -> None:
    assert values(nca_entropy(torch.full((9,), 9)))["entropy"] == pytest.approx(math.log(9))
    assert values(nca_entropy(torch.tensor([81, 0, 0, 0, 0, 0, 0, 0, 0])))["entropy"] == 0
    for wrong in (torch.full((9,), 8), torch.full((3,), 27), torch.tensor([-1, 82, 0, 0, 0, 0, 0, 0, 0])):
        assert math.isnan(values(nca_entropy(wrong))["entropy"])


def test_mixing_matrices_come_over_in_order() -> None:
    matrices = torch.arange(18.0).reshape(2, 3, 3)
    observed = values(mixing_matrices(matrices, torch.tensor(0.5)))
    assert observed["matrices"] == matrices.tolist() and observed["spread"] == 0.5


def test_observations_of_several_probes_do_not_mix() -> None:
    a = mixing_matrices(torch.eye(2)[None], torch.tensor(0.25))
    b = nca_entropy(torch.full((9,), 9))
    c = gf16_absmax([torch.ones(2, dtype=torch.float64) / 3], inv03.DEFAULT)
    first, second, third = observe([a, b, c])
    assert first.values["spread"] == 0.25 and second.values["entropy"] > 2
    assert third.values["absmax"] == 1 / 3  # float64 is not narrowed


class Rows(list[Any]):
    def write(self, row: Any) -> None:
        self.append(row)


def monitor(policy: Policy, **options: Any) -> Monitor:
    return Monitor.of([(find("INV-8"), inv08.DEFAULT), (find("INV-2"), inv02.Certificate())], policy, **options)


def test_policies() -> None:
    said: list[str] = []
    bad = learning_rate(banded(0.5), False)
    for policy, expected in ((Policy.OFF, 0), (Policy.OBSERVE, 1), (Policy.WARN, 1)):
        guards = monitor(policy, say=said.append)
        guards.check(Phase.BEFORE_STEP, 3, [bad])
        assert len(guards.violations) == expected
        assert len(said) == (policy is Policy.WARN)
    assert said[0].startswith("INV-8 lr-band violated at step 3 (before the step; warn)\n  observed   lr = 0.5")
    with pytest.raises(Stopped):
        monitor(Policy.STRICT).check(Phase.BEFORE_STEP, 3, [bad])


def test_every_reading_is_recorded_before_the_first_violation_is_raised() -> None:
    rows = Rows()
    guards = monitor(Policy.STRICT, ledger=rows)
    tight = inv02.Certificate(threshold=Fraction(1))
    with pytest.raises(Stopped, match="INV-8"):
        guards.check(Phase.RUNG, 3, [learning_rate(banded(0.5), False), prune_certificate(2.0, tight)])
    assert [v.invariant for v in guards.violations] == ["INV-8", "INV-2"]
    assert [row["event"] for row in rows] == ["violation", "violation", "check"]


def test_of_several_readings_of_one_invariant_the_least_margin_is_told() -> None:
    fine, worse, nothing = (learning_rate(banded(rate), False) for rate in (0.004, 0.5, math.nan))
    alone = [monitor(Policy.OBSERVE).check(Phase.BEFORE_STEP, 0, [one])["INV-8"] for one in (fine, worse, nothing)]
    assert alone[0] > 0 > alone[1] > alone[2] == -math.inf
    for readings, least in (([fine, worse], 1), ([worse, fine], 1), ([nothing, fine, worse], 2)):
        assert monitor(Policy.OBSERVE).check(Phase.BEFORE_STEP, 0, readings) == {"INV-8": alone[least]}


def test_summaries_and_state_travel() -> None:
    guards = monitor(Policy.OBSERVE)
    assert guards.not_exercised() == ["INV-8", "INV-2"]
    for step, rate in enumerate((0.004, 0.006, 0.5)):
        guards.check(Phase.BEFORE_STEP, step, [learning_rate(banded(rate), False)])
    again = monitor(Policy.OBSERVE)
    again.restore(json.loads(json.dumps(guards.state())))
    for one in (guards, again):
        summary = one.guards["INV-8"].summary()
        assert (summary.checks, summary.violations, summary.worst_step, summary.state) == (3, 1, 2, "VIOLATED")
        assert summary.worst_margin == pytest.approx(0.0065778 - 0.5, abs=1e-6)
        assert one.guards["INV-2"].summary().state == "NOT EXERCISED"
        assert len(one.violations) == 1


def test_ledger_survives_a_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.write({"a": 1, "b": [math.nan, Fraction(1, 3)]})
    ledger.close()
    with path.open("a") as file:
        file.write('{"a": 2, "torn')
    assert list(read_rows(path)) == [{"a": 1, "b": ["nan", "1/3"]}]
    again = Ledger(path)
    again.write({"a": 3})
    again.close()
    assert [row["a"] for row in read_rows(path)] == [1, 3]
    assert plain({"x": -math.inf}) == {"x": "-inf"}


def test_ledger_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        Ledger(tmp_path / "file" / "ledger.jsonl")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setattr("karat.invariants.runtime.ledger.os.write", lambda file, line: len(line) - 1)
    with pytest.raises(StorageError, match="space"):
        ledger.write({"a": 1})


def loop(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        weight.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_watch_stops_a_foreign_loop_before_the_step() -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    with watch(model, optimizer, policy="strict", lr_band=inv08.DEFAULT) as guards:
        loop(optimizer, model.weight, 3)
        before = model.weight.detach().clone()
        state = {k: v.clone() for k, v in optimizer.state[model.weight].items()}
        optimizer.param_groups[0]["lr"] = 0.1
        with pytest.raises(Stopped, match="INV-8 lr-band violated at step 3"):
            loop(optimizer, model.weight, 1)
        assert torch.equal(model.weight, before)
        assert all(torch.equal(optimizer.state[model.weight][k], v) for k, v in state.items())
        assert list(guards.not_checked)[:3] == ["INV-8, lower end", "INV-3", "INV-11"]
        assert "no plateau was declared" in guards.finish().guards[0].note
    loop(optimizer, model.weight, 1)  # detached: the loop is the user's own again
    assert [v.step for v in guards.violations] == [3] and guards.finish().guards[0].checks == 4


def test_watch_declared_tensors_and_matrices(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    flat = torch.full((1, 2, 2), 0.5)
    guards = watch(model, optimizer, policy="observe", gf16=["weight"], mixing=lambda: (flat, torch.tensor(0.0)),
                   ledger=tmp_path / "l.jsonl")  # fmt: skip
    loop(optimizer, model.weight, 2)
    summary = {s.invariant: (s.checks, s.violations) for s in guards.finish() if s.invariant.startswith("INV")}
    assert summary == {"INV-3": (2, 0), "INV-11": (2, 2)}
    assert len(list(read_rows(tmp_path / "l.jsonl"))) == 2
    with pytest.raises(ConfigError, match="no parameter 'wieght'"):
        watch(model, optimizer, gf16=["wieght"])


def test_standing_follows_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for status in standing.standings(BUILT_IN):
        assert status.current and status.grade == "PROVED", "run `make verify`: the committed lock is stale"
    found = standing.standings(BUILT_IN, tmp_path / "absent")
    assert all(s.grade == "UNPROVED" and s.missing for s in found)
    with pytest.raises(EvidenceError, match="make verify"):
        standing.demand_current(found)
    monkeypatch.setattr("karat.core.formulas.halving.ETA", 4)
    changed = {s.invariant: s for s in standing.standings(BUILT_IN)}
    assert changed["INV-10"].grade == "UNPROVED" and "core.formulas.halving.rung_steps" in changed["INV-10"].stale
    assert changed["INV-8"].current
    assert "changed since the last proof" in standing.cite(changed["INV-10"])


def test_a_margin_that_was_changed_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    easy = dataclasses.replace(find("INV-11"), margin=lambda values, parameters, ops: 1.0)
    status = standing.standing(easy, read_lock(standing.LOCK))
    assert status.grade == "UNPROVED"
    weaker = dataclasses.replace(find("INV-8"), obligations=(
        dataclasses.replace(find("INV-8").obligations[0], claim="something else"), *find("INV-8").obligations[1:]))  # fmt: skip
    assert "INV-8.plateau statement" in standing.standing(weaker, read_lock(standing.LOCK)).stale


def judge_nothing(self: Invariant, values: object, parameters: object = None, ops: object = None) -> Verdict:
    return Verdict(Status.HOLDS, 1.0)


def test_a_judge_that_was_changed_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    invariant, lock = find("INV-8"), read_lock(standing.LOCK)
    assert lock is not None
    lock = lock.model_copy(update={"guards": {**lock.guards, "INV-8": standing.guard_fingerprints(invariant)}})
    assert standing.standing(invariant, lock).current
    monkeypatch.setattr(judge_nothing, "__qualname__", "Invariant.judge")
    monkeypatch.setattr(judge_nothing, "__module__", "karat.core.invariant")
    monkeypatch.setattr(Invariant, "judge", judge_nothing)
    assert not invariant.judge({"lr": -1.0}).violated  # the guard is blind
    status = standing.standing(invariant, lock)
    assert status.stale == ("core.invariant.Invariant.judge",) and status.grade == "UNPROVED"
    with pytest.raises(EvidenceError, match="changed since the last proof"):
        standing.demand_current([status])


@pytest.mark.parametrize("grade", ["REFUTED", "VACUOUS", "UNKNOWN"])
def test_a_lock_whose_grade_is_not_green_is_not_current(grade: str) -> None:
    lock = read_lock(standing.LOCK)
    assert lock is not None
    data = lock.model_dump()
    data["proofs"]["INV-8"]["INV-8.plateau"]["grade"] = grade
    status = standing.standing(find("INV-8"), ProofLock.model_validate(data))
    assert status.grade == "UNPROVED" and not status.current
    bare = dataclasses.replace(find("INV-8"), obligations=())
    assert not standing.standing(bare, lock).current


def test_a_method_or_function_swapped_in_memory_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.core.ops.FloatOps.minimum", lambda self, a, b: 1.0)
    assert not standing.standings([find("INV-8")])[0].current
    monkeypatch.undo()
    assert standing.standings([find("INV-8")])[0].current
    monkeypatch.setattr("karat.core.formulas.schedule.wsd", lambda *arguments: 0.004)
    assert "core.formulas.schedule.wsd" in standing.standings([find("INV-8")])[0].stale


def test_watch_refuses_nothing_and_nonsense() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.004)
    for options in ({"gf16": []}, {"lr_band": inv08.DEFAULT, "policy": "nope"}):
        with pytest.raises(ConfigError):
            watch(model, optimizer, **options)  # type: ignore[arg-type]
    for shape in ((1, 2, 3), (0, 2, 2), (2, 2)):
        with pytest.raises(ValueError, match="mixing matrices must be"):
            mixing_matrices(torch.ones(shape), torch.tensor(1.0))
    with pytest.raises(ValueError, match="spread one number"):
        mixing_matrices(torch.ones(1, 2, 2), torch.ones(2))


def test_watch_follows_a_replaced_parameter() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guards = watch(model, optimizer, policy="observe", gf16=["weight"])
    model.weight = torch.nn.Parameter(torch.full((2, 2), 1e30))
    loop(optimizer, model.weight, 1)
    assert {v.invariant for v in guards.violations} == {"INV-3", "RUN-15"}


def test_strict_watch_demands_current_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.004)
    monkeypatch.setattr("karat.invariants.inv08_lr_band.PHI", inv08.PHI + 0)
    monkeypatch.setattr("karat.core.formulas.schedule.clamp", lambda x, low, high: x)
    with pytest.raises(EvidenceError, match=r"INV-8 is UNPROVED: .*changed since the last proof"):
        watch(model, optimizer, policy="strict", lr_band=inv08.DEFAULT)
