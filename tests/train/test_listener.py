"""What people without a terminal hear of a training, and what a log keeps of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tunesmith
from tests.train.test_run import make_job
from tunesmith.train import prepare


def test_python_says_what_the_command_line_says_unless_asked_to_be_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path)
    run = tunesmith.train(job, f"output={tmp_path / 'told'}")
    told = capsys.readouterr()
    assert told.out == ""
    for said in (
        "Model ",
        "trained on",
        "Training ",
        "step 3/3  loss ",
        " left",
        "validation loss",
        "Done in ",
    ):
        assert said in told.err, said
    assert f"Run: {run.path}" in told.err
    assert str(run.report_file) in told.err
    tunesmith.train(job, f"output={tmp_path / 'silent'}", listener=tunesmith.Silent())
    assert capsys.readouterr().err == ""


def test_the_log_holds_the_sentences_that_were_shown(tmp_path: Path) -> None:
    run = tunesmith.train(make_job(tmp_path), f"output={tmp_path / 'run'}", listener=tunesmith.Silent())
    log = run.log_file.read_text(encoding="utf-8")
    for said in ("trained on", "longest example", "Training ", " parameters (", "Done in "):
        assert said in log, said
    assert "PosixPath" not in log
    assert "Outcome(" not in log


def test_an_interrupted_run_has_its_curve_and_its_report(tmp_path: Path) -> None:
    class Impatient(tunesmith.Silent):
        def step(self, line: object) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="Interrupted at step"):
        tunesmith.train(make_job(tmp_path), f"output={tmp_path / 'run'}", listener=Impatient())
    run = tunesmith.open_run(tmp_path / "run")
    assert "not finished" in run.report_file.read_text(encoding="utf-8")
    assert (run.path / "loss.png").stat().st_size > 0


def test_the_space_of_a_large_run_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tunesmith.train(make_job(tmp_path), f"output={tmp_path / 'small'}")
    assert "The run's folder will take" not in capsys.readouterr().err
    monkeypatch.setattr(prepare, "LARGE_RUN", 1000)
    run = tunesmith.train(make_job(tmp_path), f"output={tmp_path / 'large'}")
    told = re.findall(r"folder will take about ([\d,]+) KiB", capsys.readouterr().err)
    # At its largest: while the last checkpoint is written, before an earlier one goes.
    one = sum(p.stat().st_size for p in run.saved_steps()[-1].iterdir())
    taken = (sum(p.stat().st_size for p in run.path.rglob("*.safetensors")) + one) / 1024
    assert abs(int(told[0].replace(",", "")) - taken) < 0.1 * taken
