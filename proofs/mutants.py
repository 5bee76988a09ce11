"""Mutants of the running functions: each is one small change of the syntax tree, compiled in place of the original.

A proof says something about a function only if it fails for the function with a fault in it. Operators: comparisons
flipped and reversed, integers one up and one down, floats that and one ulp, + and -, * and / exchanged, a minimum, a
maximum or a clamp dropped or exchanged, an end of a range moved by one, `not` and unary minus dropped, an `if`
statement removed, a loop body run on. Constants of a formula's module count as part of the formulas that read them.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

FORMULAS = "karat.core.formulas."

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NOT_RUN = ("annotation", "returns", "decorator_list")
EXCHANGED = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}


@dataclass(frozen=True)
class Mutant:
    """One change. `function` is the qualified name as in fingerprints, or the module's for a constant of it."""

    module: str
    function: str
    place: int
    line: int
    change: str

    @property
    def of_module(self) -> bool:
        """Whether a constant of the module is changed, which several functions may read."""
        return self.function == self.module.removeprefix("karat.")

    @property
    def where(self) -> str:
        """`core/formulas/schedule.py:23`."""
        return f"{self.module.removeprefix('karat.').replace('.', '/')}.py:{self.line}"


Change = tuple[str, Callable[[], None], Callable[[], None]]
"""What changes, as text; how to make the change in the tree; how to undo it."""


