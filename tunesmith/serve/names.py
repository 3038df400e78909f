"""Names of models and runs, looked at before anything heavy is imported: a mistake is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import RunError, UsageError
from tunesmith.infer.endpoint import is_endpoint
from tunesmith.rundir import is_run, open_run


def check_served(names: Sequence[str]) -> None:
    """Raise UsageError or RunError for names that can't be served, as far as folders tell."""
    if not names:
        raise UsageError(
            "There is nothing to serve.", fix="Name a model or runs: tunesmith serve runs/tang-1"
        )
    for name in names:
        path = Path(name).expanduser()
        if is_endpoint(name):
            raise UsageError(
                f"{name} is served already, by whoever is there.",
                fix="Give clients that address; tunesmith serve takes models and runs of this machine.",
            )
        if path.is_dir():
            if is_run(path):
                _check_finished(path)
        elif not path.exists() and _means_folder(name, path):
            open_run(path)


def _check_finished(path: Path) -> None:
    run = open_run(path)
    if run.weights is None:
        running = run.state() == "running"
        raise RunError(
            f"{path} is still being trained." if running else f"{path} has no final weights.",
            fix="Wait until it's finished, or serve its base model."
            if running
            else f"`tunesmith train {path} --resume` goes on with it; `tunesmith runs list` shows others.",
        )


def _means_folder(name: str, path: Path) -> bool:
    """Whether a name is meant as a folder: hub ids have one slash, and no folder before it."""
    return name.startswith((".", "/", "~", "runs/")) or ("/" in name and path.parent.is_dir())
