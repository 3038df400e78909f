"""Documents that are odd, broken or made to do harm: read whole, or named with the reason, and soon."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import pytest

from tests.synth.papers import docx, epub, packed, paragraph
from tunesmith.synth import documents, markup
from tunesmith.synth.documents import read_library
from tunesmith.synth.markup import page_text, read_docx, read_epub, read_html
from tunesmith.synth.reading import Read, Unreadable


def test_a_page_whose_elements_are_never_closed_is_read_whole() -> None:
    page = "<body>" + "<b>line<br>\n" * 400 + "<p>behind</p>"
    text = read_html(page.encode(), "x").text
    assert text.count("line") == 400
    assert text.endswith("behind")
    assert read_html(("<div>" * 900 + "inside" + "</div>" * 900 + "<p>behind").encode(), "x").text == (
        "inside\n\nbehind"
    )


def test_a_page_that_is_too_deep_is_named_and_not_cut() -> None:
    with pytest.raises(Unreadable, match="never closed"):
        read_html(("<body>" + "<b>line<br>\n" * 3000 + "<p>behind</p>").encode(), "x")


@pytest.mark.parametrize("codec", ["undefined", "idna", "hex", "unicode_escape", "nonsense"])
def test_a_page_that_names_an_odd_encoding(codec: str) -> None:
    page = f'<meta charset="{codec}"><p>请假三天以内由辅导员批准。</p>'
    assert read_html(page.encode(), "x").text == "请假三天以内由辅导员批准。"


def test_a_book_packed_in_a_way_that_nobody_knows() -> None:
    data = bytearray(epub({"a.xhtml": "<p>雨</p>"}))
    for mark, place in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place] = 9
    with pytest.raises(Unreadable, match="damaged"):
        read_epub(bytes(data), "x")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_chapter_that_cannot_be_unpacked_is_named(method: int) -> None:
    whole = epub({"good.xhtml": "<p>雨</p>", "bad.xhtml": "<p>" + "下" * 99 + "</p>"})
    out, place = io.BytesIO(), 0
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            bad = name.endswith("bad.xhtml")
            place = out.tell() + 30 + len(name) if bad else place
            new.writestr(name, old.read(name), method if bad else zipfile.ZIP_STORED)
    data = bytearray(out.getvalue())
    data[place : place + 12] = b"\xff" * 12
    found = read_epub(bytes(data), "x")
    assert found.text == "雨"
    assert found.notes[0].startswith("1 of 2 chapters can't be read")


def test_one_document_that_breaks_its_reader_does_not_end_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_data: bytes, _name: str) -> Read:
        raise NotImplementedError

    monkeypatch.setitem(documents.READERS, ".html", broken)
    (tmp_path / "a.html").write_text("x")
    (tmp_path / "b.txt").write_text("text")
    library = read_library([tmp_path])
    assert [one.text for one in library.documents] == ["text"]
    assert "NotImplementedError" in library.unread[0].reason


def test_a_book_that_names_one_chapter_often_has_it_once() -> None:
    data = epub({"a.xhtml": "<p>雨</p>"})
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        files = {name: book.read(name) for name in book.namelist()}
    (package,) = (name for name in files if name.endswith(".opf"))
    begin = files[package].rindex(b"<itemref")
    end = files[package].index(b">", begin) + 1
    files[package] = files[package][:begin] + files[package][begin:end] * 200 + files[package][end:]
    found = read_epub(packed(dict(files)), "x")
    assert found.text == "雨"
    assert "chapters that come again are read once: 199" in found.notes


def test_archives_that_unpack_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreadable, match="times its size"):
        read_epub(epub({"a.xhtml": "x" * (11 * 2**20)}), "x")
    monkeypatch.setattr(markup, "LARGEST_XML", 10_000)
    with pytest.raises(Unreadable, match=r"word/document\.xml"):
        read_docx(docx(paragraph("雨" * 10_000)), "x")
    monkeypatch.setattr(markup, "LARGEST_TEXT", 1000)
    with pytest.raises(Unreadable, match="characters"):
        read_epub(epub({f"{n}.xhtml": f"<p>{'雨' * 400}</p>" for n in range(3)}), "x")


@pytest.mark.parametrize(
    "page",
    [
        "<ol>" + "<li>a</li>" * 40_000 + "</ol>",
        "<pre>a" + "\n" * 100_000 + "b</pre>",
        "<p>中" + "\n" * 100_000 + "x</p>",
    ],
    ids=["list", "lines in pre", "lines"],
)
def test_long_runs_take_no_time(page: str) -> None:
    begin = time.perf_counter()
    page_text(page)
    assert time.perf_counter() - begin < 5  # by squares, minutes


def test_items_are_numbered_in_their_own_lists() -> None:
    page = "<ol><li>a<ol><li>b<li>c</ol><li>d</ol><ul><li>e</ul><nav>x<nav>yy</nav></nav>"
    text, left_out = page_text(page)
    assert [line for line in text.split("\n") if line] == ["1. a", "1. b", "2. c", "2. d", "- e"]
    assert left_out == 3
