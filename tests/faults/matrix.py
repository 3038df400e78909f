"""The fault matrix: what is injected, what must hold, and the function that counts.

    python -m tests.faults.matrix                 every row with the figures that it promises
    python -m tests.faults.matrix --quick kills   a few faults of one row
    python -m tests.faults.matrix --write         and the table into docs/faults.md
Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.faults import rows_disk, rows_files, rows_kills, rows_loop, rows_runs, system
from tests.faults.processes import ROOT, Warm
from tests.faults.tally import Outcome, Place, Row, count, markdown

ROWS = (
    Row(
        "stops",
        "a stop after every step of a 40-step run x one or four passes a step x packed or padded x dropout x epoch edge",
        "weights, optimizer, generators and metrics byte-equal to the uninterrupted run",
        rows_runs.stops,
    ),
    Row(
        "kills",
        "SIGKILL at random instants",
        "the same command goes on; everything byte-equal in the end, no line of metrics lost or doubled",
        rows_kills.random_kills,
    ),
    Row(
        "calls",
        "SIGKILL before and after each write (in its middle), fsync, rename, removal, creation and truncation",
        "checkpoints that have their name are whole; the same command goes on; byte-equal in the end",
        rows_kills.kills_at_calls,
    ),
    Row(
        "disk",
        "ENOSPC (once, and from there on) and EIO at each write, fsync, creation and rename",
        "goes on, or one clear error; checkpoints whole, nothing half-written left; the same command ends alike",
        rows_disk.failing_calls,
    ),
    Row("sizes", "RLIMIT_FSIZE, 40 sizes", "the same", rows_disk.small_files),
    Row("tmpfs", "a real file system that gets full", "the same, once there is room", rows_disk.full_file_system),
    Row(
        "damage",
        "a bit flipped, a file cut or deleted in the newest checkpoint",
        "always seen; the one before is taken",
        rows_disk.damaged_checkpoints,
    ),
    Row(
        "signals",
        "SIGTERM, Ctrl-C, Ctrl-C twice",
        "saved within 30 s, exit code 143 or 130; the second Ctrl-C ends it at once; byte-equal in the end",
        rows_loop.signals,
    ),
    Row(
        "memory",
        "out of memory in forward pass, backward pass and optimizer, and real limits (RLIMIT_AS)",
        "the same rows in smaller passes, losses within 1e-5, the size remembered; or one clear error",
        rows_loop.memory,
    ),
    Row(
        "numbers",
        "NaN and infinities in loss and gradient, once and three times in a row",
        "no weight moved, the raw value logged; the third stops the run and names the rows",
        rows_loop.non_finite,
    ),
    Row("spikes", "a loss that jumps", "flagged there and nowhere else, with its rows", rows_loop.spikes),
    Row(
        "inputs",
        "other data, job, tokenizer or base when it goes on",
        "refused with what differs; --force says what it forces",
        rows_runs.changed_inputs,
    ),
    Row("second", "a second process on the same run", "refused at once; the first is unaffected", rows_runs.second_process),
    Row("readers", "readers of output and files that sleep, go, or are killed", "training unaffected", rows_loop.readers),
    Row(
        "files",
        "SIGKILL while generate, eval and compare answer files",
        "they go on; no row twice, missing or different, figures equal",
        rows_files.killed_files,
    ),
)  # fmt: skip
TABLE = ROOT / "docs" / "faults.md"
NEEDS_CALLS = ("calls", "disk")


def run_rows(names: Sequence[str], *, full: bool, folder: Path, package: Path = ROOT) -> list[Outcome]:
    """Run rows by name (all, if none is given), telling each on stderr."""
    library = system.build(folder) if system.compiler() else None
    chosen = [row for row in ROWS if (not names or row.name in names)]
    if library is None:
        chosen = [row for row in chosen if row.name not in NEEDS_CALLS]
    outcomes = []
    with Warm(package, library) as warm:
        for row in chosen:
            place = Place(folder, warm, full)
            outcome = count(row, place)
            tally = outcome.tally
            told = (
                f"{row.name}: {tally.injected} injected, {tally.survived} survived, {outcome.seconds:.0f} s"
            )
            print(told, file=sys.stderr, flush=True)
            for line in tally.lost:
                print(f"  lost: {line}", file=sys.stderr, flush=True)
            outcomes.append(outcome)
    return outcomes


def page(outcomes: list[Outcome]) -> str:
    """docs/faults.md"""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    return (
        "# Faults: what was injected, what survived\n\n"
        "Written by `make faults` (tests/faults), with a tiny model on the CPU: real processes, real signals, real "
        f"limits and file systems. {machine}. What each guard is for: reliability.md.\n\n{markdown(outcomes)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the fault matrix.")
    parser.add_argument("rows", nargs="*", choices=[[], *(row.name for row in ROWS)], metavar="ROW")
    parser.add_argument("--quick", action="store_true", help="a few faults of each row")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--package", type=Path, default=ROOT, help="the folder that tunesmith is taken from")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-faults-") as folder:
        outcomes = run_rows(given.rows, full=not given.quick, folder=Path(folder), package=given.package)
    if given.write:
        TABLE.write_text(page(outcomes), encoding="utf-8")
    print(markdown(outcomes))
    return 0 if all(outcome.tally.held for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
