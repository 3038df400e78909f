"""Experiment trackers, through `accelerate.tracking`. All are off unless the job names them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate import tracking as trackers

from tunesmith.errors import MissingExtraError, TrainError
from tunesmith.rundir import RunDir

log = logging.getLogger("tunesmith")

PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "swanlab": "swanlab",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


def check_installed(names: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker whose package isn't there, before anything is loaded."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise MissingExtraError(f"train.track: {name}", PACKAGES[name], "track")


class Tracking:
    """Sends the numbers of each metrics line to every tracker."""

    def __init__(self, started: Sequence[Any]) -> None:
        self._started = list(started)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: training figures under train/, validation figures under valid/."""
        step = int(line["step"])
        values = {
            (key.replace("valid_", "valid/") if key.startswith("valid_") else f"train/{key}"): value
            for key, value in line.items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for tracker in list(self._started):
            try:
                tracker.log(values, step=step)
            except Exception as error:  # a service that is gone must not end a training of hours
                self._started.remove(tracker)
                log.warning("%s failed and hears no more of this run: %s", tracker.name, error)


@contextmanager
def tracking(names: Sequence[str], run: RunDir, job: Mapping[str, Any]) -> Iterator[Tracking]:
    """Start the trackers, give them the job's settings, and end them however the block ends."""
    started: list[Any] = []
    if names:
        PartialState(cpu=True)
    try:
        for name in names:
            try:
                tracker = _make(name, run)
                tracker.start()
            except Exception as error:  # whatever a tracker's service raises, the cause is shown
                raise TrainError(
                    f"The tracker {name} can't start: {error}",
                    fix=f"Log in to {name}, or take it out of train.track.",
                ) from error
            started.append(tracker)
            tracker.store_init_configuration(_flat(job))
        yield Tracking(started)
    finally:
        for tracker in started:
            try:
                tracker.finish()
            except Exception as error:  # the run itself is complete
                log.warning("%s could not be closed: %s", tracker.name, error)


def _make(name: str, run: RunDir) -> Any:
    if name == "tensorboard":
        return trackers.TensorBoardTracker("tensorboard", logging_dir=str(run.path))
    if name == "wandb":
        return trackers.WandBTracker("tunesmith", name=run.path.name, dir=str(run.path))
    if name == "swanlab":
        return trackers.SwanLabTracker(
            "tunesmith", experiment_name=run.path.name, logdir=str(run.path / "swanlab")
        )
    if name == "mlflow":
        return trackers.MLflowTracker(
            "tunesmith", logging_dir=str(run.path / "mlflow"), run_name=run.path.name
        )
    return trackers.TrackioTracker("tunesmith", name=run.path.name)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `train.epochs` -> value; trackers take plain values only."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
