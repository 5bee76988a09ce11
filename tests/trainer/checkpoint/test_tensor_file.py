"""The file is the one that safetensors writes, byte for byte, and its size is known before."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor

from karat.trainer.checkpoint import tensor_file


def every_kind() -> dict[str, Tensor]:
    tensors = {'odd é"\\ \n': torch.arange(5.0), "a": torch.tensor(float("nan")), "empty": torch.zeros(0, 3)}
    for number, dtype in enumerate(tensor_file.TYPES):
        tensors[f"z{number}"] = torch.ones(number + 1, 2).to(dtype)
        tensors[f"b{number}"] = torch.zeros((), dtype=dtype)
    return tensors


@pytest.mark.parametrize("tensors", [{}, {"one": torch.ones(3)}, every_kind()], ids=["none", "one", "every-kind"])
def test_it_is_the_file_that_safetensors_writes(tensors: dict[str, Tensor]) -> None:
    content = b"".join(tensor_file.pieces(tensors))
    assert content == safetensors.torch.save(tensors, {"format": "pt"})
    assert tensor_file.size(tensors) == len(content)


def test_the_size_is_known_of_tensors_that_hold_no_numbers() -> None:
    tensors = {"w": torch.empty(10**6, 10**6, device="meta"), "b": torch.empty(3, dtype=torch.int8, device="meta")}
    assert tensor_file.size(tensors) == len(tensor_file.header(tensors)) + 4 * 10**12 + 3


def test_nothing_is_copied() -> None:
    weight = torch.zeros(4)
    content = tensor_file.pieces({"w": weight})
    weight.fill_(1.0)
    assert bytes(content[1]) == bytes(weight.numpy())


def test_a_type_that_the_format_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"the tensor w is of type torch.complex128"):
        tensor_file.header({"w": torch.zeros(2, dtype=torch.complex128)})
