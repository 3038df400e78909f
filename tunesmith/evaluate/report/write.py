"""Which report of what goes where: a run's, or that of one result, as HTML, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.disk import write_atomic
from tunesmith.errors import UsageError
from tunesmith.evaluate.blind.found import reports_of
from tunesmith.evaluate.formats import Format, Language, check_replaceable, form_of
from tunesmith.evaluate.report.content import content
from tunesmith.evaluate.report.markdown import markdown
from tunesmith.evaluate.report.page import page
from tunesmith.evaluate.report.result import Told, told
from tunesmith.evaluate.report.training import story
from tunesmith.evaluate.results import KINDS, read_result, read_results
from tunesmith.rundir import RunDir, is_run, open_run


@dataclass(frozen=True)
class Subject:
    """What a report is about: its name, its results, the run that they belong to, and blind tests of it."""

    name: str
    default: Path  # of its report, without the ending
    results: list[Told]
    run: RunDir | None = None
    blind: list[Mapping[str, Any]] = field(default_factory=list)


def report(
    source: RunDir | str | Path,
    output: str | Path | None = None,
    *,
    format: Format | None = None,
    language: Language = "en",
) -> Path:
    """Write the report of a run, or of a result (its .json); returns its path.

    `format` is html, md or json; without it `output`'s ending says, else it is html. `language` (en, zh) is
    that of Markdown: a page has both. Default places: RUN/report.html, RESULT.report.html.
    Raises UsageError for what can't be reported, and before anything but a report is overwritten.
    """
    about = subject(source)
    form = form_of(Path(output) if output else None, format)
    file = Path(output) if output else about.default.with_name(f"{about.default.name}.{form}")
    check_replaceable(file)
    write_atomic(file, text(about, form, language))
    return file


def report_text(source: RunDir | str | Path, format: Format = "md", *, language: Language = "en") -> str:
    """The same report as text. Raises UsageError for what can't be reported."""
    return text(subject(source), format, language)


def write_report(run: RunDir) -> Path:
    """Write (anew) report.html of a run from its own files; returns its path.

    Raises RunError if a file of the run is damaged or the disk can't be written.
    """
    write_atomic(run.report_file, text(of_run(run), "html"))
    return run.report_file


def renew_report(result: Path) -> Path | None:
    """Write the report of the run in whose eval/ a result was written; None where it belongs to no run."""
    run = RunDir(result.parent.parent)
    return write_report(run) if result.parent == run.eval and is_run(run.path) else None


def subject(source: RunDir | str | Path) -> Subject:
    """What there is to report at a path: a run's folder, or a result's file (.json, .jsonl).

    Raises UsageError for anything else, RunError for a folder without a run.
    """
    if isinstance(source, RunDir):
        return of_run(source)
    path = Path(source)
    if path.suffix == ".jsonl" and path.with_suffix(".json").is_file():
        path = path.with_suffix(".json")
    if not path.is_file():
        return of_run(open_run(path))
    result = read_result(path)
    if result is None or result["kind"] == "damaged":
        why = "it isn't a result" if result is None else str(result["error"])
        raise UsageError(
            f"{path} can't be reported: {why}.",
            fix="Give a run, or figures (.json) of `tunesmith eval`, `compare`, `judge` or `benchmark`.",
        )
    parts = told(result)
    name = " → ".join(filter(None, (parts[0].a, parts[-1].b)))
    return Subject(name, path.with_name(f"{path.stem}.report"), parts)


def of_run(run: RunDir) -> Subject:
    """A run with its results by kind, damaged ones first, and last of all other runs measured beside it.

    Of several models the last one is the run in whose folder the result stands (outputs.py).
    """
    results = sorted(read_results(run), key=lambda result: ("damaged", *KINDS).index(result["kind"]))
    parts = [told(result) for result in results]
    others = [replace(part, own=False) for some in parts for part in some[:-1]]
    own = [some[-1] for some in parts]
    return Subject(run.path.resolve().name, run.path / "report", own + others, run, reports_of(run))


def text(about: Subject, form: Format, language: Language = "en") -> str:
    """The report as text; a page is in both languages, Markdown in the one that is asked for."""
    training = story(about.run) if about.run else None
    if form == "html":
        return page(about.name, about.results, training, about.blind)
    if form == "md":
        return markdown(about.name, about.results, training, about.blind, language)
    told_all = content(about.name, about.results, training, about.blind)
    return json.dumps(told_all, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
