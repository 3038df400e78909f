"""results.json as a picture: real tokens per second of every contender, workload by workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from bench.tables import Spread, rates

OURS, OTHERS = "#1f6f8b", "#b9c3c9"


def draw(results: Mapping[str, Any], file: Path) -> None:
    """One panel for each workload that was run; bars are medians, whiskers least to most."""
    races = [race for race in results["races"] if not race.get("skipped")]
    if not races:
        return
    figure, panels = plt.subplots(
        len(races), 1, figsize=(8, 0.9 + 1.7 * len(races)), squeeze=False, layout="constrained"
    )
    for panel, race in zip(panels[:, 0], races, strict=True):
        lanes = [lane for lane in race["lanes"] if rates(lane, race["tokens"])]
        spreads = [Spread.of(rates(lane, race["tokens"])) for lane in lanes]
        middle = [spread.middle for spread in spreads]
        panel.barh(
            range(len(lanes)),
            middle,
            color=[OURS] + [OTHERS] * (len(lanes) - 1),
            xerr=(
                [spread.middle - spread.low for spread in spreads],
                [spread.high - spread.middle for spread in spreads],
            ),
            error_kw={"ecolor": "#444444", "capsize": 3, "lw": 1},
        )
        for place, spread in enumerate(spreads):
            text = f"{spread.middle:,.0f}"
            panel.annotate(
                text, (spread.high, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
            )
        panel.axvline(race["limit"], color="#444444", lw=1, ls="--")
        panel.set_yticks(range(len(lanes)), [lane["name"] for lane in lanes])
        panel.invert_yaxis()
        panel.set_xlim(0, 1.12 * max(race["limit"], *(spread.high for spread in spreads)))
        panel.set_title(race["title"], loc="left", fontsize=10, fontweight="bold")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("real tokens per second (dashed: limit by the machine's bf16 product rate)")
    figure.savefig(file, dpi=150)
    plt.close(figure)
