"""Every form of export: what config.TARGETS names, with the functions that make it."""

from __future__ import annotations

from tunesmith.export import adapter, gguf, merged, ollama
from tunesmith.export.gate import BUDGET_16_BIT
from tunesmith.export.work import Target, Work


def _sixteen_bit(_: Work) -> float:
    return BUDGET_16_BIT


TARGETS: dict[str, Target] = {
    "merged": Target(merged.write, merged.open_merged, merged.needs, _sixteen_bit),
    "adapter": Target(adapter.write, adapter.open_adapter, adapter.needs, _sixteen_bit, needs_adapter=True),
    "gguf": Target(gguf.write, gguf.open_gguf, gguf.needs, gguf.budget, dtype=gguf.merge_dtype),
    "ollama": Target(ollama.write, gguf.open_gguf, gguf.needs, gguf.budget, dtype=gguf.merge_dtype),
}
