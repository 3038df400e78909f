"""Curves of a training as inline SVG: numbers and classes only, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup, escape

from tunesmith.evaluate.history import History, Point, smooth

MOST_POINTS = 600  # of a line; more than a screen can show


def curve_svg(history: History, *, width: int, height: int) -> Markup:
    """Training loss (light, and smoothed), validation losses as dots, the learning rate below."""
    points = history.loss + history.valid
    if not points:
        return Markup("")
    last = max(1, *(p.step for p in points))
    left, right, top, gap, bottom = 44, 14, 12, 22, 30
    low_height = 44 if history.learning_rate else 0
    main_height = height - top - bottom - (gap + low_height if low_height else 0)
    axis = ticks(min(p.value for p in points), max(p.value for p in points))
    low, high = axis[0], axis[-1]

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(value: float) -> float:
        return top + main_height * (high - value) / (high - low)

    parts = []
    for tick in axis:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in ticks(0, last, 5 if width > 500 else 3):
        if step <= last and step == int(step):
            parts.append(f'<text x="{x(step):.1f}" y="{height - 10}" text-anchor="middle">{step:g}</text>')
    parts.append(_line(history.loss, x, y, "raw"))
    parts.append(_line(smooth(history.loss), x, y, "smooth"))
    parts.append(_line(history.valid, x, y, "valid"))
    for p in history.valid:
        tip = f"<title>step {p.step}: {p.value:.4f}</title>"
        parts.append(f'<circle class="valid" cx="{x(p.step):.1f}" cy="{y(p.value):.1f}" r="4">{tip}</circle>')
    if low_height:
        peak = max(p.value for p in history.learning_rate) or 1.0
        base = height - bottom
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text x="{left - 8}" y="{base - low_height + 8}" text-anchor="end">{peak:.0e}</text>')
        parts.append(_line(history.learning_rate, x, lambda value: base - low_height * value / peak, "rate"))
    body = f"<title>Loss · 损失</title><desc>{_words(history)}</desc>{''.join(parts)}"
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img">{body}</svg>')  # numbers and our own words


def score_svg(name: str, points: list[Point], last: int, *, width: int, height: int) -> Markup:
    """A score of the answers over the steps, from 0 to `last` as the losses are."""
    left, right, top, bottom = 44, 14, 12, 30
    least, most = min(p.value for p in points), max(p.value for p in points)
    axis = ticks(least, most if most - least > 1e-9 else least + 1, 3)
    low, high = axis[0], axis[-1]

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(1, last)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [f"<title>{escape(name)}</title>"]
    for tick in axis:
        line = f'x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        parts.append(f'<line class="grid" {line}/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in ticks(0, max(1, last), 5 if width > 500 else 3):
        if step <= last and step == int(step):
            parts.append(f'<text x="{x(step):.1f}" y="{height - 10}" text-anchor="middle">{step:g}</text>')
    parts.append(_line(points, x, y, "smooth"))
    for p in points:
        tip = f"<title>step {p.step}: {p.value:.4f}</title>"
        parts.append(f'<circle class="score" cx="{x(p.step):.1f}" cy="{y(p.value):.1f}" r="4">{tip}</circle>')
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')  # escaped above


def _words(history: History) -> str:
    """The curve for who can't see it."""
    ends = [
        f"{name}: {line[0].value:.3f} at step {line[0].step}, {line[-1].value:.3f} at step {line[-1].step}"
        for name, line in (("training loss", smooth(history.loss)), ("validation loss", history.valid))
        if line
    ]
    return "; ".join(ends)


def _line(points: list[Point], x: Callable[[float], float], y: Callable[[float], float], name: str) -> str:
    if not points:
        return ""
    every = math.ceil(len(points) / MOST_POINTS)
    kept = points[::every] + ([points[-1]] if (len(points) - 1) % every else [])
    path = " ".join(f"{x(p.step):.1f},{y(p.value):.1f}" for p in kept)
    return f'<polyline class="{name}" points="{path}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = max(high - low, 1e-6)
    size = 10 ** math.floor(math.log10(span / count))
    step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= count)
    first = math.floor(low / step + 1e-9)
    found = [first * step]
    while found[-1] < high - 1e-9 * span:
        found.append((first + len(found)) * step)
    return [round(t, 10) for t in found] if len(found) > 1 else [found[0], found[0] + step]
