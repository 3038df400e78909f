"""SIGTERM and Ctrl-C while training: the step is finished and saved first. A second Ctrl-C stops at once.

in a step                      finished; given up between two forward passes after GRACE seconds
in validation or a sample      given up at once: they are done again when the run goes on
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

GRACE = 10.0  # of the 30 seconds after which a training has saved and ended
_ASKING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A training was asked to stop, and did. No `except Exception` of a library may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class AtOnce(KeyboardInterrupt):
    """Ctrl-C for the second time: nothing more is waited for, saved or drawn."""


class Stop:
    """Whether this training was asked to stop, by which signal, and since when."""

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self.number: int | None = None
        self.tell = tell
        self._since = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.number is not None

    @property
    def overdue(self) -> bool:
        """Whether the step has to be given up, so that there is time left to save."""
        return self.requested and time.monotonic() - self._since > GRACE

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over. Outside the main thread Python gives none; they end the process as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._asked) for number in _ASKING}
        try:
            yield
        finally:
            self._give_back()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Stopped straight away: for work that may be left and done again."""
        self._breakable = True
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._breakable = False

    def end(self) -> NoReturn:
        """Raise what ends the training."""
        assert self.number is not None
        raise Stopped(self.number)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGINT:
                self._give_back()
                raise AtOnce
            return
        self.number, self._since = number, time.monotonic()
        if self._breakable:
            raise Stopped(number)
        # Printing from here could meet a half-printed line of the interrupted code.
        text = "Finishing this step, then saving; Ctrl-C again stops at once."
        threading.Thread(target=self.tell, args=(text,), daemon=True).start()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
