"""What answers cost: tokens, time, memory, and energy where the machine measures it.

seconds               wall-clock time of answering, with the time before an interruption
tokens_per_second     tokens written / seconds; reading the prompts is part of the seconds
peak_memory_bytes     the most that was held while a side was measured (losses and answers): by torch on an
                      NVIDIA GPU, by the whole process elsewhere, everything that is loaded included
peak_memory_of        "measuring", or "the process so far" where the system can't count from anew
energy_joules         of the machine's processors, whoever used them; only measured, never estimated
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.device import forget_peak_memory
from tunesmith.evaluate.answerers import Base, Watch, tell
from tunesmith.infer.local import LocalModel
from tunesmith.records import Completer, Completion

POWERCAP = Path("/sys/class/powercap")


def spent(answers: Sequence[Completion], seconds: float | None) -> dict[str, Any]:
    """Tokens, time and rate of answers; what isn't known is left out."""
    written = sum(answer.completion_tokens for answer in answers)
    asked = sum(answer.prompt_tokens for answer in answers)
    found: dict[str, Any] = {"completion_tokens": written} if written else {}
    found |= {"prompt_tokens": asked} if asked else {}
    if seconds is not None:
        found["seconds"] = round(seconds, 3)
        found |= {"tokens_per_second": written / seconds} if written and seconds else {}
    return found


class Meter:
    """A Watch that stands before another one and measures what a model's turn takes, from now on."""

    def __init__(self, model: Completer, watch: Watch | None) -> None:
        self._watch = watch
        local = model.tuned if isinstance(model, Base) else model
        self._local = isinstance(local, LocalModel)
        self._anew = isinstance(local, LocalModel) and forget_peak_memory(local.device.kind)
        self._energy = Energy()

    def __call__(self, what: str, done: int, rows: int) -> None:
        self._energy.tick(what, done)
        tell(self._watch, what, done, rows)

    def facts(self) -> dict[str, Any]:
        """What to add to an evaluation's facts; nothing of a model that isn't on this machine."""
        if not self._local:
            return {}
        facts: dict[str, Any] = {"peak_memory_of": "measuring" if self._anew else "the process so far"}
        if (joules := self._energy.joules()) is not None:
            facts["energy_joules"] = round(joules, 1)
        return facts


class Energy:
    """Energy of the processors since this was made, by the counters of RAPL where they can be read.

    They begin anew after some ten minutes under load, so they are looked at as rows get done (`tick`). Work
    that an earlier call had done wasn't measured: there is then no figure.
    Source: https://docs.kernel.org/power/powercap/powercap.html.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        # A package with all that is in it; intel-rapl:0:0 and so on are its parts.
        self._zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = [_microjoules(zone) for zone in self._zones]
        self._sum = 0.0
        self._seen: set[str] = set()
        self._whole = bool(self._zones) and None not in self._last

    def tick(self, what: str, done: int) -> None:
        """So many rows of this part are done: rows at the first word on it are an earlier call's."""
        if done and what not in self._seen:
            self._whole = False
        self._seen.add(what)
        self._count()

    def joules(self) -> float | None:
        """None where nothing could be measured, or not all."""
        self._count()
        return self._sum / 1e6 if self._whole and math.isfinite(self._sum) else None

    def _count(self) -> None:
        if not self._whole:
            return
        for at, zone in enumerate(self._zones):
            now, before = _microjoules(zone), self._last[at]
            if now is None or before is None:
                self._whole = False
                return
            self._sum += now - before
            if now < before:
                self._sum += _number(zone / "max_energy_range_uj") or math.nan
            self._last[at] = now


def _microjoules(zone: Path) -> int | None:
    return _number(zone / "energy_uj")


def _number(file: Path) -> int | None:
    """What stands in a file of the kernel; None where this user mustn't read it, or there is none."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
