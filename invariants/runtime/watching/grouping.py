"""Many parameters said in few words: a module whose parameters are all meant stands for them."""

from __future__ import annotations

from collections.abc import Collection

from karat.invariants.runtime.watching.naming import some


def groups(names: Collection[str], of: Collection[str]) -> dict[str, int]:
    """The largest modules all of whose parameters (among `of`) are meant, and parameters that are left -> how many each
    stands for; in the order of `of`."""
    meant = set(names)
    total: dict[str, int] = {}
    hit: dict[str, int] = {}
    for name in of:
        for module in _modules(name):
            total[module] = total.get(module, 0) + 1
            hit[module] = hit.get(module, 0) + (name in meant)
    found: dict[str, int] = {}
    for name in (n for n in of if n in meant):
        largest = next((m for m in _modules(name) if hit[m] == total[m]), name)
        found[largest] = found.get(largest, 0) + 1
    return found


def spoken(names: Collection[str], of: Collection[str]) -> str:
    """The groups as a message names them: `encoder (4 parameters), head.bias`."""
    return some(
        f"{group} ({count} parameters)" if count > 1 else next((n for n in names if _below(n, group)), group)
        for group, count in groups(names, of).items()
    )


def _modules(name: str) -> list[str]:
    """The modules above a parameter, the largest first; not the model itself."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _below(name: str, group: str) -> bool:
    return name == group or name.startswith(group + ".")
