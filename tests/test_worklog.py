"""Worklogs: what was finished is kept, what was cut off is not, and only the same work goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunesmith import worklog
from tunesmith.errors import RunError
from tunesmith.worklog import Claim, check_free, claim, differences, read, write_lines

FACTS = {"model": "m", "settings": {"temperature": 0.7}}


class Crash(Exception):
    """In place of a kill: nothing is given back but what the system gives back."""


@contextmanager
def crashing(output: Path) -> Iterator[Claim]:
    """An output in hand that is cut off at the end of the block."""
    try:
        with claim(output, "again") as held:
            yield held
            raise Crash
    except Crash:
        pass


def begun(output: Path, groups: list[list[int]], facts: object = FACTS) -> Path:
    """A worklog of these groups, as work that was cut off leaves it."""
    with crashing(output) as held:
        book, _ = held.worklog(dict(facts), 9)  # type: ignore[call-overload]
        for group in groups:
            book.append("answers", {at: {"text": f"第{at}\ud800"} for at in group})
    return book.file


def rows(file: Path) -> list[int]:
    found = read(file)
    assert found is not None
    return sorted(found.rows("answers"))


def test_rows_outlive_whoever_wrote_them(tmp_path: Path) -> None:
    file = begun(tmp_path / "out.jsonl", [[1, 0], [4]])
    assert file.name == "out.jsonl.partial"
    assert rows(file) == [0, 1, 4]
    found = read(file)
    assert found is not None
    assert found.rows("answers")[4] == {"text": "第4\ud800"}
    assert found.size() == "3 of 9 answers"
    with claim(tmp_path / "out.jsonl", "again") as held:
        book, other = held.worklog(FACTS, 9)
        assert (sorted(book.rows("answers")), other) == ([0, 1, 4], "")
        book.append("answers", {2: {}})
        assert rows(file) == [0, 1, 2, 4]
    assert list(tmp_path.iterdir()) == [], "a good end leaves no worklog and no lock"


def test_every_cut_leaves_whole_groups(tmp_path: Path) -> None:
    file = begun(tmp_path / "out.jsonl", [[0], [1, 2], [3]])
    whole = file.read_bytes()
    ends = [whole.index(b"\n") + 1]
    for size in (1, 2, 1):
        end = ends[-1]
        for _ in range(size):
            end = whole.index(b"\n", end) + 1
        ends.append(end)
    assert ends[-1] == len(whole)
    for cut in range(ends[0], len(whole) + 1):
        file.write_bytes(whole[:cut])
        groups = sum(cut >= end for end in ends[1:])
        assert rows(file) == [0, 1, 2, 3][: (0, 1, 3, 4)[groups]]
        with crashing(tmp_path / "out.jsonl") as held:
            book, _ = held.worklog(FACTS, 9)
            book.append("answers", {8: {}})
            assert rows(file) == [*[0, 1, 2, 3][: (0, 1, 3, 4)[groups]], 8]
    # Nothing but a whole first line makes it a worklog of ours.
    for cut in range(ends[0] - 1):
        file.write_bytes(whole[:cut])
        assert read(file) is None


def test_damage_before_the_end_is_told(tmp_path: Path) -> None:
    file = begun(tmp_path / "out.jsonl", [[0], [1], [2]])
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"at"', b'"ay"')
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=r"out\.jsonl\.partial:3: the line is damaged"):
        read(file)


def test_other_work_begins_anew_beside_it_and_either_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begun(output, [[0]])
    second = begun(output, [[1], [2]], {"model": "n", "settings": {}})
    assert second.name == "out.jsonl.partial-2"
    with claim(output, "again") as held:
        book, other = held.worklog(FACTS, 9)
        assert (rows(book.file), other) == ([0], "")
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl.partial-2"]
    with crashing(output) as held:
        book, other = held.worklog({"model": "n", "settings": {}}, 9)
        assert (book.file.name, rows(book.file), other) == ("out.jsonl.partial-2", [1, 2], "")


def test_what_is_no_worklog_is_left_alone(tmp_path: Path) -> None:
    output, mine = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    mine.write_text("a half of my own\n")
    with claim(output, "again") as held:
        assert held.worklog(FACTS, 9)[0].file.name == "out.jsonl.partial-2"
        with pytest.raises(RunError, match="is something else"):
            held.only_worklog(FACTS, 9)
    assert mine.read_text() == "a half of my own\n"


def test_only_the_same_work_is_continued(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    before = begun(output, [[0]]).read_bytes()
    with pytest.raises(RunError, match="begun otherwise") as refused, claim(output, "again") as held:
        held.only_worklog({"model": "n", "settings": {"top_p": 0.5}}, 9)
    assert refused.value.details == (
        'model "m" before, "n" now',
        "settings.temperature 0.7 before, not set now",
        "settings.top_p not set before, 0.5 now",
    )
    assert (tmp_path / "out.jsonl.partial").read_bytes() == before
    assert differences(FACTS, {**FACTS}) == []


HOLD = """
import sys, pathlib, time
from tunesmith.worklog import claim
with claim(pathlib.Path(sys.argv[1]), "again"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_until_it_dies(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is being written by another process"):
            check_free(output)
        with pytest.raises(RunError, match="is being written by another process"), claim(output, "again"):
            raise AssertionError("two processes hold it")
        assert (tmp_path / "new").is_dir()
        other.send_signal(signal.SIGKILL)
    check_free(output)
    # Its lock file is still there, and what it was about to rename.
    for name in (".out.jsonl-0123456789ab.jsonl", ".out.json-0123456789ab.json",
                 ".out.jsonl.b.partial-2-0123456789ab.partial-2"):  # fmt: skip
        (tmp_path / "new" / name).touch()
    (tmp_path / "new" / ".out.jsonl-mine").touch()
    with claim(output, "again"):
        assert {file.name for file in output.parent.iterdir()} == {".out.jsonl.lock", ".out.jsonl-mine"}
    assert [file.name for file in output.parent.iterdir()] == [".out.jsonl-mine"]


def test_who_holds_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with crashing(tmp_path / "a" / "b" / "out.jsonl") as held:
        held.worklog(FACTS, 9)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_takes_a_group_or_nothing(tmp_path: Path) -> None:
    whole = begun(tmp_path / "a.jsonl", [[0], [1, 2, 3]]).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with crashing(tmp_path / "b.jsonl") as held:
            book, _ = held.worklog(FACTS, 9)
            book.append("answers", {0: {}})
            size = book.file.stat().st_size
            for limit in range(size, len(whole), 7):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                with pytest.raises(RunError, match="larger than the limit"):
                    book.append("answers", {at: {"text": f"第{at} " + "x" * 99} for at in (1, 2, 3)})
                assert book.file.stat().st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            book.append("answers", {1: {}})
            assert rows(book.file) == [0, 1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    def work() -> None:
        with claim(tmp_path / "out.jsonl", "Do it again.") as held:
            held.worklog(FACTS, 9)[0].append("answers", {0: {}})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as told:
        work()
    assert str(told.value) == (
        f"Interrupted. What is done is kept: 1 of 9 answers in {tmp_path}/out.jsonl.partial.\nDo it again."
    )


def test_rows_are_forced_onto_the_disk_each_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append(number), fsync(number)))
    clock = 1000.0
    monkeypatch.setattr(worklog.time, "monotonic", lambda: clock)
    with claim(tmp_path / "out.jsonl", "again") as held:
        book, _ = held.worklog(FACTS, 99)
        calls.clear()
        for at in range(40):  # ten seconds, four rows in each
            book.append("answers", {at: {}})
            clock += 0.25
        assert 8 <= len(calls) <= 10


def test_an_output_is_written_at_once(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    write_lines(output, [{"text": "山"}, {"text": "\ud800"}])
    assert output.read_text(encoding="utf-8") == '{"text": "山"}\n{"text": "\\ud800"}\n'
