"""Tensors as a safetensors file, in pieces: its exact size is known before a byte is written, and nothing is copied.

The format: the header's length (8 bytes, little-endian), a JSON header padded with spaces to a multiple of 8, then the
tensors' bytes, the widest types first, names in order. The pieces joined are what `safetensors.torch.save` returns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from karat.core.errors import CheckpointError

Pieces = Sequence[bytes | memoryview]
"""A file's content, one part after another."""

TYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64",
    torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""The format's types, in the order in which a file lists its tensors."""

_RANK = {dtype: rank for rank, dtype in enumerate(TYPES)}


def ordered(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names as their tensors stand in the file. TypeError for a type that the format does not have."""
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise TypeError(f"the tensor {name} is of type {tensor.dtype}, which safetensors cannot hold")
    return sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """What comes before the tensors' bytes; their types and shapes decide it, wherever they are."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in ordered(tensors):
        tensor = tensors[name]
        end = at + tensor.nbytes
        table[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file."""
    return len(header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def pieces(tensors: Mapping[str, Tensor]) -> Pieces:
    """The file's content; the tensors are contiguous, on the CPU, and looked at, not copied, until it is written."""
    if sys.byteorder != "little":
        raise CheckpointError("this machine is big-endian", required="a little-endian one: safetensors is, throughout")
    return [header(tensors), *(_bytes(tensors[name]) for name in ordered(tensors))]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
