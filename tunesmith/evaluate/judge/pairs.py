"""Two answers against each other, each pair judged in both orders.

A win needs both orders to agree; where one says A and the other B, or one a tie, the pair is a tie. So a
judge that always takes the first gives ties alone, and its first-position rate says why. A pair of which a
call failed or stayed malformed is left out and counted. What the two orders say is one vote, not two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tunesmith.evaluate.blind.answers import Pair
from tunesmith.evaluate.judge.asking import Outcome
from tunesmith.evaluate.judge.prompts import Language, pair_prompt
from tunesmith.evaluate.statistics import Interval, mcnemar, wilson
from tunesmith.evaluate.votes import Duel

Side = Literal["a", "b", "tie"]


def prompts_of(pairs: Sequence[Pair], language: Language, *, references: bool) -> list[str]:
    """Two prompts a pair: A first, then B first."""
    prompts = []
    for pair in pairs:
        shown = pair.references if references else ()
        prompts.append(pair_prompt(language, pair.prompt, pair.a, pair.b, shown))
        prompts.append(pair_prompt(language, pair.prompt, pair.b, pair.a, shown))
    return prompts


def rows_of(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row a pair, as the result's JSONL has it: verdict "a", "b", "tie", or None with the reason."""
    rows = []
    for at, pair in enumerate(pairs):
        both = outcomes[2 * at], outcomes[2 * at + 1]
        orders = [_side(outcome, swapped) for outcome, swapped in zip(both, (False, True), strict=True)]
        without = next((outcome for outcome in both if outcome.verdict is None), None)
        rows.append(
            {
                "id": pair.id,
                "prompt": pair.prompt,
                "a": pair.a,
                "b": pair.b,
                "references": list(pair.references),
                "verdict": None if without else _agreed(orders[0], orders[1]),
                "orders": orders,
                **({"excluded": without.why, "problem": without.problem} if without else {}),
                "calls": [
                    {"first": first, **call}
                    for first, outcome in zip(("a", "b"), both, strict=True)
                    for call in outcome.calls
                ],
            }
        )
    return rows


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the result: Duel's, and how far the judge can be trusted."""
    judged = [row for row in rows if row["verdict"] is not None]
    counts = Counter(row["verdict"] for row in judged)
    duel = Duel(counts["b"], counts["a"], counts["tie"])
    return {
        "n": duel.n,
        **duel.to_json(),
        "orders": _orders(judged),
        "first_position": _first_position(judged),
        "longer": _longer(judged),
    }


def _side(outcome: Outcome, swapped: bool) -> Side | None:
    if outcome.verdict is None:
        return None
    better = outcome.verdict["better"]
    if better == "tie":
        return "tie"
    return "b" if (better == "2") != swapped else "a"


def _agreed(first: Side | None, second: Side | None) -> Side | None:
    return first if first == second else "tie"


def _orders(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often both orders said the same, and how often the opposite, which is a flip."""
    same = sum(row["orders"][0] == row["orders"][1] for row in rows)
    flipped = sum(set(row["orders"]) == {"a", "b"} for row in rows)
    rate = Interval(flipped / len(rows), *wilson(flipped, len(rows))).to_json() if rows else None
    return {"n": len(rows), "same": same, "flipped": flipped, "flip_rate": rate}


def _first_position(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How often the answer that stood first was taken, of all calls that chose one."""
    chosen = [
        side == first
        for row in rows
        for side, first in zip(row["orders"], "ab", strict=True)
        if side != "tie"
    ]
    return _rate(sum(chosen), len(chosen), ("first", "second"))


def _longer(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How often the longer answer won, of the pairs that were decided and aren't equally long."""
    won = [
        (len(row["b"]) > len(row["a"])) == (row["verdict"] == "b")
        for row in rows
        if row["verdict"] != "tie" and len(row["a"]) != len(row["b"])
    ]
    return _rate(sum(won), len(won), ("longer", "shorter"))


def _rate(count: int, n: int, names: tuple[str, str]) -> dict[str, Any] | None:
    if not n:
        return None
    share = Interval(count / n, *wilson(count, n)).to_json()
    return {names[0]: count, names[1]: n - count, "share": share, "p_value": mcnemar(count, n - count)}
