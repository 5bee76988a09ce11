"""Reach of proofs: which lines of core/formulas a proof executed, and which none did.

A line that no proof ran is a line of which nothing is proved, whatever the report says of its function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from karat.core import formulas
from karat.core.evidence import Evidence, Grade
from karat.core.report import FileReach

FOLDER = Path(formulas.__file__).parent


_PREFIX = str(FOLDER)
_lines: dict[str, set[int]] = {}
_left: dict[CodeType, set[int]] = {}
_seen, _active = 0, False
TRACED_EVENTS = 1_000_000
"""Calls, of whatever functions, after which nothing more is noted: so that tracing costs a third of a second at most."""


def _local(frame: FrameType, event: str, argument: Any) -> Any:
    if event == "line":
        _left[frame.f_code].discard(frame.f_lineno)
        _lines.setdefault(Path(frame.f_code.co_filename).name, set()).add(frame.f_lineno)
    return _local


def _begin(frame: FrameType, event: str, argument: Any) -> Any:
    global _seen
    _seen += 1
    if _seen > TRACED_EVENTS:
        sys.settrace(None)
        return None
    code = frame.f_code
    if not code.co_filename.startswith(_PREFIX):
        return None
    if code not in _left:
        _left[code] = {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
    return _local if _left[code] else None


@contextmanager
def traced() -> Iterator[dict[str, set[int]]]:
    """The lines of core/formulas that run inside the context: file name -> line numbers. Not to be nested."""
    global _active, _seen
    _lines.clear()
    _left.clear()
    _seen, _active = 0, True
    try:
        with _tracing(_begin):
            yield _lines
    finally:
        _active = False


def paused() -> AbstractContextManager[None]:
    """Nothing is noted inside: where a fuzzer makes millions of calls of its own."""
    return _tracing(None)


def resumed() -> AbstractContextManager[None]:
    """Lines are noted again, inside `paused` inside `traced`; anywhere else this does nothing."""
    return _tracing(_begin) if _active else nullcontext()


def reaching(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose lines are noted inside `paused` too."""

    def reached(*arguments: Any, **named: Any) -> Any:
        with resumed():
            return function(*arguments, **named)

    return reached


@contextmanager
def _tracing(function: Any) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)


def executable(path: Path) -> set[int]:
    """The lines of a file's functions that can run: not definitions, docstrings or module level."""
    found: set[int] = set()
    codes: list[CodeType] = [compile(path.read_text(encoding="utf-8"), str(path), "exec")]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if code.co_name != "<module>":
            found |= {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
            if code.co_name in ("<lambda>", "<genexpr>", "<listcomp>"):
                found.add(code.co_firstlineno)
    return found


def reach(evidence: Iterable[Evidence]) -> tuple[FileReach, ...]:
    """Per file of core/formulas: the lines that some proof ran, that only a test ran, and that neither did."""
    proved: dict[str, set[int]] = {}
    tested: dict[str, set[int]] = {}
    for e in evidence:
        if e.expected and not e.must_fail:
            _add(proved if e.grade is Grade.PROVED else tested, e.reach)
    files = []
    for path in sorted(FOLDER.glob("*.py")):
        lines = executable(path)
        by_proof = lines & proved.get(path.name, set())
        by_test = (lines & tested.get(path.name, set())) - by_proof
        if lines:
            files.append(
                FileReach(
                    file=f"core/formulas/{path.name}", lines=len(lines), proved=len(by_proof),
                    tested_only=tuple(sorted(by_test)), none=tuple(sorted(lines - by_proof - by_test)),
                )
            )  # fmt: skip
    return tuple(files)


def _add(total: dict[str, set[int]], more: Mapping[str, Iterable[int]]) -> None:
    for name, lines in more.items():
        total.setdefault(name, set()).update(lines)
