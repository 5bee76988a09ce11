"""SIGTERM and SIGINT ask a run to end at the next step; a second one ends it at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

CAUGHT = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which the first signal sets `requested`; previous handlers come back after it, or after leaving."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in CAUGHT:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def go_on(self) -> bool:
        """Whether nobody asked to stop."""
        return self.requested is None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
