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
from importlib import import_module, metadata
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import numpy as np

from karat.core.syntax import bytecode, loaded_as_written, references, text_of, tree_of, within

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
    tree = tree_of(item)
    parts[name] = text_of(tree)
    if isinstance(item, types.FunctionType):
        space = dict(item.__globals__)
        space.update(inspect.getclosurevars(item).nonlocals)
        _note_if_swapped(name, item, parts, item.__code__.co_filename)
    else:
        space = dict(vars(sys.modules[item.__module__]))
        for node in within(tree).functions:
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
    for reference, value in references(tree, space):
        _collect_value(f"{name}:{reference}", value, parts)


def _imported_within(tree: ast.AST, module: str, parts: Parts) -> dict[str, Any]:
    """The names that a function imports inside itself, from own packages."""
    package = module if hasattr(sys.modules.get(module), "__path__") else module.rpartition(".")[0]
    found: dict[str, Any] = {}
    for node in within(tree).imports:
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
            bytecode(function.__code__).encode()
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
