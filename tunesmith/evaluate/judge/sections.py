"""A judgement as sections: the same sentences and tables for terminal, page and Markdown. JSON only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.evaluate.numbers import interval
from tunesmith.evaluate.section import Quoted, Section


def sections(content: Mapping[str, Any]) -> list[Section]:
    """What a judgement's JSON says; nothing of any other result."""
    if content["kind"] != "judgement":
        return []
    found = [_graded(content) if content["mode"] == "rubric" else _pairs(content), _judge(content)]
    if content.get("people"):
        found.append(_people(content["people"]))
    return found


def title(content: Mapping[str, Any]) -> str:
    """What was judged on what, and by whom: one line."""
    sides = ",  ".join(f"{side.upper()} = {content[side]['model']}" for side in "ab" if side in content)
    data, judge = Path(str(content["data"])).name, content["judge"]["model"]
    return f"{data}, n = {content['n']}:  {sides};  judge: {judge}"


def _pairs(content: Mapping[str, Any]) -> Section:
    rows = [("rows", f"B {content['wins']}, A {content['losses']}, ties {content['ties']} (left out below)")]
    if content["share"]:
        rows.append(("B's share of wins", f"{_percent(content['share'])}, Wilson, 95 %"))
        rows.append(("sign test", f"p = {content['p_value']:.3g}, exact, two-sided"))
    if content["wins_needed"]:
        rows.append(("wins needed", f"{content['wins_needed']} of {content['decided']} for p < 0.05"))
    said = content["verdict"]
    return Section("Two answers compared", (f"{said[0].upper()}{said[1:]}.",), ("", ""), tuple(rows))


def _graded(content: Mapping[str, Any]) -> Section:
    two = "b" in content
    columns = ("criterion", "A", "B", "B − A [95 %]", "verdict") if two else ("criterion", "score [95 %]")
    rows: list[tuple[str, ...]] = []
    for name, one in content["criteria"].items():
        # The mean of all criteria has no weight and is ours; the names of the others are the rubric's.
        label = name
        if "weight" in one:
            label = Quoted(name if one["weight"] == 1 else f"{name} (x{one['weight']:g})")
        if two:
            difference = interval(one["difference"], sign=True)
            scores = (f"{one['a']['value']:.2f}", f"{one['b']['value']:.2f}")
            rows.append((label, *scores, difference, one["verdict"]))
        else:
            rows.append((label, interval(one["a"])))
    return Section("Scores by a rubric, from 1 to 5", (), columns, tuple(rows))


def _judge(content: Mapping[str, Any]) -> Section:
    rows = []
    if orders := content.get("orders"):
        rows.append(("both orders the same", f"{orders['same']} of {orders['n']}"))
        if orders["flip_rate"]:
            rows.append(("flipped with the order", _percent(orders["flip_rate"])))
    if position := content.get("first_position"):
        rows.append(("first answer taken", _percent(position["share"])))
    if longer := content.get("longer"):
        rows.append(("longer answer won", _percent(longer["share"])))
    calls = content["calls"]
    rows.append(("calls", f"{calls['n']}, {calls['mended']} malformed, {calls['failed']} failed"))
    rows.append(("tokens", f"{calls['prompt_tokens']:,} read, {calls['tokens']:,} written"))
    return Section("The judge", tuple(content["notes"]), ("", ""), tuple(rows))


def _people(people: Mapping[str, Any]) -> Section:
    kappa = people["cohen_kappa"]
    rows = [("the same verdict", f"{people['same']} of {people['n']} rows")]
    rows += [("Cohen's kappa", f"{kappa:.2f}")] if kappa is not None else []
    return Section("The judge beside people", (), ("", ""), tuple(rows))


def _percent(share: Mapping[str, float]) -> str:
    return f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]".replace("%", " %")
