"""How fast this machine multiplies: python -m bench.machine prints it as JSON."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from tunesmith.device import pick
from tunesmith.model import native


def product_rate(size: int = 2048, seconds: float = 3.0) -> float:
    """Operations per second of square bf16 products, the best of many."""
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def facts() -> dict[str, Any]:
    """Name, threads, versions and product rate."""
    return {
        "name": pick().name,
        "products": native.products(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "product_rate": product_rate(),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
