"""`tunesmith runs list [FOLDER]` and `tunesmith runs show RUN`: from files alone, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tunesmith.cli.console import err, json_option, out, print_json, print_table, print_what_fits, table
from tunesmith.errors import UsageError
from tunesmith.evaluate import curve, history
from tunesmith.evaluate.numbers import finite
from tunesmith.evaluate.results import (
    columns,
    comparison_rows,
    evaluation_rows,
    group_rows,
    letters,
    pairs,
    read_results,
    title,
)
from tunesmith.evaluate.section import Section
from tunesmith.evaluate.section_sources import sections
from tunesmith.redact import without_secrets
from tunesmith.rundir import RunDir, list_runs, open_run
from tunesmith.words import size

ROOT = Path("runs")
SHOWN_SAMPLES = 3
COUNTS = (
    "rows", "kept", "bad_rows", "duplicates", "dropped", "cut", "split", "examples", "tokens", "label_tokens"
)  # fmt: skip


# typer checks whatever isn't a plain True or False with pydantic, whose import takes longer than reading
# twenty runs: the one word of these verbs is taken from the context, and --help is False instead of None.
WORDS: dict[str, Any] = {"allow_extra_args": True}


class _Group(TyperGroup):
    def get_help_option(self, ctx: Any) -> Any:
        return _off(super().get_help_option(ctx))


class _Command(TyperCommand):
    def get_help_option(self, ctx: Any) -> Any:
        return _off(super().get_help_option(ctx))


def _off(option: Any) -> Any:
    if option is not None and option.default is None:
        option.default = False
    return option


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False)


@app.command(
    "list",
    cls=_Command,
    context_settings=WORDS,
    options_metavar="[FOLDER] [OPTIONS]",
    epilog="\b\nExamples:\n  tunesmith runs list\n  tunesmith runs list /data/runs --json",
)
def list_(ctx: typer.Context, as_json: Annotated[bool, json_option] = False) -> None:
    """Every run of a folder (runs/ unless given) with its state and losses, the newest last."""
    folder = Path(_word(ctx, "[FOLDER]", default=str(ROOT)))
    if ctx.args and not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", fix="Give the folder that the runs are in.")
    lines = [history.overview(run) for run in list_runs(folder)]
    if as_json:
        print_json(lines)
        return
    if not lines:
        err.print(f"No runs in {folder}. `tunesmith train JOB.yaml` makes one.")
        return
    columns = ("name", "state", "model", "rows", "steps", "valid loss", "age")
    rows = [
        (
            line["name"],
            line["state"],
            line["model"],
            line["rows"],
            _steps(line),
            _change(line["valid_loss"]["before"], line["valid_loss"]["best"]),
            history.duration(line["age_seconds"]),
        )
        for line in lines
    ]
    numbers = ("rows", "steps", "age")
    left_out = print_what_fits(columns, rows, numbers=numbers, dispensable=("rows", "model", "age", "steps"))
    for line in lines:
        if "error" in line:
            err.print(line["error"])
    if left_out:
        err.print(f"Left out, the terminal is narrow: {', '.join(left_out)}.", style="dim", soft_wrap=False)


@app.command(
    cls=_Command,
    context_settings=WORDS,
    options_metavar="RUN [OPTIONS]",
    epilog="\b\nExamples:\n  tunesmith runs show runs/tang-1\n  tunesmith runs show tang-1 --json",
)
def show(ctx: typer.Context, as_json: Annotated[bool, json_option] = False) -> None:
    """One run: settings, data counts, loss curve, samples, before and after, paths.

    RUN is a run's folder, or its name in runs/.
    """
    opened = open_run(_found(Path(_word(ctx, "RUN"))))
    if as_json:
        print_json(finite(_summary(opened)))
        return
    line, facts = history.overview(opened), without_secrets(opened.job())
    out.print(f"{opened.path}: {line['state']}", style="bold")
    _part("Settings", _settings(facts))
    _part("Data", _counts(opened.data_report()))
    out.print("\nLoss", style="bold")
    out.print(curve.terminal(opened))
    past = history.read(opened)
    facts_of_it = [("valid loss", _change(past.first, past.best.value if past.best else None))]
    facts_of_it += [
        (name, _change(before.value if before else None, after.value) + f" (n = {past.answers})")
        for name, (before, after) in past.changes.items()
    ]
    if past.chosen is not None:
        facts_of_it.append(("weights kept", f"of step {past.chosen.step}, the best by {past.by}"))
    if past.seconds:
        facts_of_it.append(("time", history.duration(past.seconds)))
    if past.peak_memory:
        facts_of_it.append(("peak memory", size(past.peak_memory)))
    _rows(facts_of_it)
    _samples(opened)
    _results(opened)
    _part("Files", _paths(opened))


def _word(ctx: typer.Context, name: str, default: str = "") -> str:
    words = ctx.args or ([default] if default else [])
    if len(words) != 1:
        given = ", ".join(words) or "none"
        raise UsageError(
            f"`tunesmith runs {ctx.info_name}` takes one {name.strip('[]')} (given: {given}).",
            fix=f"Write tunesmith runs {ctx.info_name} {name}.",
        )
    return words[0]


def _found(run: Path) -> Path:
    named = ROOT / run
    return named if not run.exists() and named.is_dir() else run


def _summary(run: RunDir) -> dict[str, Any]:
    past = history.read(run)
    return {
        **history.overview(run),
        **{k: v for k, v in without_secrets(run.job()).items() if k != "steps"},
        "data": run.data_report(),
        "curve": {
            "loss": [[p.step, p.value] for p in past.loss],
            "valid_loss": [[p.step, p.value] for p in past.valid],
            **{name: [[p.step, p.value] for p in points] for name, points in past.scores.items()},
        },
        "kept": {"step": past.chosen.step, "by": past.by, "value": past.chosen.value}
        if past.chosen
        else None,
        "seconds": past.seconds,
        "peak_memory_bytes": past.peak_memory,
        "samples": run.samples(),
        "results": read_results(run),
        "files": dict(_paths(run)),
    }


def _settings(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = _flat(facts.get("job") or {})
    for name in ("device", "dtype", "template"):
        value = facts.get(name)
        if value is not None:
            rows.append((name, value.get("name") if isinstance(value, Mapping) else value))
    if facts.get("trainable"):
        rows.append(("trained parameters", f"{facts['trainable']:,} of {facts.get('parameters', 0):,}"))
    rows += [(f"version of {name}", value) for name, value in (facts.get("versions") or {}).items()]
    return rows


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names; what isn't set is left out."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) and "path" in v for v in value):
            rows.append((prefix + key, ", ".join(_file(v) for v in value)))
        elif value is not None and value != []:
            words = value if isinstance(value, list) else [value]
            shown = [str(word).lower() if isinstance(word, bool) else str(word) for word in words]
            rows.append((prefix + key, ", ".join(shown)))
    return rows


def _file(entry: Mapping[str, Any]) -> str:
    weight = entry.get("weight", 1.0)
    return str(entry["path"]) + (f" (x {weight:g})" if weight != 1 else "")


def _counts(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    for part in ("train", "valid"):
        counts = report.get(part) or {}
        found = [(name, counts[name]) for name in COUNTS if counts.get(name)]
        shown = [(name, len(value) if isinstance(value, list) else value) for name, value in found]
        if shown:
            rows.append((part, ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in shown)))
    return rows


def _samples(run: RunDir) -> None:
    samples = run.samples()
    if not samples:
        return
    out.print("\nSamples", style="bold")
    prompts = list(dict.fromkeys(str(s.get("prompt", "")) for s in samples))
    for prompt in prompts[:SHOWN_SAMPLES]:
        mine = [s for s in samples if s.get("prompt") == prompt]
        _rows(
            [
                ("prompt", prompt),
                *((f"step {s.get('step')}", s.get("answer", "")) for s in _ends(mine)),
                ("reference", mine[-1].get("reference") or ""),
            ]
        )
    if len(prompts) > SHOWN_SAMPLES:
        out.print(f"(and {len(prompts) - SHOWN_SAMPLES} more prompts in {run.samples_file})")


def _ends(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return samples if len(samples) < 2 else [samples[0], samples[-1]]


def _results(run: RunDir) -> None:
    # Of several models the run itself is the last one (outputs.py): its own comparison comes first.
    for result in (one for found in read_results(run) for one in reversed(pairs(found))):
        if result["kind"] == "damaged":
            err.print(f"{result['file']} can't be read: {result['error']}")
            continue
        out.print(f"\n{title(result)}", style="bold")
        if result["kind"] == "comparison":
            print_table(table(columns(result), comparison_rows(result), numbers=letters(result)))
            _groups(result)
        elif result["kind"] == "evaluation":
            _rows(evaluation_rows(result))
            _groups(result)
        _sections(sections(result))
        for note in result.get("notes") or []:
            out.print(note)


def _sections(found: Iterable[Section]) -> None:
    for section in found:
        out.print(f"\n{section.title}", style="bold")
        for sentence in section.sentences:
            out.print(sentence)
        if section.rows:
            print_table(table(section.columns, section.rows))


def _groups(result: Mapping[str, Any]) -> None:
    columns, rows = group_rows(result)
    if rows:
        out.print()
        print_table(table(columns, rows, numbers=("n",)))


def _paths(run: RunDir) -> list[tuple[str, str]]:
    files = [
        ("weights", run.weights),
        ("report", run.report_file),
        ("curve", run.path / "loss.png"),
        ("metrics", run.metrics_file),
        ("data report", run.data_report_file),
        ("log", run.log_file),
    ]
    return [(name, str(path)) for name, path in files if path is not None and path.exists()]


def _part(name: str, rows: list[tuple[str, Any]]) -> None:
    if rows:
        out.print(f"\n{name}", style="bold")
        _rows(rows)


def _rows(rows: list[tuple[str, Any]]) -> None:
    grid = table(("", ""), rows)
    grid.show_header = False
    print_table(grid)


def _steps(line: Mapping[str, Any]) -> str:
    planned = line["steps_planned"]
    done = line["steps"]
    return f"{done}/{planned}" if planned and planned != done else str(done)


def _change(before: float | None, best: float | None) -> str:
    shown = [f"{value:.3f}" for value in (before, best) if value is not None]
    return " -> ".join(shown)
