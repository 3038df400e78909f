"""Whoever reads what a training says may go away or fall asleep: the training goes on."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console

from tunesmith.cli.console import _Console
from tunesmith.cli.progress import TrainingProgress
from tunesmith.train.listener import Lines, Listener, Silent, Undisturbed, has_room

LINE = {
    "step": 3,
    "loss": 1.0,
    "learning_rate": 1e-3,
    "tokens": 10,
    "tokens_per_second": 100.0,
    "skipped": True,
}
SAMPLE = {"step": 3, "prompt": "問", "answer": "答" * 100}


@pytest.fixture
def pipe() -> Iterator[tuple[int, Any]]:
    """A pipe's end to read from, and a stream that writes into it."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="utf-8", buffering=1)
    yield reading, stream
    for close in (lambda: os.close(reading), stream.close):
        with suppress(OSError):
            close()


def listeners(stream: Any) -> list[Listener]:
    return [Lines(), TrainingProgress(_Console(file=stream, markup=False, highlight=False))]


def say_everything(listener: Listener) -> None:
    listener.note("Reading …")
    listener.step(LINE)
    listener.evaluated({"step": 3, "valid_loss": 1.0, "valid_perplexity": 2.7})
    listener.examined({"step": 3, "f1_char": 0.4, "metrics": ["f1_char"], "n": 5, "answer_seconds": 1.0})
    listener.sampled(SAMPLE)
    listener.finished({"seconds": 1.0, "step": 3, "best_value": None, "best_step": None})


@pytest.mark.parametrize("which", [0, 1])
def test_a_reader_that_sleeps_is_not_waited_for(
    pipe: tuple[int, Any], which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, stream = pipe
    monkeypatch.setattr(sys, "stderr", stream)
    listener = Undisturbed(listeners(stream)[which])
    for _ in range(2000):  # far more than a pipe holds; a write that waits would hang here
        say_everything(listener)
    assert not has_room(stream)
    told = os.read(reading, 1 << 20).decode(errors="replace")
    assert "validation loss 1.000" in told
    assert has_room(stream)


@pytest.mark.parametrize("which", [0, 1])
def test_a_reader_that_is_gone_is_forgotten(
    pipe: tuple[int, Any], which: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, stream = pipe
    monkeypatch.setattr(sys, "stderr", stream)
    listener = Undisturbed(listeners(stream)[which])
    os.close(reading)
    with caplog.at_level(logging.WARNING, "tunesmith"):
        say_everything(listener)
        say_everything(listener)
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "nobody reads what this training says"
    ]


def test_other_mistakes_of_a_listener_are_told() -> None:
    class Wrong(Silent):
        def step(self, line: Any) -> None:
            raise KeyError(line["step"])

    with pytest.raises(KeyError):
        Undisturbed(Wrong()).step(LINE)


def test_what_is_no_file_of_the_system_has_room() -> None:
    assert has_room(io.StringIO())
    assert has_room(Console(file=io.StringIO()).file)
