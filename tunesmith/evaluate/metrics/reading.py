"""The published rules of two reading tests, SQuAD v1.1 and CMRC 2018, for figures that others can compare.

Both are followed to the letter, odd ones too; only `<think>…</think>` is dropped first, and an empty answer
scores 0. English words in CMRC's answers are cut by the rules of the Penn Treebank, as its script does.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import without_thinking
from tunesmith.evaluate.metrics.overlap import bag_f1, best


def squad_em(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the normalised answer is one of the references (Rajpurkar et al. 2016, 6.1)."""
    return best(
        lambda a, b: float(_squad_text(a) == _squad_text(b)), without_thinking(prediction), references
    )


def squad_f1(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the bags of words between white space (Rajpurkar et al. 2016, 6.1). Not for Chinese."""

    def one(left: str, right: str) -> float:
        return bag_f1(_squad_text(left).split(), _squad_text(right).split())

    return best(one, without_thinking(prediction), references)


def cmrc2018_em(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the answer is a reference, case and 33 marks aside (Cui et al. 2019, 4.1, script v5)."""
    return best(lambda a, b: float(_cmrc_text(a) == _cmrc_text(b)), without_thinking(prediction), references)


def cmrc2018_f1(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the longest common run of Han characters and English words (Cui et al. 2019, 4.1, script v5)."""

    def one(left: str, right: str) -> float:
        predicted, wanted = cmrc_tokens(left), cmrc_tokens(right)
        common = longest_run(predicted, wanted)
        return 2 * common / (len(predicted) + len(wanted)) if common else 0.0

    return best(one, without_thinking(prediction), references)


def cmrc_tokens(text: str) -> list[str]:
    """Each character of U+4E00 to U+9FA5 is a token; between them English, cut as the Treebank has it.

    >>> cmrc_tokens("《Don't》的作者，见3.5节")
    ['do', "n't", '的', '作', '者', '见', '3.5', '节']
    """
    found: list[str] = []
    for part in re.split(r"([\u4e00-\u9fa5])", _cmrc_text(text)):
        found += [part] if re.fullmatch(r"[\u4e00-\u9fa5]", part) else _english(part)
    return found


def longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common run of neighbours."""
    longest, before = 0, [0] * (len(right) + 1)
    for item in left:
        row = [0] * (len(right) + 1)
        for at, other in enumerate(right):
            if item == other:
                row[at + 1] = before[at] + 1
        longest, before = max(longest, *row), row
    return longest


def _squad_text(text: str) -> str:
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _cmrc_text(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in _CMRC_MARKS)


def _english(text: str) -> list[str]:
    for pattern, cut in _TREEBANK:
        text = re.sub(pattern, cut, text)
    return text.split()


# As its script has them: it means to list …… too, which no single character equals.
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_TREEBANK = (
    (r'(^|[ (\[{<])"', r"\1 `` "),
    (r'"', " '' "),
    (r"([:,])(?!\d)|(?<!\d)([:,])", r" \1\2 "),
    (r"\.\.\.", " ... "),
    (r"([;@#$%&?!\[\](){}<>])", r" \1 "),
    (r"(?<!\.)\.(\s*)$", r" .\1"),
    (r"(?<![\w'])'(?=\w)|(?<!')'(?![\w'])", " ' "),
    (r"--", " -- "),
    (r"(\w)('s|'m|'d|'ll|'re|'ve)\b", r"\1 \2 "),
    (r"(\w)(n't)\b", r"\1 \2 "),
)

SQUAD = (
    Metric("squad_em", squad_em, True, "exact match by the rules of SQuAD v1.1"),
    Metric("squad_f1", squad_f1, False, "F1 of words by the rules of SQuAD v1.1"),
)
CMRC2018 = (
    Metric("cmrc2018_em", cmrc2018_em, True, "exact match by the rules of CMRC 2018"),
    Metric("cmrc2018_f1", cmrc2018_f1, False, "F1 of the longest common run by the rules of CMRC 2018"),
)
