"""Every metric by its name. Nothing heavy is imported: `--help` prints these names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tunesmith.errors import SettingsError
from tunesmith.evaluate.metrics.form import FORM, json_field, regex
from tunesmith.evaluate.metrics.given_choices import CHOICES
from tunesmith.evaluate.metrics.labels import LABELS, classification
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.overlap import OVERLAP
from tunesmith.evaluate.metrics.own import NAMED, from_file, from_function
from tunesmith.evaluate.metrics.reading import CMRC2018, SQUAD
from tunesmith.evaluate.metrics.segmented import f1_jieba
from tunesmith.evaluate.metrics.translation import TRANSLATION, bleu, bleu_tokenizer
from tunesmith.evaluate.metrics.variety import VARIETY
from tunesmith.evaluate.metrics.verse import VERSE
from tunesmith.settings import nearest

References = Sequence[Sequence[str]]
Named = str | Metric | Callable[..., object]
"""A metric's name, the metric itself, or a function of one's own."""


@dataclass(frozen=True)
class Family:
    """A name that stands for metrics which are made for the references of all rows."""

    name: str
    make: Callable[[References], Sequence[Metric]]
    description: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (*OVERLAP, *FORM, *VERSE, *SQUAD, *CMRC2018, *TRANSLATION, *VARIETY, *LABELS)
}
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("squad", lambda _: SQUAD, "squad_em and squad_f1"),
        Family("cmrc2018", lambda _: CMRC2018, "cmrc2018_em and cmrc2018_f1"),
        Family("f1_jieba", lambda _: [f1_jieba()], "F1 of Chinese words"),
        Family("bleu", lambda rows: [bleu(bleu_tokenizer(rows), rows)], "bleu_zh, bleu_char or bleu_13a"),
        *(
            Family(
                f"bleu_{name}",
                partial(lambda name, rows: [bleu(name, rows)], name),
                f"BLEU, tokenizer {name}",
            )
            for name in ("zh", "char", "13a")
        ),
        Family("classification", classification, "accuracy and macro_f1"),
        Family("choices", lambda _: CHOICES, "choices_acc and choices_acc_norm"),
    )
}
PATTERNS: dict[str, Callable[[str], Metric]] = {"regex": regex, "json": json_field}
NAMES = (*METRICS, *FAMILIES, *(f"{name}:…" for name in PATTERNS))


def resolve(named: Sequence[Named], references: References) -> list[Metric]:
    """The metrics that these stand for, each once, in their order; `references` are those of all rows.

    Raises SettingsError for an unknown name, MissingExtraError for one whose package isn't there.
    """
    found: dict[str, Metric] = {}
    for each in named:
        for metric in _resolved(each, references):
            if found.setdefault(metric.name, metric) is not metric and not isinstance(each, str):
                raise SettingsError(
                    f"Two metrics have the name {metric.name!r}.", fix="Give your own function another name."
                )
    return list(found.values())


def _resolved(named: Named, references: References) -> Sequence[Metric]:
    if isinstance(named, Metric):
        return [named]
    if not isinstance(named, str):
        return [from_function(named)]
    kind, colon, rest = named.partition(":")
    if NAMED in named:
        return [from_file(named)]
    if colon and rest and kind in PATTERNS:
        return [PATTERNS[kind](rest)]
    if named in METRICS:
        return [METRICS[named]]
    if named in FAMILIES:
        return FAMILIES[named].make(references)
    raise SettingsError(
        f"There is no metric {named!r}{nearest(named, [*METRICS, *FAMILIES])}.",
        fix=f"Choose from: {', '.join(NAMES)}; or one of your own: FILE.py:function.",
    )
