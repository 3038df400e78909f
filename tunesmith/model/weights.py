"""A model folder as it lies on the disk: its config, its safetensors files, and what may be wrong with them.

No torch: a truncated file or a git-lfs pointer is found in milliseconds, before anything is loaded.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_LFS = b"version https://git-lfs.github.com/spec"
_LARGEST_HEADER = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a safetensors file: `start` and `end` are byte offsets from the file's beginning."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError where it's missing or broken."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} is an adapter, not a whole model.",
                fix="Use it in chat, eval or adapter.continue_from; as model give its base.",
            )
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        raise ModelError(
            f"{name} has no config.json, so it isn't a model folder.",
            fix=f"Give the GGUF file itself: {folder / ggufs[0]}."
            if ggufs
            else "Give a folder with config.json, *.safetensors and the tokenizer's files.",
        )
    _refuse_pointers([file], name)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file} can't be read: {error}.", fix="Download or copy it again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} doesn't hold an object.", fix="Download or copy it again.")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise ModelError(
            f"{name} holds quantised weights ({method}), which can't be tuned as they are.",
            fix="Use the unquantised model that it was made from.",
        )
    return config


def check(folder: Path, name: str) -> None:
    """Check that the weights are complete safetensors. Raises one ModelError listing every bad file."""
    files = weight_files(folder, name)
    _refuse_pointers([*files, *(folder / f for f in ("tokenizer.json", "tokenizer.model"))], name)
    problems = []
    for file in files:
        try:
            read_header(file)
        except ModelError as error:
            problems.append(error.what)
    if problems:
        raise ModelError(
            f"{name}: weights are damaged.", details=problems, fix="Download or copy these files again."
        )


def weight_files(folder: Path, name: str = "") -> list[Path]:
    """The safetensors files of a model folder, in the order of their names.

    Raises ModelError where there are none (only pickles, or nothing) or where the index names missing ones.
    """
    name = name or str(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _refuse_pointers([index], name)
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / str(file) for file in named]
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            raise ModelError(f"{index} is damaged.", fix="Download or copy it again.") from None
        if outside := [f.name for f in files if f.parent != folder]:
            raise ModelError(
                f"{index} names files outside of its folder: {outside}.", fix="Don't use this model."
            )
        if missing := [f.name for f in files if not f.is_file()]:
            raise ModelError(
                f"{name} is incomplete: {len(missing)} of {len(files)} weight files are missing.",
                details=missing,
                fix="Download or copy them into the folder.",
            )
        return files
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES and p.is_file()):
        raise pickle_error(name, pickles)
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    raise ModelError(
        f"{name} has no model.safetensors" + (f" (only {', '.join(others[:5])})." if others else "."),
        fix="Give a folder of transformers with its weights, or a hub id.",
    )


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, by name."""
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        found |= read_header(file)
    return found


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each checked against the file's length.

    Raises ModelError. Source: https://huggingface.co/docs/safetensors (8 bytes little endian: header length;
    header: JSON; then the data).
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise _damaged(file, f"it isn't a safetensors file, or it is cut off ({size:,} bytes)")
            content = json.loads(handle.read(length))
    except OSError as error:
        raise _damaged(file, f"it can't be read ({error.strerror})") from None
    except (ValueError, UnicodeDecodeError, RecursionError):
        raise _damaged(file, "its header is broken") from None
    try:
        return {
            key: _tensor(file, entry, 8 + length, size)
            for key, entry in content.items()
            if key != "__metadata__"
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, str(error)) from None


def parameter_bytes(found: dict[str, Tensor], width: int) -> int:
    """Bytes that the weights take in memory when every float is held in `width` bytes."""
    return sum(
        math.prod(t.shape) * (width if t.dtype in _FLOATS else WIDTHS[t.dtype]) for t in found.values()
    )


def pickle_error(name: str, files: Sequence[str]) -> ModelError:
    """The refusal of pickle weights, which can run any code while they are read."""
    return ModelError(
        f"{name} has its weights only as pickle ({', '.join(files[:3])}); reading one can run any code.",
        fix="Take a version with safetensors (on the hub often in a pull request: revision=refs/pr/N), or "
        "convert it where you trust it, with transformers: AutoModelForCausalLM.from_pretrained(FOLDER)"
        ".save_pretrained(NEW_FOLDER), AutoTokenizer likewise.",
    )


def _damaged(file: Path, why: str) -> ModelError:
    return ModelError(f"{file}: {why}.", fix="Download or copy it again.")


def _tensor(file: Path, entry: Any, data: int, size: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not all(isinstance(number, int) for number in (begin, end, *shape)):
        raise ValueError("its header holds something else where numbers belong")
    if dtype not in WIDTHS:
        raise ValueError(f"the number format {dtype!r} is unknown")
    if not 0 <= begin <= end or min(shape, default=0) < 0 or end - begin != math.prod(shape) * WIDTHS[dtype]:
        raise ValueError("its header contradicts itself")
    if data + end > size:
        raise ValueError(f"it is cut off: {size:,} bytes, but the header promises {data + end:,} or more")
    return Tensor(file, dtype, shape, data + begin, data + end)


def _refuse_pointers(files: Sequence[Path], name: str) -> None:
    pointers = []
    for file in files:
        if file.is_file() and file.stat().st_size < 1024:
            with file.open("rb") as handle:
                if handle.read(len(_LFS)) == _LFS:
                    pointers.append(file.name)
    if pointers:
        raise ModelError(
            f"{name} holds git-lfs pointers instead of the files themselves.",
            details=pointers,
            fix=f"Run `git lfs pull` in {files[0].parent} (after `git lfs install`).",
        )
