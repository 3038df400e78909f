"""The run folder: never overwritten, never half-written, locked against a second process."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunesmith.disk import new_folder, write_atomic
from tunesmith.errors import RunError
from tunesmith.journal import Journal
from tunesmith.rundir import RunDir, claimed, create, list_runs, next_free, open_run, read_jsonl

SECOND_PROCESS = """
import sys
from pathlib import Path
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
print(run.state())
try:
    with run.lock():
        print("locked")
except RunError:
    print("refused")
"""


def second_process(run: RunDir) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, str(run.path)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="there already, with files in it"):
        create(tmp_path / "run")
    assert (tmp_path / "run" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert create(tmp_path / "new").path.is_dir()


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="is a file"):
        create(tmp_path / "file" / "run")


def test_names_count_up(tmp_path: Path) -> None:
    assert next_free("tang", tmp_path).name == "tang-1"
    for name in ("tang-1", "tang-9", "tangerine-20", "tang-x"):
        (tmp_path / name).mkdir()
    assert next_free("tang", tmp_path).name == "tang-10"


def test_a_second_process_is_refused_and_sees_the_state(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert second_process(run) == ["unfinished", "locked"]
    with run.lock():
        assert second_process(run) == ["running", "refused"]
    assert second_process(run) == ["unfinished", "locked"]
    run.adapter.mkdir()
    assert run.state() == "finished"


def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with (run.path / "lock").open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        later = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        later.start()
        with run.lock():
            assert run.state() == "running"
        later.join()


def test_a_line_that_is_no_object_is_damaged(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.metrics_file.write_text('{"step": 1}\n[2, 3]\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: the line is damaged"):
        run.metrics()


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    Journal(run.metrics_file).append({"step": 1, "loss": 2.0})
    Journal(run.samples_file).append({"answer": "春風\u2028不改"})
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.0}]
    with run.metrics_file.open("ab") as file:
        file.write("甲".encode()[:2])  # half a character
    assert run.metrics() == [{"step": 1, "loss": 2.0}]
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: the line is damaged"):
        run.metrics()
    assert read_jsonl(run.samples_file) == [{"answer": "春風\u2028不改"}]
    assert "春風" in run.samples_file.read_text(encoding="utf-8")


def test_new_folder_vanishes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), new_folder(tmp_path / "adapter") as folder:  # noqa: PT012
        (folder / "weights").write_text("half", encoding="utf-8")
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "adapter") as folder:
        (folder / "weights").write_text("whole", encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "new \ud800")
    assert file.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tunesmith.errors import RunError
from tunesmith.disk import write_atomic
from tunesmith.rundir import RunDir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run = RunDir(Path(sys.argv[1]))
try:
    write_atomic(run.report_file, "x" * 100_000)
except RunError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_is_one_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "can't be written" in done.stdout
    assert "What to do" in done.stdout
    assert list(tmp_path.iterdir()) == []


FORBIDDEN = """
import os, sys
from pathlib import Path
from tunesmith.errors import RunError
from tunesmith.rundir import create
if os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere
try:
    create(Path(sys.argv[1]) / "run")
except RunError as error:
    print(error)
"""


def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    command = [sys.executable, "-c", FORBIDDEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o700)
    assert not done.stderr
    assert "can't be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_opening_something_else_names_the_runs_there(tmp_path: Path) -> None:
    run = create(tmp_path / "tang-1")
    write_atomic(run.job_file, "job: {}\n")
    with pytest.raises(RunError, match="tang-1"):
        open_run(tmp_path / "tang-2")
    assert [r.path.name for r in list_runs(tmp_path)] == ["tang-1"]
    assert open_run(tmp_path / "tang-1").job() == {"job": {}}


def test_a_folder_with_a_job_alone_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "tang").mkdir()
    (tmp_path / "tang" / "job.yaml").write_text("model: m\ndata: {train: job.json}\n", encoding="utf-8")
    assert list_runs(tmp_path) == []
    with pytest.raises(RunError, match="isn't the folder of a run") as caught:
        open_run(tmp_path / "tang")
    assert f"tunesmith train {tmp_path / 'tang' / 'job.yaml'}" in str(caught.value)
    # a damaged record is still seen, and told when it is read
    run = create(tmp_path / "damaged")
    with run.lock():
        run.job_file.write_bytes(b"\xff\xfe")
    assert [r.path.name for r in list_runs(tmp_path)] == ["damaged"]
    with pytest.raises(RunError, match="can't be read"):
        open_run(tmp_path / "damaged").job()


def test_how_far_a_run_came_is_known_without_its_job(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert run.stopped_at() == ("step 0", "it has no checkpoint yet")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_can_hold_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = create(tmp_path / "run")
    with run.lock():
        pass
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert run.state() == "unfinished"
    with run.lock():
        Journal(run.metrics_file).append({"step": 1})


def test_folders_that_are_claimed_at_once_are_two(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with claimed("tang", root) as first, claimed("tang", root) as second:
        assert (first.name, second.name) == ("tang-1", "tang-2")
        (root / "tang-3").write_text("", encoding="utf-8")  # a file takes a name too
        with claimed("tang", root) as third:
            assert third.name == "tang-4"
        create(first)
        write_atomic(first / "job.yaml", "")
    assert sorted(path.name for path in root.iterdir()) == ["tang-1", "tang-3"]
    with pytest.raises(ValueError, match="boom"), claimed("tang", tmp_path / "new"):
        raise ValueError("boom")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_written_obeys_the_umask(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "report.html", "x")
        with new_folder(tmp_path / "adapter") as inside:
            (inside / "weights").write_text("x", encoding="utf-8")
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == file
    assert (tmp_path / "adapter").stat().st_mode & 0o777 == folder
    assert (tmp_path / "adapter" / "weights").stat().st_mode & 0o777 == file
