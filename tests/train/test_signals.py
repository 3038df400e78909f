"""Real signals to real processes: SIGTERM, Ctrl-C once and twice, SIGKILL; and a second process on a run."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.faults.tally import Place
from tests.faults.tiny_job import TinyJob, tiny_job
from tests.train.stopping import assert_same_end
from tests.warm import Warm
from tunesmith.train import checkpoint
from tunesmith.train.config import load_job
from tunesmith.train.resume import RunError, asked_for, choose

ADAPTER = "adapter_model.safetensors"
STEPS = 14


@pytest.fixture(scope="module")
def place(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("signals"), warm, full=False)


@pytest.fixture(scope="module")
def whole(place: Place) -> TinyJob:
    """The run that nothing happens to."""
    job = short_job(place, "whole")
    assert job.start().wait().code == 0, job.printed
    return job


def short_job(place: Place, name: str, **changes: Any) -> TinyJob:
    return tiny_job(place, name, train__max_steps=STEPS, train__eval_every=4, **changes)


def assert_as_whole(job: TinyJob, whole: TinyJob) -> None:
    assert job.run.state() == "finished"
    assert_same_end(job.run, whole.run)
    for name in ("adapter/" + ADAPTER, "trained-rows.txt"):
        assert (job.run.path / name).read_bytes() == (whole.run.path / name).read_bytes(), name
    assert job.run.report_file.is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    place: Place, whole: TinyJob, number: signal.Signals, code: int
) -> None:
    job = short_job(place, number.name, train__save_every=0)
    child = job.start()
    child.until(lambda: job.last_step() >= 5)
    begun = time.monotonic()
    child.send(number)
    ended = child.wait()
    assert ended.code == code, ended.printed
    assert time.monotonic() - begun < 30
    assert "Traceback" not in ended.printed
    step = job.last_step()
    assert 5 <= step < STEPS
    assert job.newest() == step  # not a step is lost
    checkpoint.verify(job.run.saved_steps()[-1])
    assert f"Interrupted at step {step} of {STEPS}" in ended.printed
    assert "--resume" in ended.printed

    ended = job.start().wait()
    assert ended.code == 0, ended.printed
    assert "an unfinished run of this very job" in ended.printed
    assert f"after step {step} of {STEPS}" in ended.printed
    assert_as_whole(job, whole)
    assert [entry["step"] for entry in job.run.job()["resumed"]] == [step]


def test_ctrl_c_twice_stops_at_once_and_harms_nothing(place: Place, whole: TinyJob) -> None:
    job = short_job(place, "twice")
    # Writing takes for ever, as on a disk that hangs.
    child = job.start(before=("tests.faults.system", "hang", "checkpoint.rename"))
    child.until(lambda: job.last_step() >= 2)
    child.send(signal.SIGINT)
    time.sleep(1)
    assert child.alive()
    begun = time.monotonic()
    child.send(signal.SIGINT)
    ended = child.wait()
    assert time.monotonic() - begun < 10  # two of them for the thread that writes
    assert ended.code == 130, ended.printed
    assert "Traceback" not in ended.printed
    assert job.newest() == 0
    assert job.start().wait().code == 0, job.printed
    assert "from the beginning" in job.printed
    assert_as_whole(job, whole)


def test_killed_it_loses_one_save_interval_at_most(place: Place, whole: TinyJob) -> None:
    job = short_job(place, "killed")
    kills = 0
    for _ in range(3):
        before = job.last_step()
        child = job.start("--resume") if kills else job.start()
        if not child.until(lambda before=before: job.last_step() >= before + 4):  # type: ignore[misc]
            break
        child.kill()
        kills += 1
        assert job.last_step() - job.newest() <= 2 * 3  # the save that was under way is one interval more
    assert kills
    ended = job.start().wait()
    assert ended.code == 0, ended.printed
    assert_as_whole(job, whole)
    assert not [path for path in job.run.path.rglob(".*") if path.is_dir()]


def test_a_second_process_is_refused_within_a_second(place: Place) -> None:
    job = short_job(place, "second")
    child = job.start()
    child.until(lambda: job.last_step() >= 1)
    child.send(signal.SIGSTOP)  # else it may be through before all have asked
    # `choose` is what the command asks before anything is loaded, torch included.
    asked = asked_for(load_job(job.folder / "job.yaml", [f"output={job.run.path}"]), [])
    for resume in (True, None):
        begun = time.monotonic()
        with pytest.raises(RunError, match="is being trained by another process"):
            choose(asked, resume=resume, force=False, note=print)
        assert time.monotonic() - begun < 1
    begun = time.monotonic()
    with pytest.raises(RunError, match="is being trained by another process"), job.run.lock():
        pass
    assert time.monotonic() - begun < 1
    again = job.start("--resume").wait()
    assert again.code == 1
    assert "is being trained by another process" in again.printed
    again = job.start().wait()
    assert again.code == 1, again.printed
    child.kill()
