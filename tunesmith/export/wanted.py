"""What can be said before anything is loaded: is the run finished, is the place free? No torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tunesmith.errors import MissingExtraError, RunError, UsageError
from tunesmith.export.config import (
    IN_LLAMACPP,
    Request,
    check_checkpoint,
    check_dtype,
    check_target,
    check_type,
)
from tunesmith.export.place import Place, checked_place
from tunesmith.rundir import RunDir, is_run, open_run


def check_asked(request: Request) -> Place:
    """Where the export goes, after everything that can be wrong without reading a model was looked at.

    Raises UsageError or SettingsError for options, RunError for an unfinished run or an output that's there.
    """
    check_target(request.to)
    check_dtype(request.dtype)
    check_type(request)
    check_checkpoint(request.checkpoint)
    if request.to in IN_LLAMACPP and importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(f"--to {request.to} (llama.cpp, for the check)", "xllamacpp", "gguf")
    if request.to == "adapter" and request.dtype != "auto":
        raise UsageError(
            "--dtype goes with merged weights; an adapter is taken as it was saved.", fix="Leave it out."
        )
    folder = Path(request.model).expanduser()
    if (folder / "job.yaml").is_file() or request.checkpoint is not None:
        run = open_run(folder)
        if run.weights is None and (request.checkpoint is None or not run.saved_steps()):
            raise unfinished(run, request.to)
    return checked_place(_output(request, folder), force=request.force)


def unfinished(run: RunDir, to: str) -> RunError:
    """What is said of a run without final weights: what can be exported all the same."""
    steps = [int(folder.name.removeprefix("step-")) for folder in run.saved_steps()]
    running = run.state() == "running"
    step, left = run.stopped_at()
    state = "is still being trained" if running else "isn't finished"
    go_on = (
        "wait until it's finished" if running else f"`tunesmith train {run.path} --resume` goes on with it"
    )
    if not steps:
        return RunError(
            f"{run.path} {state} ({step}) and has no checkpoint: there is nothing to export yet.",
            fix=f"{go_on.capitalize()}." if running else f"{go_on}.",
        )
    return RunError(
        f"{run.path} {state}: {step}; {left}.",
        details=[f"it has a checkpoint of step {number}" for number in steps],
        fix=f"`tunesmith export {run.path} --to {to} --checkpoint last` exports the newest; {go_on}.",
    )


def _output(request: Request, folder: Path) -> Path:
    if request.output is not None:
        return request.output.expanduser()
    if is_run(folder):
        return folder / "export" / request.to
    if not folder.exists() and len(folder.parts) > 1:
        open_run(folder)  # says which runs there are
    raise UsageError(
        f"{request.model} isn't a run: it isn't known where the export should go.",
        fix="Give --output FOLDER.",
    )
