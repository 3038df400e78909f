"""Checkpoints: what is trained, at a step, written whole or not at all.

    checkpoints/step-000120/
      weights.safetensors    every trainable tensor, by its name in the model
      state.json             step, epoch, validation loss
      manifest.json          size and sha256 of the other files

A folder takes its name only after every file in it is on the disk (disk.new_folder).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.disk import new_folder
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.json", "manifest.json"


def save(run: RunDir, model: nn.Module, state: Mapping[str, Any]) -> Path:
    """Write the trainable weights and `state` (which has `step`); returns the folder. Raises RunError."""
    target = run.checkpoints / f"step-{int(state['step']):06d}"
    if target.is_dir():
        return target  # the same step has the same weights
    with new_folder(target) as folder:
        save_file(trained_weights(model), folder / WEIGHTS)
        (folder / STATE).write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        manifest = {name: _facts(folder / name) for name in (WEIGHTS, STATE)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def load(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights into the model, in place; returns its state. Raises RunError if damaged."""
    verify(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / WEIGHTS} can't be read: {error}.", fix="Use another checkpoint.") from None
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != own.keys():
        odd = sorted(weights.keys() ^ own.keys())
        raise RunError(
            f"{folder} belongs to another job.", details=odd, fix="Train again, or use its own job."
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def verify(folder: Path) -> None:
    """Check every file against the manifest. Raises RunError that lists each damaged or missing one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = [name for name, facts in manifest.items() if _facts(folder / name) != facts]
    except (OSError, ValueError) as error:
        raise RunError(
            f"The checkpoint {folder} can't be read: {error}.", fix="Use another checkpoint."
        ) from None
    if wrong:
        raise RunError(f"The checkpoint {folder} is damaged.", details=wrong, fix="Use another checkpoint.")


def prune(run: RunDir, *, keep: int, best: Path | None) -> None:
    """Remove all but the newest `keep` checkpoints besides the best one, which always stays."""
    for folder in [folder for folder in run.saved_steps() if folder != best][:-keep]:
        shutil.rmtree(folder)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable tensor by name, on the CPU, contiguous."""
    return {
        name: p.detach().to("cpu", copy=True).contiguous()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
