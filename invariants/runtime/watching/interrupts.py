"""Exceptions that are the loop's own although they arrive while a guard runs: of a key, or of a handler of signals."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def passing(function: Callable[[], T]) -> T:
    """What a forward returns. One that ends the process when it is run again is told from somebody who ends it."""
    try:
        return function()
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if from_signal(error):
            raise
        raise RuntimeError(f"the forward raised {type(error).__name__}: {error}") from error


def from_signal(error: BaseException) -> bool:
    """Whether a handler of a signal raised it: a time limit, a scheduler that takes the machine back."""
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    return bool(handlers) and any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))
