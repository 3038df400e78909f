"""Checkpoints where a model or an adapter is wanted: people of other tools give them; what to give here."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.rundir import RunDir, is_run


def check_no_checkpoint(path: Path) -> None:
    """Raise ModelError for a checkpoint of a run, or the folder of all of them: they aren't models."""
    folder = path.resolve()
    found = re.fullmatch(r"step-(\d+)", folder.name)
    checkpoints = folder.parent if found else folder
    if checkpoints.name != "checkpoints" or not is_run(checkpoints.parent):
        return
    given = path.parent.parent if found else path.parent
    run = RunDir(given if given.resolve() == checkpoints.parent else checkpoints.parent)
    if run.weights is None:
        fix = f"tunesmith train {run.path} --resume goes on from it; a finished run answers by its own name."
    else:
        fix = f"Give the run, {run.path}: it has the weights of its best step, or of its last."
        if found:
            fix += f" For a result of fewer steps, train one: train.max_steps={int(found[1])} output=…"
    what = "a checkpoint" if found else "a folder of checkpoints"
    raise ModelError(f"{path} is {what}, for a training to go on from; it isn't a model to load.", fix=fix)
