"""Sharing common beginnings in a whole training: the same losses, fewer tokens, said aloud when off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.test_run import make_job
from tunesmith.train.listener import Silent
from tunesmith.train.run import train


class Notes(Silent):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def losses(folder: Path, name: str, **changes: Any) -> tuple[list[dict[str, Any]], str]:
    notes = Notes()
    run = train(make_job(folder, **changes), folder / name, listener=notes)
    return run.metrics(), "\n".join(notes.notes)


def test_losses_are_those_without_sharing_and_of_padded_rows(tmp_path: Path) -> None:
    shared, notes = losses(tmp_path, "shared")
    apart, silent = losses(tmp_path, "apart", data={"share_prefixes": False})
    padded, _ = losses(tmp_path, "padded", data={"packing": False})
    for one, two, three in zip(shared, apart, padded, strict=True):
        for key in ("loss", "valid_loss", "grad_norm"):
            if key in one:
                assert one[key] == pytest.approx(two[key], rel=1e-5)
                assert one[key] == pytest.approx(three[key], rel=1e-5)
        assert one.get("tokens") == two.get("tokens") == three.get("tokens")
    steps = [line for line in shared if "loss" in line]
    # The system prompt of each row.
    assert all(line["unique_tokens"] < line["tokens"] for line in steps)
    assert all(line["unique_tokens"] == line["tokens"] for line in apart if "loss" in line)
    assert "Common beginnings are computed once" in notes
    assert "Common beginnings" not in silent


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"adapter": {"dropout": 0.1}}, "dropout"),
        ({"train": {"neftune": 5.0}}, "NEFTune"),
    ],
)
def test_noise_of_each_row_switches_sharing_off(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    lines, notes = losses(tmp_path, "run", **changes)
    assert word in notes
    assert all(line["unique_tokens"] == line["tokens"] for line in lines if "loss" in line)
