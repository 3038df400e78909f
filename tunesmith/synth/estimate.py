"""What making rows will take in calls, tokens, time and money, before it is begun.

By rule: 0.8 tokens for a Chinese character, 1 for four others; replies by their usual length. As soon as the
ledger has five calls of a purpose (a pilot's), by what those took.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.synth.config import Price
from tunesmith.synth.ledger import Sum, read_sums
from tunesmith.synth.prepare import Prepared
from tunesmith.synth.prompts import judge_prompt, make_prompt
from tunesmith.words import counted, duration

ENOUGH = 5
ROW_TOKENS, SUMMARY_TOKENS, VERDICT_TOKENS = 110, 200, 120


@dataclass(frozen=True)
class Estimate:
    """The calls to one model: tokens read and written, seconds and cost in all (None: not known)."""

    purpose: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    cost: float | None
    measured: bool


def estimate(prepared: Prepared) -> list[Estimate]:
    """What all chunks take, whether or not some calls are made already."""
    request = prepared.request
    sums = {(one.purpose, one.model): one for one in read_sums(request.output)}
    make_calls = make_in = make_out = judge_calls = judge_in = 0.0
    for chunk in prepared.used:
        language = prepared.language(chunk)
        for kind in request.made_kinds:
            rows = 1 if kind == "summary" else request.per_chunk
            make_calls += 1
            make_in += tokens(make_prompt(kind, language, chunk, rows))
            make_out += SUMMARY_TOKENS if kind == "summary" else ROW_TOKENS * rows
            judge_calls += rows
            judge_in += rows * (tokens(judge_prompt(kind, language, chunk, "", "")) + ROW_TOKENS)
    found = []
    if request.model and make_calls:
        found.append(_of("make", request.model, request.price, sums, make_calls, make_in, make_out))
    if request.judging and request.judge and judge_calls:
        price = request.judge_price or (request.price if request.judge == request.model else None)
        written = VERDICT_TOKENS * judge_calls
        found.append(_of("judge", request.judge, price, sums, judge_calls, judge_in, written))
    return found


def content(prepared: Prepared) -> dict[str, Any]:
    """The estimate for `--json`."""
    found = estimate(prepared)
    costs = [one.cost for one in found if one.cost is not None]
    return {
        "dry_run": True,
        "documents": len(prepared.library.documents),
        "unread": [asdict(one) for one in prepared.library.unread],
        "chunks": len(prepared.chunks),
        "left_out": prepared.reasons(),
        "used": len(prepared.used),
        "calls": [asdict(one) for one in found],
        "cost": round(sum(costs), 6) if costs else None,
        "calls_made": sum(one.calls for one in read_sums(prepared.request.output)),
    }


def lines(prepared: Prepared) -> list[str]:
    """The same for a person."""
    found, request = content(prepared), prepared.request
    characters = sum(chunk.end - chunk.start for chunk in prepared.used)
    told = [
        f"{counted(found['documents'], 'document')}, {counted(len(prepared.parts), 'section')}, "
        f"{counted(found['chunks'], 'chunk')}, {found['used']:,} of them used ({characters:,} characters)"
    ]
    told += [f"  {n:,} {why}" for why, n in found["left_out"].items()]
    for one in estimate(prepared):
        how = "as measured so far" if one.measured else "by rule"
        line = (
            f"{one.purpose}: {one.model}: {counted(one.calls, 'call')}, {one.prompt_tokens:,} tokens read, "
        )
        line += f"{one.completion_tokens:,} written ({how})"
        if one.seconds is not None:
            line += f", {duration(one.seconds)} of calls, one after the other"
        told.append(line + (f", cost {one.cost:.4g}" if one.cost is not None else ""))
    if found["cost"] is not None:
        unknown = [one.purpose for one in estimate(prepared) if one.cost is None]
        without = f", without {unknown[0]}, whose price isn't given" if unknown else ""
        told.append(f"cost in all: {found['cost']:.4g}{without}")
    elif found["calls"]:
        told.append("cost: give --price READ,WRITTEN per million tokens (and --judge-price)")
    if not request.made_kinds:
        told.append("no model is asked")
    if found["calls_made"]:
        told.append(
            f"{counted(found['calls_made'], 'call')} made already; what they answered isn't asked again"
        )
    return told


def tokens(text: str) -> int:
    """About how many tokens a text has."""
    wide = sum(c >= "\u2e80" for c in text)
    return round(0.8 * wide + (len(text) - wide) / 4)


def _of(
    purpose: str, model: str, price: Price | None, sums: dict[tuple[str, str], Sum], calls: float,
    read: float, written: float,
) -> Estimate:  # fmt: skip
    seconds, measured = None, False
    there = sums.get((purpose, model))
    if there is not None and (good := there.calls - there.failed) >= ENOUGH:
        measured = True
        read, written = there.prompt_tokens / good * calls, there.completion_tokens / good * calls
        seconds = there.seconds / good * calls
    cost = price.of(read, written) if price else None
    return Estimate(purpose, model, round(calls), round(read), round(written), seconds, cost, measured)
