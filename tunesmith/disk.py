"""Files and folders that are there whole or not at all, whatever happens in between; disk errors in words.

write to a hidden name beside the target -> fsync -> rename -> fsync the folder that holds it
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.failpoints import reach


def write_atomic(file: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never a half."""
    with disk_errors(file):
        make_folder(file.parent)
        temporary = name_beside(file)
        try:
            with temporary.open("x", encoding="utf-8") as out:
                reach("file.write")
                out.write(text)
                out.flush()
                reach("file.fsync")
                os.fsync(out.fileno())
            reach("file.rename")
            temporary.replace(file)
            sync_folder(file.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(file: Path, content: Any) -> None:
    """Write an object as readable JSON, UTF-8, atomically."""
    write_atomic(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def new_folder(
    target: Path, points: str = "folder", *, replace: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` when the block ends well, and vanishes otherwise.

    Its files are on the disk before it has its name. `points` names the fail points on the way. Only an
    empty folder may be at `target`; with `replace`, any that it doesn't raise for: that one stays until then,
    and is removed.
    """
    with disk_errors(target):
        make_folder(target.parent)
        temporary = name_beside(target)
        temporary.mkdir()
        try:
            reach(f"{points}.begin")
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    reach(f"{points}.fsync")
                    sync_file(file)
                else:
                    sync_folder(file)
            reach(f"{points}.fsync-folder")
            sync_folder(temporary)
            if replace is None and (target.is_symlink() or target.exists()) and not _is_empty(target):
                raise RunError(f"{target} is there already.", fix="Move it away, or give another folder.")
            reach(f"{points}.rename")
            _put_in_place(temporary, target, replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        reach(f"{points}.fsync-parent")
        sync_folder(target.parent)


def _put_in_place(temporary: Path, target: Path, replace: Callable[[Path], None] | None) -> None:
    """Give a folder its name; one that has it loses it first, and gets it back if that fails."""
    if replace is None or not target.exists():
        temporary.rename(target)  # the system refuses it where files have appeared
        return
    replace(target)
    aside = name_beside(target)
    target.rename(aside)
    try:
        replace(aside)  # nothing can come into it any more
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not target.is_symlink() and not any(target.iterdir())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that aren't there; their names are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def sync_file(file: Path) -> None:
    """Wait until a file's content is on the disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems know no fsync of folders; they have nothing to wait for.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether this is a hidden beginning (see `name_beside`), which a process leaves when it is killed."""
    return re.fullmatch(r"\..+-[0-9a-f]{12}(\.\w+)?", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_leftover(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def free_space(path: Path) -> int:
    """Bytes that may still be written where `path` is or will be."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def name_beside(target: Path) -> Path:
    """A hidden name that nothing has, in the same folder. What is made there obeys the person's umask."""
    return target.with_name(f".{target.name}-{secrets.token_hex(6)}{target.suffix}")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's write errors into one message of cause and remedy."""
    try:
        yield
    except Exception as error:
        if (number := _system_error(error)) is None:
            raise
        unknown = os.strerror(number) if number else str(error)
        why, fix = _WRITE_ERRORS.get(number, (unknown, "Check the disk and the path."))
        raise RunError(f"{path} can't be written: {why}.", fix=fix) from error


_ANOTHER_DISK = "Free some space, or give a folder on another disk."
_OWN_FOLDER = "Give a folder that you may write to."
_WRITE_ERRORS = {
    errno.ENOSPC: ("the disk is full", _ANOTHER_DISK),
    errno.EDQUOT: ("your disk quota is used up", _ANOTHER_DISK),
    errno.EFBIG: ("the file would be larger than the limit allowed here", "Raise the limit (ulimit -f)."),
    errno.EACCES: ("there is no permission to write", _OWN_FOLDER),
    errno.EPERM: ("there is no permission to write", _OWN_FOLDER),
    errno.EROFS: ("the file system is read-only", "Give a folder on another disk."),
    errno.ENOTDIR: ("a part of the path is a file", "Give another path."),
    errno.ENOTEMPTY: ("files have appeared there", "Give another path."),
    errno.EEXIST: ("a file of this name is there", "Give another path."),
}


def _system_error(error: Exception) -> int | None:
    """The system's error number, 0 where an OSError has none. Of libraries in Rust it's in the message."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
