"""The loss curve of a run: as loss.png, and in the terminal.

The terminal's is drawn here, in Braille dots: plotext takes as long to import as `runs show` may take in all.
"""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

from rich.text import Text

from tunesmith.disk import disk_errors, name_beside
from tunesmith.errors import RunError
from tunesmith.evaluate.history import History, Point, read, smooth
from tunesmith.rundir import RunDir
from tunesmith.words import counted

TRAIN, VALID = "cyan", "bold yellow"


def write_png(run: RunDir) -> Path:
    """Draw loss.png in the run folder: training and validation loss above, the learning rate below, and the
    scores of answers between them where there are some.

    Raises RunError before the first step.
    """
    history = read(run)
    if not history.loss and not history.valid:
        raise RunError(f"{run.path} has no steps yet, so there is no curve.", fix="Wait for the first step.")
    # Imported here: it takes half a second that the terminal's curve doesn't need.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = bool(history.scores)
    figure = Figure(figsize=(8, 7 if scored else 5.2), dpi=150)
    FigureCanvasAgg(figure)  # no window, no pyplot: safe on a server and in threads
    heights = [4, 2, 1] if scored else [4, 1]
    all_axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    # Room for the labels by hand: to have it computed takes as long as the drawing.
    figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.07 if scored else 0.09, hspace=0.12)
    above, below = all_axes[0], all_axes[-1]
    if scored:
        _draw_scores(all_axes[1], history)
    if history.loss:
        above.plot(*_columns(history.loss), color="#9db8d9", linewidth=0.8, label="training, each step")
        above.plot(
            *_columns(smooth(history.loss)), color="#1f5fa8", linewidth=1.8, label="training, smoothed"
        )
    if history.valid:
        label = "validation" + (f", best {history.best.value:.3f}" if history.best else "")
        above.plot(*_columns(history.valid), "o-", color="#c8501e", markersize=5, linewidth=1, label=label)
    above.set_ylabel("loss (nats per token)")
    above.legend(frameon=False, fontsize=9)
    if history.learning_rate:
        below.plot(*_columns(history.learning_rate), color="#6b6b6b", linewidth=1.2)
    below.set_ylabel("learning rate")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    below.set_xlabel("step")
    for axes in all_axes:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    target = run.path / "loss.png"
    with disk_errors(target):
        temporary = name_beside(target)
        try:
            figure.savefig(temporary, format="png")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _draw_scores(axes: Any, history: History) -> None:
    """The scores of answers between 0 and 1; larger ones by the power of ten that brings them there."""
    for name, points in history.scores.items():
        most = max(abs(p.value) for p in points)
        scale = 10 ** max(0, math.ceil(math.log10(most))) if most > 1 else 1
        steps, values = _columns(points)
        label = name if scale == 1 else f"{name} / {scale}"
        if name == history.by and history.chosen is not None:
            label += f", best {history.chosen.value:.3f} at step {history.chosen.step}"
        axes.plot(steps, [v / scale for v in values], "o-", markersize=4, linewidth=1, label=label)
    axes.set_ylabel(f"{history.answers} answers")
    axes.legend(frameon=False, fontsize=9)


def terminal(run: RunDir, *, width: int | None = None, height: int = 12) -> Text:
    """The curve as lines of text, as wide as the terminal (at most 100); its printer knows about colours."""
    history = read(run)
    if not history.loss and not history.valid:
        return Text("(no steps yet)")
    width = width or min(shutil.get_terminal_size((80, 24)).columns, 100)
    return Text("\n").join(_draw(history, max(width, 30), height))


def _draw(history: History, width: int, height: int) -> list[Text]:
    """Cells of 2 x 4 dots; the smoothed training loss is a line, each validation loss a filled circle."""
    line, points = smooth(history.loss), history.valid
    values = [p.value for p in line + points]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    last = max(p.step for p in line + points) or 1
    labels = [f"{high - (high - low) * row / (height - 1):.2f}" for row in range(height)]
    margin = max(len(labels[0]), len(labels[-1]))
    columns = width - margin - 2

    def place(point: Point) -> tuple[int, int]:
        x = round(point.step / last * (columns * 2 - 1))
        y = round((high - point.value) / (high - low) * (height * 4 - 1))
        return x, y

    dots = [[0] * columns for _ in range(height)]
    for x, y in _joined([place(p) for p in line]):
        dots[y // 4][x // 2] |= _BRAILLE[y % 4][x % 2]
    cells = [[(chr(0x2800 + d) if d else " ", TRAIN) for d in row] for row in dots]
    for x, y in map(place, points):
        cells[y // 4][x // 2] = ("●", VALID)
    lines = []
    for row, (label, content) in enumerate(zip(labels, cells, strict=True)):
        shown = label if row in (0, height // 2, height - 1) else ""
        tick = "┤" if shown else "│"
        lines.append(_painted([(f"{shown:>{margin}} {tick}", ""), *content]))
    end = counted(last, "step")
    lines.append(Text(" " * margin + " └" + "─" * columns))
    lines.append(Text(" " * (margin + 2) + "0" + end.rjust(columns - 1)))
    legend = [(" " * (margin + 2), "")]
    if line:
        legend += [("⠒⠒", TRAIN), (" training loss, smoothed   ", "")]
    if points:
        legend += [("●", VALID), (" validation loss", "")]
    return [*lines, _painted(legend)]


# Dot numbers of a Braille cell by row and column.
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _joined(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every dot on the way from each place to the next."""
    dots = list(places[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [
            (round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count))
            for i in range(1, count + 1)
        ]
    return dots


def _painted(cells: list[tuple[str, str]]) -> Text:
    """Pieces of text with their styles, as one line."""
    line = Text.assemble(*cells)
    line.rstrip()
    return line


def _columns(points: list[Point]) -> tuple[list[int], list[float]]:
    return [p.step for p in points], [p.value for p in points]
