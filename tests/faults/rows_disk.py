"""The disk: calls that fail, files that may not grow, a full file system, damaged checkpoints."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults import system
from tests.faults.rows_kills import SHORT, arming, count_calls
from tests.faults.same_end import check_one_error, check_same_end, uninterrupted
from tests.faults.tally import Place, Tally
from tests.faults.tiny_job import TinyJob, tiny_job
from tests.warm import Ended
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint

WRITES = system.WRITE | system.SYNC | system.CREATE | system.RENAME


def failing_calls(place: Place) -> Tally:
    """Let each call that writes fail once, or from there on, with ENOSPC and with EIO."""
    tally = Tally()
    whole = uninterrupted(place, "eight", **SHORT)
    calls = count_calls(place, WRITES)
    told = 0
    cases = [
        (at, number, forever)
        for at in range(1, calls + 1)
        for number, forever in ((errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False))
    ]
    cases = cases[:: place.every] if place.full else [cases[len(cases) // 3], cases[2 * len(cases) // 3]]
    for at, number, forever in cases:
        job = tiny_job(place, "disk", **SHORT)
        ended = job.start(before=arming(job, WRITES, at, number, forever=forever)).wait()
        with tally.fault(f"call {at}, {errno.errorcode[number]}{', from there on' if forever else ''}"):
            told += _told(ended)
            _intact(job, ended)
            _goes_on(job, whole)
    tally.notes.append(
        f"a run of 8 steps makes {calls} such calls; {told} of the faults ended the run with one error, the "
        "others cost it a checkpoint or nothing"
    )
    return tally


def small_files(place: Place) -> Tally:
    """RLIMIT_FSIZE: no file may grow beyond a size, from a few bytes to more than the largest needs."""
    tally = Tally()
    whole = uninterrupted(place, "eight", **SHORT)
    largest = max(file.stat().st_size for file in whole.run.path.rglob("*") if file.is_file())
    least = 2**13  # what the command prints goes to a file too
    sizes = [least + (largest - least) * i // 40 for i in range(40)] if place.full else [largest // 2]
    for size in sizes:
        job = tiny_job(place, "limit", **SHORT)
        ended = job.start(before=["tests.faults.system", "limit_file_size", size]).wait()
        with tally.fault(f"files of {size} bytes at most"):
            _told(ended)
            _intact(job, ended)
            _goes_on(job, whole)
    return tally


def full_file_system(place: Place) -> Tally:
    """A real small tmpfs: too small from the start, or filled by something else while a run writes to it."""
    tally = Tally()
    whole = uninterrupted(place, "eight", **SHORT)
    for step in (0, *range(1, 8)) if place.full else (0, 2):
        job = tiny_job(place, "tmpfs", **SHORT)
        disk = job.folder / "run"
        disk.mkdir()
        if _mount(disk, 200 * 2**10 if step == 0 else 48 * 2**20) is None:
            tally.notes.append("a tmpfs can't be mounted here")
            return tally
        try:
            with tally.fault(f"full from step {step} on"):
                child = job.start()
                if step:
                    child.until(lambda job=job, step=step: job.last_step() >= step)  # type: ignore[misc]
                    _fill(disk / "ballast")
                ended = child.wait()
                if step == 0:
                    assert ended.code == 2, f"exit code {ended.code}: the space wasn't checked beforehand"
                    check_one_error(ended.printed)
                    assert job.last_step() == 0, "it began"
                    continue
                _told(ended)
                _intact(job, ended)
                (disk / "ballast").unlink()
                _goes_on(job, whole)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    return tally


def _fill(file: Path) -> None:
    """Write until nothing fits any more."""
    with file.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    ballast.write(b"x" * size)


def damaged_checkpoints(place: Place) -> Tally:
    """Flip a bit, cut or delete a file of the newest checkpoint: it's seen, and the one before is taken."""
    tally, chance = Tally(), random.Random(3)
    whole = uninterrupted(place, "forty")
    run = whole.run
    newest, before = run.saved_steps()[-1], run.saved_steps()[-2]
    wanted = place.many(500, 40)
    copy = RunDir(place.new("damaged"))
    for number in range(wanted):
        shutil.rmtree(copy.checkpoints, ignore_errors=True)
        for folder in (newest, before):
            shutil.copytree(folder, copy.checkpoints / folder.name)
        what = _damage(copy.checkpoints / newest.name, number, chance)
        with tally.fault(what):
            try:
                checkpoint.verify(copy.checkpoints / newest.name)
                seen = False
            except RunError:
                seen = True
            assert seen, "not seen"
            contents, damaged = checkpoint.newest(copy)
            assert contents is not None, "no checkpoint is left"
            assert contents.step == int(before.name.removeprefix("step-")), "another was taken"
            assert len(damaged) == 1, f"{len(damaged)} damaged ones"
    _whole_runs(place, tally, chance)
    return tally


