"""Figures as people read them, the same in every table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def interval(value: Mapping[str, float], *, sign: bool = False, between: str = " ") -> str:
    """0.267 [0.109, 0.520], with signs for a difference."""
    form = "+.3f" if sign else ".3f"
    return f"{value['value']:{form}}{between}[{value['low']:{form}}, {value['high']:{form}}]"


def ends(value: Mapping[str, float]) -> str:
    """[0.109, 0.520]."""
    return f"[{short(value['low'])}, {short(value['high'])}]"


def short(value: float) -> str:
    """Three figures after the point, none for large numbers."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def finite(value: Any) -> Any:
    """A copy with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
