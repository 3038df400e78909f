"""One thread computes all answers; requests hand their rows to it and are handed tokens.

    request threads    submit(ask) -> tokens from ask.events, until each row has ended
    the engine         takes new rows in, drops those whose client has gone, steps every lane once, and again

A lane is a model, or a base under one of several adapters. Lanes take turns step by step, so that no model's
requests wait for another's to end.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.errors import SettingsError, TunesmithError, lacks_memory
from tunesmith.infer.live import LiveRow
from tunesmith.records import TokenScore
from tunesmith.serve.asking import Refused

LONGEST_RETRY = 60  # seconds that a client is told to wait at most


class Lane(Protocol):
    """Rows of one model, computed together as far as the model allows it."""

    def add(self, prompts: Sequence[Sequence[LiveRow]]) -> None:
        """Rows to be computed; the answers to one prompt together."""

    def step(self) -> Sequence[LiveRow]:
        """Compute a little; returns rows with a new token, and those that are done or failed."""

    @property
    def going(self) -> bool:
        """Whether there is anything to do."""
        ...

    @property
    def alone(self) -> bool:
        """Whether it is in the middle of something that no other lane may come between."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A new token of row number `row`."""

    row: int
    id: int
    score: TokenScore | None


@dataclass(frozen=True, slots=True)
class End:
    """Row number `row` has all its tokens."""

    row: int


@dataclass(eq=False)
class Ask:
    """A request's rows, and where its thread takes from what becomes of them.

    `gone` says whether its client has closed the connection. After a Refused no more events come.
    """

    lane: Lane
    prompts: Sequence[Sequence[LiveRow]]
    gone: Callable[[], bool]
    events: queue.SimpleQueue[Token | End | Refused] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    ended: int = 0

    @property
    def rows(self) -> list[LiveRow]:
        """All of its rows, in the order of their numbers."""
        return [row for prompt in self.prompts for row in prompt]


class Engine:
    """Computes the rows of `lanes`, with at most `room` rows accepted at a time, waiting ones included."""

    def __init__(self, lanes: Sequence[Lane], room: int) -> None:
        self.lanes, self.room = lanes, room
        self._changed = threading.Condition()
        self._new: deque[Ask] = deque()
        self._asks: list[Ask] = []
        self._of: dict[int, tuple[Ask, int]] = {}
        self._rows = 0
        self._seconds_a_row = 1.0
        self._closing = self._stopped = False
        self._broken: Refused | None = None
        self._thread = threading.Thread(target=self._run, name="tunesmith-serve", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def busy(self) -> int:
        """Rows that are answered or wait."""
        return self._rows

    @property
    def alive(self) -> bool:
        """Whether its thread runs, so that what is asked gets an answer."""
        return self._thread.is_alive()

    def submit(self, ask: Ask) -> None:
        """Take a request in. Raises Refused where there are too many, or the server stops."""
        count = len(ask.rows)
        if count > self.room:
            what = f"{count} answers are asked for at once, and {self.room} is this server's most."
            raise Refused(400, what, param="n")
        with self._changed:
            if self._closing:
                raise Refused(503, "The server is stopping.", code="server_stopping")
            if self._broken is not None:
                raise self._broken
            if self._rows + count > self.room:
                raise Busy(self._rows, self.room, self._seconds_a_row * (self._rows + count - self.room))
            self._rows += count
            self._new.append(ask)
            self._changed.notify_all()

    def close(self, grace: float) -> None:
        """Take nothing new in, let running answers go on for so many seconds, and end those that are left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._rows, timeout=grace)
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=grace)

    def _run(self) -> None:
        end = Refused(503, "The server has stopped before the end.", code="server_stopping")
        try:
            while self._turn():
                pass
        except Exception as error:  # a mistake of ours: nobody may wait for ever because of it
            what = f"The server can't compute any more ({type(error).__name__}): start it again."
            end = Refused(503, what, code="failed")
        finally:
            with self._changed:
                self._broken = end
            for ask in [*self._asks, *self._new]:
                self._fail(ask, end)

    def _turn(self) -> bool:
        """Take in what is new, and a step of every lane; whether there will be another turn."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._stopped:
                return False
            new, self._new = list(self._new), deque()
            self._asks += new
        self._take(new)
        for ask in list(self._asks):
            if ask.cancelled or ask.gone():
                self._fail(ask, Refused(499, "The client has closed the connection."))
        alone = [lane for lane in self.lanes if lane.alone]
        for lane in alone or [lane for lane in self.lanes if lane.going]:
            self._step(lane)
        return True

    def _has_work(self) -> bool:
        return bool(self._new or self._asks or self._stopped or any(lane.going for lane in self.lanes))

    def _take(self, new: Sequence[Ask]) -> None:
        for ask in new:
            self._of |= {id(row): (ask, at) for at, row in enumerate(ask.rows)}
            try:
                ask.lane.add(ask.prompts)
            except Exception as error:  # no memory for the lane's cache, say
                self._fail(ask, _refusal(error))

    def _step(self, lane: Lane) -> None:
        began = time.perf_counter()
        try:
            rows = lane.step()
        except Exception as error:  # beyond what the lane keeps to single rows
            for ask in [ask for ask in self._asks if ask.lane is lane]:
                self._fail(ask, _refusal(error))
            return
        spent = (time.perf_counter() - began) / max(1, len(rows))
        for row in rows:
            row.seconds += spent
            if id(row) not in self._of:
                continue  # of a request that failed by another row of this very step
            ask, at = self._of[id(row)]
            if row.error is not None:
                self._fail(ask, _refusal(row.error))
                continue
            new, scores = row.choice.new, row.choice.scores
            while row.told < len(new):
                ask.events.put(Token(at, new[row.told], scores[row.told] if scores else None))
                row.told += 1
            if row.done:
                ask.ended += 1
                self._seconds_a_row += 0.2 * (row.seconds - self._seconds_a_row)
                last = ask.ended == len(ask.rows)
                if last:
                    self._forget(ask)
                ask.events.put(End(at))

    def _fail(self, ask: Ask, why: Refused) -> None:
        for row in ask.rows:
            row.dropped = True
        self._forget(ask)
        ask.events.put(why)

    def _forget(self, ask: Ask) -> None:
        for row in ask.rows:
            self._of.pop(id(row), None)
        self._asks = [other for other in self._asks if other is not ask]
        with self._changed:
            self._rows -= len(ask.rows)
            self._changed.notify_all()


class Busy(Refused):
    """Too many requests wait already; `after`: seconds after which it may be tried again."""

    def __init__(self, rows: int, room: int, seconds: float) -> None:
        super().__init__(
            429,
            f"{rows} answers are being written or wait, and {room} is the most. Try again later.",
            code="rate_limit_exceeded",
        )
        self.after = max(1, min(LONGEST_RETRY, math.ceil(seconds)))


def _refusal(error: Exception) -> Refused:
    if lacks_memory(error):
        return Refused(
            503,
            "The memory wasn't enough for this answer. Shorten the prompt, lower max_tokens, or ask for "
            "fewer answers at once.",
            code="out_of_memory",
        )
    if isinstance(error, SettingsError):  # a schema that its answer led to no end
        return Refused(400, " ".join([error.what, *error.details]), param="response_format")
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, TunesmithError):
        what = f"{error.what} {error.fix}".strip()
    return Refused(500, f"The answer couldn't be computed: {what}", code="failed")
