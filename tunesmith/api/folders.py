"""Run folders: found, summed up, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith import rundir
from tunesmith.evaluate import history
from tunesmith.rundir import RunDir


def open_run(path: str | Path) -> RunDir:
    """The run in a folder. Raises RunError with the runs nearby if there is none."""
    return rundir.open_run(Path(path))


def runs(root: str | Path = "runs") -> list[RunDir]:
    """Every run below a folder, the oldest first."""
    return rundir.list_runs(Path(root))


def summary(run: RunDir) -> dict[str, Any]:
    """The main figures of a run: steps, tokens, seconds, validation loss and scores before and after, and by
    what the step was chosen whose weights are kept.
    """
    lines, past = run.metrics(), history.read(run)
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
        "kept": {"step": past.chosen.step, "by": past.by, "value": past.chosen.value}
        if past.chosen
        else None,
        "scores": {
            name: {"before": before.value if before else None, "after": kept.value, "n": past.answers}
            for name, (before, kept) in past.changes.items()
        },
        "weights": str(run.weights) if run.weights else None,
        "report": str(run.report_file),
    }


def name_of(model: str | Path | RunDir) -> str:
    """What a model is called where names are wanted: a run by its folder."""
    return str(model.path if isinstance(model, RunDir) else model)
