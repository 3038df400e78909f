"""For a process of its own: answers that take their time."""

from __future__ import annotations

import time
from typing import Any

from tunesmith.infer.decoding import Decoder
from tunesmith.serve import run


def slow_steps(seconds: float, grace: float) -> None:
    """Each step takes so long; a server that is told to end lets answers go on for `grace` seconds."""
    real = Decoder.step

    def step(self: Decoder, *given: Any) -> Any:
        time.sleep(seconds)
        return real(self, *given)

    Decoder.step = step  # type: ignore[method-assign]
    run.GRACE = grace
