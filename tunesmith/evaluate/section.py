"""A part of a result as people read it: sentences and a table, the same in terminal, page and Markdown."""

from __future__ import annotations

from dataclasses import dataclass


class Quoted(str):
    """A text of a person, a model or a file: it stays as it is in every language."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A title, sentences under it, and rows of a table under `columns`; each may be empty."""

    title: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
