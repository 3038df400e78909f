"""Rows that need no judge to be rejected: each check has a name that the account counts by."""

from __future__ import annotations

import re
import unicodedata

from tunesmith.synth.config import Kind

SHORTEST_QUESTION, LONGEST_QUESTION = 4, 400  # characters
LONGEST_ANSWER = 4000
LONGEST_NUMERAL = 30  # signs; a longer one is no number, and stands for itself
_POINTING = re.compile(
    r"上文|上述|下文|文中|本段|本文|该段|这段(话|文字|内容|材料)|(以上|上面|下面|所给|给出)的?(内容|材料|文字|文本|段落|规定|信息)"
    r"|(根据|依据|按照|在)(该|本|这份|这段|此)?(材料|文本|段落|短文|文段|原文)"
    r"|\b(the|this|that|given|following|provided|above) "
    r"(passage|text|excerpt|paragraph|document|section|article)\b"
    r"|\b(above|mentioned earlier|as described below)\b|\baccording to (it|them)\b",
    re.IGNORECASE,
)
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_MEASURES = frozenset("天日年月周个人名次元分学期小时条项种倍级等门届岁位份篇章节号点米公斤万亿")
_CHINESE_NUMBER = re.compile("[零〇一二三四五六七八九十百千万亿两]+")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
# A list's number: at the beginning of a line or after a sentence, with text behind it. (30)天 is an amount.
_LISTED = re.compile(
    r"(?m)(?:^|(?<=[。；;！？])|(?<=[^\d][：:])|(?<=[.!?])(?=\s))[^\S\n]*"
    r"(?:[（(](\d{1,2})[）)]|(\d{1,2})(?:[.)）](?!\d)|、))"
    r"(?=[^\S\n]*[^\W\d_]|[^\S\n]*[《“\"「*])"
    r"(?!\s*(?:[天日年月周个人名次元分条项倍级米万亿]|小时|公斤)(?:\W|[内以之前后整]|$))"
)
_CIRCLED = re.compile("[①-⑳]")
# An article's number is no amount: 第三十条 doesn't make 30天 known.
_REFERENCE = re.compile(
    r"第\s*(\d{1,4}|[零〇一二三四五六七八九十百千万两]+)\s*[条章节款项编篇]"
    r"|\b(?:articles?|sections?|chapters?|clauses?)\s+(\d+)\b",
    re.IGNORECASE,
)
_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
          "ten": 10, "eleven": 11, "twelve": 12}  # fmt: skip
_TITLE = re.compile(r"《([^《》]{1,40})》")
_NAME = re.compile(r"(?<![.!?\"“:：。！？\n]\s)(?<!^)(?<=[\s(（])([A-Z][\w-]{2,}|[A-Z]{2,})\b")


def problem(kind: Kind, question: str, answer: str, passage: str) -> tuple[str, str]:
    """The first thing that is wrong with a row, and what it is about; ("", "") where nothing is."""
    if not question:
        return "empty question", ""
    if not answer:
        return "empty answer", ""
    if len(question) < SHORTEST_QUESTION:
        return "question too short", f"{len(question)} characters"
    if len(question) > LONGEST_QUESTION:
        return "question too long", f"{len(question)} characters"
    if len(answer) > LONGEST_ANSWER:
        return "answer too long", f"{len(answer)} characters"
    if kind == "summary":
        return ("longer than the passage", "") if len(answer) >= len(passage) else ("", "")
    if found := _POINTING.search(question):
        return "points at a text that nobody sees", found[0]
    return "", ""


def flags(question: str, answer: str, passage: str) -> list[tuple[str, str]]:
    """Numbers and names of an answer that stand neither in the passage nor in the question."""
    known = f"{passage}\n{question}"
    found = []
    there, articles = _apart(known)
    said, cited = _apart(_without_list_numbers(answer))
    unknown = numbers(said, certain=True) - numbers(there)
    if strange := sorted(unknown | (cited - articles - numbers(there))):
        found.append(("number not in the passage", ", ".join(strange)))
    folded = _folded(known)
    names = [*_TITLE.findall(answer), *_NAME.findall(answer)]
    if strange := [name for name in dict.fromkeys(names) if _folded(name) not in folded]:
        found.append(("name not in the passage", ", ".join(strange)))
    return found


def numbers(text: str, *, certain: bool = False) -> set[str]:
    """The numbers in a text, in digits: 三天, 3 天 and ３天 have the same one, and 1,000 is 1000.

    `certain`: without single numerals that may be a part of a word (一般, one of them).
    """
    plain = unicodedata.normalize("NFKC", text)
    found = {_shortened(one.replace(",", "")) for one in _NUMBER.findall(plain)}
    for one in _CHINESE_NUMBER.finditer(plain):
        counts = plain[one.end() : one.end() + 1] in _MEASURES
        if not certain or (counts and (len(one[0]) > 1 or one[0] not in "十百千万亿")):
            found.add(str(_value(one[0])) if len(one[0]) <= LONGEST_NUMERAL else one[0])
    words = {w for w in re.findall(r"[a-z]+", plain.lower()) if w in _WORDS}
    return found | {str(_WORDS[w]) for w in words - ({"one"} if certain else set())}


def _without_list_numbers(text: str) -> str:
    """A text without the numbers of its lists, which count from 1."""
    last = 0

    def emptied(found: re.Match[str]) -> str:
        nonlocal last
        number = int(found[1] or found[2])
        if number not in (1, last + 1):
            return found[0]
        last = number
        return " "

    return _CIRCLED.sub(" ", _LISTED.sub(emptied, text))


def _apart(text: str) -> tuple[str, set[str]]:
    """A text without the numbers of articles and chapters, and these in digits."""
    plain = unicodedata.normalize("NFKC", text)
    found = [one[1] or one[2] for one in _REFERENCE.finditer(plain)]
    return _REFERENCE.sub(" ", plain), {str(int(n)) if n.isdigit() else str(_value(n)) for n in found}


def _value(text: str) -> int:
    """三百二十一 -> 321; 二〇二四, which is read digit by digit, -> 2024."""
    if not any(c in _UNITS for c in text):
        return int("".join(str(_DIGITS[c]) for c in text))
    total = part = digit = 0
    for c in text:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif c == "亿":
            total, part, digit = (total + part + digit or 1) * 100_000_000, 0, 0
        elif c == "万":
            total, part, digit = total + (part + digit or 1) * 10_000, 0, 0
        else:
            part, digit = part + (digit or 1) * _UNITS[c], 0
    return total + part + digit


def _shortened(number: str) -> str:
    whole, _, rest = number.partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).casefold()
