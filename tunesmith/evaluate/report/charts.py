"""Charts of a result as inline SVG: numbers, escaped names and classes, coloured by the page's style sheet.

forest   a line a figure: its point and 95 % interval; differences stand on either side of a line at 0
deltas   how many rows changed by how much, those that didn't change apart
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from tunesmith.evaluate.drawing import ticks
from tunesmith.evaluate.numbers import number, readable
from tunesmith.evaluate.report.figures import Better, Value

WIDE, NARROW = 760, 340
BELOW_LABEL = 30  # from the top of a row to its interval, where the label stands above it
TALL = 7  # of a line above and below an interval
LABEL = 17  # characters of a name, beside its n
MOST_BARS = 16
WIDEST_BAR = 96
FEW_VALUES = 9  # so many different changes have a bar each


@dataclass(frozen=True)
class Mark:
    """One line of a forest plot; `kind` is better, worse or open, and decides colour and shape."""

    label: str
    n: int
    value: Value
    kind: str = "open"


def forest(marks: Sequence[Mark], *, width: int, title: str, sign: bool = True) -> Markup:
    """Points with intervals on one axis; `sign`: they are differences, and the axis holds 0."""
    narrow = width < 500
    left, right = (10, 10) if narrow else (190, 204)
    high_row, top, bottom = (42, 4, 26) if narrow else (28, 4, 26)
    height = top + high_row * len(marks) + bottom
    ends = [end for mark in marks for end in mark.value.ends]
    axis = ticks(min([*ends, *([0.0] if sign else [])]), max([*ends, *([0.0] if sign else [])]), 4)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - axis[0]) / (axis[-1] - axis[0])

    parts = []
    for tick in axis:
        name = "zero" if sign and tick == 0 else "grid"
        at = f"{x(tick):.1f}"
        # Where labels stand above the intervals, lines are drawn beside the intervals only.
        for begin, end in _beside(len(marks), top, high_row) if narrow else [(top, height - bottom + 4)]:
            parts.append(f'<line class="{name}" x1="{at}" x2="{at}" y1="{begin}" y2="{end}"/>')
        anchor = _anchor(x(tick), width) if narrow else "middle"
        parts.append(f'<text x="{at}" y="{height - 6}" text-anchor="{anchor}">{_plain(tick)}</text>')
    for row, mark in enumerate(marks):
        y = top + high_row * row + (BELOW_LABEL if narrow else high_row / 2)
        told = _told(mark.value, sign)
        label = _fit(mark.label) + f" (n = {mark.n:,})"
        words_y = y - 12 if narrow else y + 4
        parts.append(f'<text class="name" x="{0 if narrow else 2}" y="{words_y:.1f}">{label}</text>')
        parts.append(f'<text class="told" x="{width - 2}" y="{words_y:.1f}" text-anchor="end">{told}</text>')
        low, high = (f"{x(end):.1f}" for end in mark.value.ends)
        line = f"M{low} {y:.1f}H{high}M{low} {y - 4:.1f}v8M{high} {y - 4:.1f}v8"
        parts.append(f'<path class="range {mark.kind}" d="{line}"/>')
        parts.append(_point(mark.kind, x(mark.value.value), y))
    told = "; ".join(f"{mark.label} (n = {mark.n}): {_told(mark.value, sign)}" for mark in marks)
    return _svg(width, height, title, told, parts)


def deltas(differences: Sequence[float], better: Better, *, width: int, title: str) -> Markup:
    """A histogram of changes; rows that didn't change have the bar in the middle."""
    bars = _bars(differences)
    left, right, top, bottom, height = 6, 6, 18, 26, 150
    each = min((width - left - right) / len(bars), WIDEST_BAR)
    end = left + each * len(bars)
    most = max(count for _, _, count in bars)
    base = height - bottom
    parts = [f'<line class="zero" x1="{left}" x2="{end:.1f}" y1="{base}" y2="{base}"/>']
    for at, (low, high, count) in enumerate(bars):
        tall = (base - top) * count / most
        kind = _kind((low + high) / 2, better)
        x = left + each * at
        if count:
            box = f'x="{x + 1:.1f}" y="{base - tall:.1f}" width="{each - 2:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect class="bar {kind}" {box}><title>{_edges(low, high)}: {count}</title></rect>')
        if count and len(f"{count}") * 7 <= each:
            parts.append(_text(x + each / 2, base - tall - 5, f"{count}"))
    # A bar of one value is named below it; of the others, only the ends are.
    for at, (low, high, _) in enumerate(bars):
        if low == high:
            parts.append(_text(left + each * (at + 0.5), height - 8, _plain(low, sign=True)))
    for x, anchor, bar, side in ((left, "start", bars[0], 0), (end, "end", bars[-1], 1)):
        if bar[0] != bar[1]:
            parts.append(_text(x, height - 8, number(bar[side], sign=True), anchor))
    told = "; ".join(f"{_edges(low, high)}: {count}" for low, high, count in bars if count)
    return _svg(width, height, title, told, parts)


