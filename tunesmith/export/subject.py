"""What is exported: a finished run, one of its checkpoints, an adapter of PEFT's, or a whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, TunesmithError, UsageError
from tunesmith.infer.found import Found, find
from tunesmith.model import source
from tunesmith.model.load import fingerprint, local_folder, stored_dtype
from tunesmith.model.source import ALIASES, Source
from tunesmith.rundir import RunDir

EMBEDDED_LICENCES = {"smollm2-135m": "apache-2.0"}


@dataclass(frozen=True)
class PublicBase:
    """A base by what other machines know of it: no path of this one.

    `name` is fit for a text; `hub` the id on the Hugging Face hub that has this model or, for an embedded
    one (`exact` False), the original that it was quantised from.
    """

    name: str
    kind: str
    hub: str | None
    revision: str | None
    fingerprint: str | None
    licence: str | None
    exact: bool = True


@dataclass(frozen=True)
class Subject:
    """What is exported, before any weights are read. `record` is the run's job.yaml, empty without a run."""

    found: Found
    record: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    of_checkpoint: bool = False

    @property
    def run(self) -> RunDir | None:
        """The run it came from."""
        return self.found.run

    @property
    def tuned(self) -> bool:
        """Whether something was trained that an export could lose: not so for a model as it was published."""
        return self.found.adapter is not None or bool(self.found.meta and not self.found.meta.get("exported"))

    @property
    def trained_base(self) -> Source | None:
        """What training began with; None where it isn't on this machine any more."""
        if self.found.adapter is not None:
            return self.found.base
        meta = self.found.meta
        if not self.tuned:
            return None
        path = Path(str(meta.get("base_path") or ""))
        try:
            if meta.get("kind") in ("folder", "gguf") and path.is_absolute():
                return source.resolve(str(path)) if path.exists() else None
            return source.resolve(str(meta.get("model")), meta.get("revision"))
        except TunesmithError:
            return None


def find_subject(name: str) -> Subject:
    """What `name` stands for. Raises what `find` raises."""
    found = find(name)
    step = found.meta.get("step")
    return Subject(found, found.run.job() if found.run else {}, int(step) if step is not None else None)


def check_fits(subject: Subject, to: str, *, needs_adapter: bool) -> None:
    """Raise UsageError or ModelError where a target can't be made of this."""
    name = subject.found.name
    if needs_adapter and subject.found.adapter is None:
        raise UsageError(
            f"{name} has no adapter: "
            + ("all weights, or whole layers, were tuned." if subject.tuned else "it is a whole model."),
            fix=f"tunesmith export {name} --to merged takes the whole model."
            if subject.tuned
            else "Give a run that was trained with adapter.type lora or dora, or a PEFT adapter.",
        )
    if not subject.tuned:
        raise ModelError(
            f"{name} is a whole model that nothing was tuned in by tunesmith: there is nothing to merge.",
            fix=f"Use it as it is; --to {to} takes a run, or the folder of a PEFT adapter.",
        )


def public_base(subject: Subject) -> PublicBase:
    """The base as the rest of the world knows it."""
    meta, base = subject.found.meta, subject.trained_base
    if base is None:
        name = str(meta.get("model") or subject.found.base.name)
        kind = str(meta.get("kind") or subject.found.base.kind)
        hub = name if kind == "hub" else None
        return PublicBase(
            _short(name), kind, ALIASES[name][2] if name in ALIASES else hub, meta.get("revision"),
            meta.get("base_fingerprint"), EMBEDDED_LICENCES.get(name), name not in ALIASES,
        )  # fmt: skip
    embedded = base.kind == "embedded"
    hub = ALIASES[base.name][2] if embedded else base.id if base.kind in ("hub", "modelscope") else None
    return PublicBase(
        base.name if embedded else hub or _short(str(base.path)),
        base.kind,
        hub,
        base.revision,
        meta.get("base_fingerprint") or fingerprint(base),
        EMBEDDED_LICENCES.get(base.name) or _licence(local_folder(base)),
        exact=not embedded,
    )


def sixteen_bit(subject: Subject) -> Any:
    """torch's number format of the base's own files where that has 16 bits, else None."""
    own = stored_dtype(subject.trained_base or subject.found.base)
    return own if own is not None and own.itemsize == 2 else None


def _short(name: str) -> str:
    """A path as a name: its last part, with the run's before it where that says more."""
    path = Path(name)
    if path.name in ("model", "merged", "adapter") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or "unknown"


def _licence(folder: Path) -> str | None:
    """The licence that the base's own model card names in its front matter."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:200]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if key == "license" and colon and value.strip():
            # It is written into cards and Modelfiles: nothing but a licence's id gets there.
            name = value.strip().strip("'\"")
            return name if re.fullmatch(r"[\w.+\- ]+", name) else None
    return None
