"""What is on the disk when its power fails: content before names, names before what counts on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith import rundir
from tunesmith.disk import disk_errors, new_folder, write_atomic
from tunesmith.errors import RunError
from tunesmith.journal import Journal
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import LOOP, MANIFEST, OPTIMIZER, STATE, WEIGHTS, Contents

Call = tuple[str, Path]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What is synced, made and renamed (to what) from now on, in order; the real calls are made too."""
    told: list[Call] = []
    real = {name: getattr(os, name) for name in ("fsync", "mkdir", "rename", "replace")}

    def fsync(number: int) -> None:
        real["fsync"](number)
        told.append(("fsync", Path(f"/proc/self/fd/{number}").readlink()))

    def watched(name: str, place: int) -> Any:
        def call(*paths: Any, **more: Any) -> None:
            real[name](*paths, **more)
            told.append(("mkdir" if name == "mkdir" else "rename", Path(paths[place]).absolute()))

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name, place in (("mkdir", 0), ("rename", 1), ("replace", 1)):
        monkeypatch.setattr(os, name, watched(name, place))
    return told


def outlive(calls: list[Call]) -> None:
    """Raise AssertionError for a name that was made or taken, but not forced onto the disk afterwards."""
    for at, (kind, path) in enumerate(calls):
        lasting = ("fsync", path.parent) in calls[at:] or path.name.startswith(".")
        assert kind == "fsync" or lasting, f"{kind} {path}, and its folder isn't synced"


def save(run: RunDir) -> Path:
    tensors = {WEIGHTS: {"w": torch.ones(3)}, OPTIMIZER: {}, LOOP: {}}
    return checkpoint.write(run, Contents({"step": 1}, tensors), {})


def test_a_checkpoint_takes_its_name_when_all_of_it_is_on_the_disk(tmp_path: Path, calls: list[Call]) -> None:
    with rundir.claimed("new", tmp_path / "runs") as path:
        run = rundir.create(path)
        folder = save(run)
    outlive(calls)
    named = calls.index(("rename", folder))
    synced = [
        path for kind, path in calls[:named] if kind == "fsync" and path.parent.parent == run.checkpoints
    ]
    assert {path.name for path in synced} == {WEIGHTS, OPTIMIZER, LOOP, STATE, MANIFEST}
    assert [path.name for path in synced].index(MANIFEST) >= 4, "the manifest speaks of files that are there"
    assert calls[named - 1] == ("fsync", synced[0].parent)
    assert calls[named + 1] == ("fsync", run.checkpoints)


def test_records_and_their_names_are_on_the_disk(tmp_path: Path, calls: list[Call]) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1})
    journal.sync()
    assert calls == [("fsync", journal.file), ("fsync", tmp_path)]
    write_atomic(tmp_path / "a" / "b" / "job.yaml", "job: {}\n")
    with new_folder(tmp_path / "c" / "adapter"):
        pass
    outlive(calls)


def test_an_error_without_a_number_says_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"can't be written: no such format\.") as told, disk_errors(tmp_path):
        raise OSError("no such format")
    assert told.value.fix
