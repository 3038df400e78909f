"""Which settings suit a contender best: short races of one contender at a time. See search_trl.py.

Every setting gets one step of warm-up and `--steps` timed ones on the same rows; the fastest few are measured
again, in turns, so that a moment in which the machine was busy decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.race import Contender, Lane, race
from bench.tables import Spread, rates
from bench.workloads import Laid, Workload, lay_out, workloads

FINAL = 3


def words(contender: Contender) -> str:
    """The settings as one line."""
    told = [f"{key} {value}" for key, value in contender.options.items()]
    return ", ".join([*told, *(["sorted by length"] if contender.sort else [])])


def search(
    workload: Workload, candidates: Sequence[Contender], *, steps: int, folder: Path
) -> tuple[list[Lane], list[Lane], list[float]]:
    """(every candidate measured alone, the fastest ones measured in turns, tokens of each step)."""
    laid = {sort: lay_out(workload, folder, sort=sort) for sort in (False, True)}
    amounts: list[float] = [laid[False].tokens(step) for step in range(steps + 1)]
    lanes: list[Lane] = []
    for candidate in candidates:
        print(words(candidate), file=sys.stderr)
        lanes += race(workload, [candidate], laid, folder, warmup=1, steps=steps)
    done = [lane for lane in lanes if len(lane.seconds) > steps]
    done.sort(key=lambda lane: sum(lane.seconds[1:]))
    best = [lane.contender for lane in done[:FINAL]]
    return lanes, _final(workload, best, laid, folder, steps), amounts


def _final(
    workload: Workload, best: Sequence[Contender], laid: dict[bool, Laid], folder: Path, steps: int
) -> list[Lane]:
    named = [
        Contender(f"{number}", c.driver, c.options, c.python, c.sort) for number, c in enumerate(best, 1)
    ]
    return race(workload, named, laid, folder, warmup=1, steps=steps)


def report(title: str, lanes: Iterable[Lane], final: Iterable[Lane], amounts: Sequence[float]) -> str:
    """Both tables in Markdown, the fastest first."""
    return "\n".join(
        [
            f"## {title}\n",
            "Each alone:\n",
            *_table(lanes, amounts),
            "",
            "The fastest, in turns:\n",
            *_table(final, amounts),
            "",
        ]
    )


def _table(lanes: Iterable[Lane], amounts: Sequence[float]) -> list[str]:
    lines = ["| settings | tokens/s, median (least–most) | peak memory |", "|---|---|---|"]

    def key(lane: Lane) -> float:
        found = rates(lane.as_dict(), amounts)
        return -Spread.of(found).middle if found else 0.0

    for lane in sorted(lanes, key=key):
        found = rates(lane.as_dict(), amounts)
        told = Spread.of(found).text() if found else f"failed: {lane.failed}"
        lines.append(f"| {words(lane.contender)} | {told} | {lane.peak_bytes / 1e9:.2f} GB |")
    return lines


def command(
    name: str, candidates: dict[str, Sequence[Contender]] | Any, parser: argparse.ArgumentParser
) -> None:
    """Run a search script: `candidates(options)` gives what is tried."""
    parser.add_argument("--workload", default="handbook", choices=["handbook", "tang", "full", "qlora"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path, help="Markdown file that the tables are appended to")
    options = parser.parse_args()
    workload = workloads()[options.workload]
    with tempfile.TemporaryDirectory() as folder:
        lanes, final, amounts = search(
            workload, candidates(options), steps=options.steps, folder=Path(folder)
        )
    text = report(f"{name}: {workload.title}", lanes, final, amounts)
    print(text)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
