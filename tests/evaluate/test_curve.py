"""The curve from a run's files: in the terminal without heavy imports, and as a PNG."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.evaluate.made_run import made_run
from tunesmith.errors import RunError
from tunesmith.evaluate import curve
from tunesmith.evaluate.history import Point, overview, read, smooth
from tunesmith.rundir import RunDir


def test_history_of_a_run(tmp_path: Path) -> None:
    history = read(made_run(tmp_path / "tang-1"))
    assert (history.first, history.steps, len(history.loss)) == (3.84, 40, 40)
    assert history.best == min(history.valid, key=lambda p: p.value)
    assert (history.seconds, history.peak_memory, history.tokens) == (180.0, 1_900_000_000, 40 * 4096)


def test_the_best_is_never_the_base(tmp_path: Path) -> None:
    run = made_run(tmp_path / "worse", steps=10)
    run.metrics_file.write_text('{"step": 0, "valid_loss": 1.0}\n{"step": 10, "valid_loss": 2.0}\n')
    assert read(run).best == Point(10, 2.0)
    assert overview(run)["valid_loss"] == {"before": 1.0, "best": 2.0}


def test_overview_reads_the_same_as_the_whole_history(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    with run.metrics_file.open("a") as file:
        file.write('{"step": 41, "loss": 2.')  # the process died here
    history, line = read(run), overview(run)
    assert line["steps"] == history.steps == 40
    assert line["valid_loss"] == {"before": history.first, "best": history.best.value}
    assert (line["name"], line["state"], line["model"], line["rows"]) == (
        "tang-1",
        "finished",
        "smollm2-135m",
        1197,
    )


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth([Point(i, 3.0) for i in range(100)])[-1].value == pytest.approx(3.0)
    assert smooth([Point(1, 5.0), *(Point(i, 1.0) for i in range(2, 60))])[0].value == pytest.approx(5.0)
    assert smooth([]) == []


def test_terminal_fits_its_width_and_shows_both_ends(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    for width in (30, 60, 100):
        lines = curve.terminal(run, width=width).plain.split("\n")
        assert max(map(cell_len, lines[:-1])) <= width
        assert lines[0].startswith("3.84 ┤●")  # the base's loss, at step 0
        assert "40 steps" in lines[-2]
        assert sum(line.count("●") for line in lines[:-1]) == 5


def test_one_flat_or_damaged_history_can_be_drawn(tmp_path: Path) -> None:
    run = made_run(tmp_path / "r")
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 2.0}]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(run).non_finite == 1
    assert "3 steps" in curve.terminal(run).plain
    assert curve.write_png(run).is_file()


def test_png_is_written_whole_and_replaced(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    for _ in range(2):
        file = curve.write_png(run)
    assert file == run.path / "loss.png"
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert not list(run.path.glob(".loss*"))


def test_before_the_first_step_there_is_no_curve(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert curve.terminal(run).plain == "(no steps yet)"
    with pytest.raises(RunError, match="no steps yet"):
        curve.write_png(run)
