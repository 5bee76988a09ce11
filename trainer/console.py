"""What a person sees on standard error: progress, notes, warnings. Standard output belongs to the result alone."""

from __future__ import annotations

from types import TracebackType

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Console:
    """Standard error. As a context manager it shows a progress bar (on a terminal) while training."""

    def __init__(self, quiet: bool = False) -> None:
        self._rich = rich.console.Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
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
        """The message that a command ends with."""
        self._rich.print(text, style="red", markup=False)

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
