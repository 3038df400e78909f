"""Means where rows of one document aren't independent: documents are drawn, with all their rows.

The mean over rows is a ratio of sums over documents, sum of scores / number of rows, and has that ratio's
interval (`statistics.ratio`); the test of a difference flips the sign of a document's whole difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.evaluate.statistics import (
    Ends,
    Floats,
    Interval,
    Paired,
    of_all_alike,
    of_differences,
    paired_ratio,
    ratio,
    sign_flip,
)


def by_document(values: Sequence[float] | Sequence[Sequence[float]], documents: Sequence[str]) -> Floats:
    """Sums over the rows of each document, in the order in which documents first come; [documents, …]."""
    places = {name: at for at, name in enumerate(dict.fromkeys(documents))}
    data = np.asarray(values, dtype=np.float64)
    sums = np.zeros((len(places), *data.shape[1:]))
    np.add.at(sums, [places[name] for name in documents], data)
    return sums


def clustered_mean(
    scores: Sequence[float],
    documents: Sequence[str],
    *,
    top: float | None = 1.0,
    seen: Ends | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of scores between 0 and `top`, or as in `mean_interval`, with an interval over documents."""
    sums, sizes = by_document(scores, documents), by_document([1.0] * len(scores), documents)
    mean = float(np.mean(scores))
    found = ratio(sums.tolist(), sizes.tolist(), seed=seed)
    if found is None:
        return Interval(mean, *_unknown(mean, seen if top is None else (0.0, top), len(sums)))
    return found if top is None else Interval(mean, max(0.0, found.low), min(top, found.high))


def clustered_paired(
    a: Sequence[float],
    b: Sequence[float],
    documents: Sequence[str],
    *,
    top: float | None = 1.0,
    seen: Ends | None = None,
    seed: int = 0,
) -> Paired:
    """B against A with interval and test over documents; wins, losses and ties are of rows."""
    differences = np.subtract(b, a)
    wins, losses = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    sizes = by_document([1.0] * len(a), documents).tolist()
    sums_a, sums_b = by_document(a, documents), by_document(b, documents)
    mean = float(differences.mean())
    found = paired_ratio((sums_a.tolist(), sizes), (sums_b.tolist(), sizes), seed=seed)
    if found is None:
        ends = of_differences(seen) if top is None else (-top, top)
        found = Interval(mean, *_unknown(mean, ends, len(sizes)))
    p_value = sign_flip(sums_b - sums_a, seed=seed)
    return Paired(found, wins, losses, len(differences) - wins - losses, p_value)


def _unknown(value: float, bounds: Ends | None, n: int) -> Ends:
    if bounds is None:
        return value, value
    return bounds if n < 2 else of_all_alike(value, bounds, n)
