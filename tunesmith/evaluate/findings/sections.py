"""`result["findings"]` as sections of sentences and tables, for the terminal, the report and Markdown.

Reads JSON only. Sentences are English; those of sentences.py are translated by `chinese.in_chinese`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.findings.sentences import say
from tunesmith.evaluate.numbers import interval, number, percent
from tunesmith.evaluate.section import Quoted, Section
from tunesmith.words import duration

KNEW_LITTLE = 6
"""Right answers of A below which no loss of them could pass McNemar's test."""
SHOWN = 8
"""Rows of a table."""
LONGEST = 60
"""Characters of a text in a table."""

Row = Mapping[str, Any]


def sections(result: Mapping[str, Any]) -> list[Section]:
    """The findings of a result of `eval` or `compare`; empty where it has none.

    Of a comparison of several models, seen as pairs, the pair that the findings are about has them.
    """
    found = _comparable(result.get("findings") or {})
    shown = result.get("b")
    if isinstance(shown, Mapping) and found and shown.get("model") != found["b"]:
        return []
    found = {**found, "who": str(result.get("keys", ("a", "b"))[1]).upper()} if found else {}
    made = [
        make(found)
        for name, make in (
            ("forgetting", _forgetting),
            ("copied", _copied),
            ("coverage", _coverage),
            ("invention", _invention),
            ("changed", _changed),
            ("changed", _worst),
            ("advice", _advice),
        )
        if found.get(name)
    ]
    training = found.get("training") or {}
    if "error" in training:
        made.insert(0, Section(say("copied"), (say("unread", reason=training["error"]),)))
    return [section for section in made if section.sentences or section.rows]


def _comparable(found: Row) -> Row:
    """The findings without what earlier versions concluded from means per token, which favour long texts."""
    if "wrong" in (found.get("invention") or {"wrong": 0}):
        return found
    advice = [name for name in found["advice"] if name not in ("not_learnt", "decoding")]
    return {**found, "invention": None, "advice": advice}


def _forgetting(found: Row) -> Section:
    part = found["forgetting"]
    difference = _percent(part["difference"])
    who, right = found["who"], {name: part[name] for name in ("a", "b", "n")}
    told = [say("asked", who=who, difference=difference, p=_p(part["p_value"]), **right)]
    counts = {"lost": len(part["lost"]), "gained": len(part["gained"])}
    verdict = {"worse": "forgot", "better": "learnt"}.get(part["verdict"], "not_told")
    told.append(say(verdict, who=who, **counts))
    if part["a"] < KNEW_LITTLE:
        told.append(say("knew_little"))
    by = {f"{name}_{language}": n for language, of in part["by"].items() for name, n in of.items()}
    told.append(say("languages", who=who, **by))
    told.append(say("took", time=duration(part["seconds"])))
    rows = [
        (say(what), _short(row["question"]), Quoted(row["answer"]), _short(row["a"]), _short(row["b"]))
        for what in ("lost", "gained")
        for row in part[what]
    ]
    columns = ("change", "question", "answer", "before", "after")
    return _section("forgetting", told, columns, rows, who=who)


def _copied(found: Row) -> Section:
    part, training = found["copied"], found["training"]
    counts = {"n": part["n"], "least": part["least"], "model": found["b"]}
    told = [say("copies", b=part["b"], **counts) if part["b"] else say("copies_none", **counts)]
    if part["b"] and part["a"] is not None:
        told.append(
            say("copies_floor", who=found["who"], a=part["a"], difference=_percent(part["difference"]))
        )
        told.append(say("recites" if part["verdict"] == "worse" else "no_floor"))
    if training["gone"]:
        told.append(say("gone", gone=training["gone"]))
    rows = [
        (
            Quoted(row["id"]),
            str(row["length"]),
            _short(row["text"]),
            percent(row["cover"]),
            _place(row["origin"]),
        )
        for row in part["rows"][:SHOWN]
    ]
    return _section("copied", told, ("row", "length", "copied_text", "of_answer", "from_row"), rows)


