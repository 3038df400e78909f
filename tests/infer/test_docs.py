"""Settings and commands of chat and generate are documented."""

from __future__ import annotations

from pathlib import Path

from tunesmith.infer.chat import ALIASES, COMMANDS
from tunesmith.infer.config import Sampling

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_says_what_it_does() -> None:
    assert all(field.description for field in Sampling.model_fields.values())


def test_every_command_of_a_chat_is_documented() -> None:
    page = (DOCS / "chat.md").read_text(encoding="utf-8")
    for name in [command.usage for command in COMMANDS.values()] + list(ALIASES):
        assert f"`{name}`" in page, name
