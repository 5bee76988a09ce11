"""All legitimate loops that look odd: none of them may set off a FAIL."""

from __future__ import annotations

from corpus.loops import (
    attended,
    carried,
    clean_data,
    clean_forms,
    clean_freezing,
    clean_gradients,
    clean_keeping,
    clean_midrun,
    clean_models,
    clean_networks,
    clean_runs,
    clean_schedules,
    followed,
    latents,
    leftover,
    overlooked,
    replaced,
)
from corpus.loops.case import Clean

CLEAN: tuple[Clean, ...] = (
    *clean_schedules.CLEAN, *clean_freezing.CLEAN, *clean_gradients.CLEAN, *clean_networks.CLEAN,
    *clean_models.CLEAN, *clean_forms.CLEAN, *clean_data.CLEAN, *clean_runs.CLEAN,
    *clean_keeping.CLEAN,
    *clean_midrun.CLEAN, *followed.CLEAN, *replaced.CLEAN, *leftover.CLEAN, *attended.CLEAN,
    *overlooked.CLEAN, *carried.CLEAN, *latents.CLEAN,
)  # fmt: skip
