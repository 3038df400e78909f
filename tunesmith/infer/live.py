"""Rows that come and go while others are at work: what a server's answers are computed by.

A row joins at the next step, and its place is free in the step after it was dropped. Long prompts are read in
pieces between the steps of the others, so that nobody waits for them. Only the answers to one prompt share
their beginning: then an answer's sums don't depend on who else happens to ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunesmith.infer.answer import contains, decode
from tunesmith.infer.batching import Row, Running, share_beginnings
from tunesmith.infer.choosing import Chooser
from tunesmith.infer.decoding import PIECE, Decoder, New, pieces_of
from tunesmith.model.cache import ALIGN

# Tokens that a row takes in the cache beyond its own: its shared beginning and the rest are rounded up.
ROUNDING = 2 * ALIGN


@dataclass(kw_only=True, eq=False)
class LiveRow(Row):
    """A row with settings and ends of its own; `done` once it has left, with an `error` where it had to.

    `told`: new tokens that whoever asked has been told of.
    """

    chooser: Chooser
    tokenizer: PreTrainedTokenizerBase
    end_ids: Collection[int]
    dropped: bool = False
    done: bool = False
    told: int = 0
    error: Exception | None = None
    window: int = field(init=False)

    def __post_init__(self) -> None:
        # A token writes a byte at least, so these hold any stop text; a few more for characters cut in two.
        stop = self.chooser.sampling.stop or ()
        self.window = max((len(text.encode()) for text in stop), default=0) + 4

    @property
    def over(self) -> bool:
        """Whether it ends here, besides its limit."""
        if self.error is not None or self.dropped:
            return True
        new, stop = self.choice.new, self.chooser.sampling.stop
        return new[-1] in self.end_ids or (
            bool(stop) and contains(decode(self.tokenizer, new[-self.window :]), stop or ())
        )


class LiveBatch(Running):
    """Up to `width` rows at once; all of its methods are one thread's."""

    waiting: deque[LiveRow]  # type: ignore[assignment]
    active: list[LiveRow]  # type: ignore[assignment]

    def __init__(self, decoder: Decoder, width: int) -> None:
        super().__init__(decoder, width, lambda row: row.over)  # type: ignore[attr-defined]
        self.reading: deque[tuple[LiveRow, deque[New]]] = deque()

    @property
    def going(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.reading or self.active)

    def add(self, rows: Sequence[LiveRow]) -> None:
        """The answers to one prompt. Each must fit into the cache alone, with `ROUNDING`."""
        share_beginnings(rows)
        self.waiting.extend(rows)

    def step(self) -> list[LiveRow]:
        """One more token of every row that has its first one, and a piece of the prompts that wait.

        Returns the rows with a new token, those that are done included, and those that failed.
        """
        self._leave()
        self._admit()
        return [*self._on(), *self._read()]

    def _on(self) -> list[LiveRow]:
        rows = self.active
        if not rows:
            return []
        try:
            choose(self.scores(), rows)
        except Exception as error:
            for row in rows:
                row.error = error
        self._retired(rows)
        return rows

    def _read(self) -> list[LiveRow]:
        parts: list[New] = []
        read: list[LiveRow] = []  # to their end
        touched: list[LiveRow] = []
        while self.reading and sum(len(part.ids) for part in parts) < PIECE:
            row, left = self.reading[0]
            parts.append(left.popleft())
            if row not in touched:
                touched.append(row)
            if not left:
                self.reading.popleft()
                read.append(row)
        if not parts:
            return []
        try:
            scores = self.decoder.read(parts)
            if read:
                choose(scores, read)
        except Exception as error:
            for row in touched:
                row.error = error
            self.reading = deque(pair for pair in self.reading if pair[0].error is None)
            read = touched
        self.active = [*self.active, *read]
        self._retired(read)
        return read

    def _retired(self, rows: Sequence[LiveRow]) -> None:
        for row in self.retire(rows):
            row.done = True  # type: ignore[attr-defined]

    def _admit(self) -> None:
        while self.waiting and len(self.active) + len(self.reading) < self.width:
            parts = self.place(self.waiting[0])
            if parts is None:
                return
            row = self.waiting.popleft()
            self.reading.append((row, deque(piece for part in parts for piece in pieces_of(part))))

    def _leave(self) -> None:
        """Rows that were dropped, wherever they are."""
        gone = [
            row for row in (*self.waiting, *self.active, *(row for row, _ in self.reading)) if row.dropped
        ]
        if not gone:
            return
        for row in gone:
            self.release(row)
            row.done = True
        self.waiting = deque(row for row in self.waiting if not row.dropped)
        self.active = [row for row in self.active if not row.dropped]
        self.reading = deque(pair for pair in self.reading if not pair[0].dropped)


def choose(scores: Tensor, rows: Sequence[LiveRow]) -> None:
    """Choose the next token of each row by its own settings, from scores [R, V] in fp32."""
    groups: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(id(row.chooser), []).append(at)
    for places in groups.values():
        own = scores if len(groups) == 1 else scores[torch.tensor(places, device=scores.device)]
        mine = [rows[at] for at in places]
        try:
            mine[0].chooser(own, [row.choice for row in mine])
        except Exception as error:  # scores that aren't numbers, say
            for row in mine:
                row.error = error
