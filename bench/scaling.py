"""Does a token cost the same in large data and in large packs?  python -m bench.scaling [--steps]

Rows: 1,000 to 50,000 handbook rows; reading, encoding and planning an epoch, in microseconds per token.
Packs: training steps with 1,024 to 8,192 tokens in a forward pass, in real tokens per second, in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from bench.race import Contender, race
from bench.tables import Spread, rates
from bench.workloads import SEED, Workload, examples_of, handbook_rows, lay_out
from tunesmith.data.pack import plan_epoch

ROWS = (1_000, 10_000, 50_000)
PACKS = (1024, 2048, 4096, 8192)


def data_cost(count: int, folder: Path) -> tuple[float, float, int]:
    """Seconds of reading and encoding, of planning an epoch, and the number of tokens."""
    file = folder / f"{count}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in handbook_rows(count))
    begun = time.perf_counter()
    examples = examples_of(file, "chatml")
    read = time.perf_counter() - begun
    begun = time.perf_counter()
    plan_epoch(
        [len(example.input_ids) for example in examples],
        epoch=0, seed=SEED, tokens_per_step=4096, rows_per_step=None, microbatch_tokens=2048,
        microbatch_rows=None, packing=True, shared=[example.input_ids for example in examples],
    )  # fmt: skip
    planned = time.perf_counter() - begun
    return read, planned, sum(len(example.input_ids) for example in examples)


def rows_table(counts: tuple[int, ...] = ROWS) -> str:
    """Markdown: what a token costs before its first step, by number of rows."""
    lines = ["| rows | tokens | reading, encoding, µs a token | planning, µs a token |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        data_cost(100, Path(name))  # tokenizer and imports
        for count in counts:
            read, planned, tokens = data_cost(count, Path(name))
            lines.append(
                f"| {count:,} | {tokens:,} | {read / tokens * 1e6:.2f} | {planned / tokens * 1e6:.3f} |"
            )
    return "\n".join(lines)


def packs_table(steps: int, sizes: tuple[int, ...] = PACKS, compile_layers: bool = True) -> str:
    """Markdown: training speed by tokens in a pack; steps of 64 rows, so that the largest packs are full."""
    workload = Workload("packs", "packs", handbook_rows(64 * (steps + 1)), "chatml", 64)
    compiled = f"train.compile={str(compile_layers).lower()}"
    contenders = [
        Contender(f"{size}", "tunesmith", {"settings": [f"train.microbatch_tokens={size}", compiled]})
        for size in sizes
    ]
    with tempfile.TemporaryDirectory() as name:
        laid = lay_out(workload, Path(name))
        lanes = race(workload, contenders, {False: laid, True: laid}, Path(name), warmup=1, steps=steps)
    amounts = [laid.tokens(step) for step in range(steps + 1)]
    lines = ["| tokens in a pack | tokens/s, median (least–most) | peak memory |", "|---|---|---|"]
    for lane in lanes:
        told = Spread.of(rates(lane.as_dict(), amounts)).text() if not lane.failed else lane.failed
        lines.append(f"| {lane.contender.name} | {told} | {lane.peak_bytes / 1e9:.2f} GB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["rows", "packs"])
    parser.add_argument("--steps", type=int, default=3, help="timed steps for each size of packs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "scaling.md")
    options = parser.parse_args()
    parts = ["# Cost per token by size\n", "Written by `python -m bench.scaling`.\n"]
    if options.only != "packs":
        parts += ["## Data preparation by number of rows\n", rows_table() + "\n"]
    if options.only != "rows":
        parts += ["## Training by size of packs\n", packs_table(options.steps) + "\n"]
    text = "\n".join(parts)
    print(text)
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
