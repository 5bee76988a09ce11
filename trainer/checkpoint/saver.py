"""The checkpoints of one run: which are written, where there is room, on which thread, and what was refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint.background import Background
from karat.trainer.checkpoint.manifest import META, read_verified
from karat.trainer.checkpoint.meta import Meta
from karat.trainer.checkpoint.retention import BEST
from karat.trainer.checkpoint.save import Draft, folder_name, on_cpu, write
from karat.trainer.checkpoint.snapshot import Buffers
from karat.trainer.checkpoint.space import FreeBytes, NoRoom, free_bytes, require_room
from karat.trainer.checkpoint.storage import recover

Refused = Callable[[int, NoRoom], None]
"""Called in the training thread with the step and the reason of each checkpoint that was not written."""


class CheckpointSaver:
    """Writes the checkpoints of one run into `folder`, which it owns.

    background: a save copies the state, bit for bit, and returns; a thread hashes and writes the copy. One is under
    way at most: the next save waits for it. A save that does not fit is refused (`refused`) and the run goes on; any
    other error of the thread is raised by the next `save` or by `finish`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_best: bool = True,
        background: bool = True,
        refused: Refused,
        say: Callable[[str], None] = lambda text: None,
        free: FreeBytes = free_bytes,
    ) -> None:
        self.folder, self.keep_last, self.keep_best, self.background = folder, keep_last, keep_best, background
        self.free = free
        self.stalled = 0.0
        """Seconds that the training thread spent in `save` and `finish`, waiting included."""
        self.kept: dict[str, int] = {}
        """Name -> step of each checkpoint that was written; as of the last `finish`."""
        self._refused, self._say = refused, say
        self._thread, self._buffers = Background(), Buffers()
        self._not_written: list[tuple[int, NoRoom]] = []
        self._due: tuple[int, float] | None = None
        """Step and loss of the evaluation whose state is to be `best`."""
        self._best = self._found_best()
        """The loss of `best`, that which is under way included."""
        self._best_before = self._best
        """The loss of the one before it, which stays if the write under way is refused."""

    @property
    def best_due(self) -> bool:
        """Whether the state that was evaluated last is to become `best` and was not saved since."""
        return self._due is not None

    @property
    def nbytes(self) -> int:
        """Memory that the snapshot takes, bytes; 0 before the first save in the background."""
        return self._buffers.nbytes

    def evaluated(self, step: int, loss: float | None) -> None:
        """Takes note of the validation loss of the state after `step` steps; the lowest so far makes `best` due."""
        if self.keep_best and loss is not None and math.isfinite(loss) and (self._best is None or loss < self._best):
            self._due = (step, loss)

    def save(self, checkpoint: Draft, name: str | None = None) -> None:
        """Writes the step's folder, or folder/name, and `best` with it if that is due.

        Afterwards, with background when the thread is done, exactly keep_last step folders remain. `name` may be
        "best", for a step at which nothing else is due.
        """
        with self._stalling():
            self._settle()
            names = [folder_name(checkpoint.step, name)]
            due, self._due = self._due, None
            if due is not None and due[0] == checkpoint.step:
                names = list(dict.fromkeys((*names, BEST)))
            names = self._that_fit(checkpoint, names)
            if due is not None and BEST in names:
                self._best_before, self._best = self._best, due[1]
            if not names:
                return
            if self.background:
                self._thread.start(partial(self._write_all, checkpoint.held(self._buffers.hold), names))
            else:
                self._write_all(checkpoint.held(on_cpu), names)
                self._settle()

    def finish(self) -> None:
        """Waits for what is under way, says what was refused, raises what went wrong."""
        with self._stalling():
            self._settle()

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stalled += time.perf_counter() - begun

    def _that_fit(self, checkpoint: Draft, names: Sequence[str]) -> list[str]:
        """The names for which there is room, one after the other; the rest is refused."""
        fit: list[str] = []
        for name in names:
            try:
                require_room(self.folder / name, checkpoint.size, self.free, before=len(fit) * checkpoint.size)
            except NoRoom as error:
                self._refused(checkpoint.step, error)
            else:
                fit.append(name)
        return fit

    def _write_all(self, checkpoint: Draft, names: Sequence[str]) -> None:
        """The job. On a thread of its own it changes nothing that the training thread looks at before `_settle`."""
        for name in names:
            try:
                write(checkpoint, self.folder / name, self.keep_last)
            except NoRoom as error:
                self._not_written.append((checkpoint.step, error))
            else:
                self.kept[name] = checkpoint.step

    def _settle(self) -> None:
        try:
            self._thread.wait()
        finally:
            while self._not_written:
                step, error = self._not_written.pop(0)
                if error.target.name == BEST:
                    self._best = self._best_before
                self._refused(step, error)

    def _found_best(self) -> float | None:
        """The loss that `best` is of, as it says itself; None where there is none, or it is damaged, which is said."""
        with suppress(OSError):  # the first save will meet it again, and say so
            recover(self.folder)
        if not (self.folder / BEST).is_dir():
            return None
        try:
            manifest, contents = read_verified(self.folder / BEST)
            loss = Meta.model_validate_json(contents[META]).validation_loss
            if loss is None or loss.step != manifest.step or not isinstance(loss.value, float):
                raise ValueError(f"{self.folder / BEST} is not of a step that was evaluated")
        except (CheckpointError, ValueError, KeyError) as error:
            self._say(f"passed over; the lowest validation loss from here on takes its place: {error}")
            return None
        return loss.value
