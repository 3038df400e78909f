"""Checkpoints on the disk: everything that a training needs to go on at the next step, whole or not there.

    checkpoints/step-000120/
      weights.safetensors      every trained tensor, by its name in the model; the base isn't in it
      optimizer.safetensors    its states, in their own number formats
      loop.safetensors         states of the random generators, which rows were learnt from: bytes
      state.json               step, place in the data, schedule, best loss, marks of the journals, …
      manifest.json            step, size and sha256 of each file, what the run is made from, its own hash, …

Each file is written and synced, the manifest last; the folder is synced and takes its name; its parent is
synced (disk.new_folder). What isn't exactly what the manifest says counts as damaged. No pickle: safetensors
and JSON.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.disk import name_beside, new_folder, sync_file, sync_folder
from tunesmith.errors import RunError
from tunesmith.failpoints import reach
from tunesmith.rundir import RunDir

WEIGHTS, OPTIMIZER, LOOP = "weights.safetensors", "optimizer.safetensors", "loop.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
TENSOR_FILES = (WEIGHTS, OPTIMIZER, LOOP)
FORMAT = 1  # of all files together: another one isn't read


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: `state` as JSON takes it, with `step`; tensors by file and name."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    made_from: Mapping[str, str] = field(default_factory=dict)  # of one that was read: as its manifest says

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def bytes(self) -> int:
        """What the tensors take; the rest is a few thousand bytes."""
        return sum(t.numel() * t.element_size() for part in self.tensors.values() for t in part.values())


def folder_of(run: RunDir, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run.checkpoints / f"step-{step:06d}"


def write(run: RunDir, contents: Contents, made_from: Mapping[str, str]) -> Path:
    """Write a checkpoint and read it back; returns its folder. Raises RunError, with nothing half-written.

    `made_from`: hashes of job, data, tokenizer, base and code, kept in the manifest.
    """
    target = folder_of(run, contents.step)
    if target.is_dir():
        return target  # the same step is the same state
    with new_folder(target, "checkpoint") as folder:
        for name in TENSOR_FILES:
            reach("checkpoint.write")
            save_file(contents.tensors.get(name, {}), folder / name)
            sync_file(folder / name)
        reach("checkpoint.write")
        (folder / STATE).write_text(json.dumps(contents.state, ensure_ascii=False), encoding="utf-8")
        sync_file(folder / STATE)
        files = {name: _facts(folder / name) for name in (*TENSOR_FILES, STATE)}
        reach("checkpoint.manifest")
        manifest = {"format": FORMAT, "step": contents.step, "files": files, "made_from": dict(made_from)}
        (folder / MANIFEST).write_bytes(_sealed(manifest))
    reach("checkpoint.verify")
    try:
        verify(target)
    except RunError:
        _set_aside(target)
        raise
    return target


def read(folder: Path) -> Contents:
    """A checkpoint, every file of it checked. Raises RunError if damaged."""
    manifest = verify(folder)
    try:
        tensors = {name: load_file(folder / name) for name in TENSOR_FILES}
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"The checkpoint {folder} can't be read: {error}.", fix="Use another checkpoint."
        ) from None
    return Contents(state, tensors, manifest["made_from"])


def load(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights into the model, in place; returns its state. Raises RunError if damaged."""
    contents = read(folder)
    put_weights(model, contents.tensors[WEIGHTS], str(folder))
    return contents.state


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into the trained ones of the same names. Raises RunError where they don't fit."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(weights.keys() ^ own.keys())
    odd += [name for name in sorted(weights.keys() & own.keys()) if weights[name].shape != own[name].shape]
    if odd:
        raise RunError(
            f"{source} belongs to another job.", details=odd, fix="Train again, or use its own job."
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest, and it against itself; returns it.

    Raises RunError that lists each damaged or missing file, and for one of another format.
    """
    try:
        sealed = (folder / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(sealed)
        del manifest["sha256"]
        wrong = [] if _sealed(manifest) == sealed else [MANIFEST]
        wrong += [name for name, facts in manifest["files"].items() if _facts(folder / name) != facts]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"The checkpoint {folder} can't be read: {error}.", fix="Use another checkpoint."
        ) from None
    if wrong:
        raise RunError(f"The checkpoint {folder} is damaged.", details=wrong, fix="Use another checkpoint.")
    if (found := manifest.get("format")) != FORMAT:
        raise RunError(
            f"The checkpoint {folder} was written by another version of tunesmith: its format is {found}, "
            f"this one's is {FORMAT}.",
            fix="Go on with that version (job.yaml names it), or train anew.",
        )
    return manifest


def newest(run: RunDir) -> tuple[Contents | None, list[RunError]]:
    """The newest whole checkpoint, and what is wrong with those after it."""
    damaged: list[RunError] = []
    for folder in reversed(run.saved_steps()):
        try:
            return read(folder), damaged
        except RunError as error:
            damaged.append(error)
    return None, damaged


def set_aside(run: RunDir, after: int) -> None:
    """Give the checkpoints after a step another name: they are damaged, and their steps come again."""
    for folder in run.saved_steps():
        if int(folder.name.removeprefix("step-")) > after:
            _set_aside(folder)
    if run.checkpoints.is_dir():
        sync_folder(run.checkpoints)


def prune(run: RunDir, *, keep: int, best: Path | None) -> None:
    """Remove all but the newest `keep` checkpoints besides the best one, which always stays."""
    for folder in [folder for folder in run.saved_steps() if folder != best][:-keep]:
        # Without its name first: a kill in the middle of removing must not leave a half of it.
        doomed = name_beside(folder)
        reach("checkpoint.prune")
        folder.rename(doomed)
        reach("checkpoint.pruned")
        _remove(doomed)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trained tensor by name, as it lies in the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def on_cpu(tensors: Mapping[str, Tensor], *, copied: bool) -> dict[str, Tensor]:
    """Tensors as a file takes them: on the CPU, contiguous, no memory shared; all of them copies if asked."""
    return dict(_apart(tensors, copied))


def _apart(tensors: Mapping[str, Tensor], copied: bool) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        made = tensor.detach().to("cpu", copy=copied or place in seen).contiguous()
        seen.add(place)
        yield name, made


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of them has, or that differ in format, shape or any bit."""
    return sorted(key for key in one.keys() | other.keys() if not _same(one.get(key), other.get(key)))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    # As bytes: a state may be NaN.
    return (
        one is not None
        and other is not None
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and torch.equal(*(t.cpu().reshape(-1).view(torch.uint8) for t in (one, other)))
    )


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f"damaged-{folder.name}")
    _remove(aside)
    folder.rename(aside)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's file: its last line is the hash of what it says without that."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1) + "\n").encode()


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
