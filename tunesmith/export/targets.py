"""Every form of export: what config.TARGETS names, with the functions that make it."""

from __future__ import annotations

from tunesmith.export import adapter, merged
from tunesmith.export.gate import BUDGET_16_BIT
from tunesmith.export.work import Target, Work


def _sixteen_bit(_: Work) -> float:
    return BUDGET_16_BIT


TARGETS: dict[str, Target] = {
    "merged": Target(merged.write, merged.open_merged, merged.needs, _sixteen_bit),
    "adapter": Target(adapter.write, adapter.open_adapter, adapter.needs, _sixteen_bit, needs_adapter=True),
}
