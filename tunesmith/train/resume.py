"""Which run a training goes on with, and by which job: before anything is loaded. torch isn't imported.

    RUN, RUN/job.yaml --resume      that run
    JOB --resume                    the run in its `output`, or the newest of runs/<job>-<n> that fits
    JOB                             that where it is unfinished and the job is the same; else a new run.
                                    While it is being trained that is refused; --no-resume begins another

Settings that change a run's result, or what its checkpoints hold, are refused with what differs. `--force`
goes on with the former. A run may always be saved more often, or tracked elsewhere. A finished one may be
made longer; an unfinished one only where its steps so far are those of that length (going_on.py decides).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import rundir
from tunesmith.errors import RunError, TunesmithError
from tunesmith.rundir import RunDir, is_run
from tunesmith.train.config import Job, job_from, load_job
from tunesmith.train.identity import LENGTH, LOOSE, SHAPES, Facts, changed_line, files_differ, flat_job

RUNS = Path("runs")
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Asked:
    """A job as it was asked for. `stem` names its runs; `run` is that of a given folder or job.yaml."""

    job: Job
    stem: str
    run: RunDir | None = None
    by_folder: bool = False


@dataclass(frozen=True)
class Continued:
    """A run to go on with: `job` is its own as it was resolved, with `changes` (then, now) laid over it."""

    run: RunDir
    facts: Facts
    job: Job
    changes: dict[str, tuple[Any, Any]]
    force: bool

    @property
    def other_length(self) -> bool:
        """Whether the length of the training was asked to be another."""
        return not LENGTH.isdisjoint(self.changes)

    @property
    def lengths(self) -> list[str]:
        """Changes of the length, as lines."""
        return [changed_line(name, *both) for name, both in self.changes.items() if name in LENGTH]

    @property
    def forced(self) -> list[str]:
        """Changes that only --force allows, as lines."""
        return [
            changed_line(name, *both) for name, both in self.changes.items() if name not in LOOSE | LENGTH
        ]


def asked_for(job: Job | Mapping[str, Any] | str | Path, words: Sequence[str]) -> Asked:
    """Read what was asked for: a job file, a run's folder or its job.yaml, a mapping, a Job."""
    if not isinstance(job, str | Path):
        return Asked(job_from(job, words), "run")
    path = Path(job)
    if path.is_dir():
        run = rundir.open_run(path)
        return Asked(load_job(run.job_file, list(words)), path.resolve().name, run, by_folder=True)
    resolved, stem = load_job(path, list(words)), path.stem
    folder = path.resolve().parent
    run_of_it = RunDir(folder) if path.name == "job.yaml" and is_run(folder) else None
    return Asked(resolved, folder.name or stem if stem == "job" else stem, run_of_it)


def choose(
    asked: Asked, *, resume: bool | None, force: bool, note: Callable[[str], None]
) -> Continued | None:
    """The run to go on with, or None for a new one. `resume` None: only an unfinished run of the same job.

    Raises RunError where that was asked for and there is none, where it differs in what it may not, and where
    another process trains in the job's own `output`, or a run of this very job.
    """
    if resume is False:
        return None
    if resume or asked.by_folder:
        return _wanted(asked, force)
    for run in _candidates(asked):
        if run.state() == "running" and (asked.job.output or _same(asked, run, lambda _: None)):
            raise rundir.in_use(run.path)  # here, where nothing has been loaded yet
        if run.state() == "unfinished" and (found := _same(asked, run, note)):
            anew = "another output=… starts" if asked.job.output else "--no-resume starts"
            note(f"{run.path} is an unfinished run of this very job: going on with it ({anew} anew).")
            return found
    return None


