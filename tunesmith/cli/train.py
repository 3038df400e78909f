"""`tunesmith train JOB.yaml [key=value …]`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import tunesmith  # its functions import torch, seconds, when they are first called
from tunesmith.cli.console import JobSettings, err, json_option, out, print_json
from tunesmith.cli.progress import TrainingProgress
from tunesmith.cli.settings_list import show_settings
from tunesmith.errors import SettingsError, UsageError
from tunesmith.evaluate import curve
from tunesmith.evaluate.wanted import check_names
from tunesmith.settings import known_keys
from tunesmith.train.config import Job
from tunesmith.train.resume import asked_for, choose

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith train examples/tang/job.yaml
  tunesmith train job.yaml train.epochs=3 adapter.rank=8
  tunesmith train job.yaml model=my-models/Qwen3-0.6B output=runs/qwen
  tunesmith train job.yaml --resume           go on with the run that was stopped
  tunesmith train runs/qwen train.epochs=5 --resume   make a run longer
  tunesmith train --settings                  every setting with its default
  tunesmith train --settings warmup           those about a word
"""


# Unknown options come as words, so that `--epochs 3` can be answered with how it is written here.
@app.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
def train(
    job: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB.yaml|RUN", help="The job file, or a run to go on with.", show_default=False
        ),
    ] = None,
    settings: JobSettings = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting, or those about a word, and end.")
    ] = False,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with a run that was stopped, or make it longer; or always begin a new one.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although data, model or settings changed.")
    ] = False,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Train what a job file describes, and leave everything in a run folder.

    The same command again goes on with an unfinished run.
    """
    if list_settings:
        show_settings(" ".join(map(str, [*([job] if job else []), *(settings or [])])))
        return
    if job is None:
        raise UsageError("A job file is missing.", fix="Write tunesmith train JOB.yaml; --help has examples.")
    _refuse_options(settings or [])
    # A mistake in it, and a run that can't go on, are told before torch is imported: seconds.
    asked = asked_for(job, settings or [])
    check_names(asked.job)
    choose(asked, resume=resume, force=force, note=lambda _: None)
    with TrainingProgress(err) as progress:
        run = tunesmith.train(job, *(settings or []), listener=progress, resume=resume, force=force)
    summary = tunesmith.summary(run)
    if as_json:
        print_json(summary)
        return
    err.print(curve.terminal(run))
    losses = summary["valid_loss"]
    if losses["before"] is not None and losses["after"] is not None:
        err.print(
            f"Validation loss {losses['before']:.3f} before this training, {losses['after']:.3f} after.",
            style="bold",
        )
        if losses["after"] > losses["before"]:
            err.print(
                "On the validation rows the result is worse than before this training. Often "
                "train.learning_rate is too high, or these rows are of another kind than those trained on.",
                style="bold red",
            )
    for name, score in summary["scores"].items():
        before = "" if score["before"] is None else f"{score['before']:.3f} before this training, "
        err.print(f"{name} {before}{score['after']:.3f} after (n = {score['n']}).", style="bold")
    err.print(f"Report: {run.report_file}")
    name = shlex.quote(str(run.path))
    err.print(f"Next:   tunesmith chat {name}")
    err.print(f"        tunesmith compare {name} --data FILE     (before and after, on rows with answers)")
    err.print(
        f"        tunesmith export {name} --to gguf        (take it away; serve answers other programs)"
    )
    out.print(run.path)


def _refuse_options(words: list[str]) -> None:
    for word in words:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            known = [key for key in known_keys(Job) if key.rpartition(".")[2] == name]
            meant = (
                f"Write {known[0]}=VALUE."
                if known
                else "Write key=value; `tunesmith train --settings` lists every setting."
            )
            raise SettingsError(f"{word} isn't an option: settings are words of key=value.", fix=meant)
