"""What a reader of a judgement must know besides its figures, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.words import counted

_LEFT_OUT = {
    "alike": "both answers are the same, so nothing was asked",
    "unanswered": "a side gave no answer",
    "failed": "a call to the judge failed",
    "malformed": "the judge's reply couldn't be read, mended once",
}


def notes_on(content: Mapping[str, Any]) -> list[str]:
    """Rows left out with the reason, a taste for the first place or for length, a judge in its own case."""
    notes = [
        f"{counted(number, 'row')} left out: {_LEFT_OUT[why]}."
        for why, number in content["left_out"].items()
        if number
    ]
    judge = str(content["judge"]["model"])
    own = [side.upper() for side in "ab" if side in content and content[side]["model"] == judge]
    if own:
        notes.append(f"The judge is {' and '.join(own)} itself: models favour their own answers.")
    if position := content.get("first_position"):
        side = "first" if position["first"] > position["second"] else "second"
        if position["p_value"] < 0.05:
            notes.append(
                f"The judge took the {side} answer more often than chance would, which the second order "
                "undoes, at the price of ties."
            )
    longer = content.get("longer")
    if longer and longer["p_value"] < 0.05 and longer["longer"] > longer["shorter"]:
        notes.append(
            f"The longer answer won {longer['longer']} of {longer['longer'] + longer['shorter']} decided "
            "rows: this may be a taste for length, which no order undoes."
        )
    orders = content.get("orders")
    if orders and orders["n"] and orders["flipped"] > orders["n"] / 4:
        notes.append(
            "In more than a quarter of the rows the judge took the opposite side when the order changed: "
            "it hardly tells these answers apart."
        )
    return notes
