"""What can be asked of an export. No torch: the command line reads it before anything heavy is imported.

A further target is a line in TARGETS here, and an entry in targets.py that says how it is written and read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import SettingsError, UsageError
from tunesmith.settings import nearest

Dtype = Literal["auto", "bf16", "f16", "f32"]
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""Names of options, and torch's."""

TARGETS = {
    "merged": "a whole model in transformers' format, the adapter merged into its 16-bit base",
    "adapter": "the adapter alone, in PEFT's format, for people who have the base",
}
"""What `--to` takes, and what each is."""

SHARD = "5GB"
BEST, LAST = "best", "last"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Request:
    """An export as it was asked for; `output` None is the run's export/<target>.

    `checkpoint` is best, last or a step (None: the run's final weights), `shard_bytes` the size of one file
    of weights at most.
    """

    model: str
    to: str
    output: Path | None = None
    checkpoint: str | None = None
    dtype: Dtype = "auto"
    shard_bytes: int = 5 * 10**9
    force: bool = False
    allow_drift: bool = False


def check_target(name: str) -> str:
    """`name`, where it is a target. Raises UsageError with the targets there are."""
    if name in TARGETS:
        return name
    raise UsageError(
        f"There is no export to {name!r}{nearest(name, list(TARGETS))}.",
        details=[f"{target}: {what}" for target, what in TARGETS.items()],
        fix=f"Use --to {' or '.join(TARGETS)}.",
    )


def check_dtype(name: str) -> None:
    """Raise SettingsError for a number format that isn't known."""
    if name not in ("auto", *DTYPES):
        raise SettingsError(
            f"There is no export in {name!r}{nearest(name, list(DTYPES))}.",
            fix=f"Use auto, {', '.join(DTYPES)}.",
        )


def check_checkpoint(name: str | None) -> None:
    """Raise SettingsError for what can't name a checkpoint."""
    if name is not None and name not in (BEST, LAST) and not name.isdecimal():
        raise SettingsError(
            f"{name!r} isn't a checkpoint.", fix="Use best, last, or the number of a step that was saved."
        )


def parse_size(text: str) -> int:
    """`5GB`, `500 MB`, `2000000000` -> bytes, by powers of ten, as the hub counts. Raises SettingsError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not found or not (size := math.floor(float(found[1]) * _UNITS[found[2]])):
        raise SettingsError(f"{text!r} isn't a size of a file.", fix="Write it like 5GB or 500MB.")
    return size
