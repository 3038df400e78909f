"""A part of a result that isn't a figure: what terminal, report and Markdown show in the same way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A title, sentences about what was found, and a table of it (both may be empty), in English."""

    title: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
