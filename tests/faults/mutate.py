"""Take each guard out of a copy of the package, and see the row of the matrix fail that stands for it.

    python -m tests.faults.mutate              all of them; --write puts the table into docs/faults-mutated.md
    python -m tests.faults.mutate damage       those of one row
Exit code 1 if a row holds without its guard.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.warm import ROOT

LIMIT = 900  # seconds; a row that hangs without its guard has failed too


@dataclass(frozen=True)
class Mutation:
    """A guard, and the text that takes it out of a file of the package."""

    row: str
    guard: str
    file: str
    old: str
    new: str
    how: tuple[str, ...] = ("--quick",)


MUTATIONS = (
    Mutation("stops", "generators are put back", "train/loop.py",
             "            at.generators.put_back()\n        try:", "        try:"),
    Mutation("stops", "the optimizer's states are put back", "train/progress.py",
             "    put_states(parts.optimizer, saved)\n", "    return\n"),
    Mutation("kills", "lines after the checkpoint are cut off", "journal.py",
             "            if len(content) > size:", "            if False:"),
    Mutation("kills", "the newest checkpoints are kept", "train/checkpoint.py",
             "if folder != best][:-keep]:", "if folder != best]:", ()),
    Mutation("calls", "a folder takes its name when it is whole", "disk.py",
             "        temporary = name_beside(target)\n        temporary.mkdir()",
             "        target.mkdir()\n        yield target\n        return",
             ("--every", "16")),
    Mutation("calls", "what killed writes left is removed", "train/run.py",
             "        disk.remove_leftovers(run.path)\n        if run.weights", "        if run.weights",
             ("--every", "16")),
    Mutation("disk", "what was begun is removed", "disk.py",
             "            shutil.rmtree(temporary, ignore_errors=True)", "            pass",
             ("--every", "60")),
    Mutation("sizes", "a save that fails doesn't end the run", "train/saving.py",
             "        except Exception as failure:", "        except KeyError as failure:"),
    Mutation("tmpfs", "space is checked before the run", "train/run.py",
             "            require_disk(ready)\n            run = rundir.create(output)",
             "            run = rundir.create(output)"),
    Mutation("damage", "files are checked against the manifest", "train/checkpoint.py",
             "if _facts(folder / name) != facts]", "if False]"),
    Mutation("damage", "the manifest is checked against itself", "train/checkpoint.py",
             "wrong = [] if _sealed(manifest) == sealed else [MANIFEST]", "wrong = []", ()),
    Mutation("signals", "signals are listened to", "train/signals.py",
             "_ASKING = (signal.SIGINT, signal.SIGTERM)", "_ASKING = ()"),
    Mutation("signals", "a second Ctrl-C waits for nothing", "train/signals.py",
             "            if number == signal.SIGINT:", "            if False:"),
    Mutation("memory", "a lack of memory is recognised", "train/memory.py",
             "        if not lacks_memory(error):\n            raise\n", "        raise\n"),
    Mutation("numbers", "the step is left out", "train/step.py",
             "    if finite:", "    if True:"),
    Mutation("numbers", "three in a row stop the run", "train/loop.py",
             "NON_FINITE_LIMIT = 3", "NON_FINITE_LIMIT = 300"),
    Mutation("spikes", "spikes are flagged", "train/spikes.py", "LIMIT = 6.0", "LIMIT = 1e9"),
    Mutation("spikes", "nothing else is flagged", "train/spikes.py", "LIMIT = 6.0", "LIMIT = -99.0"),
    Mutation("inputs", "changed inputs are refused", "train/going_on.py",
             "    if changed and not continued.force:", "    if False:"),
    Mutation("second", "the run is locked", "rundir.py",
             "        if not locks.hold(handle, LOCK_SECONDS):", "        if False:"),
    Mutation("readers", "a reader that is gone is forgotten", "train/listener.py",
             "        except OSError as error:\n            self._listener = None",
             "        except KeyError as error:\n            self._listener = None"),
    Mutation("files", "what was done is taken up", "worklog.py",
             "        if begun is None or begun.empty:", "        if True:"),
)  # fmt: skip
TABLE = ROOT / "docs" / "faults-mutated.md"


def fails_without(mutation: Mutation) -> tuple[bool, str]:
    """Whether the row fails in a copy of the package without the guard, and what it said."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-mutated-") as name:
        copy = Path(name)
        shutil.copytree(ROOT / "tunesmith", copy / "tunesmith", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "tests").symlink_to(ROOT / "tests")
        file = copy / "tunesmith" / mutation.file
        text = file.read_text(encoding="utf-8")
        assert text.count(mutation.old) == 1, (
            f"{mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times"
        )
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "tests.faults.matrix",
            *mutation.how,
            "--package",
            name,
            mutation.row,
        ]
        environment = {**os.environ, "PYTHONPATH": name, "OMP_NUM_THREADS": "1"}
        try:
            ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True,
                                   timeout=LIMIT, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return True, "it hung"
    lost = [line.strip() for line in ended.stderr.splitlines() if line.startswith("  lost: ")]
    said = lost[0] if lost else ended.stderr.strip().splitlines()[-1]
    return ended.returncode == 1, said.replace(name, "")


def main() -> int:
    parser = argparse.ArgumentParser(description="See each row of the fault matrix fail without its guard.")
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    given = parser.parse_args()
    lines, held = [], 0
    for mutation in MUTATIONS:
        if given.rows and mutation.row not in given.rows:
            continue
        failed, said = fails_without(mutation)
        held += not failed
        told = said[:120].replace("|", "/")
        lines.append(f"| {mutation.row} | {mutation.guard} | {'fails' if failed else 'HOLDS'} | {told} |")
        print(lines[-1], file=sys.stderr, flush=True)
    if given.write:
        head = (
            "# Each row of the fault matrix without its guard\n\n"
            "Written by `make faults-mutated` (tests/faults/mutate.py): the guard is taken out of a copy of "
            "the package, and a few faults of its row are injected. A row that held would prove nothing.\n\n"
            "| row | guard that is taken out | then the row | what it says |\n|---|---|---|---|\n"
        )
        TABLE.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if held else 0


if __name__ == "__main__":
    sys.exit(main())
