"""Ours, as a user gets it: `tunesmith.train` on a job file's content, with a listener that waits."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tunesmith
from bench.pace import Pace, read_spec
from tunesmith.train.listener import Silent


class Turns(Silent):
    """Blocks before the first step and after every step."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def note(self, text: str) -> None:
        print(f"tunesmith: {text}", file=sys.stderr)

    def started(self, *_: Any, **__: Any) -> None:
        self._pace.wait()

    def step(self, line: Mapping[str, Any]) -> None:
        self._pace.loss = line["loss"]
        self._pace.wait()


def main() -> None:
    pace, spec = Pace(), read_spec()
    with tempfile.TemporaryDirectory() as folder:
        job = {**spec["job"], "output": str(Path(folder) / "run")}
        tunesmith.train(job, *spec["options"].get("settings", ()), listener=Turns(pace))


if __name__ == "__main__":
    main()
