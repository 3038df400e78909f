"""One result of `eval` or `compare` as the report tells it, whatever the report is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.evaluate.report.figures import (
    Figure,
    Value,
    comparison_figures,
    evaluation_figures,
)
from tunesmith.evaluate.report.rows import Changes, changes, measures, read_rows
from tunesmith.evaluate.results import letters_of, pairs
from tunesmith.evaluate.section import Section
from tunesmith.evaluate.section_sources import sections
from tunesmith.redact import short_paths


@dataclass(frozen=True)
class Group:
    """One metric by the values of a column: (value, figure) in the order in which the values first come."""

    column: str
    metric: str
    figures: list[tuple[str, Figure]]


@dataclass(frozen=True)
class Told:
    """A result: a comparison of two (`a` and `b` are names), an evaluation of `b`, what a judge said of two
    or of `b`, a benchmark of `b`, or a damaged file. The latter three have sections and no figures.

    `letters` are what A and B are called: those that they have among several. `own`: it is about what the
    report is about; on a run's page, other runs that were measured beside it aren't.
    """

    kind: str
    data: str
    file: str
    n: int = 0
    a: str | None = None
    b: str = ""
    letters: tuple[str, str] = ("A", "B")
    own: bool = True
    primary: str | None = None
    figures: list[Figure] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    judge: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def minus(self) -> str:
        """What a difference is called: `B − A`, `C − A`."""
        return f"{self.letters[1]} − {self.letters[0]}"


def told(result: Mapping[str, Any]) -> list[Told]:
    """What a result tells: one part, or a part for each pair where there are more than two sides."""
    data, file = Path(str(result.get("data", ""))).name, str(result["file"])
    if result["kind"] == "damaged":
        return [Told("damaged", data, Path(file).name, error=str(result["error"]))]
    rows = read_rows(result)
    if result["kind"] == "evaluation":
        return [_evaluation(result, data, file, rows)]
    if result["kind"] == "judgement":
        return [_judgement(result, data, file, rows)]
    if result["kind"] == "benchmark":
        return [_benchmark(result, file)]
    return [_comparison(pair, data, file, _paired(rows, pair)) for pair in pairs(result)]


def _paired(rows: list[dict[str, Any]], pair: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows with a pair's answers under a and b, wherever they stand in the lines."""
    a, b = pair.get("keys", ("a", "b"))
    return [{**row, "a": row[a], "b": row[b]} for row in rows if a in row and b in row]


def _evaluation(result: Mapping[str, Any], data: str, file: str, rows: list[dict[str, Any]]) -> Told:
    return Told(
        "evaluation",
        data,
        file,
        int(result["n"]),
        b=_name(result),
        primary=next(iter(result["metrics"]), None),
        figures=evaluation_figures(result, rows),
        groups=_groups(result),
        notes=_notes(result),
        sections=sections(result),
        rows=rows,
        settings=_settings([("", result)]),
    )


def _comparison(pair: Mapping[str, Any], data: str, file: str, rows: list[dict[str, Any]]) -> Told:
    return Told(
        "comparison",
        data,
        file,
        int(pair["n"]),
        a=_name(pair["a"]),
        b=_name(pair["b"]),
        letters=letters_of(pair),
        primary=pair.get("primary") or next(iter(pair["metrics"]), None),
        figures=comparison_figures(pair, rows),
        groups=_groups(pair),
        changes=changes(rows),
        notes=_notes(pair),
        sections=sections(pair),
        rows=rows,
        settings=_settings(list(zip(letters_of(pair), (pair["a"], pair["b"]), strict=True))),
    )


def _judgement(result: Mapping[str, Any], data: str, file: str, rows: list[dict[str, Any]]) -> Told:
    return Told(
        "judgement",
        data,
        file,
        int(result["n"]),
        a=_name(result["a"]) if "b" in result else None,
        b=_name(result["b" if "b" in result else "a"]),
        primary=next(iter(measures(rows)), None),
        sections=sections(result),
        rows=rows,
        judge=_name(result["judge"]),
        found=_found(result),
    )


def _benchmark(result: Mapping[str, Any], file: str) -> Told:
    tasks = result["tasks"].values()
    n = sum(int(task["n"] or 0) for task in tasks)
    names = ", ".join(result["tasks"])
    return Told("benchmark", names, file, n, b=_name(result), sections=sections(result), found=_found(result))


def _found(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a result that has no figures of ours, without how it came about."""
    how = ("kind", "file", "sides", "made_by", "predictions", "data")
    found: dict[str, Any] = short_paths({key: value for key, value in result.items() if key not in how})
    return found


def _groups(result: Mapping[str, Any]) -> list[Group]:
    """Per column and metric; no verdicts, for among many groups some differ by chance."""
    found = []
    for column, values in (result.get("groups") or {}).items():
        for metric in result["metrics"]:
            figures = [(str(name), _of_group(result, column, name, metric)) for name in values]
            found.append(Group(column, metric, figures))
    return found


def _of_group(result: Mapping[str, Any], column: str, name: str, metric: str) -> Figure:
    group = result["groups"][column][name]
    found, n = group["metrics"][metric], int(group["n"])
    if "difference" not in found:
        return Figure(metric, n, None, _value(found))
    # A comparison's groups have the sides' values alone; their intervals stand in the sides' own groups.
    sides = []
    for side in ("a", "b"):
        own = (result[side].get("groups") or {}).get(column, {}).get(name)
        sides.append(_value(own["metrics"][metric]) if own else Value(found[side]))
    return Figure(metric, n, sides[0], sides[1], _value(found["difference"]))


def _value(found: Mapping[str, float]) -> Value:
    return Value(found["value"], found["low"], found["high"])


def _name(evaluation: Mapping[str, Any]) -> str:
    return str(short_paths(evaluation["model"]))


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [str(short_paths(note)) for note in result.get("notes") or []]


def _settings(sides: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """How the answers came about: template, sampling, machine, rules of libraries; once where both agree."""
    told = {side: _facts(evaluation) for side, evaluation in sides}
    names = list(dict.fromkeys(name for facts in told.values() for name in facts))
    lines = []
    for name in names:
        values = {side: facts.get(name, "–") for side, facts in told.items()}
        if len(set(values.values())) == 1:
            lines.append((name, next(iter(values.values()))))
        else:
            lines += [(f"{name}, {side}", value) for side, value in values.items()]
    return lines


def _facts(evaluation: Mapping[str, Any]) -> dict[str, str]:
    template, sampling = evaluation.get("template") or {}, evaluation.get("sampling")
    facts = {
        "template": str(template.get("name", "")),
        "sampling": "" if sampling is None else _pairs(sampling) or "greedy",
        "device": str(evaluation.get("device", "")),
        "dtype": str(evaluation.get("dtype", "")),
        "label tokens": f"{evaluation['label_tokens']:,}" if evaluation.get("label_tokens") else "",
    }
    facts |= {name: str(rules) for name, rules in (evaluation.get("signatures") or {}).items()}
    return {name: str(short_paths(value)) for name, value in facts.items() if value}


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
