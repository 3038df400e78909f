"""Faults of the system: calls that fail or kill (faulty.c), limits, and what a process says about them."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.warm.ending import AT_END
from tunesmith import disk
from tunesmith.train import checkpoint

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


# What follows is called in the child, before the command (tests/warm/server.py).


def arm(folder: str, kinds: int, at: int, action: int, forever: bool, counted: str) -> None:
    """Let the `at`th call of these kinds below a folder fail with errno `action`, or kill; 0: only count.

    At its end the process writes into `counted` how many calls there were.
    """
    library = ctypes.CDLL(None)
    library.faults_count.restype = ctypes.c_long
    library.faults_arm(folder.encode(), kinds, ctypes.c_long(at), action, int(forever))
    AT_END.append(lambda: Path(counted).write_text(str(library.faults_count()), encoding="utf-8"))


def limit_file_size(size: int) -> None:
    """No file grows beyond so many bytes (RLIMIT_FSIZE); what would be a signal is an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Let a process of root stop at the permissions of files, as all others do (Linux: capset)."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert library.capget(version, sets) == 0
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert library.capset(version, sets) == 0


def limit_memory(more: int) -> None:
    """The process may take so many bytes more than it has now (RLIMIT_AS)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def set_variable(name: str, value: str) -> None:
    """Set a variable of the environment."""
    os.environ[name] = value


def hang(point: str) -> None:
    """Wait for ever at a fail point of checkpoints, as on a disk that hangs."""
    reach = checkpoint.reach

    def wait(name: str) -> None:
        reach(name)
        while name == point:
            time.sleep(1)

    for module in (checkpoint, disk):
        module.reach = wait  # type: ignore[attr-defined]


def deaf_reader(reader: str) -> None:
    """stderr is a full pipe, and its reader a process that sleeps; its id stands in the file `reader`."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        signal.pause()
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    Path(reader).write_text(str(pid), encoding="utf-8")
