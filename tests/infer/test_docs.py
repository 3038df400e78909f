"""The table of settings in docs/generate.md comes from the Sampling class.

python -m tests.infer.test_docs     writes it anew
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, get_args, get_origin

from tunesmith.infer.chat import ALIASES, COMMANDS
from tunesmith.infer.config import Sampling

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def settings_table() -> str:
    """Every setting with its values and what it does, as Markdown."""
    rows = ["| setting | value | what it does |", "|---|---|---|"]
    for name, field in Sampling.model_fields.items():
        rows.append(f"| `{name}` | {_values(field.annotation)} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + settings_table() + END + rest.split(END)[1]


def _values(kind: Any) -> str:
    if kind in WORDS:
        return WORDS[kind]
    arguments = [part for part in get_args(kind) if part not in (type(None), Ellipsis)]
    if get_origin(kind) is tuple:
        return f"{_values(arguments[0])}, or a list of them"
    if get_origin(kind) is types.UnionType or type(None) in get_args(kind):
        return " or ".join(map(_values, arguments))
    return " or ".join(str(part) if isinstance(part, str) else _values(part) for part in arguments)


def test_the_table_of_settings_is_up_to_date() -> None:
    page = (DOCS / "generate.md").read_text(encoding="utf-8")
    assert page == with_table(page), "run: python -m tests.infer.test_docs"


def test_every_setting_says_what_it_does() -> None:
    assert all(field.description for field in Sampling.model_fields.values())


def test_every_command_of_a_chat_is_documented() -> None:
    page = (DOCS / "chat.md").read_text(encoding="utf-8")
    for name in [command.usage for command in COMMANDS.values()] + list(ALIASES):
        assert f"`{name}`" in page, name


if __name__ == "__main__":
    file = DOCS / "generate.md"
    file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")
