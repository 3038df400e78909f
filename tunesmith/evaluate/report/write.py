"""Which report of what goes where: a run's, or that of one result, as HTML, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.disk import write_atomic
from tunesmith.errors import UsageError
from tunesmith.evaluate.blind.found import reports_of
from tunesmith.evaluate.markdown import MARK, Language
from tunesmith.evaluate.report.content import content
from tunesmith.evaluate.report.markdown import markdown
from tunesmith.evaluate.report.page import page
from tunesmith.evaluate.report.result import Told, told
from tunesmith.evaluate.report.training import story
from tunesmith.evaluate.results import read_result, read_results
from tunesmith.rundir import RunDir, open_run

Format = Literal["html", "md", "json"]
ENDINGS: dict[str, Format] = {
    ".html": "html",
    ".htm": "html",
    ".md": "md",
    ".markdown": "md",
    ".json": "json",
}


@dataclass(frozen=True)
class Subject:
    """What a report is about: its name, its results, the run that they belong to, and blind tests of it."""

    name: str
    results: list[Told]
    run: RunDir | None = None
    blind: list[Mapping[str, Any]] = field(default_factory=list)


def write_report(run: RunDir) -> Path:
    """Write (anew) report.html of a run from its own files; returns its path.

    Raises RunError if a file of the run is damaged or the disk can't be written.
    """
    write_atomic(run.report_file, text(of_run(run), "html"))
    return run.report_file


def subject(source: str | Path) -> Subject:
    """What there is to report at a path: a run's folder, or a result of `eval` or `compare` (.json, .jsonl).

    Raises UsageError for anything else, RunError for a folder without a run.
    """
    path = Path(source)
    if path.suffix == ".jsonl" and path.with_suffix(".json").is_file():
        path = path.with_suffix(".json")
    if not path.is_file():
        return of_run(open_run(path))
    result = read_result(path)
    if result is None or result["kind"] == "damaged":
        why = "it isn't what `eval` and `compare` write" if result is None else str(result["error"])
        raise UsageError(
            f"{path} can't be reported: {why}.",
            fix="Give a run, or the figures (.json) that `tunesmith eval` or `compare` wrote.",
        )
    return Subject(path.stem, told(result))


def of_run(run: RunDir) -> Subject:
    """A run with its results, comparisons first: they are what the reader came for."""
    results = sorted(read_results(run), key=lambda result: result["kind"] != "comparison")
    parts = [part for result in results for part in told(result)]
    return Subject(run.path.resolve().name, parts, run, reports_of(run))


def text(about: Subject, form: Format, language: Language = "en") -> str:
    """The report as text; a page is in both languages, Markdown in the one that is asked for."""
    training = story(about.run) if about.run else None
    if form == "html":
        return page(about.name, about.results, training, about.blind)
    if form == "md":
        return markdown(about.name, about.results, training, about.blind, language)
    told_all = content(about.name, about.results, training, about.blind)
    return json.dumps(told_all, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def form_of(output: Path | None, form: Format | None) -> Format:
    """The format that was asked for, or the one of the file's ending; HTML where neither says."""
    return form or ENDINGS.get(output.suffix.lower() if output else "", "html")


def place(source: str | Path, output: Path | None, form: Format) -> Path:
    """Where the report goes: `output`, RUN/report.FORMAT, or RESULT.report.FORMAT beside a result.

    Raises UsageError for a folder, and for a file that is no earlier report: nothing else is replaced.
    """
    path = Path(source)
    if output is None:
        if path.is_dir():
            return path / f"report.{form}"
        return path.with_name(f"{path.name.removesuffix(path.suffix)}.report.{form}")
    if output.is_dir():
        raise UsageError(
            f"--output {output} is a folder.", fix=f"Give a file in it: {output / f'report.{form}'}."
        )
    if output.is_file() and output.stat().st_size and not _is_report(output):
        raise UsageError(
            f"--output {output} would overwrite a file that isn't a report.",
            fix="Give the report another name, or put that file somewhere else.",
        )
    return output


def _is_report(file: Path) -> bool:
    """By what every report of ours begins with."""
    with file.open("rb") as opened:
        start = opened.read(2000)
    marks = (b" \xc2\xb7 tunesmith</title>", MARK.encode(), b'"kind": "report"')
    return any(mark in start for mark in marks)
