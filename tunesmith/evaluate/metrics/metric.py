"""What a metric is: a name, a score for each row, and for some one figure of all rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Score = Callable[[str, Sequence[str], str], float]
"""(prediction, references, prompt) -> the row's score; `prompt` is the text of the last user turn."""
Counts = Callable[[str, Sequence[str]], tuple[float, ...]]
"""(prediction, references) -> what is counted in a row, always as many numbers."""
Combine = Callable[[Sequence[float]], float]
"""Counts, summed over rows -> the figure."""
Better = Literal["higher", "lower", "neither"]
Evidence = Literal["answer", "likeliest", "likeliest_per_byte"]


@dataclass(frozen=True)
class Metric:
    """A score with the name that tables, files and the command line use.

    `binary` scores are only 0 or 1, which calls for other intervals than a mean of fractions. Scores lie
    between `least` and `top`; None where there is no such bound: `seen` are then the ends of all scores of
    a call (figures.settled). A metric with `counts` and `combine` has a figure of all rows that isn't the
    mean of their scores. `evidence`: whether the model's own answer is scored or the choice that it finds
    likeliest. `needs_references`: whether rows without any can't be scored. `reads`: whether a reference says
    what is scored against; rows of which none does can't be scored. `signature` says by which rules a library
    computed it.
    """

    name: str
    score: Score
    binary: bool
    description: str
    better: Better = "higher"
    least: float | None = 0.0
    top: float | None = 1.0
    seen: tuple[float, float] | None = None
    counts: Counts | None = None
    combine: Combine | None = None
    evidence: Evidence = "answer"
    signature: str = ""
    needs_references: bool = True
    reads: Callable[[str], bool] | None = None
