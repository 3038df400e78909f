"""Whether a stopped training ends as an uninterrupted one, tried on a person's own machine, model and rows.

Three processes of the real job, in a temporary folder:

    whole     takes k steps, with a checkpoint half-way, and is stopped as by SIGTERM after the last one
    killed    the same; SIGKILL when it has taken a step more than it has saved
    resumed   goes on from that checkpoint, and is stopped after step k

What whole and resumed leave must be the same: weights, optimizer, generators, place in the data, metrics.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.children import python_child
from tunesmith.errors import PlanError, TrainError, TunesmithError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.config import Job, job_from
from tunesmith.train.listener import Silent
from tunesmith.train.resume import asked_for, choose
from tunesmith.train.run import train

# What clocks and memory say.
MEASURED = ("seconds", "tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class Compared:
    """One thing that both left: whether it is the same, and how much of it there is or where it differs."""

    name: str
    equal: bool
    note: str


@dataclass(frozen=True)
class Verdict:
    """All comparisons after `steps` steps, the resumed one killed after it had saved `saved` of them."""

    steps: int
    saved: int
    killed_after: int
    lines: list[Compared]

    @property
    def equal(self) -> bool:
        return all(line.equal for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {"equal": self.equal, **asdict(self)}


def verify_resume(job: Job, steps: int, note: Callable[[str], None] = lambda _: None) -> Verdict:
    """Run the three processes over so many steps of the job, two at least. Raises what training raises."""
    if steps < 2:
        raise PlanError("A training of one step can't be stopped half-way.", fix="Give --steps 2 or more.")
    saved = steps // 2
    settings = {"save_every": saved, "save_minutes": 0.0, "track": ()}
    job = job.model_copy(update={"output": None, "train": job.train.model_copy(update=settings)})
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as folder:
        whole, cut = RunDir(Path(folder) / "whole"), RunDir(Path(folder) / "cut")
        note(f"{steps} steps without a stop …")
        last = _child(job, whole, steps)
        if last < steps:
            raise PlanError(
                f"This job has only {last} steps.", fix=f"Give --steps {last} or fewer, or more train.epochs."
            )
        note(f"The same, killed after step {saved + 1}, with a checkpoint of step {saved} …")
        killed_after = _child(job, cut, saved + 1, "SIGKILL")
        note("Going on with it …")
        _child(job, cut, steps)
        return Verdict(steps, saved, killed_after, _compare(whole, cut, steps))


def _compare(whole: RunDir, cut: RunDir, step: int) -> list[Compared]:
    one, other = (checkpoint.read(checkpoint.folder_of(run, step)) for run in (whole, cut))
    names = {
        checkpoint.WEIGHTS: "trained weights",
        checkpoint.OPTIMIZER: "optimizer states",
        checkpoint.LOOP: "random generators",
    }
    lines = []
    for file, name in names.items():
        differing = checkpoint.differing(one.tensors[file], other.tensors[file])
        found = f"differ: {', '.join(differing[:3])}" if differing else f"{len(one.tensors[file])} tensors"
        lines.append(Compared(name, not differing, found))
    kept = [{k: v for k, v in c.state.items() if k not in ("seconds", "metrics")} for c in (one, other)]
    odd = [key for key in kept[0] if kept[0][key] != kept[1].get(key)]
    lines.append(Compared("place in the data, schedule, best loss", not odd, ", ".join(odd)))
    metrics = [[_timeless(line) for line in run.metrics()] for run in (whole, cut)]
    apart = next((a["step"] for a, b in zip(*metrics, strict=False) if a != b), None)
    told = f"{len(metrics[0])} lines" if apart is None else f"differ from step {apart} on"
    lines.append(Compared("metrics, without times", metrics[0] == metrics[1], told))
    return lines


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in MEASURED}


def _child(job: Job, run: RunDir, until: int, how: str = "SIGTERM") -> int:
    """Train in a process of its own; returns the last step that was taken."""
    command = python_child("tunesmith.train.resume_check")
    asked = {"job": job.model_dump(mode="json"), "run": str(run.path), "until": until, "how": how}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8"
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(asked))
                child.stdin.close()
            told = child.stdout.read()
            child.wait()
            log.seek(0)
            said = (log.read().strip().splitlines() or [""])[-1]
        except BaseException:
            child.kill()
            raise
    if told.strip():
        error = json.loads(told)
        raise TunesmithError(error["what"], details=error["details"], fix=error["fix"])
    if child.returncode < 0 and signal.Signals(-child.returncode).name != how:
        raise TrainError(
            f"A process of this check was killed ({signal.Signals(-child.returncode).name}).",
            fix="Linux does so where memory is short: end other programs, or try a smaller model.",
        )
    if child.returncode not in (0, 128 + signal.SIGTERM, -signal.SIGKILL):
        raise TrainError(f"The training ended with code {child.returncode}: {said[:200]}")
    return _last_step(run)


def _last_step(run: RunDir) -> int:
    return max((int(line["step"]) for line in run.metrics() if "loss" in line), default=0)


class _Until(Silent):
    """Sends this process a signal after a step; SIGKILL once the step before is saved."""

    def __init__(self, step: int, how: str, run: RunDir) -> None:
        self._step, self._signal, self._run = step, signal.Signals[how], run

    def step(self, line: Any) -> None:
        if line["step"] != self._step:
            return
        while self._signal == signal.SIGKILL and not self._run.saved_steps():
            time.sleep(0.01)
        os.kill(os.getpid(), self._signal)


def main() -> None:
    """The child's side."""
    out, sys.stdout = sys.stdout, sys.stderr
    asked = json.loads(sys.stdin.read())
    job, path = job_from(asked["job"]), Path(asked["run"])
    try:
        found = asked_for(path, []) if path.is_dir() else None
        going_on = choose(found, resume=True, force=False, note=print) if found else None
        job = going_on.job if going_on else job
        train(job, path, listener=_Until(asked["until"], asked["how"], RunDir(path)), continued=going_on)
    except TunesmithError as error:
        print(json.dumps({"what": error.what, "details": error.details, "fix": error.fix}), file=out)


if __name__ == "__main__":
    main()
