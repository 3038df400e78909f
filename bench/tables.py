"""From the times of steps to figures with their spread, and to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

LOSS_TOLERANCE = 0.03  # why not less: README.md, "Losses"
"""Relative: bf16 rounds by up to 0.4 % in each product, and contenders round in different orders."""


@dataclass(frozen=True)
class Spread:
    """A median with the least and the most."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 0, suffix: str = "") -> str:
        return f"{self.middle:.{digits}f}{suffix} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def rates(lane: Mapping[str, Any], amounts: Sequence[float]) -> list[float]:
    """Amount per second of each timed step; `amounts` has one for every step, warm-up included."""
    warmup = lane["warmup_steps"]
    return [
        amount / seconds
        for amount, seconds in zip(amounts[warmup:], lane["step_seconds"][warmup:], strict=False)
    ]


def ratios(lane: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """How many times as fast as `other`, pair by pair: the same step, one right after the other."""
    warmup = lane["warmup_steps"]
    return [
        b / a for a, b in zip(lane["step_seconds"][warmup:], other["step_seconds"][warmup:], strict=False)
    ]


def largest_gap(lane: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest relative difference between the losses of the same step, warm-up included."""
    pairs = zip(lane["losses"], other["losses"], strict=False)
    return max((abs(a - b) / abs(b) for a, b in pairs), default=float("nan"))


def table(race: Mapping[str, Any]) -> str:
    """One workload's results in Markdown; the first contender is ours."""
    lanes = race["lanes"]
    ours = lanes[0]
    lines = [
        "| | tokens/s, median (least–most) | rows/s | share of the limit | ours is faster | peak memory "
        "| largest loss gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for lane in lanes:
        if lane["failed"] or not rates(lane, race["tokens"]):
            lines.append(f"| {lane['name']} | failed: {lane['failed']} | | | | | |")
            continue
        tokens = Spread.of(rates(lane, race["tokens"]))
        rows = Spread.of(rates(lane, [race["rows_per_step"]] * len(race["tokens"])))
        faster = "" if lane is ours else Spread.of(ratios(ours, lane)).text(2, " x")
        gap = "" if lane is ours else f"{largest_gap(lane, ours):.2%}"
        lines.append(
            f"| {lane['name']} | {tokens.text()} | {rows.middle:.2f} | {tokens.middle / race['limit']:.0%} "
            f"| {faster} | {lane['peak_bytes'] / 1e9:.2f} GB | {gap} |"
        )
    return "\n".join(lines)


def page(results: Mapping[str, Any], name: str = "results") -> str:
    """The whole page; `name` is that of the raw data's file."""
    machine = results["machine"]
    products = f" in {machine['products']}" if machine.get("products") else ""
    parts = [
        "# Benchmark results\n",
        f"Written by `make bench`; what is measured and how: [README](README.md). Raw data: `{name}.json`.\n",
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"products in bf16{products} at {machine['product_rate'] / 1e9:.0f} GFLOP/s "
        "(measured in the same run). Tokens are real ones: "
        "padding doesn't count, common beginnings do for every row. All did the same rows in each step, "
        "in turns (A B C, A B C, …); times exclude set-up and warm-up.\n",
    ]
    for race in results["races"]:
        parts.append(f"## {race['title']}\n")
        if race.get("skipped"):
            parts.append(f"Skipped: {race['skipped']}.\n")
            continue
        data = race["data"]
        timed = len(race["tokens"]) - race["warmup"]
        parts.append(
            f"{data['rows']} rows of {data['mean_tokens']} tokens on average "
            f"({data['shortest']}–{data['longest']}; "
            f"{data['common_tokens']} common to all), {race['rows_per_step']} rows in each step, "
            f"{timed} timed steps "
            f"after {race['warmup']} of warm-up. Limit: {race['limit']:.0f} tokens/s "
            f"(product rate / {race['operations']} x parameters).\n"
        )
        parts.append(table(race) + "\n")
        parts += [f"- {lane['name']}: {_settings(lane)}" for lane in race["lanes"]]
        parts.append("")
        worst = [
            lane["name"] for lane in race["lanes"][1:]
            if not lane["failed"] and not largest_gap(lane, race["lanes"][0]) <= LOSS_TOLERANCE
        ]  # fmt: skip
        told = f"differ by more than {LOSS_TOLERANCE:.0%}: {', '.join(worst)}" if worst else "agree"
        parts.append(f"Losses, step by step, within {LOSS_TOLERANCE:.0%}: {told}.\n")
    return "\n".join(parts)


def _settings(lane: Mapping[str, Any]) -> str:
    options = lane["options"]
    words = [f"{key} {value}" for key, value in options.items() if key != "settings"]
    words += options.get("settings", ())
    words += ["rows of a step sorted by length"] if lane["sorted_rows"] else []
    return ", ".join(words) or "defaults"
