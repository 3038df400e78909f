"""Every error a person can cause, and the exit code each one ends with.

    TunesmithError                exit 1   something failed; nothing half-written is left
    ├── UsageError                exit 2   the command was wrong; nothing was started
    │   ├── SettingsError                  a job, its settings or a combination of them
    │   ├── PlanError                      the job can't fit this machine
    │   └── MissingExtraError              the feature needs an optional package
    ├── DataError                          a file or a row of the user's data
    ├── TemplateError                      a chat template that can't be trained on safely
    ├── ModelError                         finding, reading or changing a model
    ├── RunError                           the run folder: in use, missing, damaged, disk full
    ├── TrainError                         training itself: non-finite loss, out of memory
    ├── GenerateError                      an answer could not be made
    └── ExportError                        what was exported isn't what was tuned

A message has three parts: what happened, why, and what to do. `assert` is for bugs, these are for people.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


def install_hint(extra: str) -> str:
    """How to get an extra, for people with the package and for people with a clone."""
    return f"pip install 'tunesmith[{extra}]', or in a clone: pip install -e '.[{extra}]'"


# torch on a CPU (alloc_cpu.cpp), C++ (std::bad_alloc), mmap, oneDNN, cuBLAS, MPS.
_NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "bad_alloc",
    "could not create a memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of memory",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether this is what a lack of memory looks like, on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _NO_MEMORY)


class TunesmithError(Exception):
    """An error with a cause and a remedy, fit to be shown without a traceback.

    `what` is one line; `details` lists every single problem (shown up to a limit, counted beyond it);
    `fix` says what to do.
    """

    exit_code = 1
    shown_details = 20

    def __init__(self, what: str, *, details: Sequence[str] = (), fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.details = tuple(details)
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  - {detail}" for detail in self.details[: self.shown_details]]
        if len(self.details) > self.shown_details:
            lines.append(f"  … and {len(self.details) - self.shown_details} more")
        if self.fix:
            lines.append(f"What to do: {self.fix}")
        return "\n".join(lines)


class UsageError(TunesmithError):
    """The command line or the call was wrong."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, has a wrong value, or contradicts another one."""


class PlanError(UsageError):
    """The job can't fit this machine."""


class MissingExtraError(UsageError):
    """A feature needs an optional package that isn't installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which isn't installed.",
            fix=install_hint(extra),
        )


class DataError(TunesmithError):
    """A data file or a row can't be used; `details` names each by file and line."""


class TemplateError(TunesmithError):
    """A chat template is missing, fails, or can't be trained on safely."""


class ModelError(TunesmithError):
    """A model, tokenizer or adapter can't be found, read, fitted or saved."""


class RunError(TunesmithError):
    """The run folder is in use, missing, damaged, or can't be written."""


class TrainError(TunesmithError):
    """Training can't go on."""


class GenerateError(TunesmithError):
    """An answer could not be generated."""


class ExportError(TunesmithError):
    """What was exported isn't what was tuned: nothing of it is kept."""
