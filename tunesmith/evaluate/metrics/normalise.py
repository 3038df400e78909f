"""Normalised tokens of a text, the same for Chinese and English, and what of an answer is read at all.

Thinking dropped, NFKC, casefold, punctuation dropped, English articles dropped; one token per Han character,
kana or hangul syllable, else a word.
"""

from __future__ import annotations

import re
import unicodedata


def is_empty(prediction: str) -> bool:
    """Whether nothing is left of an answer once its thinking and white space are taken away."""
    return not without_thinking(prediction).strip()


def tokens(text: str) -> list[str]:
    """The normalised tokens of a text, in order.

    >>> tokens("The price is ￥3.50，對嗎？")
    ['price', 'is', '¥3.50', '對', '嗎']
    """
    text = _FULL_MARK.sub(_break_word, without_thinking(text))
    text = unicodedata.normalize("NFKC", text).casefold()
    # An article alone is an answer ("A" of four choices), not filler.
    words = _TOKEN.findall(_drop_punctuation(text))
    return [word for word in words if word not in _ARTICLES] or words


def without_thinking(text: str) -> str:
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
HAN = (
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
_KANA = "\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
_BOPOMOFO = "\u3100-\u312f\u31a0-\u31bf"
IDEOGRAPH = f"[{HAN}]"
SYLLABLE = HAN + _KANA + _HANGUL + _BOPOMOFO
_TOKEN = re.compile(rf"[{SYLLABLE}]|[^\s{SYLLABLE}]+")
# Marks of East Asian text and full-width forms of ASCII ones.
_FULL_MARK = re.compile(
    "[\u3001-\u3003\u3008-\u3011\u3014-\u301f\u30fb\ufe30-\ufe4f\uff01-\uff0f\uff1a-\uff1f\uff3b-\uff3d\uff5b-\uff65…—]"
)
