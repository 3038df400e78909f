"""Lock files, on the file systems that have locks: who holds one, and holding it.

Only EAGAIN and EACCES say that another process holds a lock (flock(2)). Anything else says that there are
none here, as on some network file systems; the work is then done without.
"""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path
from typing import IO

log = logging.getLogger("tunesmith")

_HELD = (errno.EAGAIN, errno.EACCES)


def hold(handle: IO[str], seconds: float) -> bool:
    """Lock an open file until it is closed; False if another process keeps it locked for so many seconds."""
    import fcntl

    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _HELD:
                log.warning("%s: there are no locks here; two trainings in one folder go unseen", handle.name)
                return True
            if time.monotonic() >= give_up:
                return False
            # `is_held` takes it too, for the moment in which it looks.
            time.sleep(0.02)


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of this file."""
    import fcntl

    try:
        with file.open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    return False
