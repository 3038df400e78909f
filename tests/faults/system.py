"""Faults of the system: calls that fail or kill (faulty.c), limits, and what a process says about them."""

from __future__ import annotations

import ctypes
import resource
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty.c")
WRITE, SYNC, RENAME, REMOVE, CREATE, TRUNCATE = 1, 2, 4, 8, 16, 32
KINDS = {
    "write": WRITE, "fsync": SYNC, "rename": RENAME, "remove": REMOVE, "create": CREATE, "truncate": TRUNCATE,
}  # fmt: skip
ANY = sum(KINDS.values())
KILL_BEFORE, KILL_AFTER = -1, -2


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile faulty.c into a folder; returns the library for LD_PRELOAD."""
    library = folder / "faulty.so"
    command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


# What follows is called in the child, before the command (warm.py).


def arm(folder: str, kinds: int, at: int, action: int, forever: bool = False) -> None:
    """Let the `at`th call of these kinds below a folder fail with errno `action`, or kill; 0: only count."""
    _library().faults_arm(folder.encode(), kinds, ctypes.c_long(at), action, int(forever))


def counted() -> int:
    """Calls since `arm`."""
    return int(_library().faults_count())


def limit_file_size(size: int) -> None:
    """No file grows beyond so many bytes (RLIMIT_FSIZE); what would be a signal is an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.faults_count.restype = ctypes.c_long
    return library
