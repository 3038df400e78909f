"""The public functions: what the command line calls, and what `import tunesmith` offers.

    check      read data files and say what is in them
    train      a job -> a run folder
    runs, open_run, summary    look at run folders
    load       a model or a run that answers: model.chat(…), model.stream(…), model.complete(…)
    generate   answers for every prompt of a file
    evaluate   figures of one model on rows with answers
    compare    figures of two, row by row
    report     write a run's report.html again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunesmith import rundir
from tunesmith.data import check as data_check
from tunesmith.data.check import Dataset
from tunesmith.data.config import DataFile
from tunesmith.data.template import Renderer
from tunesmith.evaluate import curve
from tunesmith.evaluate.report import write_report
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import generate as answer_all
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir, open_run
from tunesmith.settings import merge, parse_overrides
from tunesmith.train.config import Job, job_from, load_job
from tunesmith.train.listener import Listener
from tunesmith.train.run import default_output
from tunesmith.train.run import train as train_job

SAMPLE_TOKENS = 64


def check(files: str | Sequence[str], *, info: str | None = None) -> Dataset:
    """Read data files and recognise their format; nothing is dropped, bad rows are listed in the result.

    `info` is a LLaMA-Factory dataset_info.json; `files` are then names in it. Raises DataError.
    """
    names = [files] if isinstance(files, str) else files
    return data_check.load([DataFile(path=name) for name in names], info, bad_rows="drop")


def train(
    job: Job | Mapping[str, Any] | str | Path, *settings: str, listener: Listener | None = None
) -> RunDir:
    """Train what a job says; returns its run folder, which then holds adapter, figures and report.

    `job` is a YAML path, a mapping or a Job; `settings` are "key=value" words that win over it.
    Raises TunesmithError: SettingsError, DataError, ModelError, RunError or TrainError.
    """
    if isinstance(job, str | Path):
        resolved, stem = load_job(Path(job), settings), Path(job).stem
        stem = Path(job).resolve().parent.name if stem == "job" else stem
    else:
        content = job.model_dump() if isinstance(job, Job) else job
        resolved, stem = job_from(merge(content, parse_overrides(settings))), "run"
    run = train_job(resolved, default_output(resolved, stem), listener=listener, answer=_sample_answers)
    curve.write_png(run)
    report(run)
    return run


def runs(root: str | Path = "runs") -> list[RunDir]:
    """Every run below a folder, the oldest first."""
    return rundir.list_runs(Path(root))


def report(run: RunDir | str | Path) -> Path:
    """Write the run's report.html from what the folder holds now; returns its path."""
    return write_report(run if isinstance(run, RunDir) else open_run(Path(run)))


def summary(run: RunDir) -> dict[str, Any]:
    """The main figures of a run: steps, tokens, seconds, validation loss before and after."""
    lines = run.metrics()
    steps = [line for line in lines if "loss" in line]
    losses = [(line["valid_loss"], line["step"]) for line in lines if "valid_loss" in line]
    after = min((x for x in losses if x[1] > 0), default=(None, None))
    return {
        "run": str(run.path),
        "state": run.state(),
        "steps": steps[-1]["step"] if steps else 0,
        "seconds": steps[-1]["seconds"] if steps else 0.0,
        "tokens": sum(line["tokens"] for line in steps),
        "label_tokens": sum(line["label_tokens"] for line in steps),
        "valid_loss": {
            "before": next((loss for loss, step in losses if step == 0), None),
            "after": after[0],
            "step": after[1],
        },
        "weights": str(run.weights) if run.weights else None,
        "report": str(run.report_file),
    }


def _sample_answers(
    model: PreTrainedModel, renderer: Renderer, conversations: Sequence[Conversation]
) -> list[str]:
    """Short greedy answers, for a look while training runs."""
    sampling = Sampling.model_validate({"max_new_tokens": SAMPLE_TOKENS})
    return [answers[0].text for answers in answer_all(model, renderer, conversations, sampling)]
