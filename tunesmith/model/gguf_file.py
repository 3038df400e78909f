"""A careful look at a GGUF file before any parser gets it.

Every count, length and offset is compared with the file's length first: a damaged or hostile file ends in one
message, not in a crash or in gigabytes of memory. Nothing is copied; the file is mapped.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian:
    "GGUF", version u32, tensors u64, keys u64
    keys:    name (u64 length + bytes), type u32, value
    tensors: name, dimensions u32, sizes u64 each, type u32, offset u64 (from the aligned start of the data)
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tunesmith.errors import ModelError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
_LONGEST_NAME = 65535
# The smallest a key or a tensor can be, so that their counts are bounded by the file's length.
_KEY_BYTES, _TENSOR_BYTES = 13, 24


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says: values by key (None for lists), tensors by name with type and sizes."""

    values: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def architecture(self) -> str:
        """The model family, for example llama."""
        return str(self.values.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def check(path: Path) -> Header:
    """Read a GGUF header, all of it checked against the file. Raises ModelError for a damaged file."""
    try:
        with path.open("rb") as handle:
            if path.stat().st_size < 24:
                raise _Damaged("it is shorter than a GGUF header")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(data)
    except _Damaged as damage:
        raise ModelError(
            f"{path} can't be used: {damage}.", fix="Download it again, or give another file."
        ) from None
    except OSError as error:
        raise ModelError(
            f"{path} can't be read: {error.strerror}.", fix="Check the path and its permissions."
        ) from None


class _Damaged(Exception):
    """Why a file isn't a sound GGUF file."""


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 4

    def need(self, count: int) -> int:
        """Step over `count` bytes and return where they start."""
        start = self.at
        if count > self.size - start:
            raise _Damaged("it is cut off, or a length in its header is wrong")
        self.at = start + count
        return start

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.need(struct.calcsize(form)))[0]

    def string(self) -> str:
        length = self.number("<Q")
        start = self.need(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def skip_strings(self, count: int) -> None:
        data, at, size, unpack = self.data, self.at, self.size, _U64.unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _Damaged("it is cut off inside a list of words")
            at += 8 + unpack(data, at)[0]
        if at > size:
            raise _Damaged("a word in its header is longer than the file")
        self.at = at

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 2:
            raise _Damaged(f"its header has a value of unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            self.need(count * struct.calcsize(_SCALARS[inner]))
        elif count > (self.size - self.at) // 8:
            raise _Damaged("a list in its header is longer than the file")
        elif inner == _STRING:
            self.skip_strings(count)
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def _header(data: mmap.mmap) -> Header:
    if data[:4] != b"GGUF":
        raise _Damaged("it doesn't start with GGUF")
    cursor = _Cursor(data)
    version = cursor.number("<I")
    if version not in (2, 3):
        big_endian = version in (2 << 24, 3 << 24)
        raise _Damaged(
            "it is big-endian" if big_endian else f"GGUF version {version} is not supported (2 and 3 are)"
        )
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    if tensor_count * _TENSOR_BYTES + key_count * _KEY_BYTES > len(data):
        raise _Damaged(f"it promises {tensor_count:,} tensors and {key_count:,} keys, more than fit in it")
    values = {}
    for _ in range(key_count):
        key = cursor.string()
        if len(key) > _LONGEST_NAME:
            raise _Damaged("a key in its header is too long")
        values[key] = cursor.value(cursor.number("<I"))
    if values.get("split.count", 0) > 1:
        raise _Damaged("it is one part of several; join them with `llama-gguf-split --merge` first")
    if "general.architecture" not in values or tensor_count == 0:
        raise _Damaged("it holds no language model (no architecture, or no tensors)")
    return Header(values, _tensors(cursor, tensor_count, values))


def _tensors(cursor: _Cursor, count: int, values: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    extents = []
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.number("<I")
        if not 1 <= dimensions <= 4 or name in found:
            raise _Damaged(f"the entry of tensor {name[:80]!r} is wrong")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))
        kind, offset = cursor.number("<I"), cursor.number("<Q")
        try:
            quantization = GGMLQuantizationType(kind)
            block, width = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise _Damaged(f"tensor {name[:80]!r} has the unknown number format {kind}") from None
        if min(shape) < 1 or shape[0] % block:
            raise _Damaged(f"the sizes of tensor {name[:80]!r} are wrong: {shape}")
        found[name] = (quantization.name, shape)
        extents.append((offset, offset + math.prod(shape) // block * width, name))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"its alignment {alignment} isn't a power of two")
    start = -(-cursor.at // alignment) * alignment
    last = 0
    for begin, end, name in sorted(extents):
        if begin % alignment or begin < last:
            raise _Damaged(f"tensor {name[:80]!r} lies at a wrong place")
        if start + end > cursor.size:
            raise _Damaged(
                f"it is cut off: {cursor.size:,} bytes, but tensor {name[:80]!r} ends at {start + end:,}"
            )
        last = end
    return found
