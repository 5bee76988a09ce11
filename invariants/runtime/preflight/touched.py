"""What the code of a forward touches outside the modules: globals, cells of closures, attributes of classes, helpers.

Read from the functions themselves, nothing is run. A name that the code has and that is a global is taken to be touched,
so that a counter at the top of a file is kept as well as one on the module. What cannot be put back, such as a file that
is written or an iterator that moves on, is named: then no forward is run again.
"""

from __future__ import annotations

import dis
import functools
import io
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

TRUSTED = frozenset(
    {"torch", "torchvision", "torchaudio", "numpy", "scipy", "einops", "transformers", "timm", "diffusers", "peft",
     "accelerate", "safetensors", "flash_attn", "xformers", "triton", "karat"}
) | sys.stdlib_module_names  # fmt: skip
"""Packages whose code keeps what it changes in modules and tensors; `__main__` is not one of them."""
WRITING = frozenset({"wandb", "mlflow", "comet_ml", "neptune", "tensorboardX", "clearml", "aim", "requests", "httpx"})
STDLIB_WRITING = frozenset(
    {"socket", "subprocess", "shutil", "sqlite3", "multiprocessing", "queue", "asyncio", "concurrent"}
)
CALLS = frozenset(
    {"open", "exec", "breakpoint", "write_text", "write_bytes", "writelines", "add_scalar", "add_scalars", "add_histogram",
     "add_image", "makedirs", "mkdir", "unlink", "system", "popen", "savez", "savetxt"}
)  # fmt: skip
"""Names of functions that leave something behind outside the process's memory."""
COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "reduce_scatter", "reduce_scatter_tensor",
     "barrier", "isend", "irecv", "all_to_all", "all_to_all_single", "broadcast_object_list"}
)  # fmt: skip
LOGGING = frozenset({"log", "log_dict", "logger", "trainer"})
"""Members of a LightningModule by which a forward reports to its trainer."""
MOST_FUNCTIONS = 4000
GLOBALS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
OPAQUE = (io.IOBase, Iterator, threading.local)


def package(kind: Any) -> str:
    """The top package of a class or function."""
    return str(getattr(kind, "__module__", "") or "").partition(".")[0]


def trusted(kind: Any) -> bool:
    return package(kind) in TRUSTED and package(kind) != "__main__"


def opaque(value: Any) -> bool:
    """Whether a value has a state that cannot be read and put back."""
    kind = type(value)
    return isinstance(value, OPAQUE) or package(kind) in WRITING or package(kind) in STDLIB_WRITING


