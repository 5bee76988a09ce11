"""One job at a time on a thread of its own: its error is raised where the next one is begun, or told at the very end."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable


class _Outcome:
    error: BaseException | None = None

    def tell(self) -> None:
        """The last resort, at the process's end: an error that nobody waited for is at least seen."""
        if self.error is not None:
            print(f"a checkpoint was not written: {self.error}", file=sys.stderr)


class Background:
    """Runs one job after another, each in a thread that the process waits for before it ends.

    The thread is no daemon: an interpreter that ends, by Ctrl-C too, lets it finish. SIGKILL does not.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome = _Outcome()
        weakref.finalize(self, self._outcome.tell)

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], None]) -> None:
        """Begins the job when the one before it has ended; raises that one's error instead, once."""
        self.wait()
        thread = threading.Thread(target=_run, args=(job, self._outcome), name="checkpoint", daemon=False)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had: the training thread does it
            job()
        else:
            self._thread = thread

    def wait(self) -> None:
        """Waits for the job that is under way, if any, and raises the error that it ended with, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._outcome.error = self._outcome.error, None
        if error is not None:
            raise error


def _run(job: Callable[[], None], outcome: _Outcome) -> None:
    try:
        job()
    except BaseException as error:
        outcome.error = error
