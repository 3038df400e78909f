"""How a contender takes part in a race: it stops before each step until it is told to go.

All contenders are loaded and warm at the same time, and only one of them works. So they can take turns step
by step (A B A B …), on the same rows, in the same minute, without paying for set-up again.

    race        starts the process, reads {"ready": …}, writes "go" or "stop", reads {"seconds": …, "loss": …}
    contender   pace = Pace(); pace.wait() before each step; pace.loss = … after it

Standard library only: LLaMA-Factory's environment has nothing of ours.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


class Pace:
    """One step at a time. What libraries print goes to stderr; stdout belongs to the race."""

    def __init__(self) -> None:
        self.loss = float("nan")
        self._told = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._begun: float | None = None
        self._born = time.monotonic()

    def wait(self) -> None:
        """Report the step that has just ended, if any, and block until the next one may start.

        Ends the process when the race is over.
        """
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        now = time.monotonic()
        if self._begun is None:
            self._tell({"ready": now - self._born, "peak_bytes": peak})
        else:
            self._tell({"seconds": now - self._begun, "loss": self.loss, "peak_bytes": peak})
        if sys.stdin.readline().strip() != "go":
            self._told.flush()
            os._exit(0)  # no final checkpoint, no report: nothing after the measured steps matters here
        self._begun = time.monotonic()

    def _tell(self, line: dict[str, Any]) -> None:
        self._told.write(json.dumps(line) + "\n")
        self._told.flush()


def read_spec() -> dict[str, Any]:
    """What the race asks of this process: the JSON file named on the command line."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        spec: dict[str, Any] = json.load(file)
    return spec
