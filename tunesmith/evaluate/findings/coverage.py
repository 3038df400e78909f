"""How much of a text one training row says already, and which row that is.

A text's features are its words and its pairs of neighbouring Han characters. Its cover by a row is

    sum of w(f) over the features of both / sum of w(f) over the text's, w(f) = log((N + 1) / (n(f) + 1))

N rows, n(f) of them with the feature: what every row says (an instruction) weighs nothing, a name that no row
has weighs most. The weights are those of tf-idf (Spärck Jones 1972). 1: a row says all of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.metrics.normalise import IDEOGRAPH, tokens
from tunesmith.evaluate.statistics import FEWEST, RESAMPLES, Floats, Interval, mean_interval, resamples

PART = 1000  # deals at a time
HELD = 0.5
"""From this cover on the training data counts as holding a text."""


_HAN = re.compile(IDEOGRAPH)


@dataclass(frozen=True, slots=True)
class Cover:
    """How much of a text the training row of this number says; of equal ones the shortest, then the first."""

    share: float
    row: int


def covers(texts: Sequence[str], rows: Sequence[str]) -> list[Cover | None]:
    """For each text the row that covers it best; None where no row shares anything with it."""
    wanted = [features(text) for text in texts]
    places: dict[str, list[int]] = {feature: [] for each in wanted for feature in each}
    sizes = np.zeros(len(rows))
    for at, row in enumerate(rows):
        there = features(row)
        sizes[at] = len(there)
        for feature in there & places.keys():
            places[feature].append(at)
    weights = {feature: math.log((len(rows) + 1) / (len(at) + 1)) for feature, at in places.items()}
    arrays = {feature: np.asarray(at, dtype=np.int64) for feature, at in places.items()}
    # Too small to outweigh any cover: of rows that say as much, the one that says little else.
    tie = 1e-9 * sizes / max(1.0, float(sizes.max(initial=0.0)))
    return [_best(each, arrays, weights, tie) for each in wanted]


def features(text: str) -> set[str]:
    """Words, and pairs of neighbouring Han characters; a Han character alone where it has no neighbour."""
    words = tokens(text)
    han = [word if _HAN.fullmatch(word) else "" for word in words]
    found = {word for word, character in zip(words, han, strict=True) if not character}
    found |= {a + b for a, b in pairwise(han) if a and b}
    beside = ["", *han, ""]
    return found | {
        character for at, character in enumerate(han) if character and not beside[at] and not beside[at + 2]
    }


def _best(
    wanted: set[str], places: dict[str, NDArray[np.int64]], weights: dict[str, float], tie: Floats
) -> Cover | None:
    if not wanted or not len(tie):
        return None
    whole = sum(weights[feature] for feature in wanted)
    if not whole:  # every row says all of it
        return Cover(1.0, int(np.argmin(tie)))
    shared: Floats = np.zeros(len(tie))
    for feature in wanted:
        shared[places[feature]] += weights[feature]
    at = int(np.argmax(shared - tie))
    return Cover(float(shared[at]) / whole, at) if shared[at] > 0 else None


@dataclass(frozen=True, slots=True)
class Apart:
    """Two groups of scores: their means, and the difference of the means with its p."""

    first: Interval
    second: Interval
    difference: Interval
    p_value: float

    @property
    def told(self) -> bool:
        """Whether the groups differ by more than chance."""
        return self.p_value < 0.05 and (self.difference.low > 0 or self.difference.high < 0)


def apart(
    first: Sequence[float],
    second: Sequence[float],
    *,
    binary: bool = False,
    top: float | None = 1.0,
    seed: int = 0,
) -> Apart | None:
    """The second group's mean - the first's; None where a group has less than 6 rows.

    Interval: percentile bootstrap, each group drawn by itself (Efron & Tibshirani 1993, 13.3). p: how often
    rows dealt out to the groups by chance differ as much (Fisher's randomisation test, 10,000 deals).
    """
    if min(len(first), len(second)) < FEWEST:
        return None
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    value = float(b.mean() - a.mean())
    means_a, means_b = (
        np.concatenate([group[index].mean(axis=1) for index in resamples(len(group), seed + at)])
        for at, group in enumerate((a, b))
    )
    low, high = np.quantile(means_b - means_a, [0.025, 0.975])
    generator, both, reached = np.random.default_rng(seed), np.concatenate([a, b]), 0
    for start in range(0, RESAMPLES, PART):
        dealt = generator.permuted(np.tile(both, (min(PART, RESAMPLES - start), 1)), axis=1)
        gaps = dealt[:, len(a) :].mean(axis=1) - dealt[:, : len(a)].mean(axis=1)
        reached += int((np.abs(gaps) >= abs(value) - 1e-9).sum())
    return Apart(
        mean_interval(first, binary=binary, top=top, seed=seed),
        mean_interval(second, binary=binary, top=top, seed=seed),
        Interval(value, float(low), float(high)),
        (reached + 1) / (RESAMPLES + 1),
    )
