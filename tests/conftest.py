"""Hypothesis profiles, one torch thread per test process, and the text that small runs train on."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("dev", max_examples=60, deadline=None, database=None)
hypothesis.settings.register_profile("ci", max_examples=120, deadline=None, database=None, derandomize=True)
hypothesis.settings.register_profile("deep", max_examples=3000, deadline=None, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
