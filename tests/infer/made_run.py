"""Run folders with tiny models, tuned by chance: adapters and models that answer unlike their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from tests.families import save_tiny
from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.disk import new_folder
from tunesmith.model import adapters
from tunesmith.model.config import AdapterSettings
from tunesmith.model.load import end_ids, fingerprint, load_model, load_tokenizer
from tunesmith.model.source import resolve
from tunesmith.rundir import RunDir

CPU = Device(torch.device("cpu"), torch.float32, "CPU")


def made_run(
    folder: Path,
    base: Path | None = None,
    *,
    adapter: dict[str, Any] | None = None,
    template: str | None = None,
) -> RunDir:
    """A finished run in `folder` on a tiny model in `base` (made where it's missing)."""
    base = base or save_tiny("llama", folder.parent / "base")
    size = {} if (adapter or {}).get("type") == "full" else {"rank": 4, "alpha": 16}
    settings = AdapterSettings.model_validate({**size, **(adapter or {})})
    source = resolve(str(base))
    model = load_model(source, CPU)
    renderer = Renderer(load_tokenizer(source), template, end_ids=end_ids(model))
    print_of_base = fingerprint(source)
    model = adapters.prepare(model, settings, seed=0, base_fingerprint=print_of_base)
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=chance)
    meta = {
        "model": str(base),
        "revision": None,
        "kind": source.kind,
        "base_path": str(source.path),
        "base_fingerprint": print_of_base,
        "adapter": settings.model_dump(mode="json"),
        "template": {"name": renderer.name, "sha256": renderer.sha256},
        "version": "0",
    }
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.job_file.write_text(yaml.safe_dump({"job": {"model": str(base)}}), encoding="utf-8")
    with new_folder(run.adapter if settings.uses_peft else run.model) as new:
        adapters.save(model, renderer.save, new, meta=meta)
    return run
