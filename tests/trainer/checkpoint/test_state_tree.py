"""A tree is split into JSON and tensors and joined again, equal in every value, type and key."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from karat.trainer.checkpoint.state_tree import apart, join, split, stored_once

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
keys = st.one_of(st.text(), st.integers(), st.sampled_from(["$tensor", "$tuple", "$items", "a.b"]), st.booleans())
trees = st.recursive(
    leaves,
    lambda below: st.one_of(
        st.lists(below), st.lists(below).map(tuple), st.dictionaries(keys, below), st.tuples(below, below)
    ),
    max_leaves=20,
)


def through_json(tree: Any) -> Any:
    record, tensors = split(tree)
    return join(json.loads(json.dumps(record, allow_nan=False)), tensors)


@given(trees)
def test_any_tree_comes_back_equal_types_included(tree: Any) -> None:
    assert repr(through_json(tree)) == repr(tree)  # repr tells True from 1, () from [] and -0.0 from 0.0


@pytest.mark.parametrize("tag", ["$tensor", "$tuple", "$items", "$float", "$array", "$", "$new"])
def test_a_key_that_looks_like_a_tag_is_a_key(tag: str) -> None:
    assert through_json({"deep": {tag: "x"}}) == {"deep": {tag: "x"}}


def test_a_nan_comes_back() -> None:
    assert math.isnan(through_json({"loss": math.nan})["loss"])


def test_an_array_comes_back_with_its_type_and_shape() -> None:
    array = np.array([[1, 2**64 - 1]], np.uint64)
    back = through_json((array,))[0]
    assert back.dtype == array.dtype and back.shape == (1, 2) and (back == array).all()


def test_two_places_that_read_the_same_keep_their_tensors() -> None:
    tree = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 0: torch.tensor(3), "0": torch.tensor(4)}
    record, tensors = split(tree)
    assert len(tensors) == 4
    assert join(record, tensors) == tree


def test_views_of_one_memory_are_written_apart() -> None:
    memory = torch.arange(6.0)
    views = {"a": memory[:4], "b": memory[2:], "c": memory.view(2, 3).T}
    back = safetensors.torch.load(safetensors.torch.save(apart(views)))
    assert all(torch.equal(back[name], views[name]) for name in views)


def test_only_one_and_the_same_view_is_shared() -> None:
    memory, empty = torch.arange(6.0), torch.zeros(0)
    state = {"a": memory, "tied": memory.detach(), "turned": memory.view(2, 3), "e": empty, "f": torch.zeros(0)}
    tensors, shared = stored_once(state)
    assert shared == {"tied": "a"} and list(tensors) == ["a", "turned", "e", "f"]


def test_a_sparse_tensor_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="the model's state w is not a dense tensor"):
        stored_once({"w": torch.eye(2).to_sparse()})
