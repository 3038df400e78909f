"""Reading files: rows keep their true line, and rows read + bad rows = rows in the file."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.check import load
from tunesmith.data.config import DataFile
from tunesmith.data.read import files_of, not_read, read_file
from tunesmith.errors import DataError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Characters that trip readers: quotes, separators, line breaks of every kind, both scripts, beyond the BMP.
TEXT = st.text(st.sampled_from(list('ab"\\,;\t\n\r\u2028\u0085{}[]詩，。😀é')), max_size=8)
COLUMNS = st.sampled_from(["instruction", "input", "output"])
ROWS = st.lists(st.dictionaries(COLUMNS, TEXT, min_size=1), min_size=1, max_size=6)
GAPS = st.sampled_from(["", " ", "\n", "\r\n", "\n\n  ", "\t"])

CHINESE = '[{"instruction": "請續寫後兩句", "output": "人心風不吹，波浪高百尺。"}]\n' * 5


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def refused(folder: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read_file(write(folder, name, content))
    assert caught.value.fix
    return str(caught.value)


@quick
@given(rows=ROWS, data=st.data())
def test_every_row_of_a_json_list_has_its_own_line(tmp_path: Path, rows: list[Any], data: Any) -> None:
    text, lines = data.draw(GAPS) + "[", []
    for number, row in enumerate(rows):
        text += ("," + data.draw(GAPS)) if number else data.draw(GAPS)
        lines.append(text.count("\n") + 1)
        text += json.dumps(
            row, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1]))
        )
        text += data.draw(GAPS)
    file = read_file(write(tmp_path, "rows.json", text + "]" + data.draw(GAPS)))
    assert [row.value for row in file.rows] == rows
    assert [(row.origin.line, row.origin.row) for row in file.rows] == list(
        zip(lines, range(len(rows)), strict=True)
    )
    assert file.bad == []


@quick
@given(rows=ROWS, data=st.data())
def test_a_broken_line_of_jsonl_is_named_and_costs_only_itself(
    tmp_path: Path, rows: list[Any], data: Any
) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    broken = data.draw(st.integers(0, len(lines)))
    lines.insert(
        broken, data.draw(st.sampled_from(['{"a": "b', '{"a" "b"}', "{'a': 'b'}", '{"a": 1}}', "nonsense"]))
    )
    blank = data.draw(st.integers(0, len(lines)))
    lines.insert(blank, "  ")
    file = read_file(write(tmp_path, "rows.jsonl", "\n".join(lines)))
    assert [row.value for row in file.rows] == rows
    assert [bad.origin.line for bad in file.bad] == [broken + 1 + (blank <= broken)]
    assert len(file.rows) + len(file.bad) == len(rows) + 1
    assert {row.origin.row for row in file.rows} | {bad.origin.row for bad in file.bad} == set(
        range(len(rows) + 1)
    )


@quick
@given(cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), tabs=st.booleans())
def test_csv_rows_with_line_breaks_in_quotes_keep_their_line(tmp_path: Path, cells: Any, tabs: bool) -> None:
    cells = [(a.replace("\r", ""), b.replace("\r", "")) for a, b in cells]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["instruction", "output"])
    lines = []
    for pair in cells:
        lines.append(out.getvalue().count("\n") + 1)
        writer.writerow(pair)
    file = read_file(write(tmp_path, "rows.tsv" if tabs else "rows.csv", out.getvalue()))
    assert [row.value for row in file.rows] == [{"instruction": a, "output": b} for a, b in cells]
    assert [row.origin.line for row in file.rows] == lines


@quick
@given(rows=ROWS.filter(lambda rows: len(rows) > 1), data=st.data())
def test_a_missing_comma_names_both_rows(tmp_path: Path, rows: list[Any], data: Any) -> None:
    missing = data.draw(st.integers(1, len(rows) - 1))
    text = "[\n"
    for number, row in enumerate(rows, 1):
        text += json.dumps(row) + ("" if number in (missing, len(rows)) else ",") + "\n"
    message = refused(tmp_path, "rows.json", text + "]")
    assert f"rows.json:{missing + 1}:" in message
    assert f"no comma between row {missing} and row {missing + 1}" in message


def test_a_broken_list_shows_all_its_faults_at_once(tmp_path: Path) -> None:
    text = '[\n  {"a": "b"}\n  {"a": "b"},\n  {"a": "b" "c": "d"},\n  {"a": "b"},\n  {"a": "b",},\n]'
    message = refused(tmp_path, "rows.json", text)
    assert "rows.json:2:13: no comma between row 1 and row 2" in message
    assert "rows.json:4:13: a comma is missing" in message
    assert "rows.json:6:13: a comma too many before }" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n{"a": "b"},\n{"a": "b"', ("rows.json:3:10", "ends in the middle")),
        ('[\n{"a": "b"},\n{"a": "b"}\n', ("rows.json:4:1", "no ]")),
        ('[{"a": "b"},]', ("comma too many",)),
        ('[,{"a": "b"}]', ("comma too many before row 1",)),
        ('[{"a": "b"}] {"a": 1}', ("rows.json:1:14", "after the end")),
        ('[{"a": "x\ny"}]', ("rows.json:1:", "line break")),
        ('[{"a": "C:\\dir"}]', ("backslash",)),
        ("[{'a': 'b'}]", ("double quotes",)),
        ('[{"a": None}]', ("write null",)),
        ('[{"a": "b]', ("rows.json:1:8", "no closing quote")),
        ('{"data": [{"a": "b"}]}', ("'data'", "jq")),
        ('{"data": [1, 2]}', ("not a list of rows",)),
        ('{"a": {"0": "x"}, "b": {"0": "y"}}', ("records",)),
        ('{\n"a": "b"\n}\n{\n"a": "b"\n}', ("rows.json:3:2", "another follows")),
        ("nonsense\nmore nonsense", ("rows.json:1:1",)),
        ("[]", ("no rows",)),
        ("", ("empty",)),
        (" \n ", ("empty",)),
        ("[" * 100_000, ("nested",)),
    ],
)
def test_files_that_are_no_list_of_rows(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    message = refused(tmp_path, "rows.json", text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(tmp_path: Path, end: str) -> None:
    file = read_file(
        write(tmp_path, "rows.jsonl", end.join(['{"a": "1"}', "", '{"a": "2"', '{"a": "3"}', ""]))
    )
    assert [row.origin.line for row in file.rows] == [1, 4]
    assert [bad.origin.line for bad in file.bad] == [3]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    ("value", "word"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": [1, -Infinity]}', "-Infinity"),
        ('{"a": "1", "a": "2"}', "'a' is there twice"),
        ("[1]", "a list"),
        ("null", "null"),
        ("42", "42"),
    ],
)
def test_values_that_python_would_swallow_are_bad_rows(
    tmp_path: Path, name: str, value: str, word: str
) -> None:
    rows = ['{"a": "x"}', value, '{"a": "y"}']
    text = "[\n" + ",\n".join(rows) + "\n]" if name == "rows.json" else "\n".join(rows)
    file = read_file(write(tmp_path, name, text))
    assert [row.value for row in file.rows] == [{"a": "x"}, {"a": "y"}]
    assert [(bad.origin.line, bad.origin.row) for bad in file.bad] == [(3 if name == "rows.json" else 2, 1)]
    assert word in file.bad[0].reason
    assert str(file.bad[0]).startswith(f"{file.path}:")


def test_a_single_row_a_whole_file_and_jsonl_under_the_name_json(tmp_path: Path) -> None:
    one = read_file(write(tmp_path, "one.json", '\n{\n"messages": [{"role": "user", "content": "a"}]}\n'))
    assert [(row.origin.line, one.kind) for row in one.rows] == [(2, "json")]
    lines = read_file(write(tmp_path, "lines.json", '{"a": "1"}\n{"a": "2"}'))
    assert (lines.kind, len(lines.rows)) == ("jsonl", 2)
    array = read_file(write(tmp_path, "list.jsonl", '[{"a": "1"},\n{"a": "2"}]'))
    assert (array.kind, [row.origin.line for row in array.rows]) == ("json", [1, 2])


# Encodings


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8 with BOM"),
        ("utf-16", "utf-16-le with BOM"),
        ("gb18030", "gb18030"),
        ("gb18030-sig", "gb18030 with BOM"),
    ],
)
def test_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    text = CHINESE.split("\n")[0]
    mark = "\ufeff" if name == "gb18030-sig" else ""
    file = read_file(
        write(tmp_path, "rows.json", (mark + text).encode(name.removesuffix("-sig") if mark else name))
    )
    assert file.encoding == encoding
    assert file.rows[0].value == json.loads(text)[0]


def test_big_endian_utf_16(tmp_path: Path) -> None:
    file = read_file(write(tmp_path, "a.txt", b"\xfe\xff" + "詩 a".encode("utf-16-be")))
    assert (file.rows[0].value, file.encoding) == ("詩 a", "utf-16-be with BOM")


@quick
@given(at=st.integers(0, 3 * 5 * 60), delete=st.booleans())
def test_damaged_utf_8_is_never_taken_for_gb18030(tmp_path: Path, at: int, delete: bool) -> None:
    data = CHINESE.encode()
    at %= len(data)
    damaged = data[:at] + (b"" if delete else b"\xff") + data[at + 1 :]
    first = _first_bad_byte(damaged)
    if first is not None:
        message = refused(tmp_path, "a.txt", damaged)
        assert f"byte {first} " in message
        assert "isn't utf-8" in message


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_download_that_stopped_is_not_taken_for_gb18030(tmp_path: Path, cut: int) -> None:
    data = "人心風不吹，波浪高百尺。".encode()[:-cut]
    first = _first_bad_byte(data)
    if first is not None:  # 中文 cut short is valid GB18030: 涓枃
        assert f"byte {first} " in refused(tmp_path, "a.txt", data)


def _first_bad_byte(data: bytes) -> int | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(CHINESE, "big5"), ("Müller läuft über die Straße", "latin-1"), ("It’s fine – really", "cp1252")],
)
def test_other_encodings_are_refused_not_garbled(tmp_path: Path, text: str, encoding: str) -> None:
    data = text.encode(encoding)
    first = next(at for at, byte in enumerate(data) if byte > 127)
    assert f"byte {first} " in refused(tmp_path, "a.txt", data)


@pytest.mark.parametrize("data", ["詩a".encode("utf-16-le"), b"a\0b", "詩".encode() + b"\0\xff"])
def test_nul_bytes_are_no_text(tmp_path: Path, data: bytes) -> None:
    assert "byte" in refused(tmp_path, "a.txt", data)


def test_a_broken_utf_16_file_names_the_byte(tmp_path: Path) -> None:
    assert "byte 4 " in refused(tmp_path, "a.txt", b"\xff\xfea\0\x00\xd8b\0")


# Tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('instruction,output\n"a\nb,c\n', ("rows.csv:2", "never closed")),
        ('instruction,output\na,b\n"a"b,c\n', ("rows.csv:3", "closing quote")),
        ("instruction,instruction\na,b\n", ("rows.csv:1", "twice")),
        ("instruction,,output\na,b,c\n", ("rows.csv:1", "column 2")),
        (",instruction,output\n0,a,b\n", ("rows.csv:1", "column 1", "index=False")),
        ("a" * 200 + ",b\nc,d\n", ("isn't a header",)),
        ("instruction,output\n", ("no rows",)),
    ],
)
def test_csv_that_cannot_be_read_reliably(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    message = refused(tmp_path, "rows.csv", text)
    assert all(word in message for word in words), message


def test_ragged_rows_are_named_by_line_and_the_others_are_read(tmp_path: Path) -> None:
    file = read_file(write(tmp_path, "rows.csv", 'instruction,output\n"a\n\nb",c\nx\n\nq,r,s\nt,u\n'))
    assert [(row.origin.line, row.value["output"]) for row in file.rows] == [(2, "c"), (8, "u")]  # type: ignore[index]
    assert [(bad.origin.line, bad.reason) for bad in file.bad] == [
        (5, "1 cells, but the header has 2"),
        (7, "3 cells, but the header has 2"),
    ]


def test_long_cells_and_semicolons(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    file = read_file(write(tmp_path, "rows.csv", "instruction;output\na,b;" + "詩" * 200_000 + "\n"))
    assert file.rows[0].value == {"instruction": "a,b", "output": "詩" * 200_000}
    assert csv.field_size_limit() == limit


def test_parquet_and_arrow(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "詩"}], "n": 1}, {"messages": None, "n": None}]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    with pyarrow.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "no_ending").write_bytes((tmp_path / "a.parquet").read_bytes())
    for name in ("a.parquet", "a.arrow", "b.arrow", "no_ending"):
        file = read_file(str(tmp_path / name))
        assert [row.value for row in file.rows] == rows
        assert [(row.origin.line, row.origin.row) for row in file.rows] == [(1, 0), (2, 1)]


def test_damaged_tables_and_doubled_columns(tmp_path: Path) -> None:
    assert "Parquet" in refused(tmp_path, "a.parquet", b"PAR1 and nothing else")
    assert "Arrow" in refused(tmp_path, "a.arrow", b"ARROW1 and nothing else")
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    with pyarrow.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as out:
        out.write_table(table)
    with pytest.raises(DataError, match="'a' twice"):
        read_file(str(tmp_path / "b.arrow"))


# Text, folders, files that aren't there


def test_a_text_file_is_one_text(tmp_path: Path) -> None:
    file = read_file(write(tmp_path, "novel.md", "第一回\r\n\r\n甄士隱"))
    assert [row.value for row in file.rows] == ["第一回\n\n甄士隱"]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", '{"a": "2"}')
    write(tmp_path, "a.json", '[{"a": "1"}]')
    write(tmp_path, "README.md", "about")
    write(tmp_path, ".hidden", "x")
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", "c.jsonl", '{"a": "3"}')
    assert files_of(str(tmp_path)) == [f"{tmp_path}/a.json", f"{tmp_path}/b.jsonl"]
    assert not_read(str(tmp_path)) == [".hidden", "README.md", "more/"]
    read = [read_file(name) for name in files_of(str(tmp_path))]
    assert [row.value for file in read for row in file.rows] == [{"a": "1"}, {"a": "2"}]


def test_folders_that_cannot_be_read_as_one(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "[]")
    write(tmp_path, "b.csv", "a")
    with pytest.raises(DataError, match="more than one kind"):
        files_of(str(tmp_path))
    (tmp_path / "b.csv").rename(tmp_path / "b.bin")
    with pytest.raises(DataError, match="more than one kind") as caught:
        files_of(str(tmp_path))
    assert "b.bin" in str(caught.value)
    (tmp_path / "nested" / "deep").mkdir(parents=True)
    write(tmp_path / "nested" / "deep", "a.json", "[]")
    with pytest.raises(DataError, match="no data file") as caught:
        files_of(str(tmp_path / "nested"))
    assert "nested/deep" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("rows.xlsx", b"PK\x03\x04....", "CSV"),
        ("rows.jsonl.gz", b"\x1f\x8b....", "Unpack"),
        ("book.pdf", b"%PDF-1.7", ".txt"),
        ("rows.pkl", b"\x80\x04", "Pickle"),
        ("rows.bin", bytes(range(256)), "known"),
    ],
)
def test_kinds_that_are_not_read(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    message = refused(tmp_path, name, content)
    assert name in message
    assert word in message


def test_an_unknown_ending_is_looked_into(tmp_path: Path) -> None:
    assert len(read_file(write(tmp_path, "rows.data", '\ufeff [{"a": "1"}]')).rows) == 1
    assert len(read_file(write(tmp_path, "rows", '{"a": "1"}\n{"a": "2"}')).rows) == 2


def test_missing_files_are_all_named_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "train.json", '[{"text": "1"}]')
    names = [f"{tmp_path}/trian.json", f"{tmp_path}/train.json", f"{tmp_path}/none/x.csv"]
    with pytest.raises(DataError) as caught:
        load([DataFile(path=name, weight=1.0) for name in names])
    message = str(caught.value)
    assert re.search(r"trian.json .did you mean 'train.json'\?.\.", message)
    assert "none/x.csv" in message
