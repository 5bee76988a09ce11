"""RUN-21 across processes: fingerprints of the parameters, left in the process group's store and read there.

No collective is called, so nothing can hang: where a process does not watch, its fingerprint is not there, and nothing is
said.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from torch import distributed

from karat.invariants.run.run21_replicas import RULE
from karat.invariants.runtime.watching.check import Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.sampling import fit, spread

TOLERANCE = 1e-6
KEY = "karat/watch/replicas/{step}/{rank}"


class Processes:
    """The exchange of one loop; idle unless its model is wrapped in DistributedDataParallel and there are other processes."""

    def __init__(self) -> None:
        self._world = self._rank = 0
        self._store: Any = None
        self._left: int | None = None
        self._own: dict[str, float] = {}

    def start(self, loop: Loop) -> bool:
        """Whether there is something to compare."""
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return False
        if not any(type(m).__name__ == "DistributedDataParallel" for m in loop.model.modules()):
            return False
        self._world, self._rank = distributed.get_world_size(), distributed.get_rank()
        self._store = distributed.distributed_c10d._get_default_store()
        return True

    def look(self, loop: Loop, moment: Moment) -> None:
        """Leaves a fingerprint before a step in which everything is looked at, and reads those of the last one."""
        if self._store is None:
            return
        self._read(loop)
        if loop.dense(moment.step):
            names = [n for n, p in loop.parameters.items() if fit(p)]
            sums = [spread(loop.parameters[n]).double() for n in names]
            norms = torch.stack([s.dot(torch.linspace(1, 2, len(s), dtype=s.dtype, device=s.device)) for s in sums])
            self._own = dict(zip(names, norms.tolist(), strict=True))
            self._store.set(KEY.format(step=moment.step, rank=self._rank), json.dumps(self._own))
            self._left = moment.step

    def _read(self, loop: Loop) -> None:
        step, store = self._left, self._store
        if step is None or store is None:
            return
        keys = [KEY.format(step=step, rank=rank) for rank in range(self._world)]
        if not store.check(keys):
            loop.not_checked(RULE, f"not every one of the {self._world} processes watches its replica")
            self._left = None
            return
        self._left = None
        for rank, key in enumerate(keys):
            theirs = json.loads(store.get(key))
            apart = [n for n, x in self._own.items() if not abs(x - theirs.get(n, x)) <= TOLERANCE * max(abs(x), 1e-3)]
            said = partial(self._differ, rank, step, apart)
            loop.judge(RULE, max(step - 1, 0), RULE.margin(float(len(apart)), TOLERANCE), said)

    def _differ(self, rank: int, step: int, apart: list[str]) -> dict[str, Any]:
        return {
            "message": f"process {rank} has other values than process {self._rank} in {apart[0]} before step {step}",
            "where": "", "evidence": f"{len(apart)} of {len(self._own)} parameters differ",
        }  # fmt: skip

    def finish(self, loop: Loop) -> None:
        """Reads what was left before the last step."""
        if self._left is not None and self._left < loop.step - 1:
            self._read(loop)
        self._store = None
