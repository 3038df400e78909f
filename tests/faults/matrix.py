"""The fault matrix: what is injected, what must hold, and the function that counts.

    python -m tests.faults.matrix                 every row with the figures that it promises
    python -m tests.faults.matrix --quick kills   a few faults of one row
    python -m tests.faults.matrix --write         and the table into docs/faults.md, row by row; with rows
                                                  named, those before them stay if they are of the same code
Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.faults import rows_disk, rows_files, rows_kills, rows_loop, rows_runs, system
from tests.faults.kept import keep, kept, state_of
from tests.faults.tally import Outcome, Place, Row, count, markdown
from tests.warm import ROOT, Warm

ROWS = (
    Row(
        "stops",
        "a stop after every step of a 40-step run x one or several passes x packing x dropout x epoch edge",
        "weights, optimizer, generators and metrics byte-equal to the uninterrupted run",
        rows_runs.stops,
    ),
    Row(
        "kills",
        "SIGKILL at random instants",
        "the same command goes on, a save interval lost at most, another one while a checkpoint is written; "
        "everything byte-equal in the end, no line of metrics lost or doubled",
        rows_kills.random_kills,
    ),
    Row(
        "calls",
        "SIGKILL before and after (a write: in its middle) each write, fsync, rename, removal and creation",
        "checkpoints that have their name are whole; the same command goes on; byte-equal in the end",
        rows_kills.kills_at_calls,
    ),
    Row(
        "disk",
        "ENOSPC (once, and from there on) and EIO at each write, fsync, creation and rename",
        "goes on, or one clear error; checkpoints whole, nothing half-written; the same command ends alike",
        rows_disk.failing_calls,
    ),
    Row("sizes", "RLIMIT_FSIZE, 40 sizes", "the same", rows_disk.small_files),
    Row(
        "tmpfs",
        "a real file system (tmpfs) that is too small, or gets full at each step",
        "refused before it begins; the same, once there is room",
        rows_disk.full_file_system,
    ),
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
    Row(
        "second",
        "a second process on the same run",
        "refused within a second; the first is unaffected",
        rows_runs.second_process,
    ),
    Row(
        "readers",
        "readers of output and files that sleep, go away, or are killed",
        "training unaffected",
        rows_loop.readers,
    ),
    Row(
        "files",
        "SIGKILL while generate, eval and compare answer files",
        "they go on; no row twice, missing or different, figures equal",
        rows_files.killed_files,
    ),
)  # fmt: skip
TABLE = ROOT / "docs" / "faults.md"
KEPT = ROOT / "build" / "faults"
NEEDS_CALLS = ("calls", "disk")


def run_rows(
    names: Sequence[str], place: Place, done: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Run rows by name (all, if none is given), telling each on stderr and to `done`."""
    outcomes = []
    for row in ROWS:
        if (names and row.name not in names) or (row.name in NEEDS_CALLS and not system.compiler()):
            continue
        outcome = count(row, place)
        tally = outcome.tally
        told = f"{row.name}: {tally.injected} injected, {tally.survived} survived, {outcome.seconds:.0f} s"
        print("\n  lost: ".join([told, *tally.lost]), file=sys.stderr, flush=True)
        outcomes.append(outcome)
        done(outcome)
    return outcomes


def page(outcomes: list[Outcome]) -> str:
    """docs/faults.md"""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return (
        "# Faults: what was injected, what survived\n\n"
        "Written by `make faults` (tests/faults), with a tiny model on the CPU; real processes, signals, "
        f"limits and file systems. {machine}, torch {torch.__version__}. "
        "Promised: [reliability](reliability.md).\n\n"
        f"{markdown(outcomes)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the fault matrix.")
    parser.add_argument("rows", nargs="*", choices=[[], *(row.name for row in ROWS)], metavar="ROW")
    parser.add_argument("--quick", action="store_true", help="a few faults of each row")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="every Nth case of the longest rows"
    )
    parser.add_argument("--package", type=Path, default=ROOT, help="where tunesmith is")
    given = parser.parse_args()
    state = f"{state_of(given.package)} quick={given.quick} every={given.every}"

    def write(outcome: Outcome) -> None:
        if given.write:
            keep(KEPT, state, outcome)
            TABLE.write_text(page(kept(KEPT, state, ROWS)), encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="tunesmith-faults-") as name:
        folder = Path(name)
        with Warm(given.package, system.build(folder) if system.compiler() else None) as warm:
            outcomes = run_rows(given.rows, Place(folder, warm, not given.quick, given.every), write)
    print(markdown(outcomes))
    return 0 if all(outcome.tally.held for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
