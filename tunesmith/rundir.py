"""The run folder: everything one training left, in plain files.

    runs/<name>/
      job.yaml            what was asked, resolved, with versions and hashes
      data-report.json    every count of kept, cut, dropped, masked rows and why
      trained-rows.txt    a key of every row that was learnt from, not the rows themselves
      metrics.jsonl       one line per step, append only
      samples.jsonl       fixed prompts answered during training
      worst.jsonl         the 20 rows with the highest loss when they were last trained on
      adapter/            final adapter, PEFT format; model/ after full or freeze tuning
      checkpoints/        step-000120/ …
      eval/  export/  report.html  log.txt

Reading runs imports neither torch nor pydantic, so that `runs list` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from tunesmith import locks
from tunesmith.disk import disk_errors, is_leftover, make_folder, sync_folder
from tunesmith.errors import RunError

LOCK_SECONDS = 0.5  # a second process is refused within a second

State = Literal["running", "finished", "unfinished"]


@dataclass(frozen=True)
class RunDir:
    """Paths in a run folder, and the only code that writes its records."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.yaml"

    @property
    def data_report_file(self) -> Path:
        return self.path / "data-report.json"

    @property
    def trained_rows_file(self) -> Path:
        return self.path / "trained-rows.txt"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def worst_file(self) -> Path:
        return self.path / "worst.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def weights(self) -> Path | None:
        """The folder with the final weights (adapter/ or model/), or None before the run is finished."""
        return next((p for p in (self.adapter, self.model) if p.is_dir()), None)

    def job(self) -> dict[str, Any]:
        """The job as it was run: {"job": …, "versions": …, "base": …, …}."""
        try:
            content = yaml.load(self.job_file.read_text(encoding="utf-8"), Loader=_yaml_loader)
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.job_file} can't be read: {error}.",
                fix="Is this the folder of a run? `tunesmith runs list` shows them.",
            ) from None
        return content if isinstance(content, dict) else {}

    def data_report(self) -> dict[str, Any]:
        """The data report, empty where there is none yet."""
        return _read_json(self.data_report_file)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl: of steps (with `loss`), of validation (with `valid_loss`), and of
        answers (with `metrics`, the names of their scores).
        """
        return read_jsonl(self.metrics_file)

    def samples(self) -> list[dict[str, Any]]:
        """Every line of samples.jsonl: step, prompt, answer, reference."""
        return read_jsonl(self.samples_file)

    def stopped_at(self) -> tuple[str, str]:
        """("step 2 of 60", what an interrupted training leaves to go on with)."""
        done = max((int(line["step"]) for line in self.metrics() if "loss" in line), default=0)
        planned = self.job().get("steps") if self.job_file.is_file() else None
        newest = next(reversed(self.saved_steps()), None)
        left = f"its newest checkpoint is {newest}" if newest else "it has no checkpoint yet"
        return f"step {done}" + (f" of {planned}" if planned else ""), left

    def saved_steps(self) -> list[Path]:
        """Whole checkpoints, the oldest first (a folder has its name only once it is whole)."""
        steps = [p for p in _children(self.checkpoints) if re.fullmatch(r"step-\d{6,}", p.name)]
        return sorted(steps, key=lambda p: int(p.name.removeprefix("step-")))

    def state(self) -> State:
        """finished: final weights are there; running: another process holds the lock; else unfinished."""
        if self.weights is not None:
            return "finished"
        return "running" if locks.is_held(self.path / "lock") else "unfinished"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against a second process. Raises RunError if another one keeps it."""
        handle = self._open(self.path / "lock", "a")
        if not locks.hold(handle, LOCK_SECONDS):
            handle.close()
            raise in_use(self.path)
        try:
            yield
        finally:
            handle.close()

    def discard(self) -> None:
        """Remove a run that never began, so that the same command can be given again."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _open(self, file: Path, mode: str) -> IO[str]:
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.open(mode, encoding="utf-8")


def in_use(path: Path) -> RunError:
    """What a second process on a run is told."""
    return RunError(
        f"{path} is being trained by another process.",
        fix="Wait for it, or end it; --no-resume or output=runs/other trains in another folder.",
    )


def check_free(path: Path) -> None:
    """Raise RunError if something is at `path` already, or nothing can be written there."""
    with disk_errors(path):
        used = path.exists() and not (path.is_dir() and _never_began(path))
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if there.is_dir() and not used and not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "there is no permission to write", str(there))
        if there.is_dir() and not used:
            # Some places (/proc) refuse although the permissions say otherwise.
            with tempfile.TemporaryDirectory(dir=there, prefix=".tunesmith-"):
                pass
    if used and locks.is_held(path / "lock"):
        raise in_use(path)
    if used:
        raise RunError(
            f"{path} is there already, with files in it." if path.is_dir() else f"{path} is a file.",
            fix="Give another folder with output=…, or move that one away; tunesmith doesn't overwrite runs.",
        )
    if not there.is_dir():
        raise RunError(
            f"{path} can't be written: {there} is a file.", fix="Give another folder with output=…."
        )


def _never_began(path: Path) -> bool:
    """Whether a folder is empty, or holds only what a training leaves that is killed before its record."""
    rest = [file for file in path.iterdir() if file.name != "lock" and not is_leftover(file)]
    return not rest and not locks.is_held(path / "lock")


def create(path: Path) -> RunDir:
    """A new, empty run folder. Raises RunError as `check_free` does."""
    check_free(path)
    with disk_errors(path):
        make_folder(path)
    return RunDir(path)


def next_free(stem: str, root: Path = Path("runs")) -> Path:
    """`runs/<stem>-<n>` with the smallest n above all that are taken."""
    taken = [int(m[1]) for p in _children(root) if (m := re.fullmatch(re.escape(stem) + r"-(\d+)", p.name))]
    return root / f"{stem}-{max(taken, default=0) + 1}"


@contextmanager
def claimed(stem: str, root: Path = Path("runs")) -> Iterator[Path]:
    """`next_free`, taken by an empty folder, so that two trainings that start at once get two folders.

    If the folder is still empty at the end, it goes again.
    """
    path, was_there = next_free(stem, root), root.exists()
    with disk_errors(path):
        make_folder(root)
        number = int(path.name.rpartition("-")[2])
        while True:
            path = root / f"{stem}-{number}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
        sync_folder(root)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()
            if not was_there:
                root.rmdir()


def open_run(path: Path) -> RunDir:
    """An existing run. Raises RunError with the known runs when there is none at `path`."""
    if is_run(path):
        return RunDir(path)
    if (job := path / "job.yaml").is_file():
        raise RunError(
            f"{path} isn't the folder of a run: it has a job, but nothing was trained there.",
            fix=f"tunesmith train {job} makes a run of it, in a folder of its own.",
        )
    places = [path.parent, Path("runs")] if path.parent == Path() else [path.parent]
    runs = {run.path.name: str(run.path) for place in places for run in list_runs(place)}
    near = [runs[name] for name in difflib.get_close_matches(path.name, runs, n=3, cutoff=0.5)]
    known, meant = ", ".join([*runs.values()][-10:]), f" Did you mean {' or '.join(near)}?" if near else ""
    fix = f"Runs there: {known}." if known else "See `tunesmith runs list`."
    raise RunError(f"{path} isn't the folder of a run.{meant}", fix=fix)


def is_run(path: Path) -> bool:
    """Whether a folder has the records of a training: a job.yaml alone may be a job that was never run."""
    try:
        # Only in a run's record is the job itself below the key `job`.
        record = re.search(rb"^job:", (path / "job.yaml").read_bytes(), re.MULTILINE) is not None
    except FileNotFoundError:
        return False
    except OSError:
        record = True  # who opens it will be told
    return record or any((path / name).is_file() for name in ("lock", "metrics.jsonl"))


def list_runs(root: Path = Path("runs")) -> list[RunDir]:
    """Every run below `root`, the oldest first."""
    runs = [RunDir(p) for p in _children(root) if is_run(p)]
    return sorted(runs, key=lambda run: run.job_file.stat().st_mtime)


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; empty where there is none; a half-written last line is left out.

    Raises RunError for a damaged line before the last one: what follows it would be lost without a word.
    """
    if not file.is_file():
        return []
    # A character cut in two must not keep the lines before it from being read.
    lines = [
        (number, line)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), 1)
        if line.strip()
    ]
    rows = []
    for number, line in lines:
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            rows.append(row)
        except ValueError:
            if number != lines[-1][0]:
                raise RunError(
                    f"{file}:{number}: the line is damaged.", fix="Restore the file, or take the line out."
                ) from None
    return rows


_yaml_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}.", fix="Restore it, or train again.") from None
    return content if isinstance(content, dict) else {}


def _children(root: Path) -> list[Path]:
    try:
        return [p for p in root.iterdir() if p.is_dir()]
    except OSError:
        return []