def _wanted(asked: Asked, force: bool) -> Continued:
    runs = [asked.run] if asked.run else _candidates(asked)
    if not runs:
        place = asked.job.output or f"{RUNS}/{asked.stem}-…"
        raise RunError(
            f"There is no run to go on with: {place} isn't there.",
            fix="Leave --resume out to begin one, or name the run's folder.",
        )
    found, odd = list[Continued](), list[TunesmithError]()
    for run in runs:
        try:
            found.append(_compared(asked, run, force))
        except TunesmithError as error:
            odd.append(error)
    if not found:
        raise odd[0]
    # The newest that can go on as it is; else the newest, with what keeps it from going on.
    best = next((one for one in found if not one.forced and one.run.state() != "finished"), found[0])
    if best.run.state() == "running":
        raise rundir.in_use(best.run.path)
    _check(best)
    return best


def _check(found: Continued) -> None:
    """Raise RunError for changes that aren't allowed."""
    unfit = [name for name in found.changes if name.startswith(SHAPES)]
    if found.forced and (unfit or not found.force):
        raise RunError(
            f"The job isn't the one that {found.run.path} began with.",
            details=found.forced,
            fix="Give these settings as they were, or train anew: another output=…, or --no-resume."
            + (
                f" {', '.join(unfit)} can't be forced: the checkpoint wouldn't fit."
                if unfit
                else " --force goes on with the new ones."
            ),
        )


def _candidates(asked: Asked) -> list[RunDir]:
    """Runs that the job may have been started as, the newest first."""
    if asked.job.output is not None:
        path = Path(asked.job.output)
        return [RunDir(path)] if is_run(path) and RunDir(path).job_file.is_file() else []
    pattern = re.compile(re.escape(asked.stem) + r"-(\d+)")
    numbered = [
        (int(match[1]), RunDir(path))
        for path in (RUNS.iterdir() if RUNS.is_dir() else ())
        if (match := pattern.fullmatch(path.name)) and (path / "job.yaml").is_file() and is_run(path)
    ]
    return [run for _, run in sorted(numbered, key=lambda pair: -pair[0])]


def _same(asked: Asked, run: RunDir, note: Callable[[str], None]) -> Continued | None:
    """The run, where nothing that matters has changed; what has is said where the settings are the same."""
    try:
        found = _compared(asked, run, force=False)
    except TunesmithError:
        return None  # a damaged record, or one of another version: a new run is what was asked for
    if found.other_length or found.forced:
        return None
    if changed := files_differ(found.facts):
        note(f"{run.path} is unfinished, but {', '.join(changed)} changed since: this is a new run.")
        return None
    return found


def _compared(asked: Asked, run: RunDir, force: bool) -> Continued:
    facts = run.job()
    if "examples_sha256" not in facts:
        raise RunError(
            f"{run.path} was made by an earlier version, whose trainings can't be gone on with.",
            fix=f"tunesmith train {run.job_file} repeats it from the start.",
        )
    there = Path(str(facts["folder"]))
    then, now = flat_job(facts["job"], there), flat_job(asked.job.model_dump(mode="json"), Path.cwd())
    for name in facts["chosen"]:
        if now.get(name) in (None, "auto"):
            now[name] = then[name]
    names = [*then, *(name for name in now if name not in then)]
    changes = {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}
    return Continued(run, facts, _job(run, facts, changes), changes, force)


def _job(run: RunDir, facts: Facts, changes: Mapping[str, tuple[Any, Any]]) -> Job:
    """The run's own job as it was resolved, with what was chosen by the machine as it was."""
    job = load_job(run.job_file).model_dump(mode="json")
    laid = {name: now for name, (_, now) in changes.items()}
    laid["train.compile"] = facts["compiled"]
    laid["train.dtype"] = _DTYPES[facts["dtype"]]
    return job_from(with_settings(job, laid))


def with_settings(job: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A job's mapping with dotted settings laid over it."""
    made = dict(job)
    for name, value in settings.items():
        first, dot, rest = name.partition(".")
        made[first] = with_settings(made.get(first) or {}, {rest: value}) if dot else value
    return made
