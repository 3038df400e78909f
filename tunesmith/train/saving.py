"""When checkpoints are written, and by whom: a thread of its own, from a copy, while training goes on.

A save that fails is told and leaves the earlier checkpoints alone; the next one is tried as if nothing had
been. Older ones are removed only after the new one was read back.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.device import available_memory
from tunesmith.disk import disk_errors, free_space
from tunesmith.errors import RunError, TunesmithError, lacks_memory
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Contents
from tunesmith.train.progress import Progress
from tunesmith.train.training import Training
from tunesmith.words import size

log = logging.getLogger("tunesmith")

THREAD = "tunesmith-checkpoint"
# A save every few minutes must not become most of the work where it takes long.
LEAST_SHARE = 50
ROOM = 16 * 2**20  # beyond the tensors, for everything else that a run writes until the next save
CUSHION = 16 * 2**20  # of memory, for writing a checkpoint
COPY_SHARE = 0.5  # of the free memory that a copy may take


@dataclass(frozen=True)
class Best:
    """The checkpoint of the best step, and the figure that made it that (Training.aim)."""

    folder: Path
    step: int
    value: float


@dataclass(frozen=True)
class Saved:
    """How a save ended: `error` is None where the checkpoint is whole."""

    step: int
    error: str | None
    best: bool


class Saver:
    """Writes checkpoints one at a time. `best` is the newest of those that were the best and are whole."""

    def __init__(self, training: Training, best: Best | None = None) -> None:
        self.best = best
        self._training, self._run, self._settings = training, training.run, training.settings
        self._thread: threading.Thread | None = None
        self._ended: Saved | None = None
        self._last, self._took = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether the job asks for a checkpoint after this step."""
        every, minutes = self._settings.save_every, self._settings.save_minutes
        if every and step % every == 0:
            return True
        waited = time.monotonic() - self._last
        return bool(minutes) and waited >= max(60 * minutes, LEAST_SHARE * self._took)

    def save(self, capture: Callable[[bool], Contents], needed: int, best: Best | None) -> Saved | None:
        """Begin a save after the one before has ended; returns how that one ended.

        `capture` gives the contents, copied or not; `needed` are their bytes, about.
        """
        before = self.wait()
        self._last = time.monotonic()
        contents = self._copy(capture) if needed < COPY_SHARE * available_memory() else None
        self._ended = None
        if contents is not None:
            # A daemon: the second Ctrl-C doesn't wait for it.
            self._thread = threading.Thread(
                target=self._write, args=(contents, best), name=THREAD, daemon=True
            )
            self._thread.start()
        else:
            self._write(capture(False), best)
        return before

    def poll(self) -> Saved | None:
        """How the last save ended, once; None while it's going on and afterwards."""
        if self._thread is not None and self._thread.is_alive():
            return None
        self._thread = None
        ended, self._ended = self._ended, None
        return ended

    def wait(self, seconds: float | None = None) -> Saved | None:
        """`poll`, after waiting for the end, not longer than `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.poll()

    def _copy(self, capture: Callable[[bool], Contents]) -> Contents | None:
        """The contents in memory of their own, or None where it isn't there after all."""
        try:
            return capture(True)
        except Exception as error:
            if not lacks_memory(error):
                raise
            return None

    def _write(self, contents: Contents, best: Best | None) -> None:
        begun, error = time.monotonic(), None
        try:
            self._check_space(contents)
            mmap.mmap(-1, CUSHION).close()  # while it can be said: libraries end a process that has none left
            for journal in (self._training.metrics, self._training.samples):
                with disk_errors(journal.file):
                    journal.sync()
            folder = checkpoint.write(self._run, contents, self._training.made_from)
            log.info("checkpoint %s, %s", folder.name, size(contents.bytes))
            self.best = best or self.best
            self._prune()
        except Exception as failure:
            error = _why(failure)
            # What has words of its own is told by them; of anything else the place is wanted.
            told = isinstance(failure, TunesmithError)
            log.error(
                "the checkpoint of step %d: %s", contents.step, error, exc_info=None if told else failure
            )
        self._took = time.monotonic() - begun
        self._ended = Saved(contents.step, error, best is not None)

    def _prune(self) -> None:
        try:
            kept = self.best.folder if self.best else None
            checkpoint.prune(self._run, keep=self._settings.keep, best=kept)
        except OSError as failure:  # room is missing, nothing else
            log.warning("older checkpoints stay: %s", failure)

    def _check_space(self, contents: Contents) -> None:
        free, needed = free_space(self._run.path), contents.bytes + ROOM
        if free < needed:
            raise RunError(
                f"{self._run.checkpoints} has no room for it: it takes about {size(needed)}, and "
                f"{size(free)} are free.",
                fix="Free some space.",
            )


def _why(failure: Exception) -> str:
    if isinstance(failure, TunesmithError):
        return failure.what
    return "the memory isn't enough." if lacks_memory(failure) else f"{type(failure).__name__}: {failure}"


def kept_best(run: RunDir, at: Progress) -> Best | None:
    """The best checkpoint of a training that goes on, where it is still there."""
    if at.best_step is None or at.best_value is None:
        return None
    folder = checkpoint.folder_of(run, at.best_step)
    return Best(folder, at.best_step, at.best_value) if folder.is_dir() else None
