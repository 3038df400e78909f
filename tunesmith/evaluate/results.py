"""Results as they stand in a run's eval/ folder, and as rows of a table.

Reads JSON only, so that `runs show` answers at once. The kinds of result:

    evaluation   {"kind", "data", "model", "n", "metrics": {name: {value, low, high}}, "loss", …}
    comparison   {"kind", "data", "n", "a": evaluation, "b": evaluation,
                  "metrics": {name: {a, b, difference: {value, low, high}, wins, losses, ties, verdict}}, …}
                 of more than two {"kind", "data", "n", "sides": [evaluation, …],
                  "comparisons": [{"metrics", …}, …]}, which `pairs` turns into some of two
    judgement    what a model as judge said of one or two, in judge/measure.py
    benchmark    tasks of lm-evaluation-harness, in benchmark.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from tunesmith.evaluate import benchmark_sections
from tunesmith.evaluate.judge import sections as judged
from tunesmith.evaluate.numbers import ends, interval, number, readable
from tunesmith.evaluate.section_sources import sections
from tunesmith.rundir import RunDir
from tunesmith.words import size


@dataclass(frozen=True)
class Cost:
    """What answers are like besides their scores; `shared`: the others' are said as shares of A's."""

    label: str
    key: str
    form: Callable[[float], str]
    shared: bool = True


COSTS = (
    Cost("mean length", "mean_length", "{:.1f}".format),
    Cost("empty answers", "empty", "{:.0f}".format, shared=False),
    Cost("cut at the limit", "cut", "{:.0f}".format, shared=False),
    Cost("tokens written", "completion_tokens", "{:.0f}".format),
    Cost("prompt tokens", "prompt_tokens", "{:.0f}".format),
    Cost("seconds", "seconds", "{:.1f}".format),
    Cost("tokens/s", "tokens_per_second", "{:.1f}".format),
    Cost("peak memory", "peak_memory_bytes", size),
    Cost("energy (J)", "energy_joules", "{:.0f}".format),
)
KINDS = ("comparison", "evaluation", "judgement", "benchmark")
"""In the order in which a run's results are shown: comparisons are what the reader came for."""
DIFFERENCES = ("metric", "", "difference [95 %]", "wins/losses/ties", "verdict")


TITLES = {"judgement": judged.title, "benchmark": benchmark_sections.title}


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
    if isinstance(content, dict) and content.get("kind") in (*KINDS, "damaged"):
        return {"file": str(file), **(_damage(content) or content)}
    return None


