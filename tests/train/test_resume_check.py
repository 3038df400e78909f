"""`verify --resume`: three real processes, and a difference that it finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_run import make_job
from tunesmith.cli import verify as cli
from tunesmith.cli.main import main
from tunesmith.errors import TrainError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint, compiling, resume_check
from tunesmith.train.checkpoint import LOOP, OPTIMIZER, WEIGHTS, Contents

HOW: dict[str, dict[str, Any]] = {
    "plain": {"adapter": {"dropout": 0.1}},
    "compiled": {"train": {"compile": True, "dtype": "bf16"}},
    # Sums over tokens: norms are trained too. The second pass of a step has another length than the first.
    "compiled, all weights": {"train": {"compile": True}, "adapter": {"type": "full"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", list(HOW))
def test_a_killed_training_equals_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    if "compiled" in how and (lack := compiling.missing()):
        pytest.skip(f"there isn't {lack}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    passes = {"max_steps": 9, "eval_every": 2, "microbatch_tokens": 100}
    changes = {**HOW[how], "train": {**passes, **HOW[how].get("train", {})}}
    job = make_job(tmp_path, **changes)
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    words = ["tunesmith", "verify", str(tmp_path / "job.yaml"), "--resume", "--steps", "4", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    verdict = json.loads(told.out)
    assert verdict["equal"] is True
    assert (verdict["steps"], verdict["saved"], verdict["killed_after"]) == (4, 2, 3)
    assert len(verdict["lines"]) == 5
    assert all(line["equal"] for line in verdict["lines"])
    assert "killed after step 3" in told.err


def left(run: RunDir, **changes: Any) -> RunDir:
    run.checkpoints.mkdir(parents=True)
    tensors = {
        WEIGHTS: {"w": torch.ones(3)},
        OPTIMIZER: {"m": torch.ones(2)},
        LOOP: {"torch": torch.zeros(4)},
    }
    for file, tensor in changes.get("tensors", {}).items():
        tensors[file] = tensor
    state = {"step": 2, "seconds": 1.0, "metrics": None, "epoch": 1.0, **changes.get("state", {})}
    checkpoint.write(run, Contents(state, tensors), {})
    line = {"step": 1, "loss": 2.0, "seconds": changes.get("seconds", 1.0), **changes.get("line", {})}
    run.metrics_file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"seconds": 5.0, "state": {"seconds": 9.0}}, set()),
        ({"tensors": {WEIGHTS: {"w": torch.tensor([1.0, 1.0, 1.0000001])}}}, {"trained weights"}),
        ({"tensors": {OPTIMIZER: {"m": torch.ones(2, dtype=torch.float64)}}}, {"optimizer states"}),
        ({"tensors": {LOOP: {}}}, {"random generators"}),
        ({"state": {"epoch": 1.5}}, {"place in the data, schedule, best loss"}),
        ({"line": {"loss": 2.0000001}}, {"metrics, without times"}),
    ],
)
def test_a_difference_is_found_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any], differs: set[str],
) -> None:  # fmt: skip
    lines = resume_check._compare(left(RunDir(tmp_path / "a")), left(RunDir(tmp_path / "b"), **changes), 2)
    assert {line.name for line in lines if not line.equal} == differs
    verdict = resume_check.Verdict(2, 1, 2, lines)
    monkeypatch.setattr(cli.tunesmith, "verify_resume", lambda *_, **__: verdict, raising=False)
    make_job(tmp_path)
    (tmp_path / "job.yaml").write_text(
        json.dumps(make_job(tmp_path).model_dump(mode="json")), encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["tunesmith", "verify", str(tmp_path / "job.yaml"), "--resume"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == (1 if differs else 0)
    told = capsys.readouterr()
    assert ("DIFFERS" in told.out) is bool(differs)
    assert ("byte for byte" in told.err) is not bool(differs)


@pytest.mark.slow
def test_a_process_that_the_system_kills_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("TUNESMITH_FAIL_AT", "checkpoint.rename")  # as the kernel does where memory is short
    with pytest.raises(TrainError, match=r"killed \(SIGKILL\)"):
        resume_check.verify_resume(make_job(tmp_path, train={"max_steps": 9}), 4)
