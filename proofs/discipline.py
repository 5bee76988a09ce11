"""What a function may not do if its symbolic reading is to be believed: look at types, or catch what carriers raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from karat.core.provenance import OWN, definitions, package_of

LOOKS = ("isinstance", "issubclass", "type", "hasattr", "getattr", "callable", "id", "repr", "str", "vars", "globals")
FORBIDDEN = {f"a call of {name}": f"func=Name(id='{name}')" for name in LOOKS} | {
    "try": "Try(",
    "with": "With(",
    "match": "Match(",
    "__class__": "attr='__class__'",
}
BRANCHES = {"if": "If(", "a conditional expression": "IfExp(", "a comparison": "Compare(", "division": "op=Div()"}
FORMULAS = ("karat.core.formulas.", "karat.invariants.")


def demand(functions: Iterable[Callable[..., Any]], *, straight: bool = False) -> None:
    """ValueError when a formula, or a formula that it calls, does what cannot be followed.

    straight: no branch and no division either (SymPy compares structurally and cancels x / x).
    """
    unwanted = FORBIDDEN | (BRANCHES if straight else {})
    for function in functions:
        package = f"{package_of(function)}."
        formulas = FORMULAS if package == OWN else (*FORMULAS, package)  # all of a plug-in's own code
        for name, tree in definitions(function).items():
            if name.startswith(formulas):
                check_tree(name, tree, unwanted)


def check_tree(name: str, tree: str, unwanted: dict[str, str]) -> None:
    """ValueError when the text of a function's tree holds one of the unwanted constructs; a class is not a formula."""
    for what, text in unwanted.items():
        if text in tree and not tree.startswith("ClassDef"):
            raise ValueError(f"{name} uses {what}, which its symbolic reading cannot follow")