def _damage(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result as a damaged one, if it lacks what tables and reports are made of."""
    try:
        if result["kind"] == "comparison":
            for one in pairs(result):
                comparison_rows(one)
                _ = one["n"], one["a"]["model"], one["b"]["model"]
            if "sides" in result:
                side_rows(result)
        elif result["kind"] == "evaluation":
            evaluation_rows(result)
            _ = result["n"], result["model"]
        if result["kind"] != "damaged":
            _ = title(result), [sections(one) for one in pairs(result)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return {"kind": "damaged", "error": f"it isn't what tunesmith writes: {reason}"}
    return None


def pairs(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A comparison as comparisons of two: each other side against the first. Any other result as it is.

    Where there are more than two, `keys` are the letters of both: under these their answers stand in the
    lines of predictions, where those of two stand under a and b.
    """
    if result.get("kind") != "comparison" or "sides" not in result:
        return [dict(result)]
    first, *others = result["sides"]
    common = {key: value for key, value in result.items() if key not in ("sides", "comparisons")}
    return [
        {**common, **one, "a": first, "b": other, "keys": ["a", ascii_lowercase[at]]}
        for at, (one, other) in enumerate(zip(result["comparisons"], others, strict=True), 1)
    ]


def sides_of(result: Mapping[str, Any]) -> list[Any]:
    """The evaluations of a comparison, the reference first."""
    return list(result["sides"]) if "sides" in result else [result.get("a"), result.get("b")]


def letters(result: Mapping[str, Any]) -> tuple[str, ...]:
    """A, B, C, …: what people read for the sides of a comparison."""
    if "keys" in result:
        return letters_of(result)
    return tuple(ascii_uppercase[: len(sides_of(result))])


def letters_of(pair: Mapping[str, Any]) -> tuple[str, str]:
    """A and B of a comparison of two, A and C of one that was made of several: who has which letter."""
    first, other = pair.get("keys", ("a", "b"))
    return first.upper(), other.upper()


def minus(pair: Mapping[str, Any]) -> str:
    """`B − A`, `C − A`: the difference that a comparison of two is about."""
    first, other = letters_of(pair)
    return f"{other} − {first}"


def columns(pair: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the columns of `comparison_rows`."""
    return ("metric", *letters_of(pair), f"{minus(pair)} [95 %]", "wins/losses/ties", "verdict")


def beside(predictions: Path, ending: str) -> Path:
    """The file of this ending beside a file of predictions (.jsonl); other dots of its name stay."""
    return predictions.with_name(predictions.name.removesuffix(".jsonl") + ending)


def title(result: Mapping[str, Any]) -> str:
    """What was measured on what: one line."""
    if result.get("kind") in TITLES:
        return TITLES[result["kind"]](result)
    data = Path(str(result.get("data", "?"))).name
    if result.get("kind") == "comparison":
        names = zip(letters(result), sides_of(result), strict=True)
        return f"{data}, n = {result['n']}:  " + ",  ".join(f"{key} = {side['model']}" for key, side in names)
    model = str(result.get("model", "?"))
    # A file of answers with references of its own is both.
    return f"{data}, n = {result.get('n', '?')}" + (f":  {model}" if Path(model).name != data else "")


def comparison_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under `columns`, the loss first, then each metric, then what the answers cost."""
    rows: list[tuple[str, ...]] = []
    if loss := result.get("loss"):
        difference = interval(loss["difference"], sign=True) if loss["difference"] else ""
        rows.append(("loss", f"{loss['a']:.3f}", f"{loss['b']:.3f}", difference, "", loss["verdict"]))
    a, b = result["a"], result["b"]
    for name in ("perplexity", "bits_per_byte"):
        if a.get(name) is not None and b.get(name) is not None:
            rows.append((name, number(a[name]), number(b[name]), "", "", ""))
    for name, metric in result["metrics"].items():
        counts = f"{metric['wins']}/{metric['losses']}/{metric['ties']}"
        difference = interval(metric["difference"], sign=True)
        a_value, b_value = (readable(f"{metric[side]:.3f}") for side in ("a", "b"))
        rows.append((name, a_value, b_value, difference, counts, metric["verdict"]))
    for cost in COSTS:
        first, other = cost_of(a, cost.key), cost_of(b, cost.key)
        if first is not None and other is not None:
            rows.append((cost.label, cost.form(first), cost.form(other), _share(cost, first, other), "", ""))
    return rows


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) rows of a single evaluation."""
    bounds = result.get("intervals") or {}
    rows = [
        (name, number(result[name]) + (f" {ends(bounds[name])}" if name in bounds else ""))
        for name in ("loss", "perplexity", "bits_per_byte")
        if result.get(name) is not None
    ]
    rows += [(name, interval(metric)) for name, metric in result["metrics"].items()]
    for cost in COSTS:
        if (value := cost_of(result, cost.key)) is not None:
            rows.append((cost.label, cost.form(value)))
    return rows


def side_rows(result: Mapping[str, Any], *, stacked: bool = False) -> list[tuple[str, ...]]:
    """Rows of all sides' figures, one column each behind the name; `stacked`: intervals below the figures.

    What answers cost is a share of what A's do, too.
    """
    sides = sides_of(result)
    between = "\n" if stacked else " "
    rows: list[tuple[str, ...]] = [("n", *(str(side["n"]) for side in sides))]
    for name in ("loss", "perplexity", "bits_per_byte"):
        if any(side.get(name) is not None for side in sides):
            rows.append((name, *(_bounded(side, name, between) for side in sides)))
    for name in sides[0]["metrics"]:
        rows.append((name, *(interval(side["metrics"][name], between=between) for side in sides)))
    for cost in COSTS:
        values = [cost_of(side, cost.key) for side in sides]
        if any(value is not None for value in values):
            shares = ["", *(_share(cost, values[0], value) for value in values[1:])]
            cells = ("" if value is None else cost.form(value) for value in values)
            shown = (
                f"{cell}{between}({share})" if share else cell
                for cell, share in zip(cells, shares, strict=True)
            )
            rows.append((cost.label, *shown))
    return rows


def difference_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under DIFFERENCES: of the loss and each metric, every other side's difference from A."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for one in pairs(result):
        for name, *_, difference, counts, told in comparison_rows(one):
            if told:
                shown = "" if rows.get(name) else name
                rows.setdefault(name, []).append((shown, minus(one), difference, counts, told))
    return [row for of_one in rows.values() for row in of_one]


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
    signs = f"{minus(result)} " if result.get("kind") == "comparison" else ""
    return ("group", "n", *(f"{signs}{name} [95 %]" for name in names)), rows


def _bounded(side: Mapping[str, Any], name: str, between: str) -> str:
    """A figure of the losses with its interval, where there is one."""
    if side.get(name) is None:
        return ""
    bounds = (side.get("intervals") or {}).get(name)
    return number(side[name]) + (between + ends(bounds) if bounds else "")


def cost_of(side: Mapping[str, Any], key: str) -> float | None:
    """What a side cost; no memory that was counted over all sides so far, or in earlier versions."""
    if key == "peak_memory_bytes" and side.get("peak_memory_of") != "measuring":
        return None
    value: float | None = side.get(key)
    return value


def _share(cost: Cost, first: float | None, other: float | None) -> str:
    """`1.80 x`: how much of A's cost a side's is, where they differ."""
    if not cost.shared or first is None or other is None or first == other:
        return ""
    # Of what is shown as 0.0 no share can be understood.
    return f"{other / first:.2f} x" if cost.form(first).strip("0.") else ""
