"""Leading tokens that rows of one pack have in common, found once and laid out once: a tree of segments.

    rows      t t t t a a          segments   0: t t t t   parent -1   rows 0, 1, 2 go on from here
              t t t t b b b b b               1: b b b     parent 0    rows 1, 2
              t t t t b b b c                 2: b b       parent 1    row 1
                                              3: c         parent 1    row 2
                                              4: a a       parent 0    row 0

A row is its chain of segments, with the same tokens at the same positions as if it stood alone. Labels may
lie in a shared segment: each row predicts its own next tokens from there, so every label counts once for
each row that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# A shared segment is one more block of attention: shorter ones cost more than they save.
MIN_SHARED = 8


@dataclass(frozen=True, slots=True)
class Shared:
    """Tokens `begin` to `end` of `row`, and of every other row that has this segment in its chain."""

    row: int
    begin: int
    end: int
    parent: int  # -1: these are the first tokens of their rows


@dataclass(frozen=True, slots=True)
class Order:
    """Rows in the order of their tokens; common[i]: leading ones that the i-th shares with the next."""

    rows: list[int]
    common: list[int]


def sort_rows(rows: Sequence[Sequence[int]], chosen: Sequence[int] | None = None) -> Order:
    """The chosen rows (all by default) sorted, so that those with common beginnings lie together."""
    order = sorted(range(len(rows)) if chosen is None else chosen, key=lambda row: (rows[row], row))
    return Order(order, [_common(rows[a], rows[b]) for a, b in pairwise(order)])


def share(order: Order, lengths: Sequence[int]) -> tuple[list[Shared], list[int]]:
    """The segments, depth first, and for each row of `order` the last segment of its chain."""
    segments: list[Shared] = []
    last = [-1] * len(order.rows)
    # (rows first to stop of the order, tokens already laid out, segment that holds them)
    todo = [(0, len(order.rows), 0, -1)]
    while todo:
        first, stop, depth, parent = todo.pop()
        row = order.rows[first]
        if stop - first == 1:
            if lengths[row] > depth:
                segments.append(Shared(row, depth, lengths[row], parent))
                parent = len(segments) - 1
            last[first] = parent
            continue
        inner = order.common[first : stop - 1]
        common = min(inner)
        if common - depth >= MIN_SHARED:
            segments.append(Shared(row, depth, common, parent))
            depth, parent = common, len(segments) - 1
        cuts = [first, *(first + i + 1 for i, n in enumerate(inner) if n == common), stop]
        todo += [(a, b, depth, parent) for a, b in reversed(list(pairwise(cuts)))]
    return segments, last


def unique_tokens(order: Order, lengths: Sequence[int]) -> int:
    """Tokens that are left to compute when the rows of `order` share their beginnings."""
    return sum(segment.end - segment.begin for segment in share(order, lengths)[0])


def families(order: Order) -> list[Order]:
    """The order cut where neighbours have too little in common to share it."""
    cuts = [0, *(i + 1 for i, n in enumerate(order.common) if n < MIN_SHARED), len(order.rows)]
    return [take(order, a, b) for a, b in pairwise(cuts) if b > a]


def take(order: Order, first: int, stop: int) -> Order:
    """A part of the order."""
    return Order(order.rows[first:stop], order.common[first : max(first, stop - 1)])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning, by halves: comparing slices is much faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
