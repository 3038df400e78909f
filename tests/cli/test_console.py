"""What a terminal shows of a row is text, whatever the row holds."""

from __future__ import annotations

from io import StringIO

from rich.text import Text

from tunesmith.cli.console import _Console, printable, table


def shown(value: object) -> str:
    file = StringIO()
    _Console(file=file, width=60, markup=False).print(value)
    return file.getvalue()


def test_control_characters_are_pictures() -> None:
    attack = "a\x1b[2J\x07\x9b31m\rb\tc\nd"
    assert printable(attack) == "a␛[2J␇\ufffd31m␍b\tc\nd"
    assert "\x1b" not in shown(attack)
    assert "\x1b" not in shown(Text(attack, style="bold"))
    assert "\x1b" not in shown(table(("a", "b"), [(attack, Text(attack))]))
    assert "␛[2J" in shown(table(("a",), [(attack,)]))
