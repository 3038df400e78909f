"""Loss spikes: a step whose loss lies far above those of the steps before it.

    z = (loss - mean of the last 50 steps) / their standard deviation        a spike: z > 6

The standard deviation counts as 0.01 nats at least, so that a loss that hardly moves has no spikes of
nothing; below 20 steps nothing is said. A spike is told, not undone: it may be a bad row, or a rate that is
too high.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean, pstdev

WINDOW, LEAST = 50, 20  # steps
LIMIT = 6.0
FLOOR = 0.01  # nats a label token


class Spikes:
    """The losses of the last steps; `losses` is all that a checkpoint needs to keep."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=WINDOW)

    @property
    def losses(self) -> list[float]:
        """The finite ones among the last steps, the oldest first."""
        return list(self._losses)

    def see(self, loss: float) -> float | None:
        """Take a step's loss; its z where it's a spike, else None. Non-finite ones are no part of this."""
        if not math.isfinite(loss):
            return None
        z = None
        if len(self._losses) >= LEAST:
            z = (loss - fmean(self._losses)) / max(pstdev(self._losses), FLOOR)
        self._losses.append(loss)
        return z if z is not None and z > LIMIT else None
