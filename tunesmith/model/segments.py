"""A pack as a tree of segments, and the blocks that its attention is computed in.

A segment's tokens see themselves, causally, and all tokens of the segments that theirs hangs on. The tree is
laid out depth first, so that everything below a segment lies right behind it.

    segments   0: prefix (parent -1)   1: child of 0   2: child of 0   3: another row (parent -1)
    tokens     p p p p                 a a a           b b             c c c c
    positions  0 1 2 3                 4 5 6           4 5             0 1 2 3
    a sees     p p p p and itself, never b or c

Two kinds of blocks cover what is seen, each pair of tokens once:

    own        a segment with itself, causal; segments of like length are stacked, padded to the longest
    reach      everything below a segment with its keys: one product for all its rows, no mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Scores in one block of the backward pass: two buffers of them stay in a core's cache.
BLOCK_SCORES = 1 << 20
# Lengths of own blocks are multiples of this: few shapes, for each of which oneDNN makes code and keeps it.
OWN_MULTIPLE = 16
# Padding is worth so many scores: about the time that starting another block takes.
PADDING_SCORES = 1 << 16
# A longer segment is cut into a chain of segments, each hanging on the one before: memory stays linear in
# the length of a row, and the upper half of the squares is never computed.
LONGEST_OWN = 512


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start to start + length of the pack; `end`: where what hangs on them ends."""

    start: int
    length: int
    parent: int  # -1: none
    position: int  # of its first token in its rows
    end: int

    @property
    def stop(self) -> int:
        """Where its own tokens end."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Reach:
    """Rows begin to end of the pack see all keys start to stop."""

    begin: int
    end: int
    start: int
    stop: int


@dataclass(frozen=True)
class Group:
    """`count` own blocks of `length` tokens each; their first row in `Plan.gather` is `offset`."""

    count: int
    length: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """How one pack is computed. K kv heads; rows of a [T + 1, K, …] tensor, the last one zeros, are taken."""

    segments: tuple[Segment, ...]
    reaches: tuple[Reach, ...]  # of whole segments, for the forward pass
    groups: tuple[Group, ...]
    gather: Tensor  # [R] int64: group by group, [K, count, length] -> token * K + kv head
    scatter: Tensor  # [T * K] int64: token * K + kv head -> row of the gathered ones
    pieces: tuple[Reach, ...]  # for the backward pass: none with more than BLOCK_SCORES scores

    @property
    def longest_row(self) -> int:
        """Tokens from the beginning of a row to the end of the longest one."""
        return max(segment.position + segment.length for segment in self.segments)


def plan(segments: Tensor, heads: int, kv_heads: int) -> Plan:
    """The blocks of a pack; segments [S, 3] int64: start, length, parent. The last few plans are kept."""
    return _plan(tuple(map(tuple, segments.tolist())), heads, kv_heads)


def tree(segments: Sequence[Sequence[int]]) -> tuple[Segment, ...]:
    """(start, length, parent) of each, checked: without gaps, depth first. Raises ValueError."""
    ends = [start + length for start, length, _ in segments]
    positions: list[int] = []
    path: list[int] = []
    at = 0
    for i, (start, length, parent) in enumerate(segments):
        while path and path[-1] != parent:
            path.pop()
        if start != at or length < 1 or (parent >= 0 and not path):
            raise ValueError(f"segment {i} ({start}, {length}, {parent}) isn't laid out depth first")
        positions.append(positions[parent] + segments[parent][1] if parent >= 0 else 0)
        path.append(i)
        at = start + length
        for above in path:
            ends[above] = at
    return tuple(
        Segment(start, length, parent, position, end)
        for (start, length, parent), position, end in zip(segments, positions, ends, strict=True)
    )


def path(segments: Sequence[Segment], index: int) -> list[Segment]:
    """The segment and those it hangs on, from the first token of the row on."""
    found = []
    while index >= 0:
        found.append(segments[index])
        index = segments[index].parent
    return found[::-1]


def split(segments: Sequence[Segment], longest: int) -> tuple[Segment, ...]:
    """The same tree with longer segments as chains of even pieces of at most `longest` tokens."""
    cut: list[tuple[int, int, int]] = []
    last_piece: list[int] = []
    for segment in segments:
        pieces = -(-segment.length // longest)
        parent = last_piece[segment.parent] if segment.parent >= 0 else -1
        for i in range(pieces):
            begin, stop = (segment.length * j // pieces for j in (i, i + 1))
            cut.append((segment.start + begin, stop - begin, parent))
            parent = len(cut) - 1
        last_piece.append(parent)
    return tree(cut)


@lru_cache(maxsize=16)
def _plan(content: tuple[tuple[int, ...], ...], heads: int, kv_heads: int) -> Plan:
    segments = tree(content)
    cut = split(segments, LONGEST_OWN)
    groups, gather, scatter = _own_groups(cut, heads, kv_heads)
    pieces = []
    for reach in _reaches(cut):
        step = max(1, BLOCK_SCORES // (heads * (reach.stop - reach.start)))
        for begin in range(reach.begin, reach.end, step):
            pieces.append(Reach(begin, min(begin + step, reach.end), reach.start, reach.stop))
    return Plan(segments, tuple(_reaches(segments)), groups, gather, scatter, tuple(pieces))


def _reaches(segments: Sequence[Segment]) -> list[Reach]:
    return [Reach(s.stop, s.end, s.start, s.stop) for s in segments if s.end > s.stop]


def _own_groups(
    segments: Sequence[Segment], heads: int, kv_heads: int
) -> tuple[tuple[Group, ...], Tensor, Tensor]:
    """Groups of like length, the longest first."""
    tokens = segments[-1].stop
    stacks: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (-s.length, s.start)):
        stack = stacks[-1] if stacks else []
        longest = stack[0].length if stack else 0
        padding = heads * (longest**2 - segment.length**2)
        full = heads * longest**2 * (len(stack) + 1) > BLOCK_SCORES
        if not stack or full or padding > PADDING_SCORES:
            stacks.append([])
        stacks[-1].append(segment)
    groups, gathered = [], []
    scatter = torch.empty(tokens, kv_heads, dtype=torch.int64)
    kv = torch.arange(kv_heads)
    offset = 0
    for stack in stacks:
        count, length = len(stack), -(-stack[0].length // OWN_MULTIPLE) * OWN_MULTIPLE
        index = torch.full((count, length), tokens)
        for i, segment in enumerate(stack):
            index[i, : segment.length] = torch.arange(segment.start, segment.stop)
            rows = torch.arange(segment.length)[:, None] + (kv * count + i) * length
            scatter[segment.start : segment.stop] = rows + offset
        gathered.append((index * kv_heads + kv[:, None, None]).flatten())
        groups.append(Group(count, length, offset))
        offset += kv_heads * count * length
    return tuple(groups), torch.cat(gathered), scatter.flatten()
