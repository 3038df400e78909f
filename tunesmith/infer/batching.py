"""Many rows at once, each in the place of one that has ended: nothing waits for the longest, or is padded.

Beginnings that rows share (the same system prompt, instruction or document; the answers to one prompt) are
read once, and lie once in the cache for as long as a row needs them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from tunesmith.data.prefixes import Shared, share, sort_rows
from tunesmith.infer.choosing import Choice
from tunesmith.infer.decoding import Decoder, New
from tunesmith.model.cache import Spans, padded

WINDOW = 8  # batches that are looked through together for shared beginnings
TOKENS_AT_ONCE = 4096  # of prompts, in a forward pass


@dataclass(eq=False)
class Row:
    """One answer to be: the prompt's tokens, what it's chosen by, and when it's over."""

    ids: Sequence[int]
    limit: int  # new tokens at most
    choice: Choice
    adapter: bool = True
    wanted: bool = True
    seconds: float = 0.0  # its share of the time spent so far
    chain: list[_Segment] = field(default_factory=list, repr=False)
    begin: int = -1

    @property
    def own(self) -> int:
        """Tokens of its own in the cache at most."""
        return len(self.ids) - self._shared + self.limit

    @property
    def _shared(self) -> int:
        return sum(segment.length for segment in self.chain)

    @property
    def spans(self) -> Spans:
        """All its tokens so far."""
        before = tuple((s.begin, s.begin + s.length) for s in self.chain)
        own = len(self.ids) - self._shared + len(self.choice.new)
        return (*before, (self.begin, self.begin + own))


@dataclass
class _Segment:
    """Tokens that several rows have in common, behind those of `before`."""

    ids: Sequence[int]
    before: list[_Segment]
    users: int = 0  # of those that are wanted
    begin: int = -1  # in the cache, once it is there

    @property
    def length(self) -> int:
        return len(self.ids)

    def new(self, adapter: bool) -> New:
        spans = (
            *((s.begin, s.begin + s.length) for s in self.before),
            (self.begin, self.begin + self.length),
        )
        return New(self.ids, spans, adapter, wanted=False)


class Running:
    """Up to `width` rows at work in a decoder's cache, and those that wait for a place in it."""

    def __init__(self, decoder: Decoder, width: int, ended: Callable[[Row], bool]) -> None:
        """`ended`: whether a row is over, besides its limit."""
        self.decoder, self.width, self.ended = decoder, width, ended
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []

    def scores(self) -> Tensor:
        """One more token of every active row through the model."""
        rows = self.active
        newest = [row.choice.new[-1] for row in rows]
        return self.decoder.step(newest, [row.spans for row in rows], [row.adapter for row in rows])

    def place(self, row: Row) -> list[New] | None:
        """What is to be read of a row, with the beginnings it shares that aren't there yet; None: no room."""
        cache = self.decoder.cache
        missing = [segment for segment in row.chain if segment.begin < 0]
        taken: list[tuple[int, int]] = []
        for count in (*(segment.length for segment in missing), row.own):
            begin = cache.reserve(count)
            if begin is None:
                for place, size in taken:
                    cache.release(place, size)
                return None
            taken.append((begin, count))
        for segment, (begin, _) in zip(missing, taken, strict=False):
            segment.begin = begin
        row.begin = taken[-1][0]
        tail = row.ids[len(row.ids) - (row.spans[-1][1] - row.begin) :]
        return [*(segment.new(row.adapter) for segment in missing), New(tail, row.spans, row.adapter)]

    def retire(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that are over; their places are free."""
        over = [row for row in rows if len(row.choice.new) >= row.limit or self.ended(row)]
        if over:
            gone = set(map(id, over))
            self.active = [row for row in self.active if id(row) not in gone]
        for row in over:
            self.release(row)
        return over

    def release(self, row: Row) -> None:
        """Give the places of a row back, whether it has got its own yet or not."""
        if row.begin >= 0:
            self.decoder.cache.release(row.begin, row.own)
        for segment in row.chain:
            segment.users -= 1
            if not segment.users and segment.begin >= 0:
                self.decoder.cache.release(segment.begin, segment.length)


class Batch(Running):
    """All rows are known from the start. `choose` picks (and keeps) the next token of each row."""

    def __init__(
        self,
        decoder: Callable[[int], Decoder],
        rows: Sequence[Row],
        width: int,
        choose: Callable[[Tensor, Sequence[Choice]], None],
        ended: Callable[[Row], bool],
    ) -> None:
        """`decoder` makes one with a cache for so many tokens.

        Rows that aren't `wanted` have been answered by an earlier call. They still count where beginnings are
        shared: how a row's tokens are cut into segments decides how its sums are rounded.
        """
        windows = [rows[i : i + width * WINDOW] for i in range(0, len(rows), width * WINDOW)]
        shared = [0, *(sum(padded(s.length) for s in share_beginnings(window)) for window in windows)]
        # Rows of two windows may be at work at a time.
        room = max((a + b for a, b in pairwise(shared)), default=0)
        waiting = [row for row in rows if row.wanted]
        tokens = room + width * padded(max((row.own for row in waiting), default=0))
        super().__init__(decoder(tokens), width, ended)
        self.choose = choose
        self.waiting.extend(waiting)

    @property
    def going(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.waiting or self.active)

    def step(self) -> list[Row]:
        """Read the next prompts where there is room, else one more token of every row; returns ended rows."""
        began = time.perf_counter()
        rows, new = self._admitted()
        if rows:
            scores = self.decoder.read(new)
            self.active += rows
        else:
            assert self.active, "a row alone has room"
            rows = self.active
            scores = self.scores()
        self.choose(scores, [row.choice for row in rows])
        share = (time.perf_counter() - began) / len(rows)
        for row in rows:
            row.seconds += share
        return self.retire(rows)

    def _admitted(self) -> tuple[list[Row], list[New]]:
        """The next rows that have room, and what is to be read for them."""
        rows: list[Row] = []
        new: list[New] = []
        while self.waiting and len(self.active) + len(rows) < self.width:
            parts = self.place(self.waiting[0])
            if parts is None:
                break
            new += parts
            rows.append(self.waiting.popleft())
            if sum(len(one.ids) for one in new) >= TOKENS_AT_ONCE:
                break
        return rows, new


def share_beginnings(rows: Sequence[Row]) -> list[_Segment]:
    """Give rows with common beginnings the same segments; the last token of a prompt is always its own."""
    found: list[_Segment] = []
    for adapter in (True, False):
        chosen = [i for i, row in enumerate(rows) if row.adapter is adapter]
        if len(chosen) < 2:
            continue
        ids = [row.ids[:-1] for row in rows]
        order = sort_rows(ids, chosen)
        tree, last = share(order, [len(one) for one in ids])
        chains = [_chain(tree, end) for end in last]
        users = [0] * len(tree)
        for chain in chains:
            for index in chain:
                users[index] += 1
        made: dict[int, _Segment] = {}
        for row, chain in zip(order.rows, chains, strict=True):
            for index in chain:
                if users[index] > 1:
                    if index not in made:
                        part = tree[index]
                        made[index] = _Segment(ids[part.row][part.begin : part.end], list(rows[row].chain))
                    made[index].users += rows[row].wanted
                    rows[row].chain.append(made[index])
        found += made.values()
    return found


def _chain(tree: Sequence[Shared], index: int) -> list[int]:
    found = []
    while index >= 0:
        found.append(index)
        index = tree[index].parent
    return found[::-1]
