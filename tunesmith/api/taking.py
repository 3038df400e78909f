"""What takes a result away: an export, checked against what it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from tunesmith.api.folders import name_of
from tunesmith.export.config import SHARD, Dtype, Request, parse_size
from tunesmith.export.gate import Verification
from tunesmith.export.run import Export, Watch
from tunesmith.export.run import export as export_request
from tunesmith.rundir import RunDir


def export(
    model: str | Path | RunDir,
    to: str = "merged",
    *,
    output: str | Path | None = None,
    checkpoint: str | int | None = None,
    dtype: str = "auto",
    type: str = "f16",
    shard_size: str = SHARD,
    force: bool = False,
    allow_drift: bool = False,
    note: Callable[[str], None] = lambda _: None,
    watch: Watch = lambda *_: None,
    found: Callable[[Verification], None] = lambda _: None,
) -> Export:
    """Write a run, or a PEFT adapter, as an adapter, a merged model or a GGUF file; `.path` is its folder.

    What was written is read back and compared with the tuned model: `.verification`. `checkpoint` is best,
    last or a step; `dtype` auto (the base's own 16 bits, else bf16), bf16, f16 or f32;
    `type` is the number format of a GGUF file (config.TYPES). `output` defaults to
    the run's export/<to>; an earlier export there is replaced with `force` only. `allow_drift` keeps what is
    over the budget. `watch(what, done, total)` is told how far it is, `found` what the comparison found,
    before it is judged. Raises UsageError, RunError, ModelError; ExportError where the export isn't the tuned
    model.
    """
    request = Request(
        name_of(model),
        to,
        Path(output) if output is not None else None,
        None if checkpoint is None else str(checkpoint),
        cast(Dtype, dtype),
        parse_size(shard_size),
        force,
        allow_drift,
        type,
    )
    return export_request(request, note=note, watch=watch, found=found)
