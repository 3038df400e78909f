"""How far a verb is that answers or measures many rows: a bar with the time left, or lines of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from tunesmith.cli.console import err
from tunesmith.infer.predictions import Summary
from tunesmith.words import duration

SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """The lines for a stderr that is no terminal: ten seconds apart, with the time left."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def tell(self, how_far: str, seconds_each: float, left: int) -> None:
        """Say how far it is, unless the last line was a moment ago; `left` rows take `seconds_each`."""
        if err.is_terminal or time.monotonic() - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = time.monotonic()
        err.print(f"{how_far}, {duration(seconds_each * left)} left")


class Watching:
    """Parts of a measurement, one after the other; without a terminal, each is named as it begins."""

    def __init__(self, noun: str = "rows") -> None:
        self._noun = noun
        # The name of a model is text, whatever brackets it has.
        name = TextColumn("{task.description}", style="progress.description", markup=False)
        columns = (name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._lines = _Lines()
        self._what = ""
        self._begun, self._there = 0.0, 0  # when this part began, and what an earlier call had done of it

    def __enter__(self) -> Watching:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, rows: int) -> None:
        if what != self._what:
            self._what, self._begun, self._there = what, time.monotonic(), done
            self._lines = _Lines()
            if not err.is_terminal:
                err.print(f"{what} ({rows} {self._noun})")
        elif self._there < done < rows:
            each = (time.monotonic() - self._begun) / (done - self._there)
            self._lines.tell(f"{what}: {done} of {rows}", each, rows - done)
        self._bar.update(self._task, description=what, completed=done, total=rows)


@contextmanager
def answering(total: int) -> Iterator[Callable[[Summary], None]]:
    """The same for one file of answers, with its speed."""
    bar = Progress(
        TextColumn("answers"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=total, speed="")
    lines = _Lines()

    def watch(summary: Summary) -> None:
        done = summary.resumed + summary.answered
        speed = f"{summary.tokens_per_second:,.0f} tokens/s"
        bar.update(task, completed=done, speed=speed)
        lines.tell(f"{done} of {total} answers, {speed}", summary.seconds / summary.answered, total - done)

    with bar:
        yield watch
