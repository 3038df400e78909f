"""Which sections a result is shown with, besides its figures: one list for terminal, report and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.evaluate import benchmark_sections, findings
from tunesmith.evaluate.judge import sections as judged
from tunesmith.evaluate.section import Section

# THE LIST: each function makes sections of a result, in the order in which they are shown.
SOURCES: tuple[Callable[[Mapping[str, Any]], Sequence[Section]], ...] = (
    findings.sections,
    judged.sections,
    benchmark_sections.sections,
)


def sections(result: Mapping[str, Any]) -> list[Section]:
    """Every section of a result; empty where nothing of the kind was looked for."""
    return [section for source in SOURCES for section in source(result)]
