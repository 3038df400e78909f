"""Scores of one answer against its references, each between 0 and 1, for Chinese and English alike.

Every metric normalises in the same way (`tokens`): thinking dropped, NFKC, casefold, punctuation dropped,
English articles dropped, one token per Han character, kana or hangul syllable, else a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[str, Sequence[str], str], float]


@dataclass(frozen=True)
class Metric:
    """A score with the name that tables, files and the command line use.

    `score(prediction, references, prompt)` is between 0 and 1, more is better; `prompt` is the text of the
    last user turn. `binary` scores are only 0 or 1, which calls for other intervals than a mean of fractions.
    """

    name: str
    score: Score
    binary: bool
    description: str


def exact_match(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the prediction's tokens are exactly those of one of the references, else 0."""
    return float(not is_empty(prediction) and any(_equal(prediction, each) for each in references))


def f1_char(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the two bags of tokens, the largest over the references; 0 for an empty prediction.

    precision = common tokens / predicted tokens, recall = common tokens / reference tokens, a token counted
    as often as it occurs in both. Source: SQuAD v1.1's evaluation (Rajpurkar et al. 2016), with Han
    characters as tokens.
    """
    if is_empty(prediction):
        return 0.0
    return max((_f1(prediction, reference) for reference in references), default=0.0)


def verse_form(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the answer is one couplet in the form of the prompt's, and nothing else.

    The couplet on the prompt's last line gives the number of clauses and of Han characters in each; between
    them stands ， and at the end 。. Without one there, two clauses of 5 or two of 7 are asked for.
    """
    lengths = [_verse_lengths(prompt)] if _verse_lengths(prompt) else [(5, 5), (7, 7)]
    answer = _without_thinking(prediction).strip()
    forms = ("，".join(f"{_IDEOGRAPH}{{{n}}}" for n in form) + "。" for form in lengths)
    return float(any(re.fullmatch(form, answer) for form in forms))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, True, "the same tokens as a reference"),
        Metric("f1_char", f1_char, False, "F1 of characters (Chinese) or words against the best reference"),
        Metric("verse_form", verse_form, True, "one couplet in the form of the prompt's, nothing else"),
    )
}


def is_empty(prediction: str) -> bool:
    """Whether nothing is left of an answer once its thinking and white space are taken away."""
    return not _without_thinking(prediction).strip()


def tokens(text: str) -> list[str]:
    """The normalised tokens of a text, in order.

    >>> tokens("The price is ￥3.50，對嗎？")
    ['price', 'is', '¥3.50', '對', '嗎']
    """
    text = _FULL_MARK.sub(_break_word, _without_thinking(text))
    text = unicodedata.normalize("NFKC", text).casefold()
    # An article alone is an answer ("A" of four choices), not filler.
    words = _TOKEN.findall(_drop_punctuation(text))
    return [word for word in words if word not in _ARTICLES] or words


def _equal(prediction: str, reference: str) -> bool:
    left, right = tokens(prediction), tokens(reference)
    if left or right:
        return left == right
    return _without_thinking(prediction).strip() == _without_thinking(reference).strip()


def _f1(prediction: str, reference: str) -> float:
    left, right = Counter(tokens(prediction)), Counter(tokens(reference))
    common = (left & right).total()
    if not common:
        # Texts of punctuation only have no tokens: the same one is right all the same.
        return float(not left and not right and _equal(prediction, reference))
    precision, recall = common / left.total(), common / right.total()
    return 2 * precision * recall / (precision + recall)


def _verse_lengths(prompt: str) -> tuple[int, ...]:
    """Han characters in each clause of the verse on the last line; empty where there is no verse."""
    line = prompt.strip().rpartition("\n")[2].strip()
    if not re.fullmatch(rf"{_IDEOGRAPH}+(?:[，、；？！]{_IDEOGRAPH}+)+[。？！；，]?", line):
        return ()
    return tuple(len(clause) for clause in re.findall(rf"{_IDEOGRAPH}+", line))


def _without_thinking(text: str) -> str:
    """The answer alone: also where the template opened the thinking, or the limit cut it off."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _break_word(match: re.Match[str]) -> str:
    """A full-width mark ends a word as a space does ("iPhone，iPad" are two), unless it separates digits."""
    text, at = match.string, match.start()
    inside = 0 < at < len(text) - 1 and text[at - 1].isdigit() and text[at + 1].isdigit()
    half = unicodedata.normalize("NFKC", match[0])
    return half if inside and half in _SEPARATORS else " "


def _drop_punctuation(text: str) -> str:
    """Drop every Unicode punctuation mark except a separator between two digits (3.14, 12:30, 2026-11-21)."""
    kept = []
    for at, char in enumerate(text):
        if unicodedata.category(char).startswith("P"):
            inside = 0 < at < len(text) - 1 and text[at - 1].isdigit() and text[at + 1].isdigit()
            if not (inside and char in _SEPARATORS):
                continue
        kept.append(char)
    return "".join(kept)


_ARTICLES = frozenset(("a", "an", "the"))
_SEPARATORS = frozenset(".,:/-–'’·")
# CJK radicals, 々〇〡, extension A, the main block, compatibility ideographs, and planes 2 and 3 whole:
# extensions B to J and the compatibility supplement lie there.
_HAN = (
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
_KANA = "\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
_BOPOMOFO = "\u3100-\u312f\u31a0-\u31bf"
_IDEOGRAPH = f"[{_HAN}]"
_SYLLABLE = _HAN + _KANA + _HANGUL + _BOPOMOFO
_TOKEN = re.compile(rf"[{_SYLLABLE}]|[^\s{_SYLLABLE}]+")
# Marks of East Asian text and full-width forms of ASCII ones.
_FULL_MARK = re.compile(
    "[\u3001-\u3003\u3008-\u3011\u3014-\u301f\u30fb\ufe30-\ufe4f\uff01-\uff0f\uff1a-\uff1f\uff3b-\uff3d\uff5b-\uff65…—]"
)
