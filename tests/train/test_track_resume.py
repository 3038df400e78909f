"""A run that goes on is the same run for its tracker, where the tracker's library can continue one."""

from __future__ import annotations

import json
import runpy
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.train.test_track import OFFLINE, _read_mlflow, _read_trackio, _run, needs

# What was told of step 3 comes again: the checkpoint is that of step 2.
TOLD = """
import json, sys
from pathlib import Path
from tunesmith.rundir import RunDir
from tunesmith.train.track import Again, tracking

name, ids, run = sys.argv[1], Path("ids.json"), RunDir(Path("run"))
run.path.mkdir(exist_ok=True)
again = Again(json.loads(ids.read_text()), 2) if ids.exists() else None
with tracking([name], run, {"model": "tiny"}, again) as told:
    for step, loss in ((3, 0.25), (4, 0.125)) if again else ((1, 4.0), (2, 2.0), (3, 1.0)):
        told.log({"step": step, "loss": loss})
    ids.write_text(json.dumps(told.ids))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "told.py").write_text(TOLD, encoding="utf-8")
    return tmp_path


def tell_twice(place: Path, name: str) -> list[str]:
    """Two processes, the second one going on; returns the ids by which the tracker knew the run."""
    ids = []
    for _ in range(2):
        done = _run([sys.executable, "told.py", name], place, OFFLINE.get(name, {}))
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        ids.append(json.loads((place / "ids.json").read_text(encoding="utf-8"))[name])
    return ids


def test_tensorboard_has_each_step_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["told.py", "tensorboard"])
    for _ in range(2):
        runpy.run_path("told.py")
    folders = {file.parent for file in (place / "run" / "tensorboard").glob("events.*")}
    (folder,) = folders
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert told == [(1, 4.0), (2, 2.0), (3, 0.25), (4, 0.125)]


@needs("mlflow")
def test_mlflow_has_one_run(place: Path) -> None:
    first, second = tell_twice(place, "mlflow")
    assert first == second
    with sqlite3.connect(place / "mlflow.db") as base:
        assert list(base.execute("select run_uuid from runs")) == [(first,)]
    told, _, state = _read_mlflow(place)
    assert sorted(told["train/loss"]) == [1, 2, 3, 4]
    assert state == "FINISHED"


@needs("trackio")
def test_trackio_has_one_run(place: Path) -> None:
    tell_twice(place, "trackio")
    told, _, _ = _read_trackio(place)
    assert sorted(told["train/loss"]) == [1, 2, 3, 4]
    with sqlite3.connect(place / "home" / ".cache" / "huggingface" / "trackio" / "tunesmith.db") as base:
        assert [name for (name,) in base.execute("select distinct run_name from metrics")] == ["run"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in ("wandb", "swanlab")])
def test_without_network_the_folders_have_one_id(place: Path, name: str) -> None:
    first, second = tell_twice(place, name)
    assert first == second
    folders = [path for path in (place / "run" / name).iterdir() if path.is_dir() and not path.is_symlink()]
    assert [path.name for path in folders if first not in path.name and path.name != "latest-run"] == []
