"""Which parameter is what: every trainable parameter has exactly one role, and each optimizer moves the roles made for it.

A role is found by what the parameter does, not by its shape: an embedding, a table of positions and the logits of the
residual streams are two-dimensional too, and Muon must never see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from torch import nn

from karat.core.errors import ConfigError
from karat.trainer.models.attention import Attention
from karat.trainer.models.context_features import ContextFeatures
from karat.trainer.models.linear import BlockLinear
from karat.trainer.models.transformer import Transformer


class Role(StrEnum):
    """What a parameter is."""

    MATRIX = "matrices"
    """The weight of a linear map between hidden states."""
    PACKED = "packed"
    """Queries, keys and values: three such maps in one array."""
    EMBEDDING = "embeddings"
    """A row for each token or position; the tied head."""
    SCALAR = "scalars"
    """Gains, gates, biases, the logits of the residual streams."""


TABLES = {(Transformer, "positions_TD"), (ContextFeatures, "tables_NVD")}
"""Parameters that hold a row for each token or position, beside torch's embeddings."""


def role_of(module: nn.Module, name: str) -> Role:
    """The role of the parameter `name` that `module` holds itself."""
    if isinstance(module, BlockLinear) or (isinstance(module, nn.Linear) and name == "weight"):
        return Role.MATRIX
    if isinstance(module, nn.Embedding) or (type(module), name) in TABLES:
        return Role.EMBEDDING
    return Role.SCALAR


def roles(model: nn.Module) -> dict[str, Role]:
    """Dotted name -> role of every trainable parameter; a tied one has the name by which it was registered first."""
    packed = {id(module.qkv.weight) for module in model.modules() if isinstance(module, Attention)}
    found = {}
    for dotted, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, name = dotted.rpartition(".")
        found[dotted] = Role.PACKED if id(parameter) in packed else role_of(model.get_submodule(path), name)
    return found


def demand_split(model: nn.Module, groups: Mapping[str, list[nn.Parameter]]) -> None:
    """ConfigError unless the groups hold every trainable parameter once, and the group "muon" only maps of hidden states.

    Judged anew from the modules, not from how the groups were made: an embedding in Muon trains on without an error, its
    rare tokens moved as far at each step as its frequent ones.
    """
    names = {id(parameter): dotted for dotted, parameter in model.named_parameters()}
    kinds = roles(model)
    held = [id(parameter) for parameters in groups.values() for parameter in parameters]
    missing = [dotted for key, dotted in names.items() if dotted in kinds and key not in held]
    twice = sorted({names.get(key, "a parameter of another model") for key in held if held.count(key) > 1})
    foreign = sum(key not in names for key in held)
    odd = [
        names[id(parameter)]
        for parameter in groups.get("muon", [])
        if id(parameter) in names and kinds.get(names[id(parameter)]) not in (Role.MATRIX, Role.PACKED)
    ]
    faults = [f"{what}: {', '.join(of[:6])}" for what, of in (
        ("no optimizer moves", missing), ("moved twice", twice), ("Muon would orthogonalise", odd)) if of]  # fmt: skip
    if foreign:
        faults.append(f"{foreign} parameters are not the model's")
    if faults:
        raise ConfigError(
            "the parameters are not split as they must be: " + "; ".join(faults),
            required="every trainable parameter once; in Muon only the matrices between hidden states",
            next_step="use trainer.optim.build, or mend the roles in trainer/optim/roles.py",
        )
