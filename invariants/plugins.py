"""Invariants of other installed packages, found by the entry point `karat.invariants`, one entry per invariant.

A package that cannot be loaded, offers something else, or takes a name that is taken, is broken: it is named and left
out, and everything else works. An optional entry point `karat.probes`, named by the invariant's id, is a function that
reads what the trainer does not offer. See docs/adding-an-invariant.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from karat.core.errors import KaratError
from karat.core.invariant import Invariant

INVARIANTS, PROBES = "karat.invariants", "karat.probes"
LOCK_NAME = "proofs.lock"


@dataclass(frozen=True)
class Plugin:
    """One invariant of another package. lock: where its proofs are kept, beside the module that defines it.

    probe(view) -> quantity -> number or tensor; None when it has none or none was asked for.
    """

    invariant: Invariant
    package: str
    entry: str
    lock: Path
    probe: Callable[[Any], Mapping[str, Any]] | None = None


class PluginError(KaratError):
    """An installed package whose invariant cannot be used: names the entry point and the package."""


@dataclass(frozen=True)
class Found:
    """What the installed packages offer: the plug-ins that can be used, and why the others cannot."""

    plugins: tuple[Plugin, ...]
    broken: tuple[PluginError, ...]


def discover(taken: Iterable[str], with_probes: bool) -> Found:
    """Every plug-in, by the name of its entry point. taken: ids and slugs that are in use already.

    Probes are loaded for a trainer only: what is proved needs none, and a probe may import torch.
    """
    used = {name.lower() for name in taken}
    plugins, broken = [], []
    probes = {entry.name: entry for entry in metadata.entry_points(group=PROBES)} if with_probes else {}
    for entry in sorted(metadata.entry_points(group=INVARIANTS), key=lambda e: (e.name, _package(e))):
        try:
            plugin = _plugin(entry, probes)
            names = [name.lower() for name in _names(plugin.invariant)]
            twice = [
                n for n, low in zip(_names(plugin.invariant), names, strict=True) if low in used or names.count(low) > 1
            ]
            if twice:
                raise _broken(
                    entry, f"defines {', '.join(twice)}, which is defined already", "an id and a slug of its own"
                )
        except PluginError as error:
            broken.append(error)
            continue
        plugins.append(plugin)
        used.update(names)
    waiting = {plugin.invariant.id for plugin in plugins}
    broken += [
        _broken(entry, "belongs to no invariant that was found", f"the id of one in the group {INVARIANTS} as its name")
        for name, entry in sorted(probes.items())
        if name not in waiting and not broken  # the broken ones may include its invariant
    ]
    return Found(tuple(plugins), tuple(broken))


def demand_sound(broken: Iterable[PluginError]) -> None:
    """PluginError when a package is broken: strict does not run past a guard that someone installed."""
    for error in broken:
        raise error


def _plugin(entry: metadata.EntryPoint, probes: Mapping[str, metadata.EntryPoint]) -> Plugin:
    item = _load(entry)
    if not isinstance(item, Invariant):
        raise _broken(entry, f"is of type {type(item).__name__}", "an Invariant")
    probe = _load(probes[item.id]) if item.id in probes else None
    if probe is not None and not callable(probe):
        raise _broken(probes[item.id], f"is of type {type(probe).__name__}", "a function of a view")
    return Plugin(item, _package(entry), f"{entry.name} = {entry.value}", _lock(entry.module), probe)


def _load(entry: metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # foreign code: whatever it raises, it is one package that is broken
        why = str(error) or "no message"
        raise _broken(
            entry, f"cannot be loaded: {type(error).__name__}: {why}", "a module that can be imported"
        ) from error


def _broken(entry: metadata.EntryPoint, what: str, required: str) -> PluginError:
    package = _package(entry)
    return PluginError(
        f"the entry point {entry.name} = {entry.value} (group {entry.group}) of the package {package} {what}",
        required=required,
        next_step=f"mend the package {package}, or: pip uninstall {package}",
    )


def _package(entry: metadata.EntryPoint) -> str:
    return str(entry.dist.name) if entry.dist else "(unknown)"


def _names(invariant: Invariant) -> list[str]:
    return [invariant.id, invariant.slug, *(obligation.id for obligation in invariant.obligations)]


def _lock(module: str) -> Path:
    """proofs.lock in the folder of a module of a package; <module>.proofs.lock beside a module that is in none."""
    spec = util.find_spec(module)
    source = Path(spec.origin) if spec is not None and spec.origin else Path(module)
    in_package = "." in module or (spec is not None and spec.submodule_search_locations is not None)
    return source.with_name(LOCK_NAME if in_package else f"{module}.{LOCK_NAME}")
