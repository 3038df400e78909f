"""Entries of a dataset_info.json by their path, for verbs that ask and measure as for those that train."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunesmith.data.check import load
from tunesmith.data.config import DataFile
from tunesmith.data.prompts import read_prompts
from tunesmith.errors import DataError, SettingsError
from tunesmith.evaluate.questions import read_questions

TABLE = "question,A,B,answer\n中国的首都是哪里？,上海,北京,B\n"


def advice(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_prompts(str(file))
    return caught.value.fix


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "mc.csv").write_text(TABLE, encoding="utf-8")
    return tmp_path / "mc.csv"


@pytest.mark.parametrize("entries", [{}, {"mc": {"file_name": "other.json"}}])
def test_what_the_advice_says_works(table: Path, entries: dict[str, object]) -> None:
    info = table.parent / "dataset_info.json"
    if entries:
        info.write_text(json.dumps(entries), encoding="utf-8")
    found = re.search(
        r"or (write|add) (.*) (?:in)?to (\S+) and give (\S+) instead of (\S+)\.$", advice(table)
    )
    assert found, advice(table)
    how, entry, file, given, instead = found.groups()
    assert (Path(file), Path(instead)) == (info, table)
    new = json.loads(entry if how == "write" else f"{{{entry}}}")
    info.write_text(json.dumps(entries | new, ensure_ascii=False), encoding="utf-8")
    (row,) = read_prompts(given)
    assert (row.question, row.references) == ("中国的首都是哪里？", ("B",))
    assert row.meta["columns"]["A"] == "上海"
    assert [Path(one).name for one in read_questions(given).files] == ["mc.csv"]
    assert len(load([DataFile(path=given, weight=1.0)]).records) == 1
    assert f"has an entry for this file: give {given} instead of" in advice(table)


def test_a_file_wins_over_an_entry_of_its_name(table: Path) -> None:
    (table.parent / "dataset_info.json").write_text('{"mc.csv": {"file_name": "no.json"}}', encoding="utf-8")
    table.write_text("instruction,output\nHi,Hello\n", encoding="utf-8")
    assert read_prompts(str(table))[0].question == "Hi"


def test_an_entry_that_draws_rows_cannot_be_asked(table: Path) -> None:
    entry = {"file_name": "mc.csv", "columns": {"prompt": "question", "response": "answer"}, "num_samples": 1}
    (table.parent / "dataset_info.json").write_text(json.dumps({"mc": entry}), encoding="utf-8")
    with pytest.raises(DataError, match="num_samples"):
        read_prompts(str(table.parent / "mc"))


def test_a_wrong_entry_and_a_wrong_name_are_told(table: Path) -> None:
    (table.parent / "dataset_info.json").write_text('{"mc": {"columns": {}}}', encoding="utf-8")
    with pytest.raises(SettingsError, match="entry 'mc' of"):
        read_prompts(str(table.parent / "mc"))
    with pytest.raises(DataError, match="There is no file"):
        read_prompts(str(table.parent / "nc"))
