"""SIGKILL: at random instants, and before and after each call that changes the run's folder."""

from __future__ import annotations

import random
import signal
import time

from tests.faults import system
from tests.faults.same_end import check_same_end, uninterrupted
from tests.faults.tally import Place, Tally
from tests.faults.tiny_job import SAVE_EVERY, TinyJob, tiny_job
from tunesmith.train import checkpoint

# A save interval; and another one, if a checkpoint was being written: the next one waits for it.
MOST_LOST = 2 * SAVE_EVERY
SHORT = {"train__max_steps": 8, "train__save_every": 2, "train__eval_every": 4}


def random_kills(place: Place) -> Tally:
    """Kill runs at random instants, go on with the same command, kill again, until they are finished."""
    tally, chance, wanted = Tally(), random.Random(11), place.many(200, 3)
    whole = uninterrupted(place, "forty")
    most_lost = runs = 0
    while tally.injected < wanted:
        job, killed = tiny_job(place, "killed"), 0
        runs += 1
        went_wrong = None
        while True:
            child = job.start()
            ended = None
            if tally.injected + killed < wanted:
                # Most of a run's time is spent before the first step; most instants should be after it.
                before, start = job.last_step(), chance.random() < 0.2
                if not start:
                    child.until(lambda job=job, before=before: job.last_step() > before)  # type: ignore[misc]
                time.sleep(chance.random() * (1.0 if start else 0.4))
                kept = job.newest()
                ended = child.kill()
            else:
                ended = child.wait()
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                went_wrong = f"exit code {ended.code}: {ended.printed[-300:]}"
                break
            killed += 1
            if job.run.weights is not None:  # it was finished, but for its picture and report
                ended = job.start("--resume").wait()
                went_wrong = None if ended.code == 0 else f"exit code {ended.code}: {ended.printed[-300:]}"
                break
            if job.newest() < kept:
                went_wrong = f"checkpoint {kept} is gone"
                break
            lost = job.last_step() - job.newest()
            most_lost = max(most_lost, lost)
            if lost > MOST_LOST:
                went_wrong = f"{lost} steps were lost"
                break
        _settle(tally, job, whole, killed, went_wrong)
    tally.notes.append(
        f"{runs} runs with a checkpoint every {SAVE_EVERY} steps; at most {most_lost} steps were taken again "
        "(those since the last checkpoint, and those taken while one was being written)"
    )
    return tally


def _settle(tally: Tally, job: TinyJob, whole: TinyJob, killed: int, went_wrong: str | None) -> None:
    """Count a run's kills as survived if it ended as the uninterrupted one."""
    tally.injected += killed
    try:
        assert went_wrong is None, went_wrong
        check_same_end(job, whole)
        tally.survived += killed
    except AssertionError as error:
        tally.lost.append(f"{job.folder.name}, killed {killed} times: {' '.join(str(error).split())[:200]}")


def kills_at_calls(place: Place) -> Tally:
    """Kill a short run before and after each write, fsync, rename, removal, creation and truncation."""
    tally = Tally()
    whole = uninterrupted(place, "eight", **SHORT)
    calls = count_calls(place, system.ANY)
    for at in range(1, calls + 1, place.every) if place.full else (calls // 4, 3 * calls // 4):
        for action in (system.KILL_BEFORE, system.KILL_AFTER) if place.full else (system.KILL_AFTER,):
            job = tiny_job(place, "call", **SHORT)
            child = job.start(before=arming(job, system.ANY, at, action))
            ended = child.wait()
            if ended.code == 0:
                continue  # this run had fewer calls
            with tally.fault(f"call {at}, {'before' if action == system.KILL_BEFORE else 'after'}"):
                assert ended.code == -signal.SIGKILL, f"exit code {ended.code}: {ended.printed[-300:]}"
                for folder in job.run.saved_steps():
                    checkpoint.verify(folder)  # what has its name is whole
                # With its weights it is finished but for picture and report, which --resume makes.
                again = job.start(*([] if job.run.weights is None else ["--resume"])).wait()
                assert again.code == 0, f"it didn't go on: {again.printed[-300:]}"
                assert job.run.report_file.is_file()
                check_same_end(job, whole)
    tally.notes.append(f"a run of 8 steps with 4 checkpoints makes {calls} calls that change its folder")
    return tally


def count_calls(place: Place, kinds: int) -> int:
    """How many calls of these kinds an undisturbed short run makes in its folder."""
    job = tiny_job(place, "counted", **SHORT)
    ended = job.start(before=arming(job, kinds, 0, 0)).wait()
    assert ended.code == 0, ended.printed
    return int(job.folder.joinpath("calls").read_text(encoding="utf-8"))


def arming(job: TinyJob, kinds: int, at: int, action: int, *, forever: bool = False) -> list[object]:
    """What a child does first: faults of its own calls below the run's folder."""
    counted = str(job.folder / "calls")
    return ["tests.faults.system", "arm", str(job.run.path), kinds, at, action, forever, counted]
