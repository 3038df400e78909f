"""How a training ends: refused, interrupted, or worse than it began."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.test_run import make_job
from tunesmith.cli.main import main
from tunesmith.cli.progress import TrainingProgress
from tunesmith.data.check import load
from tunesmith.data.pack import plan_epoch
from tunesmith.data.trained_rows import row_key, trained_rows
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
from tunesmith.train import epochs, watch
from tunesmith.train.config import load_job
from tunesmith.train.listener import Silent
from tunesmith.train.run import train


def test_a_failure_before_training_leaves_no_folder(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(RunError):
        train(job, tmp_path / "taken" / "run")
    assert not (tmp_path / "taken" / "run").exists()


def test_an_interrupted_run_keeps_its_records_and_says_why(tmp_path: Path) -> None:
    class Impatient(Silent):
        def step(self, line: Any) -> None:
            if line["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train(make_job(tmp_path, train={"max_steps": 4}), tmp_path / "run", listener=Impatient())
    run = RunDir(tmp_path / "run")
    assert run.state() == "unfinished"
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2, 3]
    assert "stopped: interrupted at step 3 of 4" in run.log_file.read_text(encoding="utf-8")
    told = str(caught.value)
    assert told.startswith(f"Interrupted at step 3 of 4. {run.path} keeps its records")
    assert "step-000002" in told  # validated there, and the best so far
    # What is said to be possible is.
    assert load_job(run.job_file).output is None


def test_only_rows_that_a_step_held_are_kept_as_learnt(tmp_path: Path) -> None:
    class Impatient(Silent):
        def step(self, line: Any) -> None:
            if line["step"] == 3:
                raise KeyboardInterrupt

    job = make_job(tmp_path, train={"max_steps": 4, "batch_size": 1})
    with pytest.raises(KeyboardInterrupt):
        train(job, tmp_path / "run", listener=Impatient())
    learnt = trained_rows(tmp_path / "run")
    rows = [row_key(record) for record in load([*job.data.train]).records]
    assert len(learnt) == 3
    assert learnt < set(rows)


def test_a_long_training_is_not_planned_to_its_end_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def counted(*args: Any, **given: Any) -> Any:
        planned.append(given["epoch"])
        return plan_epoch(*args, **given)

    class Impatient(Silent):
        def step(self, _: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "plan_epoch", counted)
    job = make_job(tmp_path, train={"max_steps": 500})
    with pytest.raises(KeyboardInterrupt):
        train(job, tmp_path / "run", listener=Impatient())
    assert max(planned) < 2


def test_ctrl_c_before_the_records_are_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    words = ["tunesmith", "train", str(tmp_path / "job.yaml"), f"output={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", words)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.disk.write_json", interrupted)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 130
    told = capsys.readouterr().err
    assert "Interrupted before the first step" in told
    assert "job.yaml can't be read" not in told
    # nothing was left, so the same command can be given again
    assert not (tmp_path / "run").exists()


def test_the_command_says_where_ctrl_c_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")

    def impatient(_: Any, line: Any) -> None:
        if line["step"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "step", impatient)
    words = ["tunesmith", "train", str(tmp_path / "job.yaml"), f"output={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "Interrupted at step 1 of 3" in capsys.readouterr().err


def test_a_training_that_made_things_worse_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    for losses, worse in (((2.0, 3.0, 2.5), True), ((2.0, 3.0, 1.9), False)):
        # A tiny random model can hardly be made worse: what was measured is given.
        measured = iter(losses)
        monkeypatch.setattr(watch, "valid_loss", lambda _, measured=measured: (next(measured), 1))
        run = tmp_path / f"run-{worse}"
        monkeypatch.setattr(sys, "argv", ["tunesmith", "train", str(tmp_path / "job.yaml"), f"output={run}"])
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr().err
        assert "(before this training)" in told
        assert ("worse than before this training" in told) is worse
        page = (run / "report.html").read_text(encoding="utf-8")
        assert ("worse than before this training" in page) is worse
