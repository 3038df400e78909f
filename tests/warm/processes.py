"""Commands of tunesmith as processes of their own, started from a warm one (server.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0  # seconds until something that was waited for is given up


class Warm:
    """The process that forks the others. `preload` is a library that is loaded before all others."""

    def __init__(self, package: Path = ROOT, preload: Path | None = None) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",  # a process with threads can't be forked
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
            **({"LD_PRELOAD": str(preload)} if preload else {}),
        }
        command = [sys.executable, "-m", "tests.warm.server"]
        pipe = subprocess.PIPE
        self.running: set[int] = set()
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=package
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pid in self.running:  # whose test failed before it ended
            os.kill(pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def start(
        self,
        *words: object,
        folder: Path,
        printed: Path,
        errors: Path | None = None,
        given: str | Path = os.devnull,
        variables: Mapping[str, str] | None = None,
        before: Sequence[Any] = (),
    ) -> Child:
        """Start `tunesmith WORDS` in a folder, what it prints going to `printed`, or in part to `errors`.

        `given` is its stdin, `variables` are environment variables that no import has read. `before` names
        a function that the child calls first, with arguments.
        """
        request = {
            "words": list(map(str, words)),
            "folder": str(folder),
            "streams": [str(given), str(printed), str(errors or printed)],
            "variables": dict(variables or {}),
            "before": list(before),
        }
        child = Child(self, self.ask(request)["pid"], printed)
        self.running.add(child.pid)
        return child

    def run(self, *words: object, folder: Path, printed: Path, before: Sequence[Any] = ()) -> Ended:
        """The same to its end."""
        return self.start(*words, folder=folder, printed=printed, before=before).wait()

    def call(self, *words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """`tunesmith WORDS` to its end, as `subprocess.run` gives it, on a page of 160 columns."""
        variables = {"COLUMNS": "160", **variables}
        with tempfile.TemporaryDirectory() as folder:
            out, errors = Path(folder, "out"), Path(folder, "errors")
            ended = self.start(*words, folder=cwd, printed=out, errors=errors, variables=variables).wait()
            return subprocess.CompletedProcess(
                words, ended.code, ended.printed, errors.read_text(encoding="utf-8", errors="replace")
            )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and read the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the warm process has died"
        return json.loads(line)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, below 0 the signal, and what it printed."""

    code: int
    printed: str


@dataclass
class Child:
    """A command that runs."""

    warm: Warm
    pid: int
    file: Path

    def send(self, number: signal.Signals) -> None:
        """Send a signal; the process is there at least as a zombie until `wait`."""
        os.kill(self.pid, number)

    def kill(self) -> Ended:
        """End it as a crash does: no handler, no buffer, no lock is given back by itself."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self) -> Ended:
        """Wait for its end."""
        return Ended(self.exit_code(), self.file.read_text(encoding="utf-8", errors="replace"))

    def exit_code(self) -> int:
        """Wait for its end, reading nothing: what it printed went to a terminal."""
        status = self.warm.ask({"wait": self.pid, "seconds": PATIENCE})["status"]
        assert status is not None, f"{self.pid} runs on after {PATIENCE:.0f} s"
        self.warm.running.discard(self.pid)
        return os.waitstatus_to_exitcode(status)

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except FileNotFoundError:  # it was waited for
            return False
        return state.rpartition(")")[2].split()[0] != "Z"

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends in that time."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.01)
        return not self.alive()

    def until(self, there: Callable[[], bool]) -> bool:
        """Wait until something is there; False if the process ends before."""
        end = time.monotonic() + PATIENCE
        while not there():
            if not self.alive():
                return there()
            assert time.monotonic() < end, f"waited in vain: {self.file.read_text(encoding='utf-8')}"
            time.sleep(0.001)
        return True
