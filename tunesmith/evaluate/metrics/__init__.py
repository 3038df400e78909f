"""Scores of answers against references, for Chinese and English alike, in a file for each kind."""

from tunesmith.evaluate.metrics.catalogue import FAMILIES, METRICS, NAMES, Named, resolve
from tunesmith.evaluate.metrics.form import verse_form
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import is_empty, tokens
from tunesmith.evaluate.metrics.overlap import exact_match, f1_char

__all__ = [
    "FAMILIES",
    "METRICS",
    "NAMES",
    "Metric",
    "Named",
    "exact_match",
    "f1_char",
    "is_empty",
    "resolve",
    "tokens",
    "verse_form",
]
