"""What a line of a document is: a heading and of which level, an article (第…条), speech, verse.

Levels follow what stands in Chinese and English books: 编 0, 章 1, 节 2, Markdown's # as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NUMERAL = "零〇一二三四五六七八九十百千万两\\d０-９"
ENDS = tuple("。！？；…：」』”）.!?;:")
_MARKDOWN = re.compile(r"(#{1,6})\s+\S")
_CHINESE = re.compile(rf"第\s*[{NUMERAL}]{{1,9}}\s*([编篇部卷集章回节])(?![，。、的])(.{{0,40}})")
_ENGLISH = re.compile(r"(part|book|chapter|section)\s+([\divxlc]+|[a-z]+)\b[.:]?(.{0,60})", re.IGNORECASE)
_LEVELS = {"编": 1, "篇": 1, "部": 1, "卷": 1, "集": 1, "part": 1, "book": 1, "章": 2, "回": 2, "chapter": 2,
           "节": 3, "section": 3}  # fmt: skip
_ARTICLE = re.compile(rf"(?:\*\*)?(第\s*[{NUMERAL}]{{1,9}}\s*条(?:之[{NUMERAL}]+)?)|(Article\s+\d+)\b")
_SPEECH = re.compile(r"\s*[“\"「『]|\s*(—|–|——)\s?\S|\s*[^\s：:，。]{1,8}[：:]\s*[“\"「『]")
_SENTENCE_END = re.compile(r"[。！？!?…]|\.(\s|$)")
_CLAUSES = re.compile(r"[，。！？；、,.!?;\s]+")
_LIST = re.compile(
    r"\s*([-*+•]|\d+[.)、]|[（(][\d一二三四五六七八九十]+[）)]|[一二三四五六七八九十]+、|\||>)"
)
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003134f]")


def heading_level(line: str) -> int:
    """1 to 6 for a heading, 0 for anything else."""
    line = line.strip()
    if found := _MARKDOWN.match(line):
        return len(found[1])
    bare = line.strip("*＊ 　")
    if (found := _CHINESE.fullmatch(bare)) and not bare.endswith(("。", "；", "，")):
        return _LEVELS[found[1]]
    if (found := _ENGLISH.fullmatch(bare)) and not bare.endswith((".", ";", ",")):
        return _LEVELS[found[1].lower()]
    return 0


def heading_text(line: str) -> str:
    """A heading without its marks."""
    return line.strip().lstrip("#").strip("*＊ 　")


def article(line: str) -> str:
    """`第十二条` where a line begins one, else ""."""
    found = _ARTICLE.match(line.strip())
    return re.sub(r"\s", "", found[1] or "") or (found[2] or "") if found else ""


def is_speech(line: str) -> bool:
    """Whether a line begins as spoken."""
    return _SPEECH.match(line) is not None


def is_title(line: str) -> bool:
    """A short line that ends no sentence: it belongs to what follows."""
    line = line.strip()
    return (
        0 < width(line) <= 40
        and not _SENTENCE_END.search(line)
        and not _LIST.match(line)
        and line[-1] not in "，；,;：:"
    )


def is_verse(lines: Sequence[str]) -> bool:
    """Whether a block is a poem: clauses of one length (五言、七言), or many short lines."""
    if any(_LIST.match(line) or article(line) or heading_level(line) for line in lines):
        return False
    clauses = [c for line in lines for c in _CLAUSES.split(line.strip()) if c]
    if len(clauses) >= 4 and all(_HAN.search(c) for c in clauses):
        common = max(set(map(len, clauses)), key=[len(c) for c in clauses].count)
        if common in (4, 5, 6, 7) and sum(len(c) == common for c in clauses) >= 0.8 * len(clauses):
            return True
    if any(is_speech(line) for line in lines):
        return False
    # Lines of prose end with their sentence.
    ended = sum(bool(_SENTENCE_END.search(line.strip()[-1:])) for line in lines)
    return (
        4 <= len(lines) <= 120 and ended * 2 < len(lines) and all(width(line.strip()) <= 50 for line in lines)
    )


def begins_anew(line: str, *, heading: bool = False) -> bool:
    """Whether a line of a PDF begins a paragraph; `heading`: whether it is a heading."""
    if heading:
        return heading_level(line) > 0
    return bool(heading_level(line) or article(line) or _LIST.match(line))


def width(text: str) -> int:
    """Columns that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
