"""Experiment trackers, through `accelerate.tracking`. All are off unless the job names them.

    tracker       where the figures are                                without network
    tensorboard   RUN/tensorboard                                      always
    wandb         wandb.ai, and RUN/wandb                              WANDB_MODE=offline
    swanlab       swanlab.cn, and RUN/swanlab                          SWANLAB_MODE=offline
    mlflow        mlflow.db here, or the server MLFLOW_TRACKING_URI    unless that server is elsewhere
    trackio       trackio's own folder, TRACKIO_DIR                    unless TRACKIO_SPACE_ID is set

A tracker never asks a question (a training left alone would wait for the answer for ever), never writes to
stdout (results are there) and is told no secret.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate import tracking as trackers

from tunesmith.errors import MissingExtraError, TrainError
from tunesmith.redact import short_paths, without_secrets
from tunesmith.rundir import RunDir
from tunesmith.train.signals import Stopped

log = logging.getLogger("tunesmith")

Ending = Literal["finished", "failed", "interrupted"]

PROJECT = "tunesmith"
PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "swanlab": "swanlab",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
_HELP = {
    "tensorboard": "Check that the run folder can be written",
    "wandb": "Log in with `wandb login`, keep everything on this machine with WANDB_MODE=offline",
    "swanlab": "Log in with `swanlab login`, keep everything on this machine with SWANLAB_MODE=offline",
    "mlflow": "Check MLFLOW_TRACKING_URI (unset: the file mlflow.db in this folder)",
    "trackio": "Check TRACKIO_SPACE_ID and TRACKIO_SERVER_URL (unset: this machine)",
}
# How each of them calls a run that didn't reach its end.
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_SWANLAB_STATE = {"finished": "success", "failed": "crashed", "interrupted": "aborted"}
_WANDB_EXIT_CODE = {"finished": 0, "failed": 1, "interrupted": 130}


def check_ready(names: Sequence[str]) -> None:
    """Raise what can be known before anything is loaded.

    MissingExtraError for a package that isn't there, TrainError where wandb has no credentials.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise MissingExtraError(f"train.track: {name}", PACKAGES[name], "track")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online":
        with _failing("wandb"), _left_alone():
            importlib.import_module("wandb").login()


@dataclass(frozen=True)
class Again:
    """A run that goes on after a step: by which each tracker knows it."""

    ids: Mapping[str, str]
    step: int


