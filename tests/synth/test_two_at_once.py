"""The ledger beside a running `make`: an estimate reads it, and leaves it as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.records import Completion, Message
from tunesmith.synth.ledger import Call, Ledger, file_of, read_sums

CALL = Call("make", "c", "p", (Message("user", "x"),))
CAME = Completion("y", "stop", 3, 2, 0.5)


def test_an_estimate_leaves_the_ledger_of_a_running_make(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    ledger = Ledger(file_of(output))
    assert read_sums(output) == []
    ledger.add({"model": "m"}, [(CALL, CAME)])
    assert [one.calls for one in read_sums(output)] == [1]
    ledger.close()
    assert file_of(output).is_file()
    (found,) = read_sums(output)
    assert (found.calls, found.prompt_tokens, found.completion_tokens) == (1, 3, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.calls.sqlite"]


def test_an_estimate_writes_nothing(tmp_path: Path) -> None:
    file = file_of(tmp_path / "rows.jsonl")
    file.touch()  # of a make that begins at this moment
    assert read_sums(tmp_path / "rows.jsonl") == []
    assert file.read_bytes() == b""
    with closing(sqlite3.connect(file)) as base:
        base.execute("CREATE TABLE other (a)")
    before = file.read_bytes()
    with pytest.raises(RunError, match="something else"):
        read_sums(tmp_path / "rows.jsonl")
    assert file.read_bytes() == before


def test_a_ledger_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    ledger = Ledger(file_of(output))
    ledger.add({"model": "m"}, [(CALL, CAME)])
    ledger.close()
    with closing(sqlite3.connect(file_of(output))) as base:
        base.execute("PRAGMA user_version = 2")
    for act in (lambda: Ledger(file_of(output)), lambda: read_sums(output)):
        with pytest.raises(RunError, match="format 2"):
            act()
    with closing(sqlite3.connect(file_of(output))) as base:
        assert base.execute("PRAGMA user_version").fetchone() == (2,)
