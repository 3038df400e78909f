"""Graphics cards by name: memory and bf16 product rate, for planning a training on a machine that isn't here.

Memory in GB as the maker writes it (10^9 bytes on some sheets, 2^30 on the chip: 2^30 is used, as drivers
show). Rate: dense bf16 tensor-core operations per second with fp32 sums, without sparsity; for the T4 and
V100, which have no bf16, fp16. Written down from memory of published data sheets and unchecked; no card was
measured.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from tunesmith.errors import SettingsError

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card: bytes of memory and peak operations per second (0: unknown)."""

    name: str
    memory: int
    flops: float


_TABLE = {
    "3060": (12, 25.5), "3070": (8, 40.6), "3080": (10, 59.5), "3090": (24, 71.0),
    "4060": (8, 30.0), "4060ti-16gb": (16, 44.1), "4070": (12, 58.3), "4080": (16, 97.5), "4090": (24, 165.2),
    "5070ti": (16, 87.9), "5080": (16, 112.6), "5090": (32, 209.5),
    "t4": (16, 65.0), "v100": (32, 125.0), "a10": (24, 125.0), "l4": (24, 121.0), "l40s": (48, 362.0),
    "a6000": (48, 154.8), "a100-40gb": (40, 312.0), "a100": (80, 312.0), "h100": (80, 989.0),
    "h200": (141, 989.0), "b200": (180, 2250.0),
}  # fmt: skip


def names() -> list[str]:
    """Every card of the table."""
    return list(_TABLE)


def find(name: str) -> Card:
    """A card by name; `RTX 4090`, `rtx4090` and `4090` are the same. Raises SettingsError."""
    key = re.sub(r"nvidia|geforce|rtx|tesla|[\s_]", "", name.lower()).strip("-")
    if key not in _TABLE:
        near = difflib.get_close_matches(key, _TABLE, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SettingsError(
            f"There is no card {name!r} in the table.{hint}",
            fix=f"Known: {', '.join(_TABLE)}. For any other give its memory: --memory 24GB.",
        )
    size, tera = _TABLE[key]
    return Card(key.upper() if key[0].isalpha() else f"RTX {key}", size * GIB, tera * 1e12)


def parse_memory(text: str) -> int:
    """`24GB`, `24 GiB`, `24` -> bytes; G is 2^30 either way. Raises SettingsError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(m|g|t)?i?b?\s*", text.lower())
    if not found or not float(found[1]):
        raise SettingsError(
            f"{text!r} isn't an amount of memory.",
            fix="Write it like 24GB or 800MB; a GB is 2^30 bytes here, as drivers show it.",
        )
    return int(float(found[1]) * {"m": 2**20, "g": GIB, "t": 2**40, None: GIB}[found[2]])
