"""What `tunesmith train` says at its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tunesmith
from tests.evaluate.made_run import made_run
from tunesmith.cli.main import main


def test_commands_to_copy_are_quoted_for_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "my run")
    (tmp_path / "job.yaml").write_text("data: {train: rows.jsonl}\n")
    monkeypatch.setattr(tunesmith, "train", lambda *_, **__: run)
    monkeypatch.setattr(sys, "argv", ["tunesmith", "train", str(tmp_path / "job.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (0, f"{run.path}\n")
    assert f"tunesmith chat '{run.path}'" in told.err
    assert f"tunesmith compare '{run.path}' --data FILE" in told.err
