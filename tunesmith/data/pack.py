"""Which rows go into which step, and into which forward pass of it.

A plan depends on nothing but its arguments, so that a resumed run knows its place without having kept
anything, and changing `microbatch_tokens` changes no result but by rounding, only the memory a step takes
(with dropout or NEFTune it changes which noise is drawn).

    epoch        a permutation of all rows, by (seed, epoch)
    step         rows in that order, up to the budget of the step
    microbatch   rows of one step, laid together so that little room is left (best fit, longest first;
                 Johnson et al. 1974, doi:10.1137/0203025), then levelled: as many microbatches, of like size;
                 rows that share their beginning lie together, and what they share is counted once
    not packed   rows of one step by their lengths, so that those padded together are of like length

Which rows make a step never depends on their lengths or on how they are laid: steps stay unbiased.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from tunesmith.data.prefixes import Order, families, sort_rows, take, unique_tokens

# Padding is worth so many tokens: about the time that starting another forward and backward pass takes.
PADDING_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Step:
    """All rows of one optimizer step: indexes of examples, in forward passes."""

    microbatches: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        return sum(len(rows) for rows in self.microbatches)


def plan_epoch(
    lengths: Sequence[int],
    *,
    epoch: int,
    seed: int,
    tokens_per_step: int | None,
    rows_per_step: int | None,
    microbatch_tokens: int,
    microbatch_rows: int | None,
    packing: bool,
    shared: Sequence[Sequence[int]] | None = None,
) -> list[Step]:
    """Every row once, in a new order each epoch. Exactly one of the two step budgets is given.

    `tokens_per_step`: rows are taken in order while they fit, always at least one. `rows_per_step`: exactly
    so many, the last step of an epoch may have fewer. A microbatch has at most `microbatch_rows` rows and,
    packed, `microbatch_tokens` tokens; without packing and without `microbatch_rows`, as many rows as their
    count times the longest fits in `microbatch_tokens`. A row longer than that gets one of its own. Without
    packing, no microbatch has more than PADDING_TOKENS tokens of padding.

    `shared`: the tokens of all rows, where packed rows share their beginnings (data/prefixes.py). Steps stay
    the same, by raw tokens; a microbatch's budget counts tokens that are computed.
    """
    groups = epoch_rows(
        lengths, epoch=epoch, seed=seed, tokens_per_step=tokens_per_step, rows_per_step=rows_per_step
    )
    return [Step(_lay(rows, lengths, microbatch_tokens, microbatch_rows, packing, shared)) for rows in groups]


def epoch_rows(
    lengths: Sequence[int],
    *,
    epoch: int,
    seed: int,
    tokens_per_step: int | None,
    rows_per_step: int | None,
) -> list[list[int]]:
    """The rows of each step of `plan_epoch`, without their microbatches: what it takes to count steps."""
    assert (tokens_per_step is None) != (rows_per_step is None), "one step budget"
    order = list(range(len(lengths)))
    random.Random(f"tunesmith order, seed {seed}, epoch {epoch}").shuffle(order)
    if rows_per_step is not None:
        return [order[at : at + rows_per_step] for at in range(0, len(order), rows_per_step)]
    return _by_tokens(order, lengths, tokens_per_step or 0)


def plan_eval(
    lengths: Sequence[int],
    *,
    microbatch_tokens: int,
    packing: bool,
    shared: Sequence[Sequence[int]] | None = None,
) -> list[tuple[int, ...]]:
    """Every row once, in as few forward passes as they get; always the same."""
    return list(_lay(range(len(lengths)), lengths, microbatch_tokens, None, packing, shared))


def computed_tokens(steps: Iterable[Step], rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all forward passes of these steps compute when rows share their beginnings."""
    lengths = [len(row) for row in rows]
    return sum(unique_tokens(sort_rows(rows, pack), lengths) for step in steps for pack in step.microbatches)


def padded_tokens(steps: Iterable[Step], lengths: Sequence[int]) -> int:
    """Tokens that all forward passes of these steps compute when rows are padded, padding included."""
    return sum(len(rows) * max(lengths[row] for row in rows) for step in steps for rows in step.microbatches)


