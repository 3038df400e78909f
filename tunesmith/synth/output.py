"""The files of an output: rows by part, where they come from, what was rejected, the report.

rows.jsonl            training rows
rows.valid.jsonl      rows of sections that training doesn't see; rows.test.jsonl likewise
rows.recall.jsonl     rows on trained passages that are kept out of training
rows.sources.jsonl    of each row: chunk, file, offsets, models, scores
rows.rejected.jsonl   chunks and rows that were rejected, with the reason
rows.report.json      the account, documents, prompts, calls, cost
rows.calls.sqlite     every call
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.disk import disk_errors, free_space, is_leftover, write_atomic, write_json
from tunesmith.errors import RunError
from tunesmith.failpoints import reach
from tunesmith.synth.account import PARTS
from tunesmith.synth.ledger import Ledger
from tunesmith.synth.make import NOT_ASKED, Made
from tunesmith.synth.prepare import Prepared
from tunesmith.synth.rows import rejected_chunk
from tunesmith.words import size


def file_for(output: Path, name: str, ending: str = ".jsonl") -> Path:
    """`rows.jsonl` and `valid` -> `rows.valid.jsonl`; `train` is the output itself."""
    stem = output.name.removesuffix(".jsonl")
    return output if name == "train" else output.with_name(f"{stem}.{name}{ending}")


def check_replaceable(output: Path, ledger: Ledger, *, force: bool) -> None:
    """Raise RunError for row files that weren't written here or were changed since; `force` replaces."""
    files = [file_for(output, part) for part in PARTS]
    foreign = [file for file in files if file.exists() and not ledger.written(_digest(file.read_bytes()))]
    if foreign and not force:
        raise RunError(
            "These files would be replaced, and were changed since or aren't of an earlier call.",
            details=[str(file) for file in foreign],
            fix="Give another --output, or --force to replace them. Calls are kept either way.",
        )


def sweep(output: Path) -> None:
    """Remove the temporary files that a kill left of an output's files."""
    stem = output.name.removesuffix(".jsonl")
    for file in output.parent.iterdir():
        if file.name.startswith(f".{stem}.") and is_leftover(file):
            file.unlink(missing_ok=True)


def check_space(output: Path, prepared: Prepared) -> None:
    """Raise RunError where the disk has no room for what may come: calls repeat each passage."""
    characters = sum(len(document.text) for document in prepared.library.documents)
    copies = 4 + 4 * len(prepared.request.made_kinds) * (1 + prepared.request.per_chunk)
    needed = 3 * characters * copies
    if (free := free_space(output)) < needed:
        raise RunError(
            f"{output.parent} has {size(free)} left, and rows with their calls may take {size(needed)}.",
            fix="Free some space, or give an output on another disk.",
        )


def write_rows(
    output: Path, prepared: Prepared, made: Made, ledger: Ledger, maker: str, judge: str
) -> dict[str, Any]:
    """Write rows, sources and rejected ones; returns what was written: rows and sha256 by file name.

    A part without rows has no file; where no row came out at all, those of an earlier call stay. Files are
    replaced one by one, each whole; the next call writes them all.
    """
    request, kept = prepared.request, made.kept()
    texts = {
        part: _lines(row.written(request.form, request.system) for row in kept if row.part == part)
        for part in PARTS
    }
    ledger.will_write([_digest(text.encode()) for text in texts.values()])
    write_atomic(file_for(output, "rejected"), _lines(_rejected(prepared, made)))
    reach("make.write")
    written: dict[str, Any] = {}
    if not kept:
        return written
    write_atomic(file_for(output, "sources"), _lines(row.source(maker, judge) for row in kept))
    for part, text in reversed(texts.items()):  # training rows last
        file = file_for(output, part)
        with disk_errors(file):
            if not text:
                file.unlink(missing_ok=True)
                continue
            write_atomic(file, text)
        written[file.name] = {"part": part, "rows": text.count("\n"), "sha256": _digest(text.encode())}
    return dict(reversed(written.items()))


def write_report(output: Path, content: Mapping[str, Any]) -> Path:
    """The report beside the rows."""
    file = file_for(output, "report", ".json")
    write_json(file, dict(content))
    return file


def _rejected(prepared: Prepared, made: Made) -> Iterator[dict[str, Any]]:
    """Chunks that were left out or gave no row, then rows. What is still to be asked isn't rejected."""
    for chunk in prepared.chunks:
        if why := prepared.left_out.get(chunk.id):
            yield rejected_chunk(chunk, why, prepared.nearest.get(chunk.id, ""))
    for chunk, kind, why, about in made.without:
        if why != NOT_ASKED:
            yield rejected_chunk(chunk, why, about, kind)
    yield from (row.rejected() for row in made.rows if row.why)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Of damaged text: half a character, which UTF-8 can't hold.
    return text.encode("utf-8", "replace").decode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