class Touched:
    """names: all that the code mentions. globals, cells, classes: what may be rebound. values: what may be changed in
    place. refusal: why a forward cannot be undone, empty where it can."""

    def __init__(self, modules: Iterable[nn.Module], others: Iterable[Any] = ()) -> None:
        self.names: set[str] = set()
        self.globals: dict[tuple[int, str], tuple[dict[str, Any], Any]] = {}
        self.cells: dict[int, tuple[Any, Any]] = {}
        self.classes: dict[type, dict[str, Any]] = {}
        self.values: list[Any] = []
        self.refusal = ""
        self._seen: set[int] = set()
        self._scanned: list[Any] = []
        self._namespaces: dict[int, Mapping[str, Any]] = {}
        for module in modules:
            self.module(module)
        for value in others:
            self.take(value)
        self._close()

    def module(self, module: nn.Module) -> None:
        """The forward of a module, and its instance's own functions."""
        self._class(type(module), only=("forward", "__call__", "__getattr__"))
        own = module.__dict__.get("forward")
        if own is not None:
            self.take(own)

    def take(self, value: Any) -> None:
        """Something that the code has in its hands."""
        if isinstance(
            value, (FunctionType, MethodType, functools.partial, BuiltinFunctionType, staticmethod, classmethod)
        ):
            self._callable(value)
        elif isinstance(value, property):
            for part in (value.fget, value.fset):
                self._callable(part)
        elif isinstance(value, functools.cached_property):
            self._callable(value.func)
        elif isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] in WRITING | STDLIB_WRITING:
                self._refuse(f"its forward uses {value.__name__}")
            elif value.__name__.partition(".")[0] not in TRUSTED:
                self._namespaces.setdefault(id(value), vars(value))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                for module in value.modules():
                    self.module(module)
                    self.values.append(module.__dict__)
        elif opaque(value):
            self._refuse(f"its forward uses a {type(value).__name__}, which cannot be put back")
        elif value is not None and not isinstance(value, (str, bytes, int, float, complex)):
            self.values.append(value)
            if not trusted(type(value)):
                self._class(type(value))

    def _callable(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.take(part)
        elif isinstance(value, MethodType):
            self._callable(value.__func__)
            if not isinstance(value.__self__, (nn.Module, type)):
                self.take(value.__self__)
        elif isinstance(value, BuiltinFunctionType):
            if not isinstance(value.__self__, (ModuleType, type, type(None))):
                self.take(value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self._callable(value.__func__)
        elif isinstance(value, FunctionType) and not trusted(value):
            self._function(value)

    def _function(self, function: FunctionType) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        self._scanned.append(function)
        if len(self._scanned) > MOST_FUNCTIONS:
            self._refuse("its forward is made of too many functions to be read")
            return
        known = function.__globals__
        free, members = _names(function.__code__)
        self.names |= members
        for name in free:
            if name in known and not name.startswith("__"):
                self.globals.setdefault((id(known), name), (known, known[name]))
                self.take(known[name])
        for name in CALLS & (free | members):
            if name not in known:
                self._refuse(f"its forward calls {name}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__" or id(cell) in self.cells:
                continue
            try:
                held = cell.cell_contents
            except ValueError:
                continue  # not bound yet
            self.cells[id(cell)] = (cell, held)
            self.take(held)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.take(value)
        if function.__dict__:
            self.values.append(function.__dict__)
            self._callable(function.__dict__.get("__wrapped__"))

    def _class(self, kind: type, only: tuple[str, ...] = ()) -> None:
        """Its attributes, and its functions: of a module those that the code names."""
        for base in kind.__mro__:
            if trusted(base) or base in self.classes:
                continue
            members = {n: v for n, v in vars(base).items() if not (n.startswith("__") and n.endswith("__"))}
            self.classes[base] = {n: v for n, v in members.items() if not callable(v) and not hasattr(v, "__get__")}
            self._namespaces.setdefault(id(base), vars(base))
            for name, value in vars(base).items():
                wanted = name in only if only else callable(value) or hasattr(value, "__func__")
                if wanted and not isinstance(value, type):
                    self.take(value)
        if any(package(base) in ("lightning", "pytorch_lightning") for base in kind.__mro__):
            self._namespaces.setdefault(id(LOGGING), dict.fromkeys(LOGGING, LOGGING))

    def _close(self) -> None:
        """Until no name leads to anything new."""
        taken: set[tuple[int, str]] = set()
        while not self.refusal:
            found = [
                (key, name, space[name]) for key, space in list(self._namespaces.items())
                for name in self.names if name in space and (key, name) not in taken
            ]  # fmt: skip
            if not found:
                return
            for key, name, value in found:
                taken.add((key, name))
                if value is LOGGING:
                    self._refuse(f"its forward reports to its trainer ({name})")
                    return
                own = self._namespaces[key]
                if isinstance(own, dict):  # a module's: it may be rebound there
                    self.globals.setdefault((key, name), (own, value))
                self.take(value)

    def _refuse(self, why: str) -> None:
        self.refusal = self.refusal or why


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The globals that code mentions, and its attributes and methods; with those of the functions inside it."""
    read = {i.argval for i in dis.get_instructions(code) if i.opname in GLOBALS}
    free, members = frozenset(read), frozenset(code.co_names) - read
    for inner in (_names(part) for part in code.co_consts if isinstance(part, CodeType)):
        free, members = free | inner[0], members | inner[1]
    return free, members
