"""What a terminal shows of a row is text, whatever the row holds."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunesmith.cli.console import _Console, print_table, print_what_fits, printable, table
from tunesmith.cli.counting import Watching, answering
from tunesmith.cli.progress import TrainingProgress
from tunesmith.infer.predictions import Summary


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


def test_no_cell_or_title_of_a_table_reaches_the_terminal_as_a_command() -> None:
    attack = "\x1b]0;owned\x07"
    drawn = Table(title=attack, caption=attack)
    drawn.add_column(attack)
    drawn.add_row(attack)
    drawn.add_row(Panel(attack, title=attack))
    assert "\x1b" not in shown(drawn)
    assert "\x07" not in shown(drawn)
    assert shown(drawn).count("␛]0;owned") == 6  # rich itself leaves the bell out


def test_the_data_table_of_a_training_shows_rows_as_text() -> None:
    named = [{"origin": "a:1", "what": "dropped", "reason": "unknown role '\x1b]0;owned\x07'"}]
    part = dict.fromkeys(
        ("rows", "left_out", "repeated", "duplicates", "overlap", "kept", "cut", "split", "dropped",
         "labels_cut", "end_tokens_cut", "examples", "tokens", "label_tokens", "longest", "max_length"), 1,
    ) | {"bad_rows": [], "notes": {"\x1b[2J": 1}, "named": named}  # fmt: skip
    file = StringIO()
    progress = TrainingProgress(_Console(file=file, width=100, markup=False))
    progress.data({"train": part, "template": {"name": "\x1b[2Jx", "stop_tokens": ["\x9b31m"]}})
    assert "␛]0;owned" in file.getvalue()
    assert not {"\x1b", "\x07", "\x9b"} & set(file.getvalue())


@pytest.mark.parametrize("terminal", [False, True])
def test_names_of_models_are_no_markup(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    file = StringIO()
    console = _Console(
        file=file, width=100, markup=False, emoji=False, force_terminal=terminal, color_system=None
    )
    monkeypatch.setattr("tunesmith.cli.counting.err", console)
    with Watching() as watch:
        watch("runs/a[/b] :smile:", 1, 2)
        watch("runs/a[/b] :smile:", 2, 2)
    print_table(table(("A: runs/a[/b]", "[red]"), [("x", "y")], title="[/i]"), console)
    assert file.getvalue().count("runs/a[/b]") >= 2
    assert "[red]" in file.getvalue()


def test_a_log_is_told_of_a_long_part_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = StringIO(), [0.0]
    monkeypatch.setattr("tunesmith.cli.counting.err", _Console(file=file, width=100, markup=False))
    monkeypatch.setattr("tunesmith.cli.counting.time.monotonic", lambda: clock[0])
    with Watching() as watch:
        for done in (20, *range(21, 61)):  # twenty were there already; four seconds a row
            watch("base answers", done, 60)
            clock[0] += 4.0
        watch("loss", 0, 9)
    said = file.getvalue().splitlines()
    assert said[:3] == [
        "base answers (60 rows)",
        "base answers: 23 of 60, 2 min 28 s left",
        "base answers: 26 of 60, 2 min 16 s left",
    ]
    assert len(said) == 1 + 39 // 3 + 1
    assert said[-1] == "loss (9 rows)"
    with answering(10) as told:
        clock[0] += 11.0
        told(Summary("out", 10, resumed=2, answered=4, tokens=110, seconds=11.0))
    assert file.getvalue().splitlines()[-1] == "6 of 10 answers, 10 tokens/s, 11 s left"


def test_the_share_of_what_is_trained_reads_as_a_number() -> None:
    file = StringIO()
    progress = TrainingProgress(_Console(file=file, width=100, markup=False))
    for trained in (1_000_000, 12_345):
        progress.started(3, {"trainable": trained, "parameters": 1_000_000})
    assert "(100 %)" in file.getvalue()
    assert "(1.23 %)" in file.getvalue()


def test_a_narrow_terminal_gets_whole_cells_of_fewer_columns() -> None:
    columns, rows = ("name", "model", "age"), [("my-first-run", "smollm2-135m-instruct", "12 min")]
    for terminal, width, left_out in (
        (True, 24, ["model"]),
        (True, 60, []),
        (False, 24, []),
        (True, 14, None),
    ):
        file = StringIO()
        console = _Console(file=file, width=width, force_terminal=terminal, color_system=None, soft_wrap=True)
        told = print_what_fits(columns, rows, numbers=("age",), dispensable=("model", "age"), console=console)
        assert told == (["model", "age"] if left_out is None else left_out)
        assert len(file.getvalue().splitlines()) == 2
