"""Figures of a blind test: the votes, turned from left and right into A and B.

The unit is the item: what most raters prefer counts as one vote of the test, because several people's votes
on one pair of answers aren't independent. Repeats don't count there; they tell how far raters agree with
themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluate.blind.ratings import Rater
from tunesmith.evaluate.statistics import Interval, mcnemar, wilson
from tunesmith.evaluate.votes import Duel, cohen_kappa, krippendorff_alpha


@dataclass(frozen=True)
class Votes:
    """One rater's votes ("a", "b", "tie") on first showings and on repeats, by the first showing's id."""

    name: str
    counted: bool
    late: int  # choices that came after the unsealing
    first: Mapping[str, str]
    again: Mapping[str, str]
    sides: Counter[str]  # left, right, tie over all showings
    same_side: int  # of the repeats: the same side both times, which is another model


def votes_of(raters: Sequence[Rater], key: Mapping[str, Any], *, late: bool = False) -> list[Votes]:
    """Everybody's votes; `late` takes in what came after the unsealing, where there is nothing earlier."""
    places = {place["id"]: place for place in key["items"]}
    names = Counter(rater.name for rater in raters)
    seen: Counter[str] = Counter()
    votes = []
    for rater in raters:
        seen[rater.name] += 1
        name = rater.name if names[rater.name] == 1 else f"{rater.name} ({seen[rater.name]})"
        counted = late or bool(rater.choices)
        # Who isn't counted is listed all the same, with what was chosen.
        choices = {**rater.late, **rater.choices} if late or not counted else rater.choices
        first: dict[str, str] = {}
        again: dict[str, str] = {}
        same_side = 0
        for item, choice in choices.items():
            if item not in places:
                continue
            original = places[item]["repeat_of"]
            (again if original else first)[original or item] = _whose(choice, places[item]["left"])
            same_side += original is not None and choice != "tie" and choices.get(original) == choice
        sides = Counter(choice for item, choice in choices.items() if item in places)
        votes.append(Votes(name, counted, len(rater.late), first, again, sides, same_side))
    return votes


def figures(votes: Sequence[Votes], key: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the report, as `--json` prints them."""
    counted = [one for one in votes if one.counted]
    items = [place["id"] for place in key["items"] if place["repeat_of"] is None]
    duel = _duel([majority([v.first[item] for v in counted if item in v.first]) for item in items])
    return {
        "n": duel.n,
        "items": len(items),
        "alike": len(key["alike"]),
        **duel.to_json(),
        "raters": [_rater(one, len(key["items"])) for one in votes],
        "agreement": _agreement(counted, items),
        "repeats": _repeats(counted),
        "first_position": _first_position(counted),
    }


def majority(votes: Sequence[str]) -> str | None:
    """ "a" or "b" where more raters prefer it than the other, else "tie"; None where nobody voted."""
    if not votes:
        return None
    a, b = votes.count("a"), votes.count("b")
    return "a" if a > b else "b" if b > a else "tie"


def _whose(choice: str, left: str) -> str:
    if choice == "tie":
        return choice
    return left if choice == "left" else ("b" if left == "a" else "a")


def _duel(outcomes: Iterable[str | None]) -> Duel:
    counts = Counter(outcomes)
    return Duel(counts["b"], counts["a"], counts["tie"])


def _rater(votes: Votes, shown: int) -> dict[str, Any]:
    duel = _duel(votes.first.values())
    return {
        "name": votes.name,
        "rated": len(votes.first) + len(votes.again),
        "of": shown,
        "b": duel.wins,
        "a": duel.losses,
        "ties": duel.ties,
        "p_value": duel.p_value,
        "left": votes.sides["left"],
        "right": votes.sides["right"],
        "repeats": _repeats([votes]),
        "late": votes.late,
        "counted": votes.counted,
    }


def _repeats(votes: Sequence[Votes]) -> dict[str, int]:
    both = [(v.first[item], again) for v in votes for item, again in v.again.items() if item in v.first]
    same = sum(first == again for first, again in both)
    return {"n": len(both), "same": same, "same_side": sum(v.same_side for v in votes)}


def _agreement(votes: Sequence[Votes], items: Sequence[str]) -> dict[str, Any] | None:
    """How far raters agree with each other; None with fewer than two."""
    raters = [v for v in votes if v.first]
    if len(raters) < 2:
        return None
    units = [[v.first[item] for v in raters if item in v.first] for item in items]
    pairs = [(x, y) for unit in units for at, x in enumerate(unit) for y in unit[at + 1 :]]
    two = [tuple(unit) for unit in units if len(unit) == 2]
    return {
        "krippendorff_alpha": krippendorff_alpha(units),
        "cohen_kappa": cohen_kappa([(x, y) for x, y in two]) if len(raters) == 2 else None,
        "same": sum(x == y for x, y in pairs),
        "pairs": len(pairs),
    }


def _first_position(votes: Sequence[Votes]) -> dict[str, Any] | None:
    """How often the left answer was taken, of all choices that weren't ties, with Wilson's interval."""
    left, right = sum(v.sides["left"] for v in votes), sum(v.sides["right"] for v in votes)
    if not left + right:
        return None
    share = Interval(left / (left + right), *wilson(left, left + right))
    return {"left": left, "right": right, "share": share.to_json(), "p_value": mcnemar(left, right)}
