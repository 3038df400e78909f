"""Going on with a run: by which words, from which checkpoint, and what is left at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.train.stopping import assert_same_end
from tests.train.test_run import Notes, make_job
from tunesmith.data import trained_rows
from tunesmith.errors import RunError, TunesmithError
from tunesmith.model import saved
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint, prepare
from tunesmith.train.config import Job

STEPS = 6
WEIGHTS = {"adapter": "adapter/adapter_model.safetensors", "model": "model/model.safetensors"}


class Impatient(Notes):
    """Ends a training after a step as a crash does: without a checkpoint of that step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, line: Any) -> None:
        if line["step"] == self.at:
            raise KeyboardInterrupt


def job_in(folder: Path, **changes: Any) -> Job:
    train = {"max_steps": STEPS, "save_every": 2, "eval_every": 3, **changes.pop("train", {})}
    return make_job(folder, train=train, **changes)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in. Curves and pages, half the time of a run, have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunesmith.api.training.curve.write_png", lambda _: None)
    monkeypatch.setattr("tunesmith.api.training.report", lambda _: None)
    return tmp_path


def write_job(folder: Path, **changes: Any) -> Path:
    file = folder / "tang.yaml"
    file.write_text(json.dumps(job_in(folder, **changes).model_dump(mode="json")), encoding="utf-8")
    return file


def crash(job: Any, *words: str, step: int = 5) -> Impatient:
    listener = Impatient(step)
    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(job, *words, listener=listener)
    return listener


def train(job: Any, *words: str, **how: Any) -> tuple[RunDir, str]:
    listener = Notes()
    return tunesmith.train(job, *words, listener=listener, **how), "\n".join(listener.told)


def test_the_same_command_finds_the_unfinished_run_and_says_so(place: Path) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job)
    run, told = train(job)
    assert str(run.path) == "runs/tang-1"
    assert "runs/tang-1 is an unfinished run of this very job: going on with it" in told
    assert "--no-resume starts anew" in told
    assert "after step 4 of 6" in told
    assert_same_end(run, whole)
    log = run.log_file.read_text(encoding="utf-8")
    assert "Going on with runs/tang-1" in log
    again, told = train(job)  # that one is finished: a new run, as ever
    assert str(again.path) == "runs/tang-2"
    assert "going on" not in told.lower()


def test_a_run_can_be_begun_anew(place: Path) -> None:
    job = write_job(place)
    crash(job)
    run, told = train(job, resume=False)
    assert str(run.path) == "runs/tang-2"
    assert "Going on" not in told
    other, _ = train(job, "train.learning_rate=0.02")  # another job never goes on with this one
    assert str(other.path) == "runs/tang-3"
    run, _ = train(job)
    assert str(run.path) == "runs/tang-1"


@pytest.mark.parametrize("named", ["job", "folder", "job.yaml", "output"])
def test_each_way_to_name_the_run(place: Path, named: str) -> None:
    job = write_job(place)
    words = ["output=mine"] if named == "output" else []
    crash(job, *words)
    path = place / ("mine" if words else "runs/tang-1")
    given = {"job": job, "folder": path, "job.yaml": path / "job.yaml", "output": job}[named]
    run, told = train(given, *words, resume=True)
    assert run.path.resolve() == path
    assert "after step 4 of 6" in told
    assert run.state() == "finished"
    assert not (place / "runs" / "tang-2").exists()


def test_a_run_is_gone_on_with_from_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(place)
    words = ("model=model", "data.train=train.jsonl", "data.valid=valid.jsonl")
    crash(place / "tang.yaml", *words)
    whole, _ = train(place / "tang.yaml", *words, "output=whole", resume=False)
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    run, _ = train(place / "runs" / "tang-1", resume=True)
    assert_same_end(run, RunDir(place / whole.path))


def test_there_must_be_something_to_go_on_with(place: Path) -> None:
    job = write_job(place)
    with pytest.raises(RunError, match="no run to go on with: runs/tang"):
        train(job, resume=True)
    assert not (place / "runs").exists()
    done, _ = train(job)
    run, told = train(job, resume=True)
    assert run.path == done.path
    assert "is finished: more train.epochs or train.max_steps make it longer" in told


def test_killed_before_its_first_checkpoint_it_begins_again(place: Path) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job, step=1)
    run, told = train(job)
    assert "from the beginning: it has no checkpoint" in told
    assert_same_end(run, whole)


def test_killed_before_it_began_its_folder_is_taken_again(place: Path) -> None:
    job = write_job(place)
    (place / "mine").mkdir()
    (place / "mine" / "lock").write_text("", encoding="utf-8")
    run, _ = train(job, "output=mine")
    assert run.state() == "finished"


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(place: Path, name: str) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job)
    file = place / "runs" / "tang-1" / "checkpoints" / "step-000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    run, told = train(job)
    (line,) = [line for line in told.splitlines() if "step-000004 is damaged" in line]
    assert name in line
    assert "after step 3 of 6" in told  # evaluated there, and the best so far
    assert_same_end(run, whole)
    assert [folder.name for folder in run.saved_steps()] == ["step-000003", "step-000004", "step-000006"]
    for folder in run.saved_steps():
        checkpoint.verify(folder)


