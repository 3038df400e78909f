"""Where an export goes, and what may be replaced there: an earlier export, and nothing else. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.rundir import is_run

VERIFICATION, CARD = "verification.json", "README.md"
KIND = "tunesmith export verification"


@dataclass(frozen=True)
class Place:
    """The folder of an export; `replace` where an earlier one is there, which is to go."""

    path: Path
    replace: bool = False


def checked_place(output: Path, *, force: bool) -> Place:
    """The place that was asked for. Raises RunError where nothing may be written, or something is there."""
    if output.name in ("", ".."):
        output = output.resolve()
    if output.is_symlink():
        raise RunError(f"{output} is a symbolic link.", fix="Give the folder itself with --output.")
    real, here = output.resolve(), Path.cwd().resolve()
    if real == here or real in here.parents:
        raise RunError(
            f"{output} is the folder that you are in, or one above it.",
            fix="Give a new folder with --output.",
        )
    for folder in (real, *real.parents):
        if folder.is_dir() and is_run(folder) and not _among_exports(real, folder):
            raise RunError(
                f"{output} is among the files of the run {folder.name}.",
                fix=f"In the folder of a run, exports go into {folder / 'export'}/NAME; or give a folder "
                "elsewhere with --output.",
            )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return Place(output)
    check_replaceable(output)
    if not force:
        raise RunError(
            f"{output} is there already.", fix="--force replaces it; --output takes another folder."
        )
    return Place(output, replace=True)


def check_replaceable(folder: Path) -> None:
    """Raise RunError where a folder isn't an export, or holds more than the export wrote."""
    record = _record(folder)
    if record is None:
        raise RunError(
            f"{folder} is there already, and isn't an export.", fix="Give another folder with --output."
        )
    if foreign := _foreign(folder, record.get("files") or ()):
        raise RunError(
            f"{folder} holds what no export wrote: {', '.join(foreign[:5])}"
            + (f" and {len(foreign) - 5} more." if len(foreign) > 5 else "."),
            fix="Move that away first, or give another folder with --output.",
        )


def check_apart(output: Path, parts: Iterable[Path]) -> None:
    """Raise RunError where an export would lie in what it is made of, or around it."""
    real = output.resolve()
    for part in parts:
        other = part.resolve()
        if real == other or real in other.parents or other in real.parents:
            raise RunError(
                f"{output} would take the place of what is exported, or lie in it: {other}.",
                fix="Give another folder with --output.",
            )


def files_of(folder: Path) -> list[str]:
    """The names of the files in a folder and below, with `/`."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _among_exports(path: Path, run: Path) -> bool:
    inside = path.relative_to(run).parts
    return len(inside) > 1 and inside[0] == "export"


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / VERIFICATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == KIND else None


def _foreign(folder: Path, written: Iterable[str]) -> list[str]:
    """What lies in an export's folder and isn't among `written`, folders without any of it included."""
    names = {VERIFICATION, CARD, *map(str, written)}
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        own_folder = path.is_dir() and name in folders
        if path.is_symlink() or not (own_folder or (path.is_file() and name in names)):
            found.append(name)
    return found
