"""Where documents are cut, and that what a chunk says of its place is true."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.synth.chunk import Chunk, cut
from tunesmith.synth.documents import Document
from tunesmith.synth.marks import article, heading_level, is_verse

HANDBOOK = """\
松江学院学生手册

第一章 总则

第一条 为规范学生管理，制定本手册。

第二条 本手册适用于全体在校学生。
其中包括研究生。

第二章 请假

第三条 学生请假三天以内由辅导员批准；三天以上七天以内由学院批准；七天以上由教务处批准。请假须填写请假单。逾期未归者按旷课处理。

第四条 病假须附医院证明。

第三章 奖学金
第五条 奖学金分三等。
"""
POEMS = """\
静夜思
李白

床前明月光，疑是地上霜。
举头望明月，低头思故乡。

登鹳雀楼
王之涣
白日依山尽，黄河入海流。
欲穷千里目，更上一层楼。
"""


def document(text: str) -> Document:
    return Document("a.txt", "ab" * 32, text)


def texts(text: str, size: int) -> list[str]:
    return [chunk.text for chunk in cut(document(text), size)]


def test_articles_and_headings_stay_with_their_text() -> None:
    chunks = cut(document(HANDBOOK), 60)
    assert [(chunk.headings, chunk.text) for chunk in chunks] == [
        ((), "松江学院学生手册"),
        (("第一章 总则",), HANDBOOK[10 : HANDBOOK.index("第二章")].strip()),
        (
            ("第二章 请假",),
            "第二章 请假\n\n第三条 学生请假三天以内由辅导员批准；三天以上七天以内由学院批准；七天以上由教务处批准。",
        ),
        (("第二章 请假", "第三条"), "请假须填写请假单。逾期未归者按旷课处理。"),
        (("第二章 请假",), "第四条 病假须附医院证明。"),
        (("第三章 奖学金",), "第三章 奖学金\n第五条 奖学金分三等。"),
    ]
    assert chunks[1].text.endswith("其中包括研究生。")  # the second paragraph of article 2
    assert [chunk.section for chunk in chunks] == [0, 1, 2, 2, 2, 3]


def test_sentences_are_cut_at_their_ends_and_only_where_nothing_else_fits_elsewhere() -> None:
    text = "他说：“走吧！”于是大家走了。" * 3 + "没有标点的文字" * 12
    pieces = texts(text, 40)
    assert pieces[:2] == ["他说：“走吧！”于是大家走了。" * 2 + "他说：“走吧！”", "于是大家走了。"]
    assert "".join(pieces) == text
    english = "It rained all night. Nobody came. " * 4
    assert texts(english, 40)[0] == "It rained all night. Nobody came."


def test_a_poem_is_one_chunk_with_its_title_however_long() -> None:
    chunks = cut(document(POEMS), 40)
    assert [chunk.text for chunk in chunks] == [POEMS[:34].strip(), POEMS[34:].strip()]
    assert all(chunk.verse for chunk in chunks)
    long = "标题\n" + "平平仄仄平平仄，仄仄平平仄仄平。\n" * 20
    assert texts(long, 40) == [long.strip()]
    assert not is_verse(["第一条 为规范管理，制定本手册。", "第二条 适用于学生。"])
    assert not is_verse(["姓名：", "1. 甲", "2. 乙", "3. 丙"])


def test_speech_stays_together_as_far_as_it_fits() -> None:
    talk = "“你来了？”\n“来了。”\n“坐吧。”"
    text = f"雨下了一夜，街上没有人。\n{talk}\n他坐下来，看着窗外的雨，很久没有说话。\n"
    assert texts(text, 40) == ["雨下了一夜，街上没有人。\n" + talk, "他坐下来，看着窗外的雨，很久没有说话。"]
    assert texts("雨下了一夜，街上没有人，只有灯还亮着。\n" + talk, 30)[1] == talk


def test_a_markdown_document_has_its_path_of_headings() -> None:
    text = "# Rules\n\nIntro.\n\n## Leave\n\nAsk first.\n\n### Sick\n\nBring a note.\n\n## Prizes\n\nThree.\n\n## Rest\n\nNo."
    chunks = cut(document(text), 40)
    assert [(chunk.headings, chunk.text) for chunk in chunks] == [
        (("Rules",), "# Rules\n\nIntro."),
        (("Rules", "Leave"), "## Leave\n\nAsk first."),
        (("Rules", "Leave", "Sick"), "### Sick\n\nBring a note."),
        (("Rules", "Prizes"), "## Prizes\n\nThree."),
        (("Rules", "Rest"), "## Rest\n\nNo."),
    ]
    assert [chunk.section for chunk in chunks] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("第一章 总则", 2), ("第十二回　　雨夜", 2), ("**第三节 请假**", 3), ("## 奖学金", 2), ("Chapter 3: Rain", 2),
        ("第一章规定的内容，适用于全体学生。", 0), ("第二节课下课以后。", 0), ("#标签", 0), ("第一条 总则", 0),
    ],
)  # fmt: skip
def test_what_is_a_heading(line: str, level: int) -> None:
    assert heading_level(line) == level


def test_what_is_an_article() -> None:
    assert article("第十二条 学生……") == "第十二条"
    assert article("第 3 条之一 学生") == "第3条之一"
    assert article("Article 7 Students") == "Article 7"
    assert article("违反第九条规定的") == ""


def test_sizes_are_counted_as_asked() -> None:
    def count(text: str) -> int:
        return len(text.encode())

    chunks = cut(document("雨下了一夜，没有人来。" * 30), 70, count)
    assert [count(chunk.text) for chunk in chunks] == [66] * 15


def test_a_text_without_marks_has_stretches_as_sections() -> None:
    chunks = cut(document("这是没有标题的一段文字，讲的是雨。\n" * 200), 100)
    sections = [chunk.section for chunk in chunks]
    assert sections == sorted(sections)
    assert 8 <= len(set(sections)) <= 20
    assert len({chunk.id for chunk in chunks}) == len(chunks)


PIECES = st.sampled_from(
    ["第一章 雨\n", "第二条 甲。", "“你好！”\n", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n\n", "雨" * 30, "。", "\n", "\n\n",
     "  ", "A word. ", "# T\n", "- x\n", "；"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40), st.integers(5, 60))
def test_offsets_are_true_chunks_are_apart_and_no_text_is_lost(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    chunks = cut(document(text), size)
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert chunk.verse or len(chunk.text) <= size
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    gaps = _between(text, chunks)
    assert gaps.strip() == ""


def _between(text: str, chunks: list[Chunk]) -> str:
    bounds = [0, *(at for chunk in chunks for at in (chunk.start, chunk.end)), len(text)]
    return "".join(text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True))
