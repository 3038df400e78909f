"""Signals, memory, losses that aren't numbers or jump: what a training meets while it runs."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.faults.same_end import check_same_end, uninterrupted
from tests.faults.tally import Place, Tally
from tests.faults.tiny_job import TinyJob, tiny_job
from tests.train.test_loop import training, weights
from tests.warm import Ended
from tunesmith.data.batch import Batch
from tunesmith.errors import TrainError
from tunesmith.train.listener import Silent
from tunesmith.train.loop import run_loop
from tunesmith.train.objectives import Objective, sft

READING = """
import os, sys
while True:
    for folder, _, names in os.walk(sys.argv[1]):
        for name in names:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    file.read()
            except OSError:
                pass
"""
WITHIN = 30.0  # seconds from the signal to the end
AT_ONCE = 5.0  # and from the second Ctrl-C: two of them for what is being written
EXACT: dict[str, Any] = {"train__max_steps": 12, "adapter__dropout": 0.0, "train__save_every": 4}


def signals(place: Place) -> Tally:
    """SIGTERM and Ctrl-C at random instants; a second Ctrl-C."""
    tally, chance = Tally(), random.Random(5)
    whole = uninterrupted(place, "forty")
    slowest = 0.0
    for number in range(place.many(40, 2)):
        asking, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[number % 2]
        job = tiny_job(place, "signal")
        child = job.start()
        child.until(lambda job=job: job.last_step() >= 1)  # type: ignore[misc]
        time.sleep(chance.random() * (0.8 if place.full else 0.2))
        begun = time.monotonic()
        child.send(asking)
        ended = child.wait()
        slowest = max(slowest, time.monotonic() - begun)
        if ended.code == 0:
            continue  # it was over before
        with tally.fault(asking.name):
            assert ended.code == code, f"exit code {ended.code}: {ended.printed[-300:]}"
            assert time.monotonic() - begun < WITHIN, "too slow"
            assert job.last_step() == job.newest(), f"step {job.last_step()}, but {job.newest()} is saved"
            assert "--resume" in ended.printed, "how to go on wasn't said"
            _finish(job, whole)
    for _ in range(place.many(10, 1)):
        _twice(place, tally, whole)
    tally.notes.append(f"saved and ended {slowest:.1f} s after the signal at the latest")
    return tally


def _twice(place: Place, tally: Tally, whole: TinyJob) -> None:
    """Ctrl-C, and again while a checkpoint is written that never gets ready."""
    job = tiny_job(place, "twice")
    child = job.start(before=["tests.faults.system", "hang", "checkpoint.rename"])
    child.until(lambda: job.last_step() >= 1)
    child.send(signal.SIGINT)
    # Two signals at once would be one. In a validation, which is given up, nothing is said.
    late = time.monotonic() + 3.0
    child.until(lambda: "Ctrl-C again stops at once" in job.printed or time.monotonic() > late)
    time.sleep(0.3)
    with tally.fault("Ctrl-C twice"):
        assert child.alive(), f"the first one didn't wait for the checkpoint: {job.printed[-300:]}"
        child.send(signal.SIGINT)
        at_once = child.ends_within(AT_ONCE)
        ended = child.wait() if at_once else child.kill()
        assert at_once, "the second one didn't end it at once"
        assert ended.code == 130, f"exit code {ended.code}: {ended.printed[-300:]}"
        _finish(job, whole)


def memory(place: Place) -> Tally:
    """ENOMEM at fail points in the forward pass, the backward pass and the optimizer; a real limit."""
    tally = Tally()
    whole = uninterrupted(place, "exact", **EXACT)
    instants = range(1, 16, 2) if place.full else (3,)
    for part in ("forward", "backward", "optimizer") if place.full else ("backward",):
        for at in instants:
            job = tiny_job(place, "memory", **EXACT)
            setting = [
                "tests.faults.system",
                "set_variable",
                "TUNESMITH_FAIL_AT",
                f"memory.{part}:{at}=ENOMEM",
            ]
            ended = job.start(before=setting).wait()
            with tally.fault(f"{part}, time {at}"):
                _smaller(job, whole, ended)
    # From a stop after it on: the size is remembered.
    for _ in range(place.many(4, 0)):
        job = tiny_job(place, "remembered", **EXACT)
        setting = ["tests.faults.system", "set_variable", "TUNESMITH_FAIL_AT", "memory.forward:3=ENOMEM"]
        child = job.start(before=setting)
        child.until(lambda job=job: job.newest() >= 4)  # type: ignore[misc]
        child.kill()
        first = job.last_step()
        ended = job.start().wait()
        with tally.fault("remembered"):
            _smaller(job, whole, ended)
            later = [line for line in job.metrics() if line["step"] > first and "loss" in line]
            assert all("microbatch_tokens" in line for line in later), "the size was forgotten"
    _real_limit(place, tally)
    return tally


def _real_limit(place: Place, tally: Tally) -> None:
    """RLIMIT_AS, less and less of it: a training ends as always, in smaller passes, or with one error.

    At the very limit libraries that can't say so end the process: it then goes on, given memory, as after
    a kill.
    """
    ends: Counter[str] = Counter()
    big: dict[str, Any] = {**EXACT, "train__microbatch_tokens": 4096, "train__tokens_per_step": 4096}
    whole = uninterrupted(place, "big", **big)
    for more in range(60, 260, 10) if place.full else ():
        job = tiny_job(place, "limited", **big)
        ended = job.start(before=["tests.faults.system", "limit_memory", more * 2**20]).wait()
        smaller = "It is taken again" in ended.printed
        with tally.fault(f"{more} MiB more than at the start"):
            if ended.code == 0:
                ends["by smaller passes" if smaller else "without noticing"] += 1
                _close(job, whole)
                continue
            if ended.code == 1:
                assert ended.printed.count("Error: ") == 1, ended.printed[-300:]
                assert "Traceback" not in ended.printed, "a traceback"
            ends["by an error" if ended.code == 1 else "by a library that ended the process"] += 1
            if job.run.weights is None:  # else it was the report's drawing that had no memory
                again = job.start().wait()
                assert again.code == 0, f"it didn't go on: {again.printed[-300:]}"
            _close(job, whole)
    if place.full:
        told = ", ".join(f"{count} {end}" for end, count in ends.items())
        tally.notes.append(f"real limits ended {told}; those that ended the run were gone on with")


def _smaller(job: TinyJob, whole: TinyJob, ended: Ended) -> None:
    """It went on in smaller passes, and said so."""
    assert ended.code == 0, f"exit code {ended.code}: {ended.printed[-300:]}"
    said = Path(job.folder / "printed").read_text(encoding="utf-8")
    assert "It is taken again: the same rows" in said, "it wasn't said"
    _close(job, whole)


def _close(job: TinyJob, whole: TinyJob) -> None:
    """Losses within 1e-5 of those of the undisturbed run, over the same rows."""
    for ours, theirs in zip(job.metrics(), whole.metrics(), strict=True):
        name = "loss" if "loss" in theirs else "valid_loss"
        assert math.isclose(ours[name], theirs[name], rel_tol=1e-5), f"step {ours['step']}: {ours[name]}"
        if "rows" in theirs:
            assert (ours["rows"], ours["label_tokens"]) == (theirs["rows"], theirs["label_tokens"]), (
                "other rows"
            )


def _finish(job: TinyJob, whole: TinyJob) -> None:
    again = job.start().wait()
    assert again.code == 0, f"it didn't go on: {again.printed[-300:]}"
    check_same_end(job, whole)


class Poison:
    """An objective whose loss or gradient isn't a number, or jumps, at chosen passes."""

    def __init__(self, passes: range, value: float, *, gradient: bool = False) -> None:
        self.passes, self.value, self.gradient, self.count = passes, value, gradient, 0

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        loss, labels = sft().loss(model, batch)
        self.count += 1
        if self.count in self.passes:
            loss = _OtherGradient.apply(loss, self.value) if self.gradient else loss + self.value * labels
        return loss, labels


