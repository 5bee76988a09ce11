"""Where a result comes from: fingerprints of running functions, the environment, the code revision, digests.

A fingerprint is the SHA-256 of a function's syntax tree (comments, layout and docstrings do not count) together with
all own code that it refers to: functions and classes by their own trees, constants by their exact value. Own is what
is karat's, and what is of the function's own top-level package: a plug-in's helpers count as karat's do. A fingerprint
is taken from the object that runs, and `loaded_as_written` compares its bytecode with the file on disk, so that an
edit during a run, or a function swapped in memory, does not pass as the one that was proved.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import numpy as np

OWN = "karat."
NESTED = 4
"""How many objects deep a constant is described by its members."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def qualified_name(function: Callable[..., Any]) -> str:
    """`core.formulas.schedule.wsd`: the name without the prefix karat."""
    function = inspect.unwrap(function)
    return f"{function.__module__}.{function.__qualname__}".removeprefix(OWN)


def package_of(function: Callable[..., Any]) -> str:
    """The top-level package of a function: `karat`, or that of a plug-in."""
    return str(inspect.unwrap(function).__module__).split(".", 1)[0]


class Parts(dict[str, str]):
    """Name -> description of what a function rests on, and the top-level packages whose code counts as own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.packages = {OWN.removesuffix("."), package_of(function)}

    def own(self, item: Any) -> bool:
        """Whether a function or class is described by its tree; any other by its name alone."""
        return str(item.__module__).split(".", 1)[0] in self.packages


def definitions(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> syntax tree, as text, of a function and of all own code that it refers to."""
    parts = Parts(function)
    _collect(function, parts)
    return dict(parts)


def fingerprint(function: Callable[..., Any]) -> str:
    """32 hex digits that change whenever the function, or any own code that it uses, changes."""
    parts = Parts(function)
    try:
        _collect(function, parts)
    except ValueError as error:  # no source, or not where it says: a fingerprint that nothing was proved of
        parts["unreadable"] = str(error)
    unwrapped = inspect.unwrap(function)
    here: Any = sys.modules.get(unwrapped.__module__)
    for name in unwrapped.__qualname__.split("."):
        here = getattr(here, name, None)
    if "<" not in unwrapped.__qualname__ and (here is None or inspect.unwrap(here) is not unwrapped):
        parts["replaced"] = f"{unwrapped.__module__}.{unwrapped.__qualname__} is another object now"
    return digest(parts)[:32]


def _collect(item: Any, parts: Parts) -> None:
    """Adds the tree of a function or class, and of what it refers to, to parts (name -> description)."""
    item = inspect.unwrap(item) if callable(item) else item  # functools.cache and the like
    name = f"{item.__module__}.{item.__qualname__}"
    if name in parts:
        return
    tree = _tree(item)
    parts[name] = _text(tree)
    if isinstance(item, types.FunctionType):
        space = dict(item.__globals__)
        space.update(inspect.getclosurevars(item).nonlocals)
        _note_if_swapped(name, item, parts, item.__code__.co_filename)
    else:
        space = dict(vars(sys.modules[item.__module__]))
        for node in _within(tree).functions:
            method = vars(item).get(node.name)
            method = (
                getattr(method, "func", None) or getattr(method, "fget", None) or getattr(method, "__func__", method)
            )
            if isinstance(method, types.FunctionType):
                _note_if_swapped(name, method, parts, inspect.getsourcefile(item))
        for base in item.__mro__[1:]:
            if parts.own(base):
                _collect(base, parts)
    space |= _imported_within(tree, item.__module__, parts)
    for reference, value in _references(tree, space):
        _collect_value(f"{name}:{reference}", value, parts)


def _imported_within(tree: ast.AST, module: str, parts: Parts) -> dict[str, Any]:
    """The names that a function imports inside itself, from own packages."""
    package = module if hasattr(sys.modules.get(module), "__path__") else module.rpartition(".")[0]
    found: dict[str, Any] = {}
    for node in _within(tree).imports:
        if isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            if source.split(".", 1)[0] in parts.packages:
                held = import_module(source)
                found |= {a.asname or a.name: getattr(held, a.name, None) for a in node.names if a.name != "*"}
        else:
            for alias in node.names:
                top = alias.name.split(".", 1)[0]
                if top in parts.packages:
                    held = import_module(alias.name)
                    found[alias.asname or top] = held if alias.asname else sys.modules[top]
    return found


def _note_if_swapped(name: str, function: types.FunctionType, parts: Parts, filename: str | None) -> None:
    """Adds the bytecode of a function in memory that the source file it belongs to does not compile to."""
    if function.__code__.co_filename != filename or not loaded_as_written(function):
        parts[f"{name} in memory, {function.__name__}"] = hashlib.sha256(
            _bytecode(function.__code__).encode()
        ).hexdigest()


