"""Every form of export: what config.TARGETS names, with the functions that make it."""

from __future__ import annotations

import torch

from tunesmith.export import adapter, gguf, merged, ollama
from tunesmith.export.gate import BUDGET_16_BIT, BUDGET_BF16
from tunesmith.export.work import Target, Work


def _merged(work: Work) -> float:
    return BUDGET_BF16 if work.dtype is torch.bfloat16 else BUDGET_16_BIT


def _adapter(_: Work) -> float:
    return BUDGET_16_BIT  # nothing is rounded


TARGETS: dict[str, Target] = {
    "merged": Target(merged.write, merged.open_merged, merged.needs, _merged),
    "adapter": Target(adapter.write, adapter.open_adapter, adapter.needs, _adapter, needs_adapter=True),
    "gguf": Target(gguf.write, gguf.open_gguf, gguf.needs, gguf.budget, dtype=gguf.merge_dtype),
    "ollama": Target(ollama.write, gguf.open_gguf, gguf.needs, gguf.budget, dtype=gguf.merge_dtype),
}
