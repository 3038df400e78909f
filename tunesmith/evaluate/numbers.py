"""Figures as people read them, the same in every table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def interval(value: Mapping[str, float], *, sign: bool = False, between: str = " ") -> str:
    """0.267 [0.109, 0.520], with signs for a difference."""
    form = "+.3f" if sign else ".3f"
    at, low, high = (readable(format(value[name], form)) for name in ("value", "low", "high"))
    return f"{at}{between}[{low}, {high}]"


def ends(value: Mapping[str, float]) -> str:
    """[0.109, 0.520]."""
    return f"[{number(value['low'])}, {number(value['high'])}]"


def number(value: float, *, sign: bool = False) -> str:
    """0.267, +0.267, −0.267, 1,234: three figures after the point, none for large numbers."""
    return readable(format(value, ("+" if sign else "") + (".3f" if abs(value) < 100 else ",.0f")))


def percent(share: float, *, sign: bool = False) -> str:
    """83 % of a share; with signs, of a difference of shares, −6.7 %."""
    return readable(f"{share:+.1%}" if sign else f"{share:.0%}").replace("%", " %")


def readable(text: str) -> str:
    """A number that is written already, with a minus that is one; what is shown as zero has no sign."""
    bare = text.lstrip("+-")
    return text.replace("-", "−") if bare.strip("0.,%") else bare


def finite(value: Any) -> Any:
    """A copy with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
