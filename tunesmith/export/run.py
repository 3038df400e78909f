"""An export from its beginning to its end: find, check, write, read back and compare, keep or refuse.

    what was asked -> subject -> target.write -> gate -> card, verification.json -> the folder gets its name

Everything is written into a hidden folder beside the output, which takes its name only at the end: an export
that is interrupted or refused leaves nothing.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.template import Renderer
from tunesmith.disk import free_space, new_folder, write_atomic, write_json
from tunesmith.errors import ExportError, RunError
from tunesmith.export import checkpoints, reference
from tunesmith.export.card import card
from tunesmith.export.config import DTYPES, IN_LLAMACPP, Request
from tunesmith.export.gate import DRIFT, Verification, check
from tunesmith.export.place import CARD, KIND, VERIFICATION, check_apart, check_replaceable, files_of
from tunesmith.export.subject import Subject, check_fits, find_subject, public_base, sixteen_bit
from tunesmith.export.targets import TARGETS
from tunesmith.export.wanted import check_asked
from tunesmith.export.work import Target, Work
from tunesmith.infer.found import Found
from tunesmith.model.load import end_ids, first_use, load_tokenizer
from tunesmith.words import size

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What was exported: its folder, its form, the bytes of its files, and what the gate found."""

    path: Path
    to: str
    bytes: int
    verification: Verification

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON takes it, prompts and answers included."""
        return {
            "path": str(self.path),
            "to": self.to,
            "bytes": self.bytes,
            "verification": self.verification.to_json(texts=True),
        }


def export(
    request: Request,
    *,
    note: Callable[[str], None] = lambda _: None,
    watch: Watch = lambda *_: None,
    found: Callable[[Verification], None] = lambda _: None,
) -> Export:
    """Make the export. `found` is told what the gate found before it is kept or refused.

    Raises UsageError and SettingsError for what was asked, RunError for an unfinished run, an output that is
    there, or a disk that is too small, ModelError; ExportError where the gate refuses.
    """
    place, target = check_asked(request), TARGETS[request.to]
    output = place.path
    with _subject(request, output) as subject:
        check_fits(subject, request.to, needs_adapter=target.needs_adapter)
        check_apart(output, _made_of(subject))
        if waiting := first_use(subject.found.base):
            note(waiting)
        work = replace(_work(request, subject, note), watch=watch)
        _check_disk(output, target.needs(work))
        # What appears there meanwhile isn't this person's to lose, and stays.
        with new_folder(output, "export", replace=check_replaceable if place.replace else None) as folder:
            verification = _make(work, target, folder, watch, found)
            _judge(verification, request, output)
            _share(folder)
        total = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Export(output, request.to, total, verification)


def _make(
    work: Work, target: Target, folder: Path, watch: Watch, found: Callable[[Verification], None]
) -> Verification:
    watch(f"writing {work.request.to}", 0, 1)
    written = target.write(work, folder)
    watch(f"writing {work.request.to}", 1, 1)
    gc.collect()
    heard = reference.hear(work.subject, work.renderer, work.dtype, watch)
    gc.collect()
    exported = target.open(work, folder)
    try:
        verification = check(
            exported, heard, budget=target.budget(work), expected=written.expected, watch=watch
        )
    finally:
        exported.close()
    found(verification)
    write_atomic(folder / CARD, card(work, written, verification))
    write_json(folder / VERIFICATION, _record(work, verification, files_of(folder)))
    return verification


def _share(folder: Path) -> None:
    """Let others read what the person's umask lets them read: safetensors are written for the owner alone."""
    os.umask(mask := os.umask(0))
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _made_of(subject: Subject) -> list[Path]:
    """The files and folders that an export is made of."""
    found, base = subject.found, subject.trained_base
    sources = [found.base, found.tokenizer, *([base] if base else [])]
    return [found.folder, *([found.adapter] if found.adapter else []), *(source.path for source in sources)]


def _record(work: Work, verification: Verification, files: list[str]) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format": 1,
        "to": work.request.to,
        "step": work.subject.step,
        "base_fingerprint": work.base.fingerprint,
        "drift_allowed": bool(verification.failed),
        "files": files,
        **verification.to_json(),
    }


def _judge(verification: Verification, request: Request, output: Path) -> None:
    failed = verification.failed
    if not failed or (request.allow_drift and verification.only_drift):
        return
    details = [f"{c.name}: {c.figure}" + (f"; wanted: {c.limit}" if c.limit else "") for c in failed]
    details += [f"{c.name}: {line}" for c in failed for line in c.details]
    what = "What was exported isn't the model that was tuned."
    if verification.only_drift:
        what = "The export is further from the tuned model than its number format should take it."
        fix = (
            "--dtype f16 rounds less in the same size, f32 nothing"
            if request.to == "merged" and request.dtype != "f32"
            else ""
        )
        if request.to in IN_LLAMACPP and request.type not in ("f32", "f16"):
            fix = "--type f16 is nearer" + ("" if request.type == "bf16" else ", and so is bf16")
        fix = f"{fix}; " if fix else ""
        fix += f"--allow-drift keeps it all the same, with the figure in {CARD} and {VERIFICATION}."
    elif any(c.name != DRIFT for c in failed) and request.to == "merged" and request.dtype != "f32":
        fix = "Try --dtype f32, which rounds nothing; if it stays so, please report it."
    else:
        fix = "Please report this, with the model and what `tunesmith doctor` shows."
    raise ExportError(
        f"{what} {output} was not written.",
        details=details,
        fix=fix,
    )


@contextmanager
def _subject(request: Request, output: Path) -> Iterator[Subject]:
    """What is exported; a checkpoint is made into an adapter or a model first, in a folder that goes
    again."""
    if request.checkpoint is None:
        yield find_subject(request.model)
        return
    run, folder = checkpoints.chosen(Path(request.model).expanduser(), request.checkpoint)
    if folder is None:
        yield find_subject(request.model)
        return
    there = next(p for p in output.absolute().parents if p.is_dir())
    _check_disk(output, sum(f.stat().st_size for f in folder.iterdir()))
    with tempfile.TemporaryDirectory(dir=there, prefix=".tunesmith-") as place:
        yield checkpoints.restore(run, folder, Path(place) / "result")


def _work(request: Request, subject: Subject, note: Callable[[str], None]) -> Work:
    found: Found = subject.found
    thinking = bool((found.meta.get("template") or {}).get("thinking"))
    renderer = Renderer(load_tokenizer(found.tokenizer), None, end_ids=end_ids(found.base), thinking=thinking)
    wanted, own = request.dtype, TARGETS[request.to].dtype
    dtype = getattr(torch, DTYPES[wanted]) if wanted != "auto" else sixteen_bit(subject) or torch.bfloat16
    if own is not None:
        dtype = own(request, subject)
    return Work(request, subject, public_base(subject), renderer, reference.gate_device(subject), dtype, note)


def _check_disk(output: Path, needed: int) -> None:
    free = free_space(output)
    if needed > free:
        raise RunError(
            f"{output} needs {size(needed)} of disk space, but {size(free)} are free.",
            fix="Free some space, or give a folder on another disk with --output.",
        )
