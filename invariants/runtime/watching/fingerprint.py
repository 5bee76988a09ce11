"""Fingerprints: one number for a batch, a few letters for a set of weights. Equal ones mean equal things, to float32."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from math import gcd

import torch
from torch import Tensor

from karat.invariants.runtime.watching.naming import local

NUMBERS = 256
"""Elements of a batch that are looked at."""
MOST_ROWS = 256
"""Rows that are told from each other by weights; of more the sum is taken."""
OF_WEIGHTS = 64
"""Elements of each parameter that are looked at."""


@cache
def _places(count: int) -> tuple[int, int]:
    """(how many, stride) of the elements looked at of `count`: spread over all, and through every column of every axis."""
    stride = max(1, count // NUMBERS)
    while gcd(stride, count) > 1:
        stride -= 1
    return min(NUMBERS, (count - 1) // stride + 1), stride


@cache
def _vector(count: int, device: torch.device) -> Tensor:
    """Fixed random weights, from a generator of their own."""
    return torch.randn(count, generator=torch.Generator().manual_seed(1)).to(device)


def of_batch(batch: Tensor) -> Tensor | None:
    """A 0-d float32 tensor on the batch's device; None for a tensor whose numbers do not lie together in memory."""
    if batch.requires_grad:
        batch = batch.detach()
    count = batch.numel()
    if not count or batch.layout is not torch.strided or batch.is_complex():
        return None
    if not batch.is_contiguous():
        if count > 64 * NUMBERS:
            return None
        batch = batch.contiguous()
    several, stride = _places(count)
    looked_at = batch.as_strided((several,), (stride,), batch.storage_offset())
    if looked_at.dtype is not torch.float32:
        looked_at = looked_at.float()
    return torch.dot(looked_at, _vector(several, batch.device))


def of_rows(batch: Tensor) -> Tensor | None:
    """As `of_batch`, of every element: the sums of the rows, weighted. A pass over the batch, for the rare look."""
    if not batch.numel() or batch.layout is not torch.strided or batch.is_complex():
        return None
    rows = batch.shape[0] if batch.ndim > 1 and batch.shape[0] <= MOST_ROWS else 1
    sums = batch.detach().reshape(rows, -1).sum(1, dtype=torch.float32)
    return torch.dot(sums, _vector(len(sums), sums.device))


def sample(tensor: Tensor, most: int = OF_WEIGHTS) -> Tensor:
    """Up to so many elements of a parameter, evenly spread, as a copy."""
    flat = local(tensor.detach())
    flat = flat.reshape(-1) if flat.is_contiguous() else flat.flatten()
    return flat[:: max(1, flat.numel() // most)][:most].clone()


def of_weights(parameters: Iterable[Tensor]) -> str:
    """16 hexadecimal digits of the first numbers of all parameters, in float32; empty where there are none."""
    samples = [sample(p).float() for p in parameters]
    if not samples or any(s.is_meta for s in samples):
        return ""
    device = samples[0].device
    together = torch.cat([s.to(device) for s in samples]).cpu()
    return hashlib.blake2b(together.numpy().tobytes(), digest_size=8).hexdigest()