def _whole_runs(place: Place, tally: Tally, chance: random.Random) -> None:
    """The same by the command: a run that was killed goes on from the checkpoint before the damaged one."""
    whole = uninterrupted(place, "forty")
    for number in range(place.many(12, 1)):
        job = tiny_job(place, "fallback")
        child = job.start()
        child.until(lambda job=job: job.newest() >= 9)  # type: ignore[misc]
        child.kill()
        while len(job.run.saved_steps()) < 2:  # it was pruning
            child = job.start()
            newest = job.newest()
            child.until(lambda job=job, newest=newest: job.newest() > newest)  # type: ignore[misc]
            child.kill()
        what = _damage(job.run.saved_steps()[-1], number, chance)
        with tally.fault(f"run: {what}"):
            ended = job.start().wait()
            assert ended.code == 0, ended.printed[-300:]
            assert "The one before it is taken" in ended.printed, "the damage wasn't told"
            check = [path.name for path in job.run.checkpoints.glob("damaged-*")]
            assert len(check) == 1, f"set aside: {check}"
            check_same_end(job, whole)


def _damage(folder: Path, number: int, chance: random.Random) -> str:
    """Flip a bit, cut off or delete, in turns, in a random file of a checkpoint."""
    file = chance.choice(sorted(folder.iterdir()))
    size = file.stat().st_size
    if number % 3 == 2 or not size:
        file.unlink()
        return f"{file.name} deleted"
    if number % 3 == 1:
        keep = chance.randrange(size)
        os.truncate(file, keep)
        return f"{file.name} cut to {keep} of {size} bytes"
    content = bytearray(file.read_bytes())
    bit = chance.randrange(8 * size)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"{file.name}, bit {bit}"


def _told(ended: Ended) -> bool:
    """A run under a fault of the disk either went on or ended with one error; whether it ended."""
    assert ended.code in (0, 1), f"exit code {ended.code}: {ended.printed[-300:]}"
    assert "Traceback" not in ended.printed, "a traceback"
    if ended.code == 1:
        check_one_error(ended.printed)
    return ended.code == 1


def _intact(job: TinyJob, ended: Ended) -> None:
    """What has a checkpoint's name is whole, and nothing half-written is left."""
    for folder in job.run.saved_steps():
        checkpoint.verify(folder)
    if job.run.path.exists():
        left = _temporary(job.run.path.rglob(".*"))
        assert not left, f"left behind after exit code {ended.code}: {left}"


def _temporary(paths: Any) -> Sequence[str]:
    return [path.name for path in paths if path.name.count("-") and len(path.name) > 13]


def _goes_on(job: TinyJob, whole: TinyJob) -> None:
    """Without the fault the same command ends as an undisturbed run does; a finished run is whole already."""
    if job.run.weights is None:
        again = job.start().wait()
        assert again.code == 0, f"it didn't go on: {again.printed[-300:]}"
    check_same_end(job, whole, checkpoints=False)


def _mount(folder: Path, size: int) -> Path | None:
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, check=False)
    return folder if done.returncode == 0 else None
