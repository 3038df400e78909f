"""BLEU and chrF: figures of all rows together, 0 to 100. A row's own score is that of its sentence.

BLEU is sacrebleu's, an optional package. Figures of unlike signatures can't be compared (Post 2018).
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import MissingExtraError
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import HAN, without_thinking

ORDER = 6  # characters of chrF's longest n-grams
BETA = 2.0  # recall counts so many times as much as precision


def bleu(tokenizer: str, references: Sequence[Sequence[str]]) -> Metric:
    """BLEU-4 with sacrebleu's tokenizer, which is a part of the name: bleu_zh, bleu_char, bleu_13a.

    `references` are those of all rows; their number is in the signature.

    Raises MissingExtraError without sacrebleu.
    """
    try:
        library = importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise MissingExtraError("The metric bleu", str(error.name or "sacrebleu"), "metrics") from error
    # Sentences of less than four tokens have no 4-grams; the figure of all rows is the usual BLEU.
    of_row = library.BLEU(tokenize=tokenizer, effective_order=True)

    def sentence(prediction: str, references: Sequence[str]) -> Any:
        return of_row.sentence_score(without_thinking(prediction), list(references))

    def counts(prediction: str, references: Sequence[str]) -> tuple[float, ...]:
        found = sentence(prediction, references)
        return (*found.counts, *found.totals, found.sys_len, found.ref_len)

    def combine(sums: Sequence[float]) -> float:
        whole = [int(each) for each in sums]
        found = library.BLEU.compute_bleu(whole[:4], whole[4:8], *whole[8:], smooth_method="exp")
        return float(found.score)

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        return float(sentence(prediction, references).score)

    counted = {len(row) for row in references}
    whole = library.BLEU(tokenize=tokenizer)
    whole.corpus_score([""], [[""]])  # its signature is known once it has scored something
    signature = re.sub(
        r"nrefs:\d+", f"nrefs:{counted.pop() if len(counted) == 1 else 'var'}", str(whole.get_signature())
    )
    return Metric(
        f"bleu_{tokenizer}", score, False, f"BLEU of all rows, tokenizer {tokenizer}",
        top=100.0, counts=counts, combine=combine, signature=f"BLEU|{signature}",
    )  # fmt: skip


def bleu_tokenizer(references: Sequence[Sequence[str]]) -> str:
    """`char` where a reference has characters beyond U+FFFF, else `zh` for Chinese, else `13a`.

    sacrebleu's `zh` takes Chinese apart, but leaves extension B and what follows it in one piece.
    """
    text = "".join(each for row in references for each in row)
    if re.search("[\U00020000-\U0003fffd]", text):
        return "char"
    return "zh" if re.search(f"[{HAN}]", text) else "13a"


def chrf_counts(prediction: str, references: Sequence[str]) -> tuple[float, ...]:
    """For n-grams of 1 to 6 characters: how many are predicted, wanted and common; of the best reference."""
    hypothesis = _char_ngrams(without_thinking(prediction))
    found = [_matches(hypothesis, _char_ngrams(reference)) for reference in references]
    return max(found, key=chrf_of, default=(0.0,) * 3 * ORDER)


def chrf_of(counts: Sequence[float]) -> float:
    """chrF2 (Popović 2015, 2016) of summed counts, 0 to 100.

    P and R are means over the lengths n of n-grams that both sides have; F = (1 + 4) P R / (4 P + R).
    """
    parts = zip(counts[::3], counts[1::3], counts[2::3], strict=True)
    known = [(both / left, both / right) for left, right, both in parts if left and right]
    if not known:
        return 0.0
    precision = sum(p for p, _ in known) / len(known)
    recall = sum(r for _, r in known) / len(known)
    weight = BETA**2
    if not precision + recall:
        return 0.0
    return 100 * (1 + weight) * precision * recall / (weight * precision + recall)


def chrf(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """chrF2 of one answer, 0 to 100, white space left out."""
    return chrf_of(chrf_counts(prediction, references))


def _char_ngrams(text: str) -> list[Counter[str]]:
    chars = "".join(text.split())
    return [Counter(chars[at : at + n] for at in range(len(chars) - n + 1)) for n in range(1, ORDER + 1)]


def _matches(left: Sequence[Counter[str]], right: Sequence[Counter[str]]) -> tuple[float, ...]:
    found: list[float] = []
    for predicted, wanted in zip(left, right, strict=True):
        # As sacrebleu: n-grams longer than the reference aren't held against the prediction.
        found += [predicted.total() if wanted else 0, wanted.total(), (predicted & wanted).total()]
    return tuple(map(float, found))


TRANSLATION = (
    Metric(
        "chrf", chrf, False, "F of character n-grams of all rows", top=100.0,
        counts=chrf_counts, combine=chrf_of, signature="chrF2|case:mixed|eff:yes|nc:6|nw:0|space:no",
    ),
)  # fmt: skip
