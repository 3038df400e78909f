"""A JSONL file that only grows, and knows where it stood: metrics.jsonl, samples.jsonl.

A mark is the size so far and the hash of everything up to there. Going back to one cuts off what came later,
so that a training that goes on from a checkpoint writes each line once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.disk import disk_errors, sync_file, sync_folder
from tunesmith.errors import RunError
from tunesmith.failpoints import reach

Mark = dict[str, Any]  # {"bytes": …, "sha256": …}


class Journal:
    """The end of such a file; the file appears with its first line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._size = 0
        self._hash = hashlib.sha256()

    def append(self, line: Mapping[str, Any]) -> None:
        """Append an object as a line, handed to the system. Raises RunError, with no half line left."""
        text = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with disk_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                reach(f"{self.file.stem}.append")
                with self.file.open("ab") as out:
                    out.write(text)
            except OSError:
                with suppress(OSError):
                    os.truncate(self.file, self._size)
                raise
        self._size += len(text)
        self._hash.update(text)
        reach(f"{self.file.stem}.appended")

    def mark(self) -> Mark:
        """Where the file ends now."""
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def sync(self) -> None:
        """Wait until all lines and the file's name are on the disk: before a checkpoint counts on them."""
        if self._size:
            sync_file(self.file)
            sync_folder(self.file.parent)

    def back_to(self, mark: Mark | None, *, force: bool = False) -> None:
        """Cut off what came after a mark; None is the beginning.

        Raises RunError where the lines before it aren't those that the mark was made of; with `force` they
        are taken as they are.
        """
        size = int(mark["bytes"]) if mark else 0
        content = self.file.read_bytes() if self.file.is_file() else b""
        known = hashlib.sha256(content[:size])
        if mark and (len(content) < size or known.hexdigest() != mark["sha256"]) and not force:
            raise RunError(
                f"{self.file} isn't what it was when the checkpoint was written: its first {size:,} bytes "
                "were changed or are missing.",
                fix="Restore the file; --force goes on with the lines that are there.",
            )
        with disk_errors(self.file):
            reach(f"{self.file.stem}.cut")
            if len(content) > size:
                os.truncate(self.file, size)
        self._size, self._hash = min(size, len(content)), known
