"""The report as one JSON object: what the page shows, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunesmith.evaluate.numbers import finite
from tunesmith.evaluate.report.figures import Figure, Value
from tunesmith.evaluate.report.result import Told

OF_TRAINING = (
    "state", "model", "adapter", "started", "settings", "versions", "facts", "hashes", "samples"
)  # fmt: skip


def content(
    name: str,
    results: Sequence[Told],
    training: Mapping[str, Any] | None = None,
    blind: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """{"kind": "report", "name", "training": {…}, "results": [{"figures": [{"name", "n", "a", "b",
    "difference", "wins", …}], "groups", "changes", "sections", "rows"}], "blind"}; what isn't finite is null.
    """
    told = {
        "kind": "report",
        "name": name,
        **({"training": _training(training)} if training else {}),
        "results": [_result(result) for result in results],
        **({"blind": list(blind)} if blind else {}),
    }
    found: dict[str, Any] = finite(told)
    return found


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    history = training["history"]
    return {
        **{name: training[name] for name in OF_TRAINING},
        "settings": dict(training["settings"]),
        "steps": history.steps,
        "seconds": history.seconds,
        "tokens": history.tokens,
        "peak_memory_bytes": history.peak_memory,
        "loss": [[point.step, point.value] for point in history.loss],
        "valid_loss": [[point.step, point.value] for point in history.valid],
        "scores": {name: [[p.step, p.value] for p in points] for name, points in history.scores.items()},
        "answers": history.answers,
    }


def _result(result: Told) -> dict[str, Any]:
    if result.kind == "damaged":
        return {"kind": "damaged", "file": result.file, "error": result.error}
    groups = [
        {"column": g.column, "metric": g.metric, "values": {name: _figure(f) for name, f in g.figures}}
        for g in result.groups
    ]
    changes = [
        {
            "name": change.name,
            "better": change.better,
            **dict(zip(("worse", "same", "improved"), change.counts, strict=True)),
            **dict(zip(("least", "median", "greatest"), change.spread, strict=True)),
        }
        for change in result.changes
    ]
    return {
        "kind": result.kind,
        "data": result.data,
        "n": result.n,
        **({"a": result.a, "letters": list(result.letters)} if result.a else {}),
        "b": result.b,
        "primary": result.primary,
        "figures": [_figure(figure) for figure in result.figures],
        "groups": groups,
        "changes": changes,
        "notes": result.notes,
        "sections": [asdict(section) for section in result.sections],
        "settings": dict(result.settings),
        **({"judge": result.judge} if result.judge else {}),
        **({"found": result.found} if result.found else {}),
        "rows": result.rows,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    counts = dict(zip(("wins", "losses", "ties"), figure.counts, strict=True)) if figure.counts else {}
    sides = {"a": figure.a, "b": figure.b, "difference": figure.difference}
    return {
        "name": figure.name,
        "n": figure.n,
        "better": figure.better,
        **{side: _value(value) for side, value in sides.items() if value is not None},
        **counts,
        **({"verdict": figure.verdict} if figure.verdict else {}),
    }


def _value(value: Value) -> dict[str, float | None]:
    return {"value": value.value, "low": value.low, "high": value.high}
