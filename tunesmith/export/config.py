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
    "gguf": "one file for llama.cpp and what is built on it, in the number format of --type",
    "ollama": "the same file with a Modelfile, for `ollama create`",
}
"""What `--to` takes, and what each is."""

IN_LLAMACPP = ("gguf", "ollama")
TYPES = {
    "f16": 16.0,
    "bf16": 16.0,
    "f32": 32.0,
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
}
"""Number formats of a GGUF file, with the bits that a number takes."""

SHARD = "5GB"
BEST, LAST = "best", "last"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Request:
    """An export as it was asked for; `output` None is the run's export/<target>.

    `checkpoint` is best, last or a step (None: the run's final weights), `shard_bytes` the size of one file
    of weights at most; `type` is the number format of a GGUF file, as `dtype` is of merged weights.
    """

    model: str
    to: str
    output: Path | None = None
    checkpoint: str | None = None
    dtype: Dtype = "auto"
    shard_bytes: int = 5 * 10**9
    force: bool = False
    allow_drift: bool = False
    type: str = "f16"


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


def check_type(request: Request) -> None:
    """Raise SettingsError for a number format of GGUF that isn't known, or where another option names it."""
    in_llamacpp = request.to in IN_LLAMACPP
    if in_llamacpp and request.dtype != "auto":
        raise SettingsError(
            f"--dtype is for merged weights; --to {request.to} takes --type.",
            fix=f"Give --type {request.dtype} instead.",
        )
    if not in_llamacpp and request.type != Request.type:
        raise SettingsError(
            f"--type is for GGUF files; --to {request.to} has none.",
            fix=f"Leave --type away, or use --to {' or '.join(IN_LLAMACPP)}.",
        )
    if request.type in TYPES:
        return
    k_quant = re.match(r"(i?q)[1-8]_(k|x|s|m|nl)|tq", request.type.lower()) is not None
    raise SettingsError(
        f"There is no type {request.type!r}"
        + ("; K-quants aren't written here." if k_quant else nearest(request.type, list(TYPES)) + "."),
        fix="Write --type f16, then run llama.cpp's "
        f"`llama-quantize FILE.gguf NEW.gguf {request.type.upper()}`; or take q8_0, q5_1 or q4_1."
        if k_quant
        else f"Use {', '.join(TYPES)}: f16 is nearest, q8_0 has half its size, q4_0 about a quarter.",
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
