"""Own code as syntax trees: the definition of a function or class, what it refers to, and whether the file is what runs.

A tree's text is the same on every Python version and does not change with comments, layout, docstrings or annotations.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def references(tree: ast.AST, space: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Global names and dotted names in a tree that resolve to something of the module's, sorted by name."""
    found: dict[str, Any] = {}
    for dotted in within(tree).names:
        if dotted[0] not in space:
            continue
        value: Any = space[dotted[0]]
        for attribute in dotted[1:]:
            if not isinstance(value, (types.ModuleType, type)) or not hasattr(value, attribute):
                break
            value = getattr(value, attribute)
        if isinstance(value, types.BuiltinFunctionType):
            continue
        found[".".join(dotted)] = value
    return sorted(found.items())


def _dotted(node: ast.AST) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return None if head is None else [*head, node.attr]
    return None


@dataclass(frozen=True)
class Within:
    """What a tree holds, found once: its functions, its imports, its dotted names."""

    functions: tuple[ast.FunctionDef, ...]
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    names: tuple[tuple[str, ...], ...]


@functools.cache
def within(tree: ast.AST) -> Within:
    """Of a tree from `tree_of`, which is kept and not changed."""
    nodes = list(ast.walk(tree))
    dotted = (_dotted(node) for node in nodes)
    return Within(
        tuple(node for node in nodes if isinstance(node, ast.FunctionDef)),
        tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))),
        tuple(dict.fromkeys(tuple(name) for name in dotted if name is not None)),
    )


@functools.cache
def text_of(tree: ast.AST) -> str:
    """A text of a tree from `tree_of` that is the same on every Python version."""
    return _dump(tree)


@functools.cache
def _definitions(filename: str, modified: float) -> tuple[dict[str, list[ast.AST]], dict[int, list[ast.expr]]]:
    """The functions and classes of a file by name, and its lambdas by line."""
    named: dict[str, list[ast.AST]] = {}
    lambdas: dict[int, list[ast.expr]] = {}
    for node in ast.walk(ast.parse(Path(filename).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Lambda):
            lambdas.setdefault(node.lineno, []).append(node)
    return named, lambdas


def tree_of(item: Any) -> ast.AST:
    """The definition in its source file, found by name and line (a lambda: by its line, with all others on it)."""
    filename = inspect.getsourcefile(item)
    if filename is None or not Path(filename).is_file():
        raise ValueError(f"{item!r} has no source file, so it cannot be fingerprinted")
    line = item.__code__.co_firstlineno if isinstance(item, types.FunctionType) else None
    found = _found(filename, Path(filename).stat().st_mtime, item.__name__, line)
    if found is None:
        raise ValueError(f"{item.__qualname__} is not in {filename} any more")
    return found


@functools.cache
def _found(filename: str, modified: float, name: str, line: int | None) -> ast.AST | None:
    """The definition of a name in a file, the one on the line where there are several; None when there is none."""
    named, lambdas = _definitions(filename, modified)
    if name == "<lambda>" and line in lambdas:
        return ast.List(elts=lambdas[line], ctx=ast.Load())
    candidates = named.get(name, [])
    on_line = [node for node in candidates if line is None or line in _lines(node)]
    return next(iter(on_line or candidates), None)


def _lines(node: ast.AST) -> tuple[int, ...]:
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    return (node.lineno, *decorators)  # type: ignore[attr-defined]


_IGNORED = {"type_params", "type_comment", "kind", "ctx", "returns", "annotation"}


def _dump(node: Any) -> str:
    """A text of the tree that is the same on every Python version: class names and non-empty fields."""
    if isinstance(node, list):
        return "[" + ",".join(_dump(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in _IGNORED or value is None or value == []:
            continue
        if name == "body" and isinstance(value, list):
            value = [s for s in value if not _is_docstring(s)]
        fields.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def bytecode(code: types.CodeType) -> str:
    """A text of what a code object does: its instructions, constants and names, those of nested functions included."""
    constants = [
        bytecode(c) if isinstance(c, types.CodeType) else repr(sorted(c, key=repr) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return f"{code.co_code.hex()}|{constants}|{code.co_names}"


def loaded_as_written(function: types.FunctionType) -> bool:
    """Whether the function in memory is compiled from its source file as the file is now."""
    filename = function.__code__.co_filename
    if not Path(filename).is_file():
        return False
    compiled = _compiled(filename, Path(filename).stat().st_mtime)
    return bytecode(function.__code__) in compiled


@functools.cache
def _compiled(filename: str, modified: float) -> frozenset[str]:
    codes, found = [compile(Path(filename).read_text(encoding="utf-8"), filename, "exec")], set()
    while codes:
        code = codes.pop()
        found.add(bytecode(code))
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(found)