def _by_tokens(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for row in order:
        if not groups or lengths[row] > room:
            groups.append([])
            room = budget
        groups[-1].append(row)
        room -= lengths[row]
    return groups


def _lay(
    rows: Iterable[int],
    lengths: Sequence[int],
    max_tokens: int,
    max_rows: int | None,
    packing: bool,
    shared: Sequence[Sequence[int]] | None,
) -> tuple[tuple[int, ...], ...]:
    if packing and shared is not None and max_rows is None:
        return _lay_families(list(rows), lengths, max_tokens, shared)
    longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
    if packing:
        return _fit(longest_first, lengths, max_tokens, max_rows)
    return _by_length(longest_first, lengths, max_tokens, max_rows)


def _by_length(
    longest_first: Sequence[int], lengths: Sequence[int], max_tokens: int, max_rows: int | None
) -> tuple[tuple[int, ...], ...]:
    bins: list[list[int]] = []
    width = padding = limit = 0
    for row in longest_first:
        # The first row of a microbatch tells how wide the others are padded.
        padding += width - lengths[row]
        if not bins or len(bins[-1]) >= limit or padding > PADDING_TOKENS:
            bins.append([])
            width, padding = lengths[row], 0
            limit = max_rows if max_rows is not None else max_tokens // max(1, width)
        bins[-1].append(row)
    return tuple(map(tuple, bins))


def _lay_families(
    rows: Sequence[int], lengths: Sequence[int], max_tokens: int, shared: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Rows with a common beginning are one thing to lay, cut where it doesn't fit into a microbatch."""
    parts: list[Order] = []
    for family in families(sort_rows(shared, rows)):
        parts += _cut(family, lengths, max_tokens)
    parts.sort(key=lambda part: min(part.rows))
    sizes = [unique_tokens(part, lengths) for part in parts]
    longest_first = sorted(range(len(parts)), key=lambda part: (-sizes[part], part))
    bins = _fit(longest_first, sizes, max_tokens, None)
    return tuple(tuple(row for part in members for row in parts[part].rows) for members in bins)


def _cut(family: Order, lengths: Sequence[int], max_tokens: int) -> list[Order]:
    """The family in as few parts as fit, those of like size where that makes no more of them."""
    filled: list[Order] = []
    first = 0
    while first < len(family.rows):
        stop = _fitting(family, first, lengths, max_tokens)
        filled.append(take(family, first, stop))
        first = stop
    if len(filled) == 1:
        return filled
    count, rows = len(filled), len(family.rows)
    level = [take(family, rows * i // count, rows * (i + 1) // count) for i in range(count)]
    fits = all(unique_tokens(part, lengths) <= max_tokens for part in level)
    return level if fits else filled


def _fitting(family: Order, first: int, lengths: Sequence[int], max_tokens: int) -> int:
    """Where the family's rows from `first` on stop to fit together; at least one is taken.

    Twice as many are tried until they don't fit: the cost goes by the rows of a pack, not by those that wait.
    """
    count, rest = 1, len(family.rows) - first
    while count < rest and unique_tokens(take(family, first, first + 2 * count), lengths) <= max_tokens:
        count *= 2
    low, high = first + min(count, rest), first + min(2 * count, rest)
    while low < high:
        middle = (low + high + 1) // 2
        if unique_tokens(take(family, first, middle), lengths) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def _fit(
    longest_first: Sequence[int], lengths: Sequence[int], max_tokens: int, max_rows: int | None
) -> tuple[tuple[int, ...], ...]:
    """As few as best fit needs; of these the largest, which memory goes by, as small as it easily gets."""
    bins = _best_fit(longest_first, lengths, max_tokens, max_rows)
    levelled = _levelled(longest_first, lengths, len(bins), max_tokens, max_rows)
    return min((made for made in (levelled, bins) if made), key=lambda made: _most(made, lengths), default=())


def _most(bins: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[row] for row in rows) for rows in bins)


def _levelled(
    longest_first: Sequence[int],
    lengths: Sequence[int],
    count: int,
    max_tokens: int,
    max_rows: int | None,
) -> tuple[tuple[int, ...], ...] | None:
    """The rows in `count` bins, each where there is least so far; None where they don't fit so.

    Source: Graham 1969, doi:10.1137/0117039.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap
    for row in longest_first:
        load, number = heappop(loads)
        bins[number].append(row)
        if load and load + lengths[row] > max_tokens:
            return None
        if max_rows is None or len(bins[number]) < max_rows:
            heappush(loads, (load + lengths[row], number))
    return tuple(map(tuple, bins))


def _best_fit(
    longest_first: Sequence[int], lengths: Sequence[int], max_tokens: int, max_rows: int | None
) -> tuple[tuple[int, ...], ...]:
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (tokens left, number of the bin), sorted
    for row in longest_first:
        place = bisect_left(open_bins, (lengths[row], -1))
        if place < len(open_bins):
            room, number = open_bins.pop(place)
        else:
            room, number = max_tokens, len(bins)
            bins.append([])
        bins[number].append(row)
        if room > lengths[row] and (max_rows is None or len(bins[number]) < max_rows):
            insort(open_bins, (room - lengths[row], number))
    return tuple(map(tuple, bins))