def _beside(rows: int, top: int, high_row: int) -> list[tuple[int, int]]:
    """Where the lines of a narrow chart begin and end: a piece for each row, around its interval."""
    middles = (top + high_row * row + BELOW_LABEL for row in range(rows))
    return [(y - TALL, y + TALL) for y in middles]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _bars(differences: Sequence[float]) -> list[tuple[float, float, int]]:
    """(low, high, rows), from the lowest; a bar of one value has low = high, and 0 always has one."""
    values = [0.0 if abs(d) <= 1e-9 else round(d, 9) for d in differences]
    single = sorted({*values, 0.0})
    if len(single) <= FEW_VALUES:
        return [(value, value, values.count(value)) for value in single]
    least, most = min(*values, 0.0), max(*values, 0.0)
    axis = ticks(least, most, MOST_BARS)
    bars = []
    for low, high in pairwise(axis):
        if high <= 0:
            bars.append((low, high, sum(low <= v < high for v in values if v < 0)))
        else:
            bars.append((low, high, sum(low < v <= high for v in values if v > 0)))
    where = sum(high <= 0 for _, high, _ in bars)
    return [*bars[:where], (0.0, 0.0, values.count(0.0)), *bars[where:]]


def _kind(middle: float, better: Better) -> str:
    if middle == 0 or better == "neither":
        return "open"
    return "better" if (middle > 0) == (better == "higher") else "worse"


def _edges(low: float, high: float) -> str:
    ends = (_plain(end, sign=True) for end in ((low,) if low == high else (low, high)))
    return " … ".join(ends)


def _plain(value: float, *, sign: bool = False) -> str:
    """0.5, +0.5, −1.5, 0: as short as can be."""
    return readable(format(value, "+g" if sign else "g"))


def _point(kind: str, x: float, y: float) -> str:
    """A full circle, a full diamond, an empty circle: told apart without colours too."""
    if kind == "worse":
        return f'<path class="point worse" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    return f'<circle class="point {kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _told(value: Value, sign: bool) -> str:
    ends = "" if value.low is None else " [{}, {}]".format(*(number(end, sign=sign) for end in value.ends))
    return number(value.value, sign=sign) + ends


def _fit(label: str) -> Markup:
    """A name that stays within its column; Chinese counts twice."""
    used = 0
    for at, character in enumerate(label):
        used += 1 + (ord(character) > 0x2E80)
        if used > LABEL:
            return escape(label[: at - 1] + "…")
    return escape(label)


def _anchor(x: float, width: int) -> str:
    return "start" if x < 24 else "end" if x > width - 24 else "middle"


def _svg(width: int, height: float, title: str, told: str, parts: Sequence[str]) -> Markup:
    if not all(map(math.isfinite, (width, height))):
        raise ValueError("a chart without a size")
    words = f"<title>{escape(title)}</title><desc>{escape(told)}</desc>"
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height:g}" role="img">{words}{"".join(parts)}</svg>'
    )
