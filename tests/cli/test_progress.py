"""The line of a training in terminals of any width."""

from __future__ import annotations

import re
from io import StringIO

import pytest

from tunesmith.cli.console import _Console
from tunesmith.cli.progress import TrainingProgress

LINE = {"step": 17, "loss": 1.732, "learning_rate": 6.9e-4, "tokens_per_second": 12_340.0, "tokens": 123_400}
FACTS = {"trainable": 1_000, "parameters": 10_000}


def drawn(width: int, *, stopped: bool = False) -> tuple[str, str]:
    """All that was written, and the last line that a person sees."""
    file = StringIO()
    console = _Console(file=file, width=width, markup=False, force_terminal=True, soft_wrap=True)
    progress = TrainingProgress(console)
    progress.started(12_000, FACTS)
    progress.step(LINE)
    progress.__exit__(KeyboardInterrupt if stopped else None, None, None)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if "17/" in line]
    return file.getvalue(), lines[-1]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_step_loss_and_time_left_are_told_in_a_terminal_of_any_width(width: int) -> None:
    line = drawn(width)[1]
    assert "…" not in line
    assert "17/12000" in line
    assert "loss 1.732" in line
    assert re.search(r"\d:\d\d:\d\d|-:--:--", line)
    assert ("lr 6.9e-04" in line) == (width >= 80)
    assert ("12,340 tok/s" in line) == (width >= 60)


def test_a_line_that_was_interrupted_is_wiped() -> None:
    assert drawn(80, stopped=True)[0].rstrip("\n").endswith("\x1b[2K")


def test_a_note_is_broken_between_words_in_a_terminal_and_nowhere_in_a_file() -> None:
    note = "Compiling the layers: steps are up to 1.4 times as fast, after about 20 s of warm-up."
    for terminal, lines in ((True, 3), (False, 1)):
        file = StringIO()
        console = _Console(file=file, width=40, force_terminal=terminal, color_system=None, soft_wrap=True)
        TrainingProgress(console).note(note)
        assert len(file.getvalue().splitlines()) == lines
        assert file.getvalue().split() == note.split()