def _coverage(found: Row) -> Section:
    part = found["coverage"]
    told = [say("held", n=part["n"], held=part["held"])]
    if part.get("by_letter"):
        told.append(say("by_letter", letters=part["by_letter"]))
    if scores := part.get("scores"):
        told.append(
            say(
                "held_scores",
                metric=found["metric"],
                inside=number(scores["held"]["value"]),
                outside=number(scores["not_held"]["value"]),
                difference=interval(part["difference"], sign=True),
            )
        )
        word = {"better": "held_better", "worse": "held_worse"}.get(part["verdict"], "held_unclear")
        told.append(say(word))
    return _section("coverage", told)


def _invention(found: Row) -> Section:
    part = found["invention"]
    if not part["n"]:
        return _section("invention", [])
    counts = {name: part[name] for name in ("n", "wrong", "most")}
    limit = {} if part["limit"] is None else {"limit": f"{part['limit']:g}"}
    told = [say(f"wrong_{part['side']}", metric=found["metric"], **limit, **counts)]
    told.append(say("own_likelier", n=part["n"], own=part["own_likelier"]))
    if part["truth_likelier"]:
        told.append(say("truth_likelier", truth=part["truth_likelier"], per_token=part["per_token"]))
    told.append(say("not_held", n=part["n"], missing=part["not_held"]))
    rows = [
        (
            Quoted(row["id"]),
            number(row["score"]),
            _short(row["b"]),
            _short(row["reference"]),
            *(f"{number(-row[f'{who}_nll'])} ({row[f'{who}_tokens']})" for who in ("own", "truth")),
            percent(row["truth_cover"]),
            _place(row["nearest"]["origin"]) if row["nearest"] else "",
        )
        for row in part["rows"][:SHOWN]
    ]
    columns = ("row", "score", "said", "reference", "log_own", "log_true", "in_data", "nearest")
    return _section("invention", told, columns, rows)


def _changed(found: Row) -> Section:
    part = found["changed"]
    if "same" not in part:
        return _section("changed", [])
    counts = {name: part[name] for name in ("better", "worse", "same")}
    rows = [
        (say(what), *_sides(row))
        for what, kind in (("got_better", "most_better"), ("got_worse", "most_worse"))
        for row in part[kind]
    ]
    columns = ("change", "row", "score", "before", "after", "reference")
    return _section(
        "changed", [say("moved", metric=found["metric"], **counts)], columns, rows, who=found["who"]
    )


def _worst(found: Row) -> Section:
    rows = [
        (
            Quoted(row["id"]),
            number(row["score_b"]),
            _last_line(row["prompt"]),
            _short(row["b"]),
            _reference(row),
        )
        for row in found["changed"]["worst"]
    ]
    return _section("worst", [], ("row", "score", "question", "said", "reference"), rows)


def _advice(found: Row) -> Section:
    return _section("advice", [say("recited" if name == "copies" else name) for name in found["advice"]])


def _section(
    name: str,
    told: Sequence[str],
    columns: Sequence[str] = (),
    rows: Sequence[tuple[str, ...]] = (),
    who: str = "B",
) -> Section:
    names = tuple(say(column, who=who) for column in columns) if rows else ()
    return Section(say(name), tuple(told), names, tuple(rows))


def _sides(row: Row) -> tuple[str, ...]:
    scores = f"{number(row['score_a'])} → {number(row['score_b'])}"
    return Quoted(row["id"]), scores, _short(row["a"]), _short(row["b"]), _reference(row)


def _reference(row: Row) -> Quoted:
    return _short(row["references"][0])


def _short(text: str) -> Quoted:
    """A text on one line, cut."""
    line = " ".join(text.split())
    return Quoted(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")


def _last_line(prompt: str) -> Quoted:
    """What tells prompts apart that begin with one instruction."""
    return _short(prompt.strip().rpartition("\n")[2])


def _place(origin: str) -> Quoted:
    """File and line of a row; the folders stand in the JSON."""
    return Quoted(origin.rpartition("/")[2])


def _percent(value: Mapping[str, float]) -> str:
    at, low, high = (percent(value[name], sign=True) for name in ("value", "low", "high"))
    return f"{at} [{low}, {high}]"


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"
