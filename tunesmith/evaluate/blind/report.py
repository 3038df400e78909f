"""Unsealing a blind test, and its report: figures, then every item with its votes, in one offline page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from tunesmith.disk import write_atomic, write_json
from tunesmith.errors import RunError, UsageError
from tunesmith.evaluate.blind.folder import BlindTest, open_test
from tunesmith.evaluate.blind.ratings import Rater, locked, read_raters, take_in, timestamp
from tunesmith.evaluate.blind.tables import RATER_COLUMNS, in_chinese, rater_rows, summary_rows
from tunesmith.evaluate.blind.tally import Votes, figures, votes_of
from tunesmith.evaluate.pages import both, environment, rendered
from tunesmith.evaluate.report.write import write_report
from tunesmith.redact import short_paths
from tunesmith.rundir import is_run, open_run
from tunesmith.words import counted


def blind_report(
    folder: str | Path, ratings: Sequence[str | Path] = (), *, early: bool = False, late: bool = False
) -> dict[str, Any]:
    """Unseal a blind test, if it isn't yet, and write report.html and report.json; returns the figures.

    `ratings` are files of choices that raters saved from the page. `early` unseals although a rater isn't
    through; `late` counts ratings that came after the unsealing. Raises RunError without any rating,
    UsageError while a rater isn't through, DataError for files that don't belong to this test; nothing is
    unsealed then.
    """
    test = open_test(Path(folder))
    public, key = test.public(), test.key()
    if ratings:
        take_in(test, [Path(file) for file in ratings])
    raters = read_raters(test)
    if not raters:
        raise RunError(
            f"Nobody has rated {test.path} yet; nothing was unsealed.",
            fix="Let people rate (tunesmith blind serve, or blind page), then ask for the report.",
        )
    if test.unsealed() is None:
        if not early:
            _all_through(test, raters, len(public["items"]))
        with locked(test.ratings_file):
            raters = read_raters(test)
            write_json(test.unsealed_file, {"at": timestamp()})
    votes = votes_of(raters, key, late=late)
    content = {
        "kind": "blind test",
        "title": public["title"],
        "ask": public["ask"],
        "a": key["a"],
        "b": key["b"],
        **figures(votes, key),
        "sealed_at": key["at"],
        "unsealed_at": test.unsealed(),
        "seed": key["seed"],
        "settings": key["settings"],
    }
    content["notes"] = _notes(content)
    content["rows"] = _rows(public, key, votes)
    content = {name: short_paths(value, foreign=False) for name, value in content.items()}
    write_json(test.figures_file, content)
    write_atomic(test.report_file, _page(content))
    for side in ("a", "b"):
        if is_run(folder := Path(str(key[side]["model"]))):
            # The votes are a part of the run's story; a run that can't be read has its own complaint.
            with suppress(RunError):
                write_report(open_run(folder))
    return content


def _all_through(test: BlindTest, raters: Sequence[Rater], shown: int) -> None:
    waiting = [
        f"{rater.name}: {len(rater.choices)} of {shown}" for rater in raters if len(rater.choices) < shown
    ]
    if waiting:
        raise UsageError(
            f"{counted(len(waiting), 'rater')} of {test.path} not through; nothing was unsealed.",
            details=waiting,
            fix="Wait for them, or add --early: the test is unsealed then, and later ratings don't count.",
        )


def _notes(content: Mapping[str, Any]) -> list[str]:
    """What a reader must know besides the figures, in sentences."""
    notes = []
    if content["alike"]:
        notes.append(
            f"{counted(content['alike'], 'row')} on which both gave the same answer: not shown, not counted."
        )
    for side in ("a", "b"):
        if content[side]["cut"]:
            cut = counted(content[side]["cut"], "answer")
            notes.append(f"{cut} of {side.upper()} reached the limit of tokens and may be cut off.")
    if content["n"] < content["items"]:
        notes.append(f"{content['items'] - content['n']} of {content['items']} items were rated by nobody.")
    position = content["first_position"]
    if position and position["p_value"] < 0.05:
        side = "left" if position["left"] > position["right"] else "right"
        notes.append(
            f"Raters took the {side} answer more often than chance would. Both models were on either "
            "side equally often: it favours none, but blurs the result."
        )
    late = [rater for rater in content["raters"] if rater["late"]]
    if late:
        names = ", ".join(f"{rater['name']} ({rater['late']})" for rater in late)
        notes.append(f"Ratings that came after the unsealing: {names}.")
    return notes


def _rows(public: Mapping[str, Any], key: Mapping[str, Any], votes: Sequence[Votes]) -> list[dict[str, Any]]:
    """Every item with A's and B's answer and who voted for which."""
    shown = {item["id"]: item for item in public["items"]}
    rows = []
    for place in key["items"]:
        if place["repeat_of"] is not None:
            continue
        item = shown[place["id"]]
        a, b = ("left", "right") if place["left"] == "a" else ("right", "left")
        rows.append(
            {
                "row": place["row"],
                "prompt": item["prompt"],
                "a": item[a],
                "b": item[b],
                "references": item.get("references") or [],
                "votes": {v.name: v.first[place["id"]] for v in votes if place["id"] in v.first},
                "again": {v.name: v.again[place["id"]] for v in votes if place["id"] in v.again},
            }
        )
    return rows


def _page(content: Mapping[str, Any]) -> str:
    return rendered(
        _environment(),
        "blind/report.html",
        css=["report/page.css", "blind/report.css"],
        js=["report/language.js"],
        **content,
        summary=zip(summary_rows(content), summary_rows(content, chinese=True), strict=True),
        columns=RATER_COLUMNS,
        table=rater_rows(content),
    )


@cache
def _environment() -> Environment:
    made = environment()
    made.filters["of_blind"] = lambda words: both(words, in_chinese(words))
    return made
