"""What trains: data files read, a job planned, trained, verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunesmith import rundir
from tunesmith.data import check as data_check
from tunesmith.data.check import Dataset
from tunesmith.data.read import joined
from tunesmith.data.template import Renderer
from tunesmith.errors import RunError
from tunesmith.evaluate import curve
from tunesmith.evaluate.examine import examination
from tunesmith.evaluate.report.write import report
from tunesmith.evaluate.wanted import check_names
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import generate as answers_of
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir
from tunesmith.train import fit, resume_check
from tunesmith.train import verify as verification
from tunesmith.train.config import RESUMED_STEPS, VERIFIED_TOKENS, Job, job_from, load_job_or_run
from tunesmith.train.listener import Lines, Listener
from tunesmith.train.plan import Plan, Planner, calibrate, target_of
from tunesmith.train.resume import asked_for, choose
from tunesmith.train.run import train as train_job
from tunesmith.train.signals import AtOnce

SAMPLE_TOKENS = 64


def check(files: str | Sequence[str], *, info: str | None = None) -> Dataset:
    """Read data files and recognise their format; bad rows are listed in the result, never left out unseen.

    `info` is a LLaMA-Factory dataset_info.json; `files` are then names in it. Raises DataError for files
    that can't be read at all, all of them at once.
    """
    dataset, problems = data_check.survey([files] if isinstance(files, str) else list(files), info)
    if problems:
        raise joined(problems)
    return dataset


def train(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    listener: Listener | None = None,
    resume: bool | None = None,
    force: bool = False,
) -> RunDir:
    """Train what a job says; returns its run folder, which then holds adapter, figures and report.

    An unfinished run of the same job is gone on with, at its exact next step. `resume=True` wants one, and
    may make a finished one longer ("train.epochs=5"); `resume=False` always begins a new one. `force` goes
    on although data, tokenizer, base or settings are others, and says so.

    `job` is a YAML path, a mapping or a Job; `settings` are "key=value" words that win over it. Without a
    `listener` notes, progress and the run's folder are printed on stderr; `listener=tunesmith.Silent()` says
    nothing.
    Raises TunesmithError: SettingsError, DataError, ModelError, RunError or TrainError.
    """
    heard, asked = listener or Lines(), asked_for(job, settings)
    check_names(asked.job)
    going_on = choose(asked, resume=resume, force=force, note=heard.note)
    todo = going_on.job if going_on else asked.job
    known = going_on.run.path if going_on else todo.output and Path(todo.output)
    with nullcontext(known) if known else rundir.claimed(asked.stem) as output:
        try:
            run = train_job(
                todo, output, listener=heard, answer=_sample_answers, examine=examination, continued=going_on
            )
        except BaseException as error:
            if not isinstance(error, AtOnce | RunError):  # one wants the end, the other changed nothing
                _draw_what_there_is(RunDir(output))
            raise
    curve.write_png(run)
    report(run)
    if listener is None:
        Lines().note(f"Run: {run.path}\nReport: {run.report_file}")
    return run


def plan(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    card: str | None = None,
    memory: str | None = None,
    probe: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a training would take, before anything is downloaded or trained; `.fits` is the verdict.

    For this machine, or for a `card` by name ("4090") or `memory` ("24GB"). `probe`: run three real steps
    where the model is here, in a process of their own. Where it doesn't fit, `.fitting` has the words of a
    job that does. `job` may be a run's folder too. Raises SettingsError, DataError, ModelError.
    """
    resolved = _job(job, settings)
    check_names(resolved)
    target = target_of(resolved, card, memory)  # a card that isn't known is told before anything is counted
    note("Counting rows and a step of shapes alone …")
    planner = Planner(resolved, target)
    if planner.described.origin == "built-in table":
        note(f"The hub can't be reached: what {resolved.model} is like is taken from the built-in table.")
    made = planner.plan(resolved)
    if probe and made.fits and made.target.here and planner.described.source is not None:
        calibrate(made, planner, note)
    if not made.fits:
        made.fitting = fit.search(made, planner, note)
    return made


def verify(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    tokens: int = VERIFIED_TOKENS,
    note: Callable[[str], None] = lambda _: None,
) -> verification.Verdict:
    """Compare the gradients of a job's first rows (about `tokens`) with the naive computation in fp32.

    `.exact` is True where all fast paths agree. `job` may be a run's folder too. Raises PlanError where
    memory can't hold the model in fp32.
    """
    return verification.verify(_job(job, settings), tokens, note)


def verify_resume(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    steps: int = RESUMED_STEPS,
    note: Callable[[str], None] = lambda _: None,
) -> resume_check.Verdict:
    """Kill a real training of the job half-way through `steps` steps, go on with it, and compare.

    `.equal` is True where it ended as an uninterrupted one, byte for byte. `job` may be a run's folder too.
    """
    return resume_check.verify_resume(_job(job, settings), steps, note)


def _draw_what_there_is(run: RunDir) -> None:
    """Curve and report of a training that was stopped; what stopped it is told, whatever becomes of these."""
    if not run.metrics_file.is_file() or not run.job_file.is_file():
        return
    with suppress(Exception, KeyboardInterrupt):
        curve.write_png(run)
        report(run)


def _sample_answers(
    model: PreTrainedModel, renderer: Renderer, conversations: Sequence[Conversation]
) -> list[str]:
    """Short greedy answers, for a look while training runs."""
    sampling = Sampling.model_validate({"max_new_tokens": SAMPLE_TOKENS})
    return [answers[0].text for answers in answers_of(model, renderer, conversations, sampling)]


def _job(job: Job | Mapping[str, Any] | str | Path, settings: Sequence[str]) -> Job:
    """The job in a file, a run's folder or a mapping."""
    return load_job_or_run(Path(job), settings) if isinstance(job, str | Path) else job_from(job, settings)
