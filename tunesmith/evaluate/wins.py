"""How many wins a sign test takes (see votes.py), without anything that is slow to import."""

from __future__ import annotations


def wins_needed(decided: int) -> int | None:
    """The fewest wins of so many decided votes with p < 0.05 two-sided; None below 6, where none do."""
    tail, ways, losses = 0, 1, 0  # ways: how many of the 2^n sequences have so many losses
    # Whole numbers, for p is 2 tail / 2^n and may be very near 0.05.
    while 2 * (tail + ways) * 20 < 2**decided:
        tail += ways
        ways = ways * (decided - losses) // (losses + 1)
        losses += 1
    return decided - losses + 1 if losses else None
