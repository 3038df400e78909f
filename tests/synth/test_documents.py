"""Documents of every format, whole and broken: the text that comes out, or the reason why none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synth.papers import Line, docx, epub, packed, paragraph, pdf
from tunesmith.errors import DataError, MissingExtraError, UsageError
from tunesmith.synth import documents, markup
from tunesmith.synth import pdf as pdf_reader
from tunesmith.synth.documents import find_files, read_library
from tunesmith.synth.markup import page_text, read_docx, read_epub, read_html
from tunesmith.synth.pdf import read_pdf
from tunesmith.synth.reading import Unreadable


def column(x: int, *lines: str) -> list[Line]:
    return [(x, 780 - 20 * i, line) for i, line in enumerate(lines)]


LEFT = column(
    50, "第一章 总则", "第一条 为维护学校正常的教学秩序，", "制定本手册。", "第二条 本手册适用于全体学生。"
)
RIGHT = column(320, "第二章 请假", "第三条 请假三天以内由辅导员批准，三天", "以上由学院批准。")
TWO_COLUMNS = """\
第一章 总则
第一条 为维护学校正常的教学秩序，制定本手册。
第二条 本手册适用于全体学生。
第二章 请假
第三条 请假三天以内由辅导员批准，三天以上由学院批准。
第四条 病假须附证明。"""


def test_a_chinese_pdf_with_a_cid_font_and_two_columns() -> None:
    found = read_pdf(pdf([LEFT + RIGHT, [], column(50, "第四条 病假须附证明。")]), "手册.pdf")
    assert found.text == TWO_COLUMNS  # broken lines joined, headings and articles apart, columns in order
    assert (found.pages, found.empty_pages) == (3, (2,))
    assert found.notes == ("1 of 3 pages have no text, as scans have none: 2",)


def test_running_heads_and_page_numbers_are_left_out_and_counted() -> None:
    pages = [
        column(50, "松江学院手册", f"第{n}条 内容各不相同，这是正文的第{n}段。", f"- {n} -")
        for n in range(1, 5)
    ]
    found = read_pdf(pdf(pages), "x")
    assert found.text.split("\n") == [f"第{n}条 内容各不相同，这是正文的第{n}段。" for n in range(1, 5)]
    assert found.notes == ("8 running heads and page numbers left out",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"%PDF-1.7 nothing more", "damaged"), (pdf([LEFT], encrypt="x"), "password")],
    ids=["damaged", "encrypted"],
)
def test_a_pdf_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read_pdf(data, "x")


def test_a_word_document_with_headings_lists_and_a_table() -> None:
    table = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("三天", "辅导员"))
    body = paragraph("请假", "1") + paragraph("第三条 应当请假。") + f"<w:tbl><w:tr>{table}</w:tr></w:tbl>"
    assert read_docx(docx(body), "x").text == "# 请假\n\n第三条 应当请假。\n\n三天 | 辅导员"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xd0\xcf\x11\xe0 an encrypted file of Word", "encrypted"),
        (b"PK\x03\x04 cut off", "damaged"),
        (packed({"other.txt": "x"}), "no Word document"),
        (packed({"word/document.xml": "<broken"}), "damaged"),
    ],
    ids=["encrypted", "cut", "other", "broken"],
)
def test_a_word_document_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read_docx(data, "x")


PAGE = "<html><head><title>t</title></head><body><h1>第一章</h1><p>雨\n下。</p></body></html>"


def test_a_book_in_its_own_order_without_its_table_of_contents() -> None:
    other = PAGE.replace("一", "二").replace("<html>", '<?xml version="1.0" encoding="gbk"?><html>')
    found = read_epub(epub({"z.xhtml": PAGE, "a.xhtml": other.encode("gbk")}, missing=["gone.xhtml"]), "x")
    assert found.text == "# 第一章\n\n雨下。\n\n# 第二章\n\n雨下。"
    assert found.notes == ("1 of 3 chapters can't be read: OPS/text/gone.xhtml",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (epub({"a.xhtml": PAGE}, locked=["a.xhtml"]), "DRM"),
        (packed({"a": "b"}), "container.xml"),
        (packed({"META-INF/container.xml": "<container/>"}), "no content"),
        (b"no archive", "damaged"),
    ],
    ids=["locked", "empty", "no package", "no archive"],
)
def test_a_book_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read_epub(data, "x")


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markup, "LARGEST_INSIDE", 100_000)
    with pytest.raises(Unreadable, match="limit"):
        read_epub(epub({"a.xhtml": "雨" * 100_000}), "x")


def test_a_page_without_scripts_and_navigation() -> None:
    page = (
        "<body><nav>菜单</nav><script>var a = 1</script><h2>请假</h2><ol><li>甲<li>乙</ol><pre>a\n  b</pre>"
        "<ruby>汉<rt>hàn</rt></ruby>字<br>two <b>words</b>\nhere<table><tr><td>1<td>2</table></body>"
    )
    text, left_out = page_text(page)
    assert text == "## 请假\n\n1. 甲\n2. 乙\n\na\nb\n\n汉字\ntwo words here\n\n1 | 2"
    assert left_out == 2
    meta = '<meta charset="gb2312">' + PAGE
    assert read_html(meta.encode("gb18030"), "x").text == "# 第一章\n\n雨下。"
    assert read_html(meta.encode(), "x").text == "# 第一章\n\n雨下。"  # what it says of itself is wrong


def test_nothing_outside_a_document_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("秘密")
    entity = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    assert "秘密" not in read_html((entity + "<html><body>&x;甲</body></html>").encode(), "x").text
    linked = (
        f'<html><body><iframe src="{tmp_path}/secret"></iframe><img src="{tmp_path}/secret">甲</body></html>'
    )
    assert read_epub(epub({"a.xhtml": linked}, missing=[f"../../..{tmp_path}/secret"]), "x").text == "甲"
    inside = {"META-INF/container.xml": entity + "<container><rootfile full-path='&x;'/></container>"}
    with pytest.raises(Unreadable):
        read_epub(packed(inside), "x")


def test_a_folder_is_read_whole_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "规定"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_bytes("第一条 请假应当事先批准，不得事后补办手续。".encode("gb18030"))
    (folder / "inner" / "b.md").write_text("# 标题\r\n\r\n正文", encoding="utf-8")
    (folder / "copy.md").write_text("# 标题\r\n\r\n正文", encoding="utf-8", newline="")
    (folder / "inner" / "b.md").write_text("# 标题\r\n\r\n正文", encoding="utf-8", newline="")
    (folder / "bad.txt").write_bytes(b"abc \xff\xfe\x80 def")
    (folder / "empty.txt").write_text(" \n")
    (folder / "scan.pdf").write_bytes(pdf([[], []]))
    (folder / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / ".hidden.txt").write_text("not a document")
    library = read_library([folder, folder / "a.txt"])
    assert [(one.name, one.text, one.notes) for one in library.documents] == [
        ("规定/a.txt", "第一条 请假应当事先批准，不得事后补办手续。", ("read as gb18030",)),
        ("规定/copy.md", "# 标题\n\n正文", ()),
    ]
    reasons = {one.name: one.reason for one in library.unread}
    assert reasons["规定/inner/b.md"] == "the same file as 规定/copy.md"
    assert "byte 4" in reasons["规定/bad.txt"]
    assert reasons["规定/empty.txt"] == "there is no text in it"
    assert reasons["规定/scan.pdf"] == "there is no text in it: none of its 2 pages has any (a scan?)"
    assert reasons["规定/old.doc"] == "the old Word format; save it as .docx"
    assert reasons["规定/photo.jpg"] == ".jpg isn't a format that is read"
    assert len(reasons) == 6


def test_an_output_in_the_folder_of_its_documents_is_none_of_them(tmp_path: Path) -> None:
    for name in ("a.txt", "rows.txt", "rows.jsonl", "rows.valid.jsonl", "rows.report.json", "other.jsonl"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "rows.calls.sqlite-wal").write_bytes(b"x")
    library = read_library([tmp_path], tmp_path / "rows.jsonl")
    assert [one.text for one in library.documents] == ["a.txt", "rows.txt"]
    assert [one.name.rpartition("/")[2] for one in library.unread] == ["other.jsonl"]


def test_no_document_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such document"):
        find_files([tmp_path / "none.txt"])
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="None of the documents") as error:
        read_library([tmp_path / "a.jpg"])
    assert "a.jpg: .jpg isn't" in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_without_the_extra_the_feature_says_which_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(markup, "mammoth", None)
    monkeypatch.setattr(markup, "lxml_html", None)
    monkeypatch.setattr(pdf_reader, "pypdfium2", None)
    for ending in (".docx", ".epub", ".html", ".pdf"):
        (file := tmp_path / f"a{ending}").write_bytes(b"x")
        with pytest.raises(MissingExtraError, match="needs the package") as error:
            read_library([file])
        assert "tunesmith[documents]" in str(error.value)
    (tmp_path / "a.txt").write_text("文字")
    assert documents.read_library([tmp_path / "a.txt"]).documents[0].text == "文字"
