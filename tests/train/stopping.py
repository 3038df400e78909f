"""What tests of going on share: a loop that is stopped after a step, the same one that goes on, what it left.

A stop is what a signal asks for (`Stop.number`), without the signal: the loop can't tell the difference.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Contents
from tunesmith.train.listener import Silent
from tunesmith.train.loop import Outcome, run_loop
from tunesmith.train.signals import Stopped
from tunesmith.train.training import Training

Make = Callable[..., Training]  # of keywords that replace parts: run, listener
# What clocks and memory say; all else must be the same to the last byte.
MEASURED = ("seconds", "tokens_per_second", "peak_memory_bytes", "answer_seconds")


class StopAfter(Silent):
    """Asks for a stop after a step, as SIGTERM does while the step is taken."""

    def __init__(self, step: int) -> None:
        self.at = step
        self.training: Training | None = None

    def step(self, line: Any) -> None:
        if line["step"] == self.at and self.training is not None:
            self.training.stop.number = signal.SIGTERM


def stop_after(make: Make, step: int, run: RunDir | None = None) -> RunDir:
    """Train, from the newest checkpoint of a run if one is given, until the signal comes in this step."""
    listener = StopAfter(step)
    listener.training, start = _made(make, run, listener=listener)
    with pytest.raises(Stopped):
        run_loop(listener.training, start)
    return listener.training.run


def go_on(make: Make, run: RunDir, **parts: Any) -> Outcome:
    """Train to the end from the newest checkpoint, with everything else made anew."""
    training, start = _made(make, run, **parts)
    return run_loop(training, start)


def _made(make: Make, run: RunDir | None, **parts: Any) -> tuple[Training, Contents | None]:
    if run is None:
        return make(**parts), None
    start, damaged = checkpoint.newest(run)
    assert start is not None
    assert not damaged
    training = make(run=run, **parts)
    training.metrics.back_to(start.state["metrics"])
    training.samples.back_to(start.state["samples"])
    return training, start


def lines(run: RunDir) -> list[dict[str, Any]]:
    """metrics.jsonl, without what a clock says."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in run.metrics()]


def left(folder: Path) -> dict[str, Any]:
    """Everything that a checkpoint holds: the bytes of its tensors, and its state without times."""
    files: dict[str, Any] = {name: (folder / name).read_bytes() for name in checkpoint.TENSOR_FILES}
    state = json.loads((folder / checkpoint.STATE).read_text(encoding="utf-8"))
    # The hash of the metrics holds times, and how many digits they have.
    files["state"] = {k: v for k, v in state.items() if k not in ("seconds", "metrics")}
    return files


def assert_same_end(one: RunDir, other: RunDir) -> None:
    """Weights, optimizer, generators, state and metrics of two runs are equal, byte for byte."""
    assert lines(one) == lines(other)
    ends = [run.saved_steps()[-1] for run in (one, other)]
    assert ends[0].name == ends[1].name
    first, second = map(left, ends)
    assert [name for name in first if first[name] != second[name]] == []
