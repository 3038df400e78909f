"""Results of `eval` and `compare` as they stand in a run's eval/ folder, and as rows of a table.

Reads JSON only, so that `runs show` answers at once. The two kinds of result:

    evaluation   {"kind", "data", "model", "n", "metrics": {name: {value, low, high}}, "loss", …}
    comparison   {"kind", "data", "n", "a": evaluation, "b": evaluation,
                  "metrics": {name: {a, b, difference: {value, low, high}, wins, losses, ties, verdict}}, …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.rundir import RunDir

# (label, key of an evaluation, digits after the point): what answers are like besides their scores.
COSTS = (
    ("mean length", "mean_length", 1),
    ("empty answers", "empty", 0),
    ("cut at the limit", "cut", 0),
    ("tokens written", "completion_tokens", 0),
    ("seconds", "seconds", 1),
)
COLUMNS = ("metric", "A", "B", "B - A [95 %]", "wins/losses/ties", "verdict")


def read_results(run: RunDir) -> list[dict[str, Any]]:
    """Every result in eval/, by file name. A damaged file is a result of kind `damaged` with its error."""
    results = map(read_result, sorted(run.eval.glob("*.json")))
    return [result for result in results if result is not None]


def read_result(file: Path) -> dict[str, Any] | None:
    """The result in a file, of kind `damaged` where it can't be read; None if it is something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = {"kind": "damaged", "error": str(error)}
    if isinstance(content, dict) and content.get("kind") in ("evaluation", "comparison", "damaged"):
        return {"file": str(file), **(_damage(content) or content)}
    return None


def _damage(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result as a damaged one, if it lacks what tables and reports are made of."""
    try:
        if result["kind"] == "comparison":
            comparison_rows(result)
            _ = result["n"], result["a"]["model"], result["b"]["model"]
        elif result["kind"] == "evaluation":
            evaluation_rows(result)
            _ = result["n"], result["model"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return {"kind": "damaged", "error": f"it isn't what `eval` and `compare` write: {reason}"}
    return None


def beside(predictions: Path, ending: str) -> Path:
    """The file of this ending beside a file of predictions (.jsonl); other dots of its name stay."""
    return predictions.with_name(predictions.name.removesuffix(".jsonl") + ending)


def pairs(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A comparison as comparisons of two: each other side against the first. Any other result as it is.

    `keys` are the letters under which a pair's answers stand in the lines of predictions, if not a and b.
    """
    return [dict(result)]


def title(result: Mapping[str, Any]) -> str:
    """What was measured on what: one line."""
    data = Path(str(result.get("data", "?"))).name
    if result.get("kind") == "comparison":
        return f"{data}, n = {result['n']}:  A = {result['a']['model']},  B = {result['b']['model']}"
    return f"{data}, n = {result.get('n', '?')}:  {result.get('model', '?')}"


def comparison_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS, the loss first, then each metric, then what the answers cost."""
    rows: list[tuple[str, ...]] = []
    if loss := result.get("loss"):
        difference = interval(loss["difference"], sign=True) if loss["difference"] else ""
        rows.append(("loss", f"{loss['a']:.3f}", f"{loss['b']:.3f}", difference, "", loss["verdict"]))
    a, b = result["a"], result["b"]
    for name in ("perplexity", "bits_per_byte"):
        if a.get(name) is not None and b.get(name) is not None:
            rows.append((name, short(a[name]), short(b[name]), "", "", ""))
    for name, metric in result["metrics"].items():
        counts = f"{metric['wins']}/{metric['losses']}/{metric['ties']}"
        difference = interval(metric["difference"], sign=True)
        rows.append((name, f"{metric['a']:.3f}", f"{metric['b']:.3f}", difference, counts, metric["verdict"]))
    for label, key, digits in COSTS:
        if a.get(key) is not None and b.get(key) is not None:
            rows.append((label, f"{a[key]:.{digits}f}", f"{b[key]:.{digits}f}", "", "", ""))
    return rows


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) rows of a single evaluation."""
    bounds = result.get("intervals") or {}
    rows = [
        (name, short(result[name]) + (_ends(bounds[name]) if name in bounds else ""))
        for name in ("loss", "perplexity", "bits_per_byte")
        if result.get(name) is not None
    ]
    rows += [(name, interval(metric)) for name, metric in result["metrics"].items()]
    for label, key, digits in COSTS:
        if result.get(key) is not None:
            rows.append((label, f"{result[key]:.{digits}f}"))
    return rows


def group_rows(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows) of the figures by group: an evaluation's, or a comparison's differences."""
    names = list(result["metrics"])
    rows = []
    for column, values in (result.get("groups") or {}).items():
        for value, group in values.items():
            figures = [group["metrics"][name] for name in names]
            shown = [
                interval(one["difference"], sign=True) if "difference" in one else interval(one)
                for one in figures
            ]
            rows.append((f"{column} = {value}", str(group["n"]), *shown))
    signs = "B - A " if result.get("kind") == "comparison" else ""
    return ("group", "n", *(f"{signs}{name} [95 %]" for name in names)), rows


def interval(value: Mapping[str, float], *, sign: bool = False) -> str:
    """0.267 [0.109, 0.520], with signs for a difference."""
    form = "+.3f" if sign else ".3f"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _ends(value: Mapping[str, float]) -> str:
    return f" [{short(value['low'])}, {short(value['high'])}]"


def short(value: float) -> str:
    """Four figures at most after the point, fewer for large numbers."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
