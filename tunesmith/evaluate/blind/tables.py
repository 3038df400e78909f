"""A blind test's figures as rows of tables, for the terminal and the page; no numpy, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATER_COLUMNS = ("rater", "rated", "B", "A", "ties", "p", "left", "repeats the same", "")


def summary_rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) rows of the figures, for the terminal and the page."""
    rows = [("items", f"{content['n']} rated of {content['items']}")]
    rows.append(
        ("votes", f"B {content['wins']}, A {content['losses']}, ties {content['ties']} (left out below)")
    )
    if share := content["share"]:
        ends = f"[{100 * share['low']:.0f} %, {100 * share['high']:.0f} %]"
        rows.append(("B's share of wins", f"{100 * share['value']:.0f} % {ends}, Wilson, 95 %"))
        rows.append(("sign test", f"p = {content['p_value']:.3g}, exact, two-sided"))
    if content["wins_needed"]:
        rows.append(("wins needed", f"{content['wins_needed']} of {content['decided']} for p < 0.05"))
    if agreement := content["agreement"]:
        words = f"the same in {agreement['same']} of {agreement['pairs']} pairs of votes"
        if agreement["krippendorff_alpha"] is not None:
            words += f", Krippendorff's alpha {agreement['krippendorff_alpha']:.2f}"
        if agreement["cohen_kappa"] is not None:
            words += f", Cohen's kappa {agreement['cohen_kappa']:.2f}"
        rows.append(("raters agree", words))
    repeats = content["repeats"]
    if repeats["n"]:
        words = f"the same answer both times in {repeats['same']} of {repeats['n']}"
        rows.append(("repeats, sides swapped", f"{words}; the same side in {repeats['same_side']}"))
    if position := content["first_position"]:
        share = position["share"]
        ends = f"[{100 * share['low']:.0f} %, {100 * share['high']:.0f} %]"
        rows.append(("left answer taken", f"{100 * share['value']:.0f} % {ends}"))
    return rows


def rater_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a rater under RATER_COLUMNS."""
    return [
        (
            rater["name"],
            f"{rater['rated']}/{rater['of']}",
            str(rater["b"]),
            str(rater["a"]),
            str(rater["ties"]),
            "" if rater["p_value"] is None else f"{rater['p_value']:.3g}",
            f"{rater['left']}/{rater['left'] + rater['right']}",
            f"{rater['repeats']['same']}/{rater['repeats']['n']}",
            "" if rater["counted"] else "late, not counted",
        )
        for rater in content["raters"]
    ]
