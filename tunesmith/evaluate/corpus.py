"""Figures of all rows together that are no means of their scores (BLEU, chrF, macro F1), with intervals.

Each row has counts; the figure is made of their sums. Percentile bootstrap over rows (Koehn 2004), below 6
rows the jackknife with Student's t. The test of a difference swaps A's and B's counts of a row, for each row
by the throw of a coin (approximate randomisation, Riezler & Maxwell 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tunesmith.evaluate.metrics.metric import Combine
from tunesmith.evaluate.statistics import (
    EXACT_FLIPS,
    FEWEST,
    LEVEL,
    RESAMPLES,
    STUDENT,
    Floats,
    Interval,
    Paired,
    of_all_alike,
    resamples,
)

Rows = Sequence[Sequence[float]]
"""Counts [rows, k]."""


def corpus_interval(counts: Rows, combine: Combine, *, top: float, seed: int = 0) -> Interval:
    """The figure of these rows, which lies between 0 and `top`, with its interval."""
    data = np.asarray(counts, dtype=np.float64)
    return _interval(data, combine, (0.0, top), seed)


def corpus_paired(
    a: Rows,
    b: Rows,
    combine: Combine,
    *,
    top: float,
    scores: tuple[Sequence[float], Sequence[float]],
    seed: int = 0,
) -> Paired:
    """B's figure against A's; `scores` of single rows, A's and B's, say who is higher on how many rows."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    width = left.shape[1]

    def difference(sums: Sequence[float]) -> float:
        return combine(sums[width:]) - combine(sums[:width])

    interval = _interval(np.hstack([left, right]), difference, (-top, top), seed)
    gaps = np.subtract(scores[1], scores[0])
    wins, losses = int((gaps > 1e-9).sum()), int((gaps < -1e-9).sum())
    p_value = _swapped(left, right, combine, seed)
    return Paired(interval, wins, losses, len(gaps) - wins - losses, p_value)


def _interval(data: Floats, combine: Combine, bounds: tuple[float, float], seed: int) -> Interval:
    n, value = len(data), combine(data.sum(axis=0).tolist())
    if n < 2:
        return Interval(value, *bounds)
    if n < FEWEST:
        whole = data.sum(axis=0)
        without = np.array([combine((whole - row).tolist()) for row in data])
        spread = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
        ends = (value - STUDENT[n - 1] * spread, value + STUDENT[n - 1] * spread)
    else:
        draws = [
            combine(sums)
            for index in resamples(n, seed, data.shape[1])
            for sums in data[index].sum(axis=1).tolist()
        ]
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = (float(low), float(high))
    if ends[1] - ends[0] < 1e-9:
        ends = of_all_alike(value, bounds, n)
    return Interval(value, max(bounds[0], ends[0]), min(bounds[1], ends[1]))


def _swapped(a: Floats, b: Floats, combine: Callable[[Sequence[float]], float], seed: int) -> float:
    """Two-sided p of so large a difference, were it a coin throw which of a row's two answers is B's."""
    differ = (a != b).any(axis=1)
    base = a[~differ].sum(axis=0)
    left, right = a[differ], b[differ]
    n, total = len(left), (a + b).sum(axis=0)
    seen = abs(combine(b.sum(axis=0).tolist()) - combine(a.sum(axis=0).tolist()))
    if n <= EXACT_FLIPS:
        throws = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        throws = np.random.default_rng(seed).integers(2, size=(RESAMPLES, n))
    sums = base + throws @ left + (1 - throws) @ right
    reached = sum(
        abs(combine(one) - combine(other)) >= seen - 1e-9
        for one, other in zip(sums.tolist(), (total - sums).tolist(), strict=True)
    )
    return reached / len(throws) if n <= EXACT_FLIPS else (reached + 1) / (RESAMPLES + 1)
