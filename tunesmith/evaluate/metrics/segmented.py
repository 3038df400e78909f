"""F1 of Chinese words, cut by jieba, an optional package."""

from __future__ import annotations

import importlib
import logging
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from tunesmith.errors import MissingExtraError
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import HAN, tokens, without_thinking
from tunesmith.evaluate.metrics.overlap import bag_f1, best


def f1_jieba() -> Metric:
    """F1 of the two bags of words. Raises MissingExtraError without jieba."""
    cutter = _cutter()

    def words(text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", without_thinking(text))
        found: list[str] = []
        for part in re.split(f"([{HAN}]+)", text):
            found += cutter.cut(part) if re.match(f"[{HAN}]", part) else tokens(part)
        return found

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        return best(lambda left, right: bag_f1(words(left), words(right)), prediction, references)

    return Metric("f1_jieba", score, False, "F1 of words as jieba cuts them")


@cache
def _cutter() -> Any:
    """jieba with its own dictionary."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its source has escapes that newer Pythons warn of
            library = importlib.import_module("jieba")
    except ImportError as error:
        raise MissingExtraError("The metric f1_jieba", "jieba", "metrics") from error
    library.setLogLevel(logging.WARNING)
    cutter = library.Tokenizer()
    # It keeps a marshalled cache in the folder for temporary files, where others may have laid one too.
    with tempfile.TemporaryDirectory() as folder:
        cutter.tmp_dir = folder
        cutter.initialize()
    return cutter