class Tracking:
    """Sends the numbers of each metrics line to every tracker."""

    def __init__(self, started: Sequence[Any], ids: Mapping[str, str] | None = None) -> None:
        self._started = list(started)
        self.ids = dict(ids or {})  # by which a tracker finds this run again

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: training figures under train/, validation figures under valid/, those of
        answers under answers/.
        """
        step = int(line["step"])
        place = "answers/" if "metrics" in line else "train/"
        values = {
            (key.replace("valid_", "valid/") if key.startswith("valid_") else f"{place}{key}"): value
            for key, value in line.items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for tracker in list(self._started):
            try:
                with _left_alone():
                    tracker.log(values, step=step)
            except Exception as error:  # a service that is gone must not end a training of hours
                self._started.remove(tracker)
                log.warning("%s failed and hears no more of this run: %s", tracker.name, error)


@contextmanager
def tracking(
    names: Sequence[str], run: RunDir, job: Mapping[str, Any], again: Again | None = None
) -> Iterator[Tracking]:
    """Start the trackers with the job's settings, and end them however the block ends.

    `again`: of a run that goes on, which each tracker then continues. Raises TrainError if one can't start;
    the folder of a new run, in which nothing is yet, is then removed.
    """
    started: list[Any] = []
    ending: Ending = "failed"
    if names:
        PartialState(cpu=True)
    try:
        try:
            for name in names:
                with _failing(name), _left_alone(), _own_interrupt():
                    _start(name, run, _flat(short_paths(without_secrets(job))), started, again)
        except BaseException:
            if again is None:
                run.discard()
            raise
        yield Tracking(started, {tracker.name: _id(tracker) for tracker in started})
        ending = "finished"
    except (KeyboardInterrupt, SystemExit, Stopped):
        ending = "interrupted"
        raise
    finally:
        for tracker in started:
            try:
                with _left_alone():
                    _finish(tracker, ending)
            except Exception as error:  # the run itself is complete
                log.warning("%s could not be closed: %s", tracker.name, error)


def _start(
    name: str, run: RunDir, config: Mapping[str, Any], started: list[Any], again: Again | None
) -> None:
    """Start one tracker, tell it the settings, and add it to those that have to be ended."""
    known = again.ids.get(name) if again else None
    more: dict[str, Any] = {}
    if known is not None and again is not None:
        ways: dict[str, dict[str, Any]] = {
            "wandb": {"id": known, "resume": "allow"},
            "swanlab": {"id": known, "resume": "allow"},
            "trackio": {"resume": "allow"},
            "tensorboard": {"purge_step": again.step + 1},  # what came after the checkpoint comes again
        }
        more = ways.get(name, {})
    if name == "mlflow":
        # Its own word for a figure sent to its makers; nobody asked for that.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The terminal's text isn't theirs: log.txt has what matters, and answers may be private.
    if name == "tensorboard":
        tracker = trackers.TensorBoardTracker("tensorboard", logging_dir=str(run.path), **more)
    elif name == "wandb":
        tracker = trackers.WandBTracker(
            PROJECT,
            name=run.path.name,
            dir=str(run.path),
            config=config,
            settings={"console": "off"},
            **more,
        )
    elif name == "swanlab":
        swanlab = importlib.import_module("swanlab")
        tracker = trackers.SwanLabTracker(
            PROJECT,
            name=run.path.name,
            log_dir=_made(run.path / "swanlab"),
            config=config,
            settings=swanlab.Settings(terminal=swanlab.Settings.Terminal(proxy_type="none")),
            **more,
        )
    elif name == "mlflow":
        tracker = trackers.MLflowTracker(PROJECT, run_name=run.path.name, run_id=known)
    else:
        tracker = trackers.TrackioTracker(PROJECT, name=run.path.name, config=config, **more)
    tracker.start()
    started.append(tracker)
    if known is None and name in (
        "tensorboard",
        "mlflow",
    ):  # the others have it; accelerate would add a setting of its own
        tracker.store_init_configuration(config)


def _id(tracker: Any) -> str:
    """By what a tracker's library knows its run; tensorboard and trackio go by the folder's name."""
    if tracker.name == "mlflow":
        return str(tracker.active_run.info.run_id)
    return str(tracker.run.id) if tracker.name in ("wandb", "swanlab") else ""


def _finish(tracker: Any, ending: Ending) -> None:
    """End one tracker, with its word for how the run ended."""
    if tracker.name == "wandb":
        tracker.run.finish(exit_code=_WANDB_EXIT_CODE[ending])
    elif tracker.name == "swanlab":
        error = "see log.txt in the run folder" if ending == "failed" else None
        tracker.run.finish(state=_SWANLAB_STATE[ending], error=error)
    elif tracker.name == "mlflow":
        importlib.import_module("mlflow").end_run(_MLFLOW_STATUS[ending])
    elif tracker.name == "trackio":
        importlib.import_module("trackio").finish()  # the run's own would be done again when Python ends
    else:
        tracker.finish()


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """Whatever a tracker's library raises, as an error with its cause and a remedy."""
    try:
        yield
    except Exception as error:
        raise TrainError(
            f"The tracker {name} can't start: {str(error).strip() or type(error).__name__}",
            fix=f"{_HELP[name]}, or take {name} out of train.track.",
        ) from error


@contextmanager
def _left_alone() -> Iterator[None]:
    """No terminal to ask at, and what is printed goes to stderr."""
    before = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing, redirect_stdout(sys.stderr):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ctrl-C stays ours: swanlab would end its run in the middle of a step, and print on stdout."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _made(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `train.epochs` -> value; trackers take plain values only."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
