"""What a reader of one format gives, and what it raises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Read:
    """A document's text, and what its reader has to say."""

    text: str
    notes: tuple[str, ...] = ()
    pages: int = 0
    empty_pages: tuple[int, ...] = ()


class Unreadable(Exception):
    """This document can't be read; the text says why."""