def _swap(node: Any, field: str, new: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    old = getattr(node, field)
    return (lambda: setattr(node, field, new)), (lambda: setattr(node, field, old))


def _put(items: list[Any], place: int, new: list[Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    old = list(items)

    def make() -> None:
        items[place : place + 1] = new

    def undo() -> None:
        items[:] = old

    return make, undo


def _constants(value: Any) -> list[Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    near = [value + 1, value - 1]
    if isinstance(value, float):
        near += [math.nextafter(value, math.inf), math.nextafter(value, -math.inf)]
    return near


def _of_node(node: ast.AST) -> Iterator[tuple[str, tuple[Callable[[], None], Callable[[], None]]]]:
    """The changes of one node that keep its place in the tree."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for new in COMPARED.get(type(operator), ()):
                yield f"{_symbol(operator)} becomes {_symbol(new())}", _put(node.ops, place, [new()])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        other = COMPUTED[type(node.op)]()
        yield f"{_symbol(node.op)} becomes {_symbol(other)}", _swap(node, "op", other)
    elif isinstance(node, ast.BoolOp):
        other_bool = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield (
            f"{type(node.op).__name__.lower()} becomes {type(other_bool).__name__.lower()}",
            _swap(node, "op", other_bool),
        )
    elif isinstance(node, ast.Constant):
        for new in _constants(node.value):
            yield f"{node.value!r} becomes {new!r}", _swap(node, "value", new)


def _instead(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Expressions to stand in place of an expression."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield f"{_symbol(node.op)} dropped", node.operand
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in EXCHANGED and len(node.args) == 2 and not node.keywords:
        for argument in node.args:
            yield f"{name}(…) becomes {ast.unparse(argument)}", argument
        func = ast.Attribute(node.func.value, EXCHANGED[name], ast.Load()) if isinstance(node.func, ast.Attribute) else (
            ast.Name(EXCHANGED[name], ast.Load()))  # fmt: skip
        yield f"{name} becomes {EXCHANGED[name]}", ast.Call(func, node.args, [])
    if name == "clamp":
        yield "clamp dropped", node.args[0]
    if name == "range" and node.args:
        *head, end = node.args
        for operator in (ast.Add(), ast.Sub()):
            moved = ast.BinOp(end, operator, ast.Constant(1))
            yield f"the range ends at {ast.unparse(moved)}", ast.Call(node.func, [*head, moved], [])


def _symbol(operator: ast.AST) -> str:
    names = {"Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">=", "Eq": "==", "NotEq": "!=", "Add": "+", "Sub": "-",
             "Mult": "*", "Div": "/", "LShift": "<<", "RShift": ">>", "BitAnd": "&", "BitOr": "|", "Not": "not",
             "USub": "unary -"}  # fmt: skip
    return names[type(operator).__name__]


def _changes(root: ast.AST) -> Iterator[tuple[int, Change]]:
    """Every change under a node with its line, in the order of the tree. Docstrings and annotations are left alone."""
    for parent in _walk(root):
        line = getattr(parent, "lineno", 0)
        for text, (make, undo) in _of_node(parent):
            yield line, (text, make, undo)
        for field, value in ast.iter_fields(parent):
            if field in NOT_RUN:
                continue
            items = value if isinstance(value, list) else [value]
            for place, child in enumerate(items):
                if not isinstance(child, ast.AST):
                    continue
                for text, new in _instead(child):
                    ast.copy_location(new, child)
                    make, undo = _put(value, place, [new]) if isinstance(value, list) else _swap(parent, field, new)
                    yield child.lineno, (text, make, undo)  # type: ignore[attr-defined]
                if field in ("body", "orelse") and isinstance(value, list) and _removable(child, root):
                    rest: list[Any] = getattr(child, "orelse", []) or [ast.copy_location(ast.Pass(), child)]
                    what = (
                        f"if {ast.unparse(child.test)}"
                        if isinstance(child, ast.If)
                        else ast.unparse(child).splitlines()[0]
                    )
                    make, undo = _put(value, place, rest)
                    yield child.lineno, (f"{what} removed", make, undo)  # type: ignore[attr-defined]


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that runs, a parent before its children."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in NOT_RUN:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child)


def _removable(node: ast.AST, function: ast.AST) -> bool:
    """Whether a statement can be removed and leaves a function that runs: not the first assignment of a name."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        before = {
            name.id
            for other in ast.walk(function)
            if isinstance(other, (ast.Assign, ast.AnnAssign)) and other.lineno < node.lineno
            for target in (other.targets if isinstance(other, ast.Assign) else [other.target])
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        }
        return all(isinstance(target, ast.Name) and target.id in before for target in node.targets)
    return isinstance(node, (ast.If, ast.AugAssign, ast.For, ast.While))


class Source:
    """A module's tree with the changes of chosen functions (and, for formulas, of the constants that they read)."""

    def __init__(self, module: ModuleType, functions: frozenset[str]) -> None:
        self.module = module
        self.filename = str(module.__file__)
        self.tree = ast.parse(Path(self.filename).read_text(encoding="utf-8"))
        self.changes: list[tuple[Mutant, Change]] = []
        own = module.__name__.removeprefix("karat.")
        for name, node in self._wanted(functions):
            function = f"{own}.{name}" if name else own
            for line, change in _changes(node):
                self.changes.append((Mutant(module.__name__, function, len(self.changes), line, change[0]), change))

    def _wanted(self, functions: frozenset[str]) -> Iterator[tuple[str, ast.AST]]:
        read: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                read |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                yield node.name, node
            elif self.module.__name__.startswith(FORMULAS) and isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
                if names & read and node.value is not None:
                    yield "", node.value

    @property
    def mutants(self) -> list[Mutant]:
        return [mutant for mutant, _ in self.changes]

    def changed_functions(self, place: int, changed: ModuleType) -> list[str]:
        """The functions that a mutant changes: its own, or those that read a constant whose value is another now."""
        mutant = self.changes[place][0]
        if not mutant.of_module:
            return [mutant.function.rsplit(".", 1)[1]]
        before = vars(self.module)
        other = {n for n, value in vars(changed).items() if isinstance(value, (int, float)) and value != before.get(n)}
        other |= {n for n, value in vars(changed).items() if isinstance(value, Fraction) and value != before.get(n)}
        return [
            node.name
            for node in self.tree.body
            if isinstance(node, ast.FunctionDef) and other & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        ]

    def build(self, place: int) -> ModuleType:
        """The module with one change. Its functions call each other in the changed version.

        A formula's module is executed anew, so that constants made of a changed constant change too. Of an
        invariant's module only the functions are made anew: its declarations are the specification.
        """
        mutant, (_, make, undo) = self.changes[place]
        changed = ModuleType(mutant.module)
        changed.__file__ = self.filename
        make()
        try:
            if mutant.module.startswith(FORMULAS):
                code = compile(ast.fix_missing_locations(self.tree), self.filename, "exec")
                exec(code, changed.__dict__)
            else:
                name = mutant.function.rsplit(".", 1)[1]
                node = next(n for n in self.tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
                module = ast.fix_missing_locations(ast.Module([node], []))
                changed.__dict__.update({k: v for k, v in vars(self.module).items() if k != "__name__"})
                for other, value in vars(self.module).items():  # its functions call the changed one
                    if isinstance(value, FunctionType) and value.__module__ == mutant.module:
                        made = FunctionType(
                            value.__code__, changed.__dict__, other, value.__defaults__, value.__closure__
                        )
                        made.__kwdefaults__, made.__qualname__ = value.__kwdefaults__, value.__qualname__
                        made.__module__ = value.__module__
                        changed.__dict__[other] = made
                exec(compile(module, self.filename, "exec"), changed.__dict__)
                changed.__dict__[name].__module__ = mutant.module
        finally:
            undo()
        return changed


class Rebound:
    """Functions as they are when a module is replaced by a changed one, wherever its functions are called from."""

    def __init__(self, changed: ModuleType) -> None:
        self.changed = changed
        self._spaces: dict[int, dict[str, Any]] = {id(vars(sys.modules[changed.__name__])): changed.__dict__}
        self._known: dict[int, Any] = {}

    def __call__(self, function: Any) -> Any:
        """The function with its globals replaced; anything that is no function of karat's or a plug-in's, as it is."""
        if not isinstance(function, FunctionType):
            return function
        if function.__module__ == self.changed.__name__ and "<" not in function.__qualname__:
            return self.changed.__dict__.get(function.__name__, function)
        if id(function) not in self._known:
            made = FunctionType(
                function.__code__, self._space(function.__globals__), function.__name__, function.__defaults__,
                function.__closure__,
            )  # fmt: skip
            made.__kwdefaults__, made.__module__ = function.__kwdefaults__, function.__module__
            made.__qualname__ = function.__qualname__
            self._known[id(function)] = made
        return self._known[id(function)]

    def _space(self, space: dict[str, Any]) -> dict[str, Any]:
        if id(space) in self._spaces:
            return self._spaces[id(space)]
        new = dict(space)
        self._spaces[id(space)] = new
        home = space.get("__name__", "")
        for name, value in space.items():
            if isinstance(value, ModuleType):
                if value.__name__ == self.changed.__name__:
                    new[name] = self.changed
                elif value.__name__.startswith(FORMULAS):
                    new[name] = self._module(value)
            elif isinstance(value, FunctionType) and (
                value.__module__ in (home, self.changed.__name__) or value.__module__.startswith(FORMULAS)
            ):
                new[name] = self(value)
        return new

    def _module(self, module: ModuleType) -> ModuleType:
        if id(module) not in self._known:
            copy = ModuleType(module.__name__)
            self._known[id(module)] = copy
            copy.__dict__.update(self._space(vars(module)))
        copied: ModuleType = self._known[id(module)]
        return copied