class _OtherGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: float) -> Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return factor * ctx.value, None


class Watching(Silent):
    """Keeps the weights as they were after each step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}
        self.model: Any = None

    def step(self, line: Any) -> None:
        self.after[line["step"]] = weights(self.model)


def non_finite(place: Place) -> Tally:
    """NaN and infinities in the loss and in the gradient, once, and three times in a row."""
    tally = Tally()
    for value in (math.nan, math.inf, -math.inf) if place.full else (math.nan,):
        for gradient in (False, True):
            for at in range(2, 7) if place.full else (3,):
                with tally.fault(f"{value} in the {'gradient' if gradient else 'loss'} of step {at}"):
                    _skipped(place, Poison(range(at, at + 1), value, gradient=gradient), at)
            with tally.fault(f"{value} in the {'gradient' if gradient else 'loss'} of three steps"):
                _stopped(place, Poison(range(4, 7), value, gradient=gradient))
    return tally


def _skipped(place: Place, poison: Poison, at: int) -> None:
    listener = Watching()
    job = training(place.new("poison"), objective=Objective("poisoned", poison), listener=listener,
                   max_steps=8, batch_size=8, microbatch_tokens=10_000)  # fmt: skip
    listener.model = job.model
    run_loop(job)
    before, after = listener.after[at - 1], listener.after[at]
    assert all(torch.equal(before[name], after[name]) for name in before), "weights were moved"
    line = next(line for line in job.run.metrics() if line["step"] == at)
    raw = line["grad_norm"] if poison.gradient else line["loss"]
    assert not math.isfinite(raw), f"logged as {raw}"
    assert line["skipped"] is True
    assert not all(torch.equal(after[name], listener.after[at + 1][name]) for name in after), "it stood still"


def _stopped(place: Place, poison: Poison) -> None:
    listener = Watching()
    job = training(place.new("poison"), objective=Objective("poisoned", poison), listener=listener,
                   max_steps=12, batch_size=8, microbatch_tokens=10_000)  # fmt: skip
    listener.model = job.model
    try:
        run_loop(job)
    except TrainError as error:
        told = error
    else:
        raise AssertionError("three in a row didn't stop it")
    assert len(told.details) == 8, f"{len(told.details)} rows named"
    assert all("rows:" in line for line in told.details), f"rows aren't named: {told.details}"
    last, before = weights(job.model), listener.after[3]  # type: ignore[arg-type]
    assert all(torch.equal(before[name], last[name]) for name in before), "weights were moved"


def spikes(place: Place) -> Tally:
    """A loss that jumps at a step: flagged there, and nowhere else."""
    tally = Tally()
    for at in range(25, 60, 5) if place.full else (25,):
        poison = Poison(range(at, at + 1), 6.0)
        job = training(place.new("spike"), objective=Objective("jumping", poison), max_steps=at + 3,
                       batch_size=8, microbatch_tokens=10_000, learning_rate=1e-4)  # fmt: skip
        run_loop(job)
        with tally.fault(f"step {at}"):
            flagged = {line["step"]: line for line in job.run.metrics() if "spike" in line}
            assert list(flagged) == [at], f"flagged: {list(flagged)}"
            assert flagged[at]["spike"] > 6, f"z = {flagged[at]['spike']}"
            assert len(flagged[at]["spike_rows"]) == 3, "rows aren't named"
    return tally


def readers(place: Place) -> Tally:
    """Whoever reads a training's output or its files is slow, gone, or killed."""
    tally = Tally()
    whole = uninterrupted(place, "forty")
    for gone in (False, True) if place.full else (True,):
        job = tiny_job(place, "deaf")
        file = job.folder / "reader"
        child = job.start(before=["tests.faults.system", "deaf_reader", str(file)])
        with tally.fault("stderr's reader is killed" if gone else "stderr's reader sleeps"):
            try:
                assert child.until(partial(_far_enough, job, gone)), "it ended before"
            finally:  # what the command says last has to wait for a reader, or for its end
                os.kill(int(file.read_text(encoding="utf-8")), signal.SIGKILL)
                child.wait()
            check_same_end(job, whole)
    for _ in range(place.many(3, 0)):
        job = tiny_job(place, "read")
        child = job.start()
        child.until(lambda job=job: job.last_step() >= 1)  # type: ignore[misc]
        reading = [_reader(job) for _ in range(3)]
        time.sleep(0.4)
        for process in reading:
            process.kill()
            process.wait()
        ended = child.wait()
        with tally.fault("readers of the run's files are killed"):
            assert ended.code == 0, ended.printed[-300:]
            check_same_end(job, whole)
    return tally


def _far_enough(job: TinyJob, gone: bool) -> bool:
    return job.last_step() >= 3 if gone else job.run.weights is not None


def _reader(job: TinyJob) -> subprocess.Popen[bytes]:
    """A process that reads all files of the run over and over, as a page does."""
    return subprocess.Popen([sys.executable, "-c", READING, str(job.run.path)], stderr=subprocess.DEVNULL)
