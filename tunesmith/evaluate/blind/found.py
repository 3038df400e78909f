"""Blind tests that a run took part in, found by their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.rundir import RunDir


def reports_of(run: RunDir) -> list[Mapping[str, Any]]:
    """report.json of every unsealed blind test with the run as A or B, in blind/ here or beside runs/."""
    places = dict.fromkeys(
        folder.resolve() for folder in (Path("blind"), run.path.resolve().parent.parent / "blind")
    )
    files = [file for folder in places for file in sorted(folder.glob("*/report.json"))]
    found = [content for file in files if (content := _report(file))]
    return [one for one in found if any(_is(run, one[side]) for side in ("a", "b"))]


def _report(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        whole = content["kind"] == "blind test" and {"verdict", "raters", "share"} <= set(content)
        _ = content["a"]["model"], content["b"]["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return content if whole else None


def _is(run: RunDir, side: Mapping[str, Any]) -> bool:
    """Whether a side's model is this run: its path is seen from here, or from the folder that holds runs/."""
    named = Path(str(side["model"])).expanduser()
    seen_from = (Path(), run.path.resolve().parent.parent)
    return any((folder / named).resolve() == run.path.resolve() for folder in seen_from)
