"""Checkpoints: whole or not there, damaged ones are found, the best is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from tunesmith.errors import RunError
from tunesmith.rundir import RunDir, create
from tunesmith.train import checkpoint


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    made[0].requires_grad_(False)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run")


def test_weights_come_back_equal_and_the_frozen_ones_stay(run: RunDir) -> None:
    first, second = model(0), model(1)
    frozen = second[0].weight.clone()
    folder = checkpoint.save(run, first, {"step": 12, "epoch": 0.5})
    assert folder.name == "step-000012"
    assert checkpoint.load(folder, second) == {"step": 12, "epoch": 0.5}
    assert torch.equal(first[1].weight, second[1].weight)
    assert torch.equal(second[0].weight, frozen)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_always_found(run: RunDir, name: str, damage: str) -> None:
    folder = checkpoint.save(run, model(0), {"step": 1})
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "truncate":
        file.write_bytes(bytes(content[:-1]))
    else:
        file.unlink()
    with pytest.raises(RunError, match=r"damaged|can.t be read"):
        checkpoint.load(folder, model(0))


def test_a_checkpoint_of_another_job_is_refused(run: RunDir) -> None:
    folder = checkpoint.save(run, model(0), {"step": 1})
    with pytest.raises(RunError, match="another job"):
        checkpoint.load(folder, nn.Linear(3, 3))


def test_pruning_keeps_the_newest_and_the_best(run: RunDir) -> None:
    folders = [checkpoint.save(run, model(0), {"step": step}) for step in (1, 2, 3, 4, 5)]
    checkpoint.prune(run, keep=2, best=folders[1])
    assert run.saved_steps() == [folders[1], folders[3], folders[4]]


def test_steps_of_seven_digits_come_after_those_of_six(run: RunDir) -> None:
    folders = [checkpoint.save(run, model(0), {"step": step}) for step in (999_999, 1_000_000, 1_000_001)]
    assert run.saved_steps() == folders
    assert str(folders[-1]) in run.stopped_at()[1]
    checkpoint.prune(run, keep=1, best=None)
    assert run.saved_steps() == folders[-1:]


def test_a_half_written_checkpoint_has_no_name(run: RunDir) -> None:
    class Broken(nn.Linear):
        def named_parameters(self, *_: Any, **__: Any) -> NoReturn:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        checkpoint.save(run, Broken(2, 2), {"step": 3})
    assert run.saved_steps() == []
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_as_many_as_asked_are_kept_besides_the_best(run: RunDir, best: int) -> None:
    folders = [checkpoint.save(run, model(0), {"step": step}) for step in (1, 2, 3, 4)]
    checkpoint.prune(run, keep=2, best=folders[best - 1])
    newest = [folder for folder in folders if folder != folders[best - 1]][-2:]
    assert run.saved_steps() == sorted([*newest, folders[best - 1]])