def test_no_whole_checkpoint_is_no_reason_to_lose_the_run_quietly(place: Path) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job)
    for folder in RunDir(place / "runs" / "tang-1").saved_steps():
        (folder / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"No checkpoint .* is whole") as caught:
        train(job)
    assert "step-000004" in str(caught.value)
    run, _ = train(job, resume=True, force=True)
    assert_same_end(run, whole)


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"adapter": {"type": "dora"}},
    "pissa": {"adapter": {"init": "pissa"}},
    "nf4": {"quantization": {"type": "nf4"}},
    "freeze": {"adapter": {"type": "freeze", "last_layers": 1}},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_tuning_goes_on(place: Path, kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    job = write_job(place, **KINDS[kind])
    whole, _ = train(job, "output=whole")
    crash(job)
    run, _ = train(job)
    assert_same_end(run, whole)
    name = WEIGHTS["model" if kind == "freeze" else "adapter"]
    assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_continued_adapter_goes_on(place: Path) -> None:
    first, _ = train(write_job(place), "output=first")
    job = write_job(place, adapter={"continue_from": str(first.path)})
    whole, _ = train(job, "output=whole")
    crash(job)
    run, _ = train(job)
    assert_same_end(run, whole)
    keys = [trained_rows.trained_rows(r.path) for r in (run, whole)]
    assert keys[0] == keys[1]


def test_samples_are_written_once(place: Path) -> None:
    job = write_job(place, train={"sample_every": 2, "save_every": 3, "eval_every": 0})
    whole, _ = train(job, "output=whole")
    crash(job)
    assert [s["step"] for s in RunDir(place / "runs" / "tang-1").samples()] == [0, 2, 4]
    run, _ = train(job)
    assert run.samples() == whole.samples()
    assert saved.read_meta(run.adapter) == saved.read_meta(whole.adapter)


def test_leftovers_of_a_kill_are_removed(place: Path) -> None:
    job = write_job(place)
    crash(job)
    run = RunDir(place / "runs" / "tang-1")
    for name in ("checkpoints/.step-000005-0123456789ab", ".adapter-0123456789ab"):
        (run.path / name).mkdir()
    (run.path / ".job-0123456789ab.yaml").write_text("", encoding="utf-8")
    (run.path / ".hidden").write_text("mine", encoding="utf-8")
    train(job)
    hidden = [path.name for path in run.path.rglob(".*")]
    assert hidden == [".hidden"]


def test_room_is_looked_for_before_the_first_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(place)
    monkeypatch.setattr(prepare, "free_space", lambda _: 1000)
    with pytest.raises(TunesmithError, match="its disk has 1 KiB left") as caught:
        train(job)
    assert caught.value.exit_code == 2
    assert not (place / "runs").exists()


def test_a_checkpoint_that_has_no_room_is_told_and_training_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    spaces = iter([0, 0])  # of the checkpoints of steps 2 and 3; then some files were deleted
    monkeypatch.setattr("tunesmith.train.saving.free_space", lambda _: next(spaces, 2**40))
    run, told = train(job)
    assert "The checkpoint of step 2 couldn't be written:" in told
    assert "has no room for it" in told
    assert "there is none yet" in told
    assert "This was the best so far: its weights can't be the result." in told
    assert_same_end(run, whole)


class InTheWay(Notes):
    """Puts a folder where the run wants to write a file."""

    def __init__(self, file: Path, ends: int = 99) -> None:
        super().__init__()
        self.file, self.ends = file, ends

    def step(self, line: Any) -> None:
        self.file.mkdir(exist_ok=True)
        if line["step"] == self.ends:
            raise KeyboardInterrupt


def test_worst_rows_that_cannot_be_written_end_no_training(place: Path) -> None:
    whole, _ = train(write_job(place), "output=whole")
    run = tunesmith.train(write_job(place), listener=InTheWay(place / "runs" / "tang-1" / "worst.jsonl"))
    assert_same_end(run, whole)
    assert "worst.jsonl can't be written" in run.log_file.read_text(encoding="utf-8")


def test_what_ended_a_training_is_told_and_not_what_failed_afterwards(place: Path) -> None:
    listener = InTheWay(place / "runs" / "tang-1" / "trained-rows.txt", ends=5)
    with pytest.raises(KeyboardInterrupt, match="Interrupted at step 5"):
        tunesmith.train(write_job(place), listener=listener)
    log = (place / "runs" / "tang-1" / "log.txt").read_text(encoding="utf-8")
    assert "trained-rows.txt can't be written" in log
