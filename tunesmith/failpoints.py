"""Named places where a test may let the disk fail, or kill the process: what must hold anywhere, holds there.

    TUNESMITH_FAIL_AT=checkpoint.rename             SIGKILL where this point is reached
    TUNESMITH_FAIL_AT=checkpoint.write:3            … for the third time
    TUNESMITH_FAIL_AT=metrics.append:5=ENOSPC       an OSError there instead
    TUNESMITH_FAIL_AT=checkpoint.fsync:2+=EIO       from the second time on
    TUNESMITH_FAIL_AT='*:37'                        the 37th point of any name; fnmatch's wildcards

For tests alone: without the variable nothing happens.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import signal
import threading
from collections import Counter
from typing import NoReturn

VARIABLE = "TUNESMITH_FAIL_AT"
_FORM = re.compile(r"(?P<name>[^:=]+)(?::(?P<at>\d+)(?P<on>\+?))?(?:=(?P<error>[A-Z]+))?")

_matched: Counter[str] = Counter()
_lock = threading.Lock()


def reach(name: str) -> None:
    """Pass a point; dies or raises OSError where TUNESMITH_FAIL_AT says so."""
    if not (wanted := os.environ.get(VARIABLE)):
        return
    form = _FORM.fullmatch(wanted)
    assert form is not None, f"{VARIABLE}={wanted} isn't NAME[:N[+]][=ERRNO]"
    if not fnmatch.fnmatchcase(name, form["name"]):
        return
    with _lock:
        _matched[wanted] += 1
        count, at = _matched[wanted], int(form["at"] or 1)
    if count == at or (form["on"] and count > at):
        _fail(name, form["error"])


def _fail(name: str, error: str | None) -> None:
    if error is None:
        _die()
    number = getattr(errno, error)
    raise OSError(number, os.strerror(number), name)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL can't be survived")
