"""Fingerprints of a function of another package: its own code counts as karat's does, foreign code by name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from karat.core.provenance import definitions, fingerprint, package_of

FILES = {
    "__init__.py": "",
    "constants.py": """
import numpy
LIMIT = 3
TABLE = numpy.arange(5000)
NAMES = frozenset({"alpha", "beta", "gamma"})
""",
    "parts.py": """
class Scale:
    def __init__(self, by):
        self.by = by
    def of(self, x):
        return x * self.by
def inner(x):
    return x + 1
def late(x):
    return x - 1
""",
    "margins.py": """
import math
from plugged import constants
from plugged.parts import Scale, inner
SCALE = Scale(2)
RULES = {"first": inner}
def named(x):
    from plugged.parts import late as other
    return other(x)
def margin(x):
    return SCALE.of(RULES["first"](x)) + constants.LIMIT + constants.TABLE[x] + math.floor(x) + len(constants.NAMES) + named(x)
""",
}


def taken(folder: Path, **edits: tuple[str, str]) -> str:
    """The fingerprint of plugged.margins.margin, with files edited, loaded afresh."""
    package = folder / "plugged"
    package.mkdir(exist_ok=True)
    for name, content in FILES.items():
        old, new = edits.get(name.removesuffix(".py"), ("", ""))
        assert old in content
        (package / name).write_text(content.replace(old, new) if old else content)
    for name in [name for name in sys.modules if name.split(".")[0] == "plugged"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    module = importlib.import_module("plugged.margins")
    return fingerprint(module.margin)


@pytest.fixture(autouse=True)
def on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("constants", "LIMIT = 3", "LIMIT = 4"),
        ("constants", "TABLE = numpy.arange(5000)", "TABLE = numpy.arange(5000); TABLE[2500] += 1"),
        ("constants", '"beta"', '"delta"'),
        ("parts", "x * self.by", "x + self.by"),
        ("margins", "Scale(2)", "Scale(3)"),
        ("parts", "return x + 1", "return x + 2"),
        ("parts", "return x - 1", "return x - 2"),
        ("margins", "late as other", "inner as other"),
    ],
    ids=[
        "constant",
        "inside-an-array",
        "set",
        "method",
        "member",
        "in-a-table",
        "imported-within",
        "which-is-imported",
    ],
)
def test_it_follows_the_package(file: str, old: str, new: str, tmp_path: Path) -> None:
    before = taken(tmp_path)
    assert taken(tmp_path) == before
    assert taken(tmp_path, **{file: (old, new)}) != before


def test_comments_and_order_of_sets_do_not_count(tmp_path: Path) -> None:
    before = taken(tmp_path)
    assert taken(tmp_path, margins=("import math\n", "import math  # a comment\n")) == before
    assert taken(tmp_path, constants=('"alpha", "beta"', '"beta", "alpha"')) == before


def test_what_is_own(tmp_path: Path) -> None:
    taken(tmp_path)
    margin = sys.modules["plugged.margins"].margin
    assert package_of(margin) == "plugged" and package_of(fingerprint) == "karat"
    names = set(definitions(margin))
    assert {"plugged.margins.margin", "plugged.parts.Scale", "plugged.parts.inner", "plugged.parts.late"} <= names
    assert not any(name.startswith(("math.", "numpy.")) for name in names)


def test_a_class_without_a_definition_hides_nothing_else(tmp_path: Path) -> None:
    made = ("SCALE = Scale(2)", "from collections import namedtuple\nAt = namedtuple('At', 'x')\nSCALE = Scale(2)")
    used = "def margin(x):\n    At(x)\n"

    def edited(*more: tuple[str, str]) -> str:
        content = FILES["margins.py"].replace(*made).replace("def margin(x):\n", used)
        for old, new in more:
            content = content.replace(old, new)
        return taken(tmp_path, margins=(FILES["margins.py"], content))

    before = edited()
    assert edited() == before != edited(("named(x)\n", "named(x) + 1\n"))
    assert edited(("Scale(2)", "Scale(5)")) != before
