"""A training as a person sees it in the terminal: data table, progress bar with time left, samples."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tunesmith.data.report import named_rows, report_table
from tunesmith.words import counted

SECONDS_BETWEEN_LINES = 10.0
STEPS_AVERAGED = 20


class TrainingProgress:
    """A listener that draws. In a pipe or log file it prints a line every ten seconds instead of a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task = self._bar.add_task("train", total=None, start=False, visible=False, figures="")
        self._steps = 0
        self._last_line = time.monotonic()
        self._step_seconds: deque[float] = deque(maxlen=STEPS_AVERAGED)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._console.print(text)

    def data(self, report: Mapping[str, Any]) -> None:
        self._console.print(report_table(dict(report)))
        for line in named_rows(dict(report)):
            self._console.print(f"  {line}", style="dim")

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        self._steps = steps
        share = 100 * facts["trainable"] / facts["parameters"]
        self._console.print(
            f"Training {facts['trainable']:,} of {facts['parameters']:,} parameters ({share:.3g} %), "
            f"{counted(steps, 'step')}."
        )
        self._bar.start()
        self._bar.update(self._task, total=steps, visible=True)
        self._bar.start_task(self._task)

    def step(self, line: Mapping[str, Any]) -> None:
        figures = (
            f"loss {line['loss']:.3f}  lr {line['learning_rate']:.1e}  {line['tokens_per_second']:,.0f} tok/s"
        )
        if line.get("skipped"):
            self._console.print(
                f"step {line['step']}: the loss or gradient isn't finite; this step changed nothing",
                style="red",
            )
        self._bar.update(self._task, completed=line["step"], figures=figures)
        # Of the steps alone: an evaluation before the first one would make the estimate far too long.
        self._step_seconds.append(line["tokens"] / line["tokens_per_second"])
        now = time.monotonic()
        last = line["step"] == self._steps
        if not self._console.is_terminal and (last or now - self._last_line > SECONDS_BETWEEN_LINES):
            self._last_line = now
            left = sum(self._step_seconds) / len(self._step_seconds) * (self._steps - line["step"])
            self._console.print(f"step {line['step']}/{self._steps}  {figures}  about {duration(left)} left")

    def evaluated(self, line: Mapping[str, Any]) -> None:
        before = " (before this training)" if line["step"] == 0 else ""
        self._console.print(
            f"step {line['step']}: validation loss {line['valid_loss']:.3f}, "
            f"perplexity {line['valid_perplexity']:,.1f}{before}",
            style="cyan",
        )

    def sampled(self, line: Mapping[str, Any]) -> None:
        text = Text.assemble(
            (f"step {line['step']}: ", "dim"),
            (one_line(line["prompt"].rpartition("\n")[2]), "dim"),
            (" → ", "dim"),
            (one_line(line["answer"]), "green"),
        )
        self._console.print(text, soft_wrap=True)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._bar.stop()
        best = ""
        if summary["best_loss"] is not None:
            best = f"; best validation loss {summary['best_loss']:.3f} at step {summary['best_step']}"
        self._console.print(
            f"Done in {duration(summary['seconds'])}: {counted(summary['step'], 'step')}{best}.", style="bold"
        )


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`, fit for a sentence."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def one_line(text: str, limit: int = 160) -> str:
    """A text on one line, cut with an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
