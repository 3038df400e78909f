"""Write docs/settings.md, and the table in docs/generate.md, from the settings classes: `make docs`.

The classes are the only place where a setting is declared; a test fails when a page is older than they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.cli.settings_list import default_of
from tunesmith.data.config import DataFile, DataSettings
from tunesmith.infer.config import NOT_WITH, Sampling
from tunesmith.model.config import AdapterSettings, QuantizationSettings
from tunesmith.train.config import EvaluateSettings, Job, TrainSettings

PAGE = Path(__file__).with_name("settings.md")
ANSWERS = Path(__file__).with_name("generate.md")
BEGIN, END = "<!-- settings: written by make docs -->\n", "<!-- settings: end -->\n"

# Title, class, what stands before its names in a job, and the words above the table.
SECTIONS: list[tuple[str, type[BaseModel], str, str]] = [
    (
        "The job",
        Job,
        "",
        "The top of a job file. `data`, `adapter`, `quantization` and `train` have\ntables of their own.",
    ),
    ("data", DataSettings, "data.", "Which rows, how long an example may be, what is trained on."),
    (
        "Files of data",
        DataFile,
        "",
        "`data.train` and `data.valid` take one path, or a list whose items are paths or these.",
    ),
    ("adapter", AdapterSettings, "adapter.", "What is tuned. `adapter: dora` is short for `{type: dora}`."),
    (
        "quantization",
        QuantizationSettings,
        "quantization.",
        "How the base is held under an adapter. `quantization: nf4` is short for `{type: nf4}`.",
    ),
    ("train", TrainSettings, "train.", "How it is trained."),
    (
        "train.evaluate",
        EvaluateSettings,
        "train.evaluate.",
        "Answers to held-out rows while training runs, scored by metrics; off unless it is there. See "
        "[train](train.md).",
    ),
    (
        "Answers",
        Sampling,
        "",
        "How `chat`, `generate`, `eval` and `compare` choose an answer. These aren't part of a job.",
    ),
]

HEAD = """\
# Settings

Written by `docs/generate.py` from the settings classes; change those, then run `make docs`.

A job is a YAML file. Each setting can also be given on the command line, where it wins over the file:

    tunesmith train job.yaml train.epochs=3 adapter.rank=8 'adapter.targets=[q_proj, v_proj]'

Paths of data and templates in a job file are relative to the file's own folder. `model`, `output`,
`adapter.continue_from` and whatever is typed on the command line are relative to where you are.
A setting that doesn't exist is an error that names the nearest one.
`tunesmith train --settings [WORD]` prints these tables.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for title, cls, prefix, words in SECTIONS:
        parts.append(f"## {title}\n\n{words}\n\n{table(cls, prefix)}")
    return "\n".join(parts)


def table(cls: type[BaseModel], prefix: str = "", not_with: Mapping[str, str] | None = None) -> str:
    """A row for each setting of a class, as Markdown; `not_with`: a last column, by the settings' names."""
    titles = ["setting", "default", "values", "meaning", *(["not with"] if not_with else [])]
    head = f"| {' | '.join(titles)} |"
    lines = [head, "|---" * len(titles) + "|", *_rows(cls, prefix, not_with)]
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """docs/generate.md with its table renewed. Raises ValueError when its place is lost."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{ANSWERS} has lost the markers of its table")
    return before + BEGIN + table(Sampling, not_with=NOT_WITH) + END + after


def _rows(cls: type[BaseModel], prefix: str, not_with: Mapping[str, str] | None) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        cells = [f"`{prefix}{name}`", _default(field), _values(field), field.description or ""]
        cells += [not_with.get(name, "")] if not_with else []
        yield (
            "| "
            + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells)
            + " |"
        )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{default_of(field)}`"


def _values(field: FieldInfo) -> str:
    limits = []
    for bound in field.metadata:
        for kind, sign in (("Ge", "≥"), ("Gt", ">"), ("Le", "≤"), ("Lt", "below")):
            if type(bound).__name__ == kind:
                limits.append(f"{sign} {getattr(bound, kind.lower()):g}")
    text, null, _ = _type(field.annotation).partition(" or `null`")
    return " ".join(part for part in (text, ", ".join(limits)) if part) + null


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"list of {len(arguments)}: " + ", ".join(_type(one) for one in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is Mapping:
        return "mapping"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"DataFile": "path or file (see below)"}.get(annotation.__name__, "mapping")
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", NoneType: "`null`"}
    return names[annotation]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    ANSWERS.write_text(filled(ANSWERS.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} and {ANSWERS} written")
