"""A result of `benchmark` as a section: the same table for terminal, page and Markdown. JSON only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.section import Quoted, Section

COLUMNS = ("task", "metric", "value", "standard error", "n")


def sections(content: Mapping[str, Any]) -> list[Section]:
    """The figures by task, with how they were asked; nothing of any other result."""
    if content["kind"] != "benchmark":
        return []
    settings = content["settings"]
    how = [f"By lm-evaluation-harness {content['harness']}, whose standard errors these are."]
    if settings["shots"] is not None:
        how.append(f"{settings['shots']} solved examples before each question.")
    if settings["limit"] is not None:
        how.append(f"The first {settings['limit']} questions of each task.")
    if settings["chat"]:
        how.append("Prompts are written by the chat template.")
    rows = [
        (
            Quoted(task),
            Quoted(metric),
            f"{one['value']:.4f}",
            f"{one['stderr']:.4f}" if "stderr" in one else "",
            "" if figures["n"] is None else str(figures["n"]),
        )
        for task, figures in content["tasks"].items()
        for metric, one in figures["metrics"].items()
    ]
    return [Section("Tasks", tuple(how), COLUMNS, tuple(rows))]


def title(content: Mapping[str, Any]) -> str:
    """Which tasks, on which model: one line."""
    return f"{', '.join(content['tasks'])}:  {content['model']}"
