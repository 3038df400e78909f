"""Every setting with its default, as a table in the terminal: `tunesmith train --settings [WORD]`.

`tunesmith generate --settings [WORD]` has those of answers, with what they can't be combined with.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic.fields import FieldInfo

from tunesmith.cli.console import out, print_table, table
from tunesmith.errors import UsageError
from tunesmith.infer.config import NOT_WITH, Sampling
from tunesmith.settings import settings_class
from tunesmith.train.config import Job


def show_settings(word: str = "") -> None:
    """Print the settings whose name or description holds `word`, those of answers last."""
    job, answers = _rows(Job, word), _rows(Sampling, word)
    if not job and not answers:
        raise UsageError(
            f"No setting has {word!r} in its name or description.",
            fix="`tunesmith train --settings` lists every one.",
        )
    columns = ("setting", "default", "meaning")
    if job:
        print_table(table(columns, job), out)
    if answers:
        out.print(
            "\nOf answers (chat, generate, eval, compare), not part of a job:" if job else "Of answers:"
        )
        print_table(table(columns, answers), out)


def show_answer_settings(word: str = "") -> None:
    """Print the settings of answers whose name or description holds `word`."""
    rows = [(*row, NOT_WITH.get(row[0], "").replace("`", "")) for row in _rows(Sampling, word)]
    if not rows:
        raise UsageError(
            f"No setting of answers has {word!r} in its name or description.",
            fix="`tunesmith generate --settings` lists every one.",
        )
    print_table(table(("setting", "default", "meaning", "not with"), rows), out)


def default_of(field: FieldInfo) -> str:
    """A default as it is written in a job: `1.0e-3`, `auto`, `null`; `required` where there is none."""
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, float):
        # 1.0e-3 rather than 0.001: the way learning rates are written.
        return f"{value:g}" if value == 0 or abs(value) >= 0.01 else _scientific(value)
    text = yaml.safe_dump(value, default_flow_style=True).strip()
    return text.removesuffix("...").strip()


def _rows(cls: Any, word: str, prefix: str = "") -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in cls.model_fields.items():
        inner: Any = settings_class(field)
        if inner is not None and inner is field.annotation:
            rows += _rows(inner, word, f"{prefix}{name}.")  # a group, not a value
            continue
        row = (prefix + name, default_of(field), field.description or "")
        if word.lower() in f"{row[0]} {row[2]}".lower():
            rows.append(row)
        if inner is not None and type(None) in getattr(field.annotation, "__args__", ()):
            rows += _rows(inner, word, f"{prefix}{name}.")
    return rows


def _scientific(value: float) -> str:
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits)}e{int(exponent)}"
