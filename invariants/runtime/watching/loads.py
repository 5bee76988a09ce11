"""What load_state_dict did to a watched model: which parameters it found, and which names it did not know."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from karat.invariants.runtime.watching.naming import plain_name
from karat.invariants.runtime.watching.unsaved import after_loading


@dataclass(frozen=True)
class Loaded:
    """What a load_state_dict reported: names of parameters that it did not find, and names that it did not know."""

    parameters: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether no parameter was found."""
        return bool(self.missing) and len(self.missing) == len(self.parameters)

    @property
    def renamed(self) -> list[str]:
        """Parameters that were not found, while a name that was not known ends as theirs, or begins one up."""
        return [
            name for name in self.missing
            if any(other.endswith(f".{name}") or name.endswith(f".{other}") for other in self.unexpected)
        ]  # fmt: skip


def listen(module: nn.Module, took: weakref.WeakMethod[Callable[[Loaded], None]]) -> Any:
    """Tells `took` after each load_state_dict of the module; the handle of the hook."""
    own = weakref.ref(module)

    def hook(loading: nn.Module, keys: Any) -> None:
        tell = took()
        if tell is None or loading is not own():  # a copy of the model has this hook, too
            return
        names = tuple(plain_name(n) for n, _ in loading.named_parameters(remove_duplicate=False))
        not_found = [plain_name(m) for m in keys.missing_keys]
        missing = tuple(n for n in names if any(m == n or m.endswith(f".{n}") for m in not_found))
        tell(Loaded(names, missing, tuple(keys.unexpected_keys)))

    return after_loading(module, hook)
