"""How a training that doesn't reach its end is told: in log.txt, and to the person."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tunesmith import disk
from tunesmith.errors import RunError, TrainError
from tunesmith.rundir import RunDir
from tunesmith.train.signals import Stopped

log = logging.getLogger("tunesmith")


@contextmanager
def log_file(run: RunDir, *, new: bool) -> Iterator[None]:
    """log.txt: what happened and every warning of a library, with the time; a failure with its cause.

    A new run that is interrupted before anything was measured leaves no folder.
    """
    with disk.disk_errors(run.log_file):
        handler = _LogFile(run.log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [log, logging.getLogger("py.warnings"), logging.getLogger("transformers")]
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except KeyboardInterrupt as error:
        if new and not run.metrics_file.is_file():
            run.discard()
            raise KeyboardInterrupt("Interrupted before the first step; nothing was written.") from None
        log.error("stopped: interrupted at %s", run.stopped_at()[0])
        raise type(error)(_where(run)) from None
    except BaseException as error:
        ended = isinstance(error, SystemExit)
        told = f"ended by a signal (exit code {error})" if ended else str(error) or type(error).__name__
        log.error("stopped: %s", told, exc_info=not (ended or isinstance(error, TrainError)))
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)


def stopped_by(stopped: Stopped, run: RunDir, note: Callable[[str], None]) -> BaseException:
    """What ends the process after a stop that was asked for: exit code 130 for Ctrl-C, 143 for SIGTERM."""
    if stopped.number == signal.SIGINT:
        return KeyboardInterrupt()
    note(_where(run))
    return SystemExit(128 + stopped.number)


@contextmanager
def told_in_log() -> Iterator[None]:
    """What can't be written inside is told in the log, where more depends on what comes after it."""
    try:
        yield
    except RunError as error:
        log.warning("%s", error.what)


def _where(run: RunDir) -> str:
    step, left = run.stopped_at()
    return (
        f"Interrupted at {step}. {run.path} keeps its records; {left}.\n"
        f"Next:   tunesmith train {run.path} --resume     (goes on; so does the same command again)\n"
        f"        tunesmith runs show {run.path}"
    )


class _LogFile(logging.FileHandler):
    """A log that a full disk or memory doesn't make loud: what can't be written is left out."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError | MemoryError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # what is still in Python's buffer
            super().close()