def _collect_value(name: str, value: Any, parts: Parts) -> None:
    """Adds what a name refers to: own code by its tree, an object of an own class by value and class, else by value."""
    if isinstance(value, functools.partial):
        parts[name] = f"partial of {value.args!r} {sorted(value.keywords.items())!r}"
        _collect_value(f"{name}.func", value.func, parts)
        return
    code = inspect.unwrap(value) if callable(value) and hasattr(value, "__wrapped__") else value
    if isinstance(code, types.MethodType):
        code = code.__func__
    if isinstance(code, (types.FunctionType, type)):
        if parts.own(code):
            _collect_own(name, code, parts)
        else:
            parts[name] = f"{code.__module__}.{code.__qualname__}"
        return
    if isinstance(value, types.ModuleType):
        return
    parts[name] = _constant(value)
    for item in (value, *_members(value)):
        if isinstance(item, (types.FunctionType, type)) and item is not value:
            _collect_value(f"{name}[{item.__module__}.{item.__qualname__}]", item, parts)
        elif parts.own(type(item)):
            _collect_own(f"{name} is", type(item), parts)


def _collect_own(name: str, code: Any, parts: Parts) -> None:
    """As _collect; own code without a source (a class that a call made) is described by the reason that it has none."""
    try:
        _collect(code, parts)
    except ValueError as error:
        parts[f"{name}, unreadable"] = str(error)


def _members(value: Any) -> list[Any]:
    """What a container holds, in an order that does not depend on the process."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=_constant)
    return list(value) if isinstance(value, (tuple, list)) else []


def _constant(value: Any, depth: int = NESTED) -> str:
    """A constant by its repr; a set in order; an array by its bytes; what shows an address, by its class and members."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__} of {sorted(_constant(item, depth - 1) for item in value)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    text = repr(value)
    if " at 0x" not in text:
        return text
    text = f"instance of {type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, (types.FunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    held = getattr(value, "__dict__", {})
    if isinstance(value, Mapping):
        held = {_constant(key, depth - 1): item for key, item in value.items()}
    elif isinstance(value, (tuple, list)):
        held = dict(enumerate(value))
    if depth <= 0 or not held:
        return text
    return f"{text} {[(name, _constant(item, depth - 1)) for name, item in held.items()]}"


def _references(tree: ast.AST, space: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Global names and dotted names in a tree that resolve to something of the module's, sorted by name."""
    found: dict[str, Any] = {}
    for dotted in _within(tree).names:
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
class _Within:
    """What a tree holds, found once: its functions, its imports, its dotted names."""

    functions: tuple[ast.FunctionDef, ...]
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    names: tuple[tuple[str, ...], ...]


@functools.cache
def _within(tree: ast.AST) -> _Within:
    """Of a tree from `_definitions`, which is kept and not changed."""
    nodes = list(ast.walk(tree))
    dotted = (_dotted(node) for node in nodes)
    return _Within(
        tuple(node for node in nodes if isinstance(node, ast.FunctionDef)),
        tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))),
        tuple(dict.fromkeys(tuple(name) for name in dotted if name is not None)),
    )


@functools.cache
def _text(tree: ast.AST) -> str:
    """`_dump` of a tree from `_definitions`."""
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


def _tree(item: Any) -> ast.AST:
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


def _bytecode(code: types.CodeType) -> str:
    constants = [
        _bytecode(c) if isinstance(c, types.CodeType) else repr(sorted(c, key=repr) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return f"{code.co_code.hex()}|{constants}|{code.co_names}"


def loaded_as_written(function: types.FunctionType) -> bool:
    """Whether the function in memory is compiled from its source file as the file is now."""
    filename = function.__code__.co_filename
    if not Path(filename).is_file():
        return False
    compiled = _compiled(filename, Path(filename).stat().st_mtime)
    return _bytecode(function.__code__) in compiled


@functools.cache
def _compiled(filename: str, modified: float) -> frozenset[str]:
    codes, found = [compile(Path(filename).read_text(encoding="utf-8"), filename, "exec")], set()
    while codes:
        code = codes.pop()
        found.add(_bytecode(code))
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(found)


def environment(packages: Iterable[str]) -> dict[str, str]:
    """Python, platform, processor count and the versions of the named packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        **versions,
    }


def code_revision(folder: Path) -> str:
    """The git commit of a folder, `+ changes` when it has uncommitted ones; else the package version."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if (Path(top) / "core").resolve() == folder.resolve() or Path(top).resolve() == folder.resolve():
            dirty = " + changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
            return _git(folder, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        pass
    return f"karat {metadata.version('karat')}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
