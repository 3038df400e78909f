"""Three real steps of a job in a process of its own: what they take in memory and time. Nothing is kept.

`measure(job)` starts `python -m tunesmith.train.trial`, which reads the job as JSON and answers with lines
of JSON. A process of its own, because the most memory that a process ever held never goes down again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from tunesmith.children import python_child
from tunesmith.data.batch import collate
from tunesmith.data.pack import Step
from tunesmith.device import peak_memory
from tunesmith.errors import TrainError, TunesmithError
from tunesmith.train.config import Job, job_from
from tunesmith.train.listener import Silent
from tunesmith.train.loop import run_loop
from tunesmith.train.prepare import prepare
from tunesmith.train.training import PACK_MULTIPLE, Training
from tunesmith.train.watch import valid_loss

STEPS = 3
VALID_ROWS = 16
LOOKED_AT = 500  # steps among which the largest microbatch is looked for


@dataclass(frozen=True)
class Probe:
    """What was measured. Seconds are for one token, laid out; `setup` is everything before the first step."""

    peak: int
    imports: int  # bytes of the process before it did anything
    setup: float
    seconds_per_token: float
    seconds_per_length: float  # more, once, for forward passes of a length that there wasn't before
    seconds_per_valid_token: float
    lengths: int
    tokens: int
    compiled: bool


def measure(job: Job, note: Callable[[str], None]) -> Probe:
    """Run a probe; `note` is told of each step. Raises the TunesmithError of the training, or TrainError."""
    command = python_child("tunesmith.train.trial")
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8"
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # a child that is gone already; its exit code says more
                child.stdin.write(job.model_dump_json())
                child.stdin.close()
            for line in child.stdout:
                told = json.loads(line)
                if "note" in told:
                    note(told["note"])
                elif "error" in told:
                    raise _error(told)
                else:
                    return Probe(**told)
            child.wait()
            log.seek(0)
            last = (log.read().strip().splitlines() or [""])[-1]
        except BaseException:
            child.kill()
            raise
    ended = f"code {child.returncode}" if child.returncode >= 0 else f"signal {-child.returncode}"
    raise TrainError(
        f"The three steps of the probe ended with {ended}: {last[:200]}",
        fix="Not enough memory ends like this (signal 9). --no-probe plans by arithmetic alone.",
    )


def _error(told: dict[str, Any]) -> TunesmithError:
    error = TunesmithError(told["error"], details=told["details"], fix=told["fix"])
    error.exit_code = told["code"]
    return error


def main() -> None:
    """The child's side."""
    imports = int(psutil.Process().memory_info().rss)
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints
    try:
        job = job_from(json.loads(sys.stdin.read()))
        found = _probe(job, imports, lambda text: print(json.dumps({"note": text}), file=out, flush=True))
        print(json.dumps(asdict(found)), file=out, flush=True)
    except TunesmithError as error:
        told = {"error": error.what, "details": error.details, "fix": error.fix, "code": error.exit_code}
        print(json.dumps(told), file=out, flush=True)


def _probe(job: Job, imports: int, note: Callable[[str], None]) -> Probe:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tunesmith-plan-") as folder:
        training = prepare(job, Path(folder) / "run", Silent()).training
        setup = time.monotonic() - start
        chosen = _chosen(training)
        valid, training.valid = training.valid, ()
        for_valid = 0.0
        if valid:
            training.valid = valid[:VALID_ROWS]
            training.plan()
            begun = time.monotonic()
            valid_loss(training)
            for_valid = (time.monotonic() - begun) / sum(len(e.input_ids) for e in training.valid)
            training.valid = ()
        training.plans = replace(training.plans, max_steps=len(chosen))
        training.plans.__dict__["first"] = chosen  # what cached_property would find by planning
        training.settings = training.settings.model_copy(
            update={
                "warmup": 0.0,
                "eval_every": 0,
                "save_every": 0,
                "save_minutes": 0.0,
                "sample_every": 0,
                "evaluate": None,
                "best": None,
            }
        )
        heard = _Steps(note)
        training.listener = heard
        run_loop(training)
        laid = [[_laid(training, b) for b in step.microbatches] for step in chosen]
        # In a step's first passes kernels are made for their lengths; the repeat tells what is left.
        new = len(set(laid[1]) - set(laid[0]))
        extra = max(0.0, heard.seconds[1] - heard.seconds[2])
        return Probe(
            peak=_peak(training),
            imports=imports,
            setup=setup,
            seconds_per_token=heard.seconds[2] / sum(laid[2]),
            seconds_per_length=extra / new if new else 0.0,
            seconds_per_valid_token=for_valid,
            lengths=len(set(laid[0]) | set(laid[1])),
            tokens=sum(map(sum, laid)),
            compiled=training.compiled.active,
        )


class _Steps(Silent):
    def __init__(self, note: Callable[[str], None]) -> None:
        self.seconds: list[float] = []
        self._note = note

    def step(self, line: Any) -> None:
        self.seconds.append(line["tokens"] / line["tokens_per_second"])
        self._note(f"probe: step {line['step']} of {STEPS}, {self.seconds[-1]:.1f} s")


def _chosen(training: Training) -> list[Step]:
    """The step with the largest microbatch, and one from the middle twice."""
    steps = list(islice((step for plan in training.plans for step in plan), LOOKED_AT))
    largest = max(steps, key=lambda step: max(_laid(training, batch) for batch in step.microbatches))
    middle = steps[len(steps) // 2]
    return [largest, middle, middle]


def _laid(training: Training, batch: tuple[int, ...]) -> int:
    made = collate(
        [training.train[i] for i in batch],
        packing=training.packing, pad_id=training.pad_id, sharing=training.sharing,
        multiple=PACK_MULTIPLE if training.segments else 1,
    )  # fmt: skip
    return made.input_ids.numel()


def _peak(training: Training) -> int:
    """The high-water mark of this process; ru_maxrss would begin with that of the process that started it."""
    if training.device.kind == "cpu":
        try:
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
    return peak_memory(training.device.kind)


if __name__ == "__main__":
    main()
