"""Which rows are shown, in which order, on which side: all by one seed, which is sealed.

Nothing here reads an answer, so that nothing of the layout can depend on which model wrote what.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Place:
    """One showing of a pair: its number, whose answer is on the left, whether it's the second showing."""

    pair: int
    left: Side
    repeat: bool = False


def chosen_rows(rows: int, items: int, seed: str) -> list[int]:
    """The numbers of the rows to ask about, in the file's order: all of them, or `items` drawn."""
    if items >= rows:
        return list(range(rows))
    return sorted(random.Random(f"{seed} rows").sample(range(rows), items))


def laid_out(pairs: int, repeats: float, seed: str) -> list[Place]:
    """Every pair once, in an order and with sides by chance, and a share of them again with sides swapped.

    Each model is on the left for half of the pairs, so that a liking for one side favours neither. A repeat
    comes at least a third of the test later than its first showing.
    """
    chance = random.Random(f"{seed} sides")
    both: list[Side] = ["a", "b"]
    chance.shuffle(both)  # who is once more on the left, if the number is odd
    sides = (both * (pairs // 2 + 1))[:pairs]
    chance.shuffle(sides)
    order = random.Random(f"{seed} order").sample(range(pairs), pairs)
    lefts = dict(zip(order, sides, strict=True))
    chance = random.Random(f"{seed} repeats")
    # Only what comes in the first half can be repeated late enough.
    early = order[: (pairs + 1) // 2]
    again = chance.sample(early, min(round(pairs * repeats), len(early)))
    placed = [(float(at), Place(pair, lefts[pair])) for at, pair in enumerate(order)]
    for pair in again:
        at = chance.uniform(order.index(pair) + max(1.0, pairs / 3), pairs + 0.5)
        placed.append((at, Place(pair, "b" if lefts[pair] == "a" else "a", repeat=True)))
    return [place for _, place in sorted(placed, key=lambda entry: entry[0])]
