"""Checkpoints on the disk: whole or not there, damage is always found, the newest and the best are kept."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith import failpoints
from tunesmith.disk import remove_leftovers
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir, create
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import LOOP, OPTIMIZER, WEIGHTS, Contents

FILES = ("weights.safetensors", "optimizer.safetensors", "loop.safetensors", "state.json", "manifest.json")
MADE_FROM = {"job": "1", "base": "2"}


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    made[0].requires_grad_(False)
    return made


def contents(step: int, seed: int = 0, **state: Any) -> Contents:
    tensors = {
        WEIGHTS: checkpoint.on_cpu(checkpoint.trained_weights(model(seed)), copied=True),
        OPTIMIZER: {"0.exp_avg": torch.rand(3), "0.state1": torch.randint(0, 255, (7,), dtype=torch.uint8)},
        LOOP: {"torch": torch.get_rng_state()},
    }
    return Contents({"step": step, **state}, tensors)


def save(run: RunDir, step: int) -> Path:
    return checkpoint.write(run, contents(step), MADE_FROM)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run")


def test_what_is_written_is_read_and_the_frozen_weights_stay(run: RunDir) -> None:
    second = model(1)
    frozen = second[0].weight.clone()
    saved = contents(12, epoch=0.1 + 0.2)
    folder = checkpoint.write(run, saved, MADE_FROM)
    assert folder.name == "step-000012"
    assert {file.name for file in folder.iterdir()} == set(FILES)
    assert checkpoint.load(folder, second) == {"step": 12, "epoch": 0.1 + 0.2}
    assert torch.equal(second[1].weight, model(0)[1].weight)
    assert torch.equal(second[0].weight, frozen)
    back = checkpoint.read(folder)
    assert back.made_from == MADE_FROM
    for name, tensors in saved.tensors.items():
        assert tensors.keys() == back.tensors[name].keys()
        for key, tensor in tensors.items():
            assert back.tensors[name][key].dtype == tensor.dtype
            assert torch.equal(back.tensors[name][key], tensor)


def damaged(content: bytes, how: str) -> bytes | None:
    """A file's content with one bit turned at some place, without its end, or None for no file."""
    if how == "delete":
        return None
    if how == "truncate":
        return content[:-1]
    place = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[how]
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["first", "middle", "last", "truncate", "delete"])
def test_damage_is_always_found_and_the_one_before_is_taken(run: RunDir, name: str, how: str) -> None:
    whole, folder = save(run, 1), save(run, 2)
    broken = damaged((folder / name).read_bytes(), how)
    if broken is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(broken)
    with pytest.raises(RunError, match=r"damaged|can.t be read"):
        checkpoint.load(folder, model(0))
    found, errors = checkpoint.newest(run)
    assert found is not None
    assert found.step == 1
    assert [str(folder) in error.what for error in errors] == [True]
    checkpoint.set_aside(run, after=1)
    assert run.saved_steps() == [whole]
    assert save(run, 2).is_dir()


def test_a_manifest_that_was_made_to_fit_is_found(run: RunDir) -> None:
    # Sizes and hashes agree with the files, but nobody sealed it.
    folder = save(run, 1)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["step"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        checkpoint.verify(folder)


def test_one_of_another_version_is_told(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save(run, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(RunError, match="was written by another version of tunesmith"):
        checkpoint.verify(before)
    checkpoint.verify(save(run, 2))


def test_a_checkpoint_of_another_job_is_refused(run: RunDir) -> None:
    folder = save(run, 1)
    with pytest.raises(RunError, match="another job"):
        checkpoint.load(folder, nn.Linear(3, 3))
    wider = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    wider[0].requires_grad_(False)
    with pytest.raises(RunError, match="another job"):
        checkpoint.load(folder, wider)


def test_pruning_keeps_the_newest_and_the_best(run: RunDir) -> None:
    folders = [save(run, step) for step in (1, 2, 3, 4, 5)]
    checkpoint.prune(run, keep=2, best=folders[1])
    assert run.saved_steps() == [folders[1], folders[3], folders[4]]
    assert len(list(run.checkpoints.iterdir())) == 3


def test_steps_of_seven_digits_come_after_those_of_six(run: RunDir) -> None:
    folders = [save(run, step) for step in (999_999, 1_000_000, 1_000_001)]
    assert run.saved_steps() == folders
    assert str(folders[-1]) in run.stopped_at()[1]
    checkpoint.prune(run, keep=1, best=None)
    assert run.saved_steps() == folders[-1:]


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_as_many_as_asked_are_kept_besides_the_best(run: RunDir, best: int) -> None:
    folders = [save(run, step) for step in (1, 2, 3, 4)]
    checkpoint.prune(run, keep=2, best=folders[best - 1])
    newest = [folder for folder in folders if folder != folders[best - 1]][-2:]
    assert run.saved_steps() == sorted([*newest, folders[best - 1]])


POINTS = ("begin", "write", "write:3", "write:4", "manifest", "fsync", "fsync-folder", "rename")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_error_anywhere_leaves_nothing_half_and_harms_none_before(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, point: str, error: str
) -> None:
    before = save(run, 1)
    fail_at(monkeypatch, f"checkpoint.{point}={error}")
    with pytest.raises(RunError, match=r"step-000002 can't be written") as caught:
        save(run, 2)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == getattr(errno, error)
    assert list(run.checkpoints.iterdir()) == [before]
    checkpoint.verify(before)
    assert save(run, 2).is_dir()


def test_a_kill_while_older_ones_go_leaves_no_half_under_a_name(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [save(run, step) for step in (1, 2, 3)]
    fail_at(monkeypatch, "checkpoint.pruned=EIO")
    with pytest.raises(OSError, match=r"checkpoint\.pruned"):
        checkpoint.prune(run, keep=1, best=None)
    assert run.saved_steps() == folders[1:]
    for folder in run.saved_steps():
        checkpoint.verify(folder)
    remove_leftovers(run.checkpoints)
    assert sorted(run.checkpoints.iterdir()) == folders[1:]


def test_one_that_reads_back_otherwise_takes_no_name(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = failpoints.reach

    def turn_a_bit(name: str) -> None:
        reach(name)
        if name == "checkpoint.verify":
            file = run.checkpoints / "step-000001" / WEIGHTS
            file.write_bytes(damaged(file.read_bytes(), "middle") or b"")

    monkeypatch.setattr(checkpoint, "reach", turn_a_bit)
    with pytest.raises(RunError, match="damaged"):
        save(run, 1)
    assert run.saved_steps() == []


def fail_at(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let a fail point fail from now on, counted anew."""
    monkeypatch.setenv(failpoints.VARIABLE, where)
    monkeypatch.setattr(failpoints, "_matched", failpoints.Counter())
