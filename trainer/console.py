"""What a person sees on standard error: progress, notes, warnings. Standard output belongs to the result alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

LONG = 2.0  # seconds after which a person wants to know what is being waited for


class Console:
    """Standard error. As a context manager it shows a progress bar (on a terminal) while training."""

    def __init__(self, quiet: bool = False) -> None:
        self._rich = rich.console.Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._errors = rich.console.Console(stderr=True, highlight=False, soft_wrap=True) if quiet else self._rich
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._total = 1

    def note(self, text: str) -> None:
        """One line of information."""
        self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A warning, such as a violation under policy warn."""
        self._rich.print(text, style="yellow", markup=False)

    def error(self, text: str) -> None:
        """The message that a command ends with; shown by a quiet console too."""
        self._errors.print(text, style="red", markup=False)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Says what is being done once it has taken LONG: a spinner with the time on a terminal, else one line."""
        columns = (TextColumn("{task.description}"), SpinnerColumn(), TimeElapsedColumn())
        bar = Bar(*columns, console=self._rich, transient=True)
        bar.add_task(text, total=None)
        on_terminal = self._rich.is_terminal
        timer = threading.Timer(LONG, bar.start if on_terminal else lambda: self.note(f"{text} …"))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if on_terminal:
                bar.stop()

    def start(self, done: int, total: int) -> Console:
        """Begins the progress of a run at step `done` of `total`."""
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}"))  # fmt: skip
        self._bar = Bar(*columns, console=self._rich, transient=True, disable=not self._rich.is_terminal)
        self._task, self._total = self._bar.add_task("", total=total, completed=done), total
        return self

    def step(self, done: int, text: str) -> None:
        """Moves the progress to `done` steps; where there is no terminal, a line for every tenth of the run."""
        if self._bar is None:
            return
        self._bar.update(self._task, completed=done, description=text)
        if not self._rich.is_terminal and done * 10 // self._total > (done - 1) * 10 // self._total:
            self.note(f"step {done} of {self._total}: {text}")

    def __enter__(self) -> Console:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
