"""Contenders take turns on the same steps: A B C, A B C, … each in a process of its own (see pace.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.workloads import ROOT, Laid, Workload, model_folder


@dataclass(frozen=True)
class Contender:
    """Who trains, with which settings. `driver`: bench/drive_<driver>.py, run by `python`."""

    name: str
    driver: str
    options: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    sort: bool = False  # rows of one step by length: less padding, the same rows in each step


@dataclass
class Lane:
    """What one contender did: for every step its seconds and loss; the first `warmup` steps are not timed."""

    contender: Contender
    warmup: int
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    setup_seconds: float = 0.0
    peak_bytes: int = 0
    failed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.contender.name,
            "options": self.contender.options,
            "sorted_rows": self.contender.sort,
            "setup_seconds": round(self.setup_seconds, 2),
            "warmup_steps": self.warmup,
            "step_seconds": [round(s, 4) for s in self.seconds],
            "losses": self.losses,
            "peak_bytes": self.peak_bytes,
            "failed": self.failed,
        }


def race(
    workload: Workload,
    contenders: Sequence[Contender],
    laid: dict[bool, Laid],
    folder: Path,
    *,
    warmup: int,
    steps: int,
) -> list[Lane]:
    """Let every contender do `warmup` + `steps` steps, in turns. `laid`: the files, rows in order and sorted.

    A contender that fails is out, with the reason in its lane; the others go on.
    """
    available = len(laid[False].steps)
    if warmup + steps > available:
        raise SystemExit(f"{workload.name} has {available} steps, {warmup + steps} are asked for.")
    lanes = [Lane(contender, warmup) for contender in contenders]
    runners = []
    try:
        for lane in lanes:
            spec = folder / f"{workload.name}-{lane.contender.name}.json"
            content = _spec(workload, lane.contender, laid, warmup + steps)
            spec.write_text(json.dumps(content), encoding="utf-8")
            runner = _Runner(lane, spec, folder)
            runners.append(runner)
            runner.start()
        for step in range(warmup + steps):
            for runner in runners:
                runner.step()
            _tell(step, warmup, lanes)
    finally:
        for runner in runners:
            runner.stop()
    return lanes


def _spec(workload: Workload, contender: Contender, laid: dict[bool, Laid], steps: int) -> dict[str, Any]:
    files = laid[contender.sort]
    return {
        "model": str(model_folder()),
        "rows": str(files.tokens_file),
        "job": workload.job(files.rows_file),
        "rows_per_step": workload.rows_per_step,
        "steps": steps,
        "tune": workload.tune,
        "quantization": workload.quantization,
        "rank": 8,
        "alpha": 16,
        "learning_rate": workload.learning_rate,
        "options": contender.options,
    }


class _Runner:
    """A contender's process."""

    def __init__(self, lane: Lane, spec: Path, folder: Path) -> None:
        self._lane = lane
        self._spec = spec
        self._log = folder / f"{spec.stem}.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Load and set up, up to the first step."""
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [self._lane.contender.python, "-m", f"bench.drive_{self._lane.contender.driver}", self._spec],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "HF_HUB_OFFLINE": "1",
                },
            )
        if line := self._read():
            self._lane.setup_seconds = line["ready"]

    def step(self) -> None:
        """One step, if it is still in the race."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if line := self._read():
            self._lane.seconds.append(line["seconds"])
            self._lane.losses.append(line["loss"])
            self._lane.peak_bytes = line["peak_bytes"]

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            if self._process.stdin is not None:
                with _broken_pipe_is_fine():
                    self._process.stdin.write("stop\n")
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._leave()

    def _leave(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with _broken_pipe_is_fine():
                        pipe.close()
        self._process = None

    def _read(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if text:
            line: dict[str, Any] = json.loads(text)
            return line
        code = self._process.wait()
        end = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self._lane.failed = f"exit code {code}: {end[-1] if end else 'no message'}"[:300]
        print(f"  {self._lane.contender.name} is out: {self._lane.failed}", file=sys.stderr)
        self._leave()
        return None


@contextmanager
def _broken_pipe_is_fine() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, OSError):
        return


def _tell(step: int, warmup: int, lanes: Sequence[Lane]) -> None:
    times = ", ".join(
        f"{lane.contender.name} {lane.seconds[step]:.2f} s" for lane in lanes if len(lane.seconds) > step
    )
    kind = "warm-up" if step < warmup else f"step {step - warmup + 1}"
    print(f"  {kind}: {times}", file=sys.stderr, flush=True)
