"""The Modelfile beside a GGUF file: what Ollama has to be told of it.

Without TEMPLATE Ollama guesses one, without stop it writes on for the user, and without num_ctx it cuts
conversations at its own default; none of these is said by the GGUF file in a way that Ollama always reads.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.check import load
from tunesmith.data.config import DataFile
from tunesmith.errors import TunesmithError
from tunesmith.export import gguf
from tunesmith.export.ollama_template import pieces_of
from tunesmith.export.work import Work, Written
from tunesmith.model.load import local_folder
from tunesmith.records import Conversation

MODELFILE = "Modelfile"
LEAST_CONTEXT = 4096  # Ollama's own default
USAGE = """\
In this folder:

```
ollama create {name} -f Modelfile
ollama run {name}
```

The same file runs in llama.cpp: `llama-server -m {file} --jinja`.
"""
_QUOTES = '"""'
# generation_config.json -> PARAMETER
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class Modelfile:
    """Its text, and what people should know that couldn't be put in."""

    text: str
    notes: list[str] = field(default_factory=list)


def modelfile(
    file: str,
    template: str | None,
    *,
    stops: Sequence[str],
    context: int,
    sampling: Mapping[str, Any],
    system: str | None = None,
    license: str | None = None,
) -> Modelfile:
    """The Modelfile of the GGUF file named `file`, which lies beside it.

    `template` is Go's text; `stops` end an answer; `sampling` is generation_config.json.
    """
    lines, notes = [f"FROM ./{file}"], []
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template)}")
    if system is not None:
        if (quoted := _value(system)) is None:
            notes.append(
                'The system prompt has """ in it, which a Modelfile can\'t hold: give it in each chat.'
            )
        else:
            lines.append(f"SYSTEM {quoted}")
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop and "\n" not in stop]
    if odd := [stop for stop in stops if '"' in stop or "\n" in stop]:
        notes.append(
            f"A Modelfile can't hold {odd!r} as stop; the model's own end token is in the GGUF file."
        )
    lines.append(f"PARAMETER num_ctx {context}")
    greedy = sampling.get("do_sample") is False
    for name, parameter in _SAMPLING.items():
        if not greedy and (value := sampling.get(name)) is not None:
            if _is_number(value):
                lines.append(f"PARAMETER {parameter} {value}")
            else:
                notes.append(f"{name} of generation_config.json is no number, and isn't in the Modelfile.")
    if greedy:
        lines.append("PARAMETER temperature 0")
    if license:
        lines.append(f"LICENSE {_quoted(license)}")
    return Modelfile("\n".join(lines) + "\n", notes)


def write(work: Work, folder: Path) -> Written:
    """The GGUF file and its Modelfile. A template that Ollama can't have is refused first."""
    renderer = work.renderer
    pieces = pieces_of(renderer) if renderer.text else None
    written = gguf.write(work, folder)
    tokenizer = renderer.tokenizer
    bos = str(tokenizer.bos_token) if renderer.adds_bos else ""
    made = modelfile(
        gguf.file_name(work),
        pieces.go(bos) if pieces else None,
        stops=[str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(renderer.stop_ids)],
        context=min(int(written.expected["context"]), max(LEAST_CONTEXT, _longest(work))),
        sampling=_sampling(work),
        system=_system(work),
        license=work.base.licence,
    )
    (folder / MODELFILE).write_text(made.text, encoding="utf-8")
    notes = [*made.notes, *(pieces.notes if pieces else ["There is no chat template, so none for Ollama."])]
    for line in notes:
        work.note(line)
    file = gguf.file_name(work)
    name = file.removesuffix(f"-{work.request.type}.gguf").lower()
    return replace(
        written,
        usage=USAGE.format(name=name, file=file),
        notes=[*written.notes, *notes],
        tags=[*written.tags, "ollama"],
    )


def _longest(work: Work) -> int:
    job = work.subject.record.get("job") or {}
    return int((job.get("data") or {}).get("max_length") or 0)


def _sampling(work: Work) -> dict[str, Any]:
    file = local_folder(work.subject.found.base) / "generation_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _system(work: Work) -> str | None:
    """The system prompt that every training row begins with; None where there is none, or several.

    The rows are read again: a run keeps none. Where they aren't on this machine, that is noted.
    """
    record = work.subject.record
    data = (record.get("job") or {}).get("data") or {}
    folder = Path(str(record.get("folder", "")))
    try:
        files = [DataFile.model_validate(file) for file in data.get("train") or ()]
        rows = load(
            [file.model_copy(update={"path": str(folder / file.path)}) for file in files],
            data.get("info"),
            bad_rows="drop",
        ).records
    except (TunesmithError, ValueError, OSError):
        if data:
            work.note("The training rows can't be read any more: SYSTEM isn't in the Modelfile.")
        return None
    found = {_first(row) for row in rows}
    return found.pop() if len(found) == 1 else None


def _first(row: object) -> str | None:
    if not isinstance(row, Conversation) or not row.messages or row.messages[0].role != "system":
        return None
    return row.messages[0].content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _quoted(text: str) -> str:
    if _QUOTES in text:
        raise ValueError("a text with three quotes in a row can't be quoted in a Modelfile")
    return f"{_QUOTES}{text}{_QUOTES}"


def _value(text: str) -> str | None:
    """A text as a value: quoted, or bare on one line; None where neither can be."""
    if _QUOTES not in text and not text.endswith('"'):
        return _quoted(text)
    return None if "\n" in text or text.startswith('"') or text != text.strip() else text
