"""A result's figures, each with its n and interval: what tables, charts, Markdown and JSON are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.metrics.variety import length
from tunesmith.evaluate.numbers import number, percent
from tunesmith.evaluate.results import cost_of
from tunesmith.evaluate.statistics import Interval, mean_interval, wilson

Better = Literal["higher", "lower", "neither"]
WHOLE = ("empty", "cut", "completion_tokens", "prompt_tokens")  # counts, of rows or of tokens
LOSSES = ("loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Value:
    """A number with the ends of its 95 % interval; without them it is a count or a measurement."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends; the value itself where there is no interval."""
        return self.value if self.low is None else self.low, self.value if self.high is None else self.high


@dataclass(frozen=True)
class Figure:
    """One line of a table: over n rows, A's value (None for a single model), B's, and the difference B - A.

    `counts` are wins, losses and ties. `whole` says that values are numbers of rows, with an interval; it is
    shown as that of their share.
    """

    name: str
    n: int
    a: Value | None
    b: Value
    difference: Value | None = None
    counts: tuple[int, int, int] | None = None
    verdict: str = ""
    whole: bool = False

    @property
    def better(self) -> Better:
        return better(self.name)


def comparison_figures(pair: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Loss, perplexity, metrics, then what answers are like, of two sides; `rows` are the JSONL's lines."""
    a, b, n = pair["a"], pair["b"], int(pair["n"])
    figures = []
    if loss := pair.get("loss"):
        sides = _of_losses(a, "loss", loss["a"]), _of_losses(b, "loss", loss["b"])
        figures.append(
            Figure("loss", n, *sides, _value(loss["difference"]), _loss_counts(rows), loss["verdict"])
        )
    for name in LOSSES[1:]:
        if a.get(name) is not None and b.get(name) is not None:
            figures.append(Figure(name, n, _of_losses(a, name, a[name]), _of_losses(b, name, b[name])))
    for name, metric in pair["metrics"].items():
        side_a, side_b = (
            _value((evaluation.get("metrics") or {}).get(name)) or Value(metric[side])
            for side, evaluation in (("a", a), ("b", b))
        )
        counts = (metric["wins"], metric["losses"], metric["ties"])
        difference = _value(metric["difference"])
        figures.append(Figure(name, n, side_a, side_b, difference, counts, metric["verdict"]))
    return figures + _answers(n, [("a", a), ("b", b)], rows)


def evaluation_figures(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The same of one model, under `b`."""
    n = int(result["n"])
    figures = [
        Figure(name, n, None, _of_losses(result, name, result[name]))
        for name in LOSSES
        if result.get(name) is not None
    ]
    figures += [
        Figure(name, n, None, _value(metric) or Value(0.0)) for name, metric in result["metrics"].items()
    ]
    return figures + _answers(n, [("", result)], rows)


def better(name: str) -> Better:
    """Which way is up, by the metric's own word; functions of one's own are better when higher."""
    if name in LOSSES:
        return "lower"
    return METRICS[name].better if name in METRICS else "higher"


def shown(value: Value | None, *, sign: bool = False, whole: bool = False, n: int = 0) -> tuple[str, str]:
    """(value, interval) as text: ("0.267", "[0.109, 0.520]"), and of a number of rows ("3", "[1 %, 9 %]")."""
    if value is None:
        return "", ""
    if whole:
        ends = (
            "" if value.low is None or not n else "[{}, {}]".format(*(percent(end / n) for end in value.ends))
        )
        share = f" ({percent(value.value / n)})" if ends else ""
        return f"{value.value:,.0f}{share}", ends
    ends = f"[{number(value.ends[0], sign=sign)}, {number(value.ends[1], sign=sign)}]"
    return number(value.value, sign=sign), "" if value.low is None else ends


def _value(found: Mapping[str, float] | None) -> Value | None:
    return None if found is None else Value(found["value"], found.get("low"), found.get("high"))


def _of_losses(evaluation: Mapping[str, Any], name: str, value: float) -> Value:
    bounds = (evaluation.get("intervals") or {}).get(name) or {}
    return Value(value, bounds.get("low"), bounds.get("high"))


def _loss_counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """On how many rows B's answer costs less, more, the same."""
    found = [(loss_of(row.get("a") or {}), loss_of(row.get("b") or {})) for row in rows]
    differences = [b - a for a, b in found if a is not None and b is not None]
    if not differences or len(differences) != len(rows):
        return None
    wins, losses = sum(d < -1e-9 for d in differences), sum(d > 1e-9 for d in differences)
    return wins, losses, len(differences) - wins - losses


def loss_of(answer: Mapping[str, Any]) -> float | None:
    """Nats per label token of a row's reference, where the line has them."""
    return answer["nll"] / answer["label_tokens"] if answer.get("label_tokens") else None


def _answers(
    n: int, sides: Sequence[tuple[str, Mapping[str, Any]]], rows: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    """What answers are like: length, empty and cut ones, tokens and seconds. Counts of rows have Wilson's
    interval; where rows come from documents, intervals over rows would be too narrow and are left out.
    """
    apart = not any(row.get("document") for row in rows)
    texts = [[str((row.get(side) or row).get("prediction") or "") for row in rows] for side, _ in sides]
    figures = []
    for label, key in (
        ("mean length", "mean_length"),
        ("empty answers", "empty"),
        ("cut at the limit", "cut"),
        ("tokens written", "completion_tokens"),
        ("prompt tokens", "prompt_tokens"),
        ("seconds", "seconds"),
        ("tokens/s", "tokens_per_second"),
        ("peak memory (GiB)", "peak_memory_bytes"),
        ("energy (J)", "energy_joules"),
    ):
        if any(cost_of(evaluation, key) is None for _, evaluation in sides):
            continue
        unit = 2**30 if key == "peak_memory_bytes" else 1
        values = [Value(evaluation[key] / unit) for _, evaluation in sides]
        difference = None
        if key in ("empty", "cut") and apart:
            values = [
                Value(value.value, *(end * n for end in wilson(int(value.value), n))) for value in values
            ]
        if key == "mean_length" and apart and len(rows) == n:
            lengths = [[length(text, ()) for text in side] for side in texts]
            values = [_of(mean_interval(side, top=None)) for side in lengths]
            if len(lengths) == 2:
                changed = [after - before for before, after in zip(*lengths, strict=True)]
                difference = _of(mean_interval(changed, top=None))
        a, b = (values[0], values[1]) if len(values) == 2 else (None, values[0])
        figures.append(Figure(label, n, a, b, difference, whole=key in WHOLE))
    return figures


def _of(interval: Interval) -> Value:
    return Value(interval.value, interval.low, interval.high)
