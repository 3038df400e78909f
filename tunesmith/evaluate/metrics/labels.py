"""Labels read out of free text: classes, yes or no, the letter of a choice.

What can't be read is wrong, and never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import is_empty, tokens, without_thinking


def classification(references: Sequence[Sequence[str]]) -> list[Metric]:
    """`accuracy` and `macro_f1` over the labels that the references of all rows name.

    A row's references are its labels, all of them: a row with two is right if the answer names both and no
    other. A label is read where its tokens stand in the answer; of labels that overlap ("good", "not good")
    the longest. macro_f1 is the mean over labels of 2 TP / (2 TP + FP + FN).
    """
    labels = sorted({_label(each) for row in references for each in row if tokens(each)})

    def accuracy(prediction: str, wanted: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        return float(read_labels(prediction, labels) == {_label(each) for each in wanted})

    def counts(prediction: str, wanted: Sequence[str]) -> tuple[float, ...]:
        found, true = read_labels(prediction, labels), {_label(each) for each in wanted}
        return tuple(
            float(inside)
            for label in labels
            for inside in (label in found & true, label in found - true, label in true - found)
        )

    def macro_f1(sums: Sequence[float]) -> float:
        parts = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
        # A resample may hold no row of a label: its F1 is no number there, and doesn't count.
        known = [(hit, miss) for hit, extra, lost in parts if (miss := extra + lost) + hit]
        return sum(2 * hit / (2 * hit + miss) for hit, miss in known) / len(known) if known else 0.0

    named = f"{len(labels)} label{'s' * (len(labels) != 1)}"
    return [
        Metric("accuracy", accuracy, True, f"exactly the row's labels, read from the answer ({named})"),
        Metric(
            "macro_f1", accuracy, False, f"mean F1 over {named}, each with equal weight",
            counts=counts, combine=macro_f1,
        ),
    ]  # fmt: skip


def read_labels(prediction: str, labels: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The labels (as tokens) whose tokens stand in an answer one after the other, the longest first."""
    words: list[str | None] = list(tokens(prediction)) if not is_empty(prediction) else []
    found = set()
    for label in sorted(labels, key=len, reverse=True):
        size = len(label)
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == label:
                found.add(label)
                words[at : at + size] = [None] * size
    return found


def yes_no(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the answer says yes or no as a reference does (是, 否, 对, 不对, yes, no, true, false, …)."""
    said = read_yes_no(prediction)
    return float(said is not None and any(said == read_yes_no(each) for each in references))


def read_yes_no(text: str) -> bool | None:
    """What an answer says: how it begins, else what stands behind "the answer is"; None if neither tells.

    >>> read_yes_no("不是，学校不提供。"), read_yes_no("So the answer is yes."), read_yes_no("不一定")
    (False, True, None)
    """
    answer = unicodedata.normalize("NFKC", without_thinking(text)).casefold()
    told = [m.end() for m in _ANSWER_IS.finditer(answer)]
    for at in (0, *reversed(told)):
        start = _MARKS.match(answer, at)
        found = _YES_NO.match(answer, start.end() if start else at)
        if found and found.lastgroup != "open":
            return found.lastgroup == "yes"
    return None


def choice(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the letter that the answer chooses is a reference's."""
    letter = read_letter(prediction)
    return float(letter is not None and any(letter == read_letter(each) for each in references))


def read_letter(text: str) -> str | None:
    """The letter A to J that an answer chooses; None where it names none, or several.

    In this order: the whole answer; the last one behind "answer", "答案", "选", …; the one that the answer
    begins with, before a mark or the end of a line; the only one that stands by itself.

    >>> read_letter("（Ｃ）"), read_letter("B. Paris"), read_letter("A cat"), read_letter("排除A，所以选D。")
    ('C', 'B', None, 'D')
    """
    answer = unicodedata.normalize("NFKC", without_thinking(text)).strip()
    if whole := re.fullmatch(r"\W*([A-Ja-j])\W*", answer):
        return whole[1].upper()
    if told := _CHOSEN.findall(answer):
        return str(told[-1]).upper()
    if first := _BEGINS.match(answer):
        return first[1]
    alone = set(re.findall(r"(?<![A-Za-z0-9])([B-HJ])(?![A-Za-z0-9'])", answer))
    alone |= set(re.findall(r"(?<![A-Za-z0-9])([AI])(?![A-Za-z0-9']| (?!or\b|and\b)[a-z])", answer))
    return alone.pop() if len(alone) == 1 else None


def _label(text: str) -> tuple[str, ...]:
    return tuple(tokens(text))


_MARKS = re.compile(r"[\s\W_]*(?:(?:嗯|哦|啊|呃|回答|答案?|answer)\s*[,:。]\s*)?[\s\W_]*")
_ANSWER_IS = re.compile(
    r"答案(?:应?该?是|应?为|:)\s*|(?:结论|所以|因此)(?:是|:|,)?\s*|answer(?:\s+is|\s*:)\s*"
)
# Words of one character may begin others (能量, 对比), so that something has to end them.
_END = r"(?=[的了啊呀哦吗吧]|[^\w]|$)"
# What leaves it open, and words that only begin like a yes or a no, before those that they begin like.
_YES_NO = re.compile(
    r"(?P<open>不一定|不确定|不知道?|不清楚|不好说|不客气|不仅|不过|不同|对不起|是否|是不是|能不能|会不会|有没有|否则|"
    r"it depends|not sure|no idea)"
    r"|(?P<yes>没错|不错|没问题|是|正确|确实|当然|可以|(?:对|能|会|有|真)" + _END + r"|"
    r"(?:yes|yeah|yep|true|correct|right|y)\b)"
    r"|(?P<no>不|没|错误|无法|未必|(?:否|错|假|无|未)" + _END + r"|(?:no|nope|not|false|incorrect|wrong|n)\b)"
)
_BEGINS = re.compile(
    r"[\s*(\[{\"'「]*([A-J])[\s*]*(?:[.,:;)\]}、。](?!\s*[A-J](?![A-Za-z]))|$)", re.MULTILINE
)
_CHOSEN = re.compile(
    r"(?:答案|选项?|选择|正确的?是|应[选为是]|故[选为]?|(?i:answer|choice|option|choose))"
    r"\s*(?:(?i:is)|应?该?[是为])?\s*[:*(\[{\"'「\s]*(?:(?i:option|choice)|选项?)?[\s(*]*([A-J])(?![A-Za-z0-9])"
)

LABELS = (
    Metric(
        "yes_no", yes_no, True, "yes or no, read from the answer, as the reference says",
        reads=lambda reference: read_yes_no(reference) is not None,
    ),
    Metric(
        "choice", choice, True, "the letter of a multiple choice, read from the answer",
        reads=lambda reference: read_letter(reference) is not None,
    ),
)  # fmt: skip
