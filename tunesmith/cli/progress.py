"""A training as a person sees it in the terminal: data table, progress bar with time left, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from tunesmith.data.report import named_rows, report_table
from tunesmith.train.listener import Lines, figures, has_room, one_line

__all__ = ["TrainingProgress", "one_line"]

# The least columns of a terminal in which a part of the line is shown: step, loss and time left always are.
WORDS, SPEED, ELAPSED, RATE, BAR = 50, 60, 70, 78, 90


class TrainingProgress(Lines):
    """A listener that draws. In a pipe or log file it prints a line every ten seconds instead of a bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bar = Progress(
            _From(console, WORDS, TextColumn("step")),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _From(console, BAR, BarColumn(bar_width=None)),
            TextColumn("{task.fields[figures]}", markup=False),
            _From(console, ELAPSED, TimeElapsedColumn()),
            _Left(table_column=Column(no_wrap=True)),
            _From(console, WORDS, TextColumn("left")),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task = self._bar.add_task(
            "train", total=None, start=False, visible=False, figures="", left=None
        )

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was interrupted is told in words; a bar that stands still would look as if it went on.
        self._bar.live.transient = kind is not None
        self._bar.stop()

    def say(self, text: str, *, style: str = "") -> None:
        if not has_room(self._console.file):
            return
        # A terminal would break lines in the middle of words; a file has no width.
        self._console.print(text, style=style or None, soft_wrap=not self._console.is_terminal)

    def data(self, report: Mapping[str, Any]) -> None:
        if not has_room(self._console.file):
            return
        self._console.print(report_table(dict(report)))
        for line in named_rows(dict(report)):
            self._console.print(f"  {line}", style="dim")

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        super().started(steps, facts)
        self._bar.start()
        # Steps of an earlier process don't tell how fast this one is.
        done = facts["resumed"][-1]["step"] if facts.get("resumed") else 0
        self._bar.reset(self._task, start=True, total=steps, completed=done, visible=True)

    def step(self, line: Mapping[str, Any]) -> None:
        loss, rate, speed = figures(line)
        width = self._console.width
        shown = [loss, rate if width >= RATE else "", speed if width >= SPEED else ""]
        super().step(line)
        left = self.seconds_left(line["step"])
        self._bar.update(
            self._task, completed=line["step"], figures="  ".join(filter(None, shown)), left=left
        )

    def progress(self, line: Mapping[str, Any], left: str) -> None:
        if not self._console.is_terminal:
            super().progress(line, left)

    def sampled(self, line: Mapping[str, Any]) -> None:
        text = Text.assemble(
            (f"step {line['step']}: ", "dim"),
            (one_line(line["prompt"].rpartition("\n")[2]), "dim"),
            (" → ", "dim"),
            (one_line(line["answer"]), "green"),
        )
        if has_room(self._console.file):
            self._console.print(text, soft_wrap=True)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._bar.stop()
        super().finished(summary)


class _Left(ProgressColumn):
    """Time left: rich's own goes by the last half minute, which an evaluation may have been all of."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        if left is None:
            return Text("-:--:--", style="progress.remaining")
        minutes, seconds = divmod(math.ceil(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02d}:{seconds:02d}", style="progress.remaining")


class _From(ProgressColumn):
    """A column that is shown in terminals of at least so many columns."""

    def __init__(self, console: Console, least: int, column: ProgressColumn) -> None:
        super().__init__(table_column=column.get_table_column())
        self._console, self._least, self._column = console, least, column

    def render(self, task: Task) -> Any:
        return self._column(task) if self._console.width >= self._least else Text("")
