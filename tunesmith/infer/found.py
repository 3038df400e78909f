"""What a model's name stands for: a base, a finished run, or an adapter, before any weights are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import device as machine
from tunesmith.device import Device
from tunesmith.errors import RunError, SettingsError
from tunesmith.model import saved, source
from tunesmith.model.config import QuantizationSettings
from tunesmith.model.load import end_ids, fingerprint, local_folder, stored_dtype
from tunesmith.model.source import Source
from tunesmith.rundir import RunDir, open_run


@dataclass(frozen=True)
class Found:
    """A model by name: `base` is what is loaded, on `device`, and `adapter` what is put on it, if anything.

    `folder` holds what was saved, with `meta`, its tunesmith.json (empty for models of other tools).
    """

    name: str
    base: Source
    device: Device
    folder: Path
    tokenizer: Source
    meta: Mapping[str, Any]
    run: RunDir | None = None
    adapter: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The base's."""
        return fingerprint(self.base)

    @property
    def quantization(self) -> QuantizationSettings | None:
        """How the base is held: as in training, which is what the adapter has learnt to correct."""
        held = self.meta.get("quantization")
        return QuantizationSettings.model_validate(held) if held else None

    @property
    def identity(self) -> str:
        """16 hex digits that differ where the weights do, or the quantisation that an adapter wants."""
        digest = hashlib.sha256(self.fingerprint.encode())
        if self.adapter is not None or self.quantization is not None:
            digest.update(repr(self.meta.get("quantization")).encode())
        if self.adapter is not None:
            with (self.adapter / saved.WEIGHTS).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def shares_base(self, other: Found) -> bool:
        """Whether both can be answered from one load: adapters that PEFT can switch between, or their base.

        Adapters were checked against their base's fingerprint, which is a sample of it. A base by itself was
        not: it must be the very files.
        """
        held = (self.device, repr(self.quantization)) == (other.device, repr(other.quantization))
        if not held:
            return False
        if self.adapter is None or other.adapter is None:
            return local_folder(self.base).resolve() == local_folder(other.base).resolve()
        return (
            self.fingerprint == other.fingerprint
            and end_ids(self.base) == end_ids(other.base)
            and saved.stands_beside_others(self.adapter)
            and saved.stands_beside_others(other.adapter)
        )


def find(name: str, dtype: str = "auto") -> Found:
    """What is loaded for an alias, hub id, folder or GGUF file, or for the folder of a run or an adapter.

    Raises SettingsError for an unknown dtype, RunError for a run without final weights, ModelError for a
    base that isn't the one trained on, and what `resolve` raises.
    """
    if dtype not in ("auto", *machine.DTYPES):
        raise SettingsError(f"There is no dtype {dtype!r}.", fix=f"Use auto, {', '.join(machine.DTYPES)}.")
    folder = Path(name).expanduser()
    run = open_run(folder) if (folder / "job.yaml").is_file() else None
    weights = _weights(run) if run is not None else folder
    meta = saved.read_meta(weights)
    device = machine.pick(dtype)
    if (weights / saved.CONFIG).is_file():
        adapter = saved.adapter_folder(weights)
        base = _base(adapter, meta)
        # An adapter of another tool may have come without a tokenizer.
        own = (adapter / "tokenizer_config.json").is_file()
        tokenizer = Source(name, "folder", adapter.resolve()) if own else base
        return Found(name, base, device, weights, tokenizer, meta, run, adapter)
    base = source.resolve(str(weights) if run is not None else name)
    if meta and dtype == "auto":
        # bf16 keeps 8 bits of a weight: most of what full tuning changed would be rounded away.
        device = replace(device, dtype=stored_dtype(base) or device.dtype)
    return Found(name, base, device, weights, base, meta, run)


def _weights(run: RunDir) -> Path:
    if run.weights is not None:
        return run.weights
    if run.state() == "running":
        raise RunError(
            f"{run.path} is still being trained.", fix="Wait until it's finished, or load its base model."
        )
    step, left = run.stopped_at()
    raise RunError(
        f"{run.path} has no final weights: its training was interrupted at {step}; {left}.",
        fix=f"`tunesmith train {run.path} --resume` goes on with it; `tunesmith runs list` shows others.",
    )


def _base(adapter: Path, meta: Mapping[str, Any]) -> Source:
    """The base model of an adapter, checked to be the one it was trained on, before its weights are read."""
    path = Path(str(meta.get("base_path") or ""))
    # A relative name may mean another folder here than where the run was trained; the path can't.
    if meta.get("kind") in ("folder", "gguf") and path.is_absolute() and path.exists():
        base = source.resolve(str(path))
    else:
        base = source.resolve(saved.base_of(adapter, saved.read_lora_config(adapter)), meta.get("revision"))
    saved.check_base(adapter, fingerprint(base))
    return base
