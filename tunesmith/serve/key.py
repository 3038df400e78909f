"""The key that requests carry: a file that its owner alone can read, new at each start or kept."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.disk import disk_errors, make_folder, name_beside
from tunesmith.errors import UsageError
from tunesmith.places import home

SHORTEST = 16  # characters of a key that a person chose


def kept_key(file: Path) -> str:
    """The key in a file, which is made, with a new one, where it's missing.

    Raises UsageError for a file that others may read, or that holds no key.
    """
    with disk_errors(file):
        if not file.exists():
            key = new_key()
            _write(file, key)
            return key
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise UsageError(
                f"{file} holds the key, and others on this machine may read it.",
                fix=f"Make it yours alone: chmod 600 {file}",
            )
        key = file.read_text(encoding="utf-8", errors="replace").strip()
    if len(key) < SHORTEST or not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            f"{file} doesn't hold a key.",
            fix=f"It takes {SHORTEST} or more letters, digits or signs on one line. Without the file, "
            "--token-file makes a new one.",
        )
    return key


@contextmanager
def passing_key(key: str, address: str, port: int) -> Iterator[Path]:
    """A file with the key of this start, which is removed at its end unless another start has it by then."""
    # The same port of another address may be another server's. No colons, for the sake of file systems.
    file = home() / "serve" / f"{address.replace(':', '-')}-{port}.key"
    with disk_errors(file):
        make_folder(file.parent)
        file.unlink(missing_ok=True)
        _write(file, key)
    try:
        yield file
    finally:
        with suppress(OSError):
            if file.read_text(encoding="utf-8").strip() == key:
                file.unlink()


def new_key() -> str:
    """A random key, with the prefix that some clients ask for."""
    return f"sk-{secrets.token_urlsafe(24)}"


def _write(file: Path, key: str) -> None:
    make_folder(file.parent)
    temporary = name_beside(file)
    try:
        # Never readable to others, not even before its content is there.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(key + "\n")
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
