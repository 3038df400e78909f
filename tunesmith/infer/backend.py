"""What computes answers: our own batches, transformers' `generate`, and what may come beside them.

A backend gets prompts as tokens and gives tokens back. Templates, limits, seeds, the text of an answer and
its end are the same above all of them (generate.py), so that another one is a file and not another tool.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.records import TokenScore


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer to be: its prompt, its limit, and what its chance depends on."""

    index: int  # of the prompt in the list given
    row: int  # of the prompt in the user's file
    answer: int  # of the prompt's answers
    ids: Sequence[int]
    limit: int  # new tokens at most
    adapter: bool = True  # whether the tuned model answers, or its base


@dataclass(frozen=True, slots=True)
class Tokens:
    """An answer as tokens, whatever fills them up after its end; `seconds`: its share of the time."""

    asked: Asked
    ids: Sequence[int]
    seconds: float
    scores: Sequence[TokenScore] = ()


class Backend(Protocol):
    """Computes answers to prompts by the settings it was made with."""

    def answers(self, asked: Sequence[Asked], width: int, done: Container[int]) -> Iterator[Sequence[Tokens]]:
        """Every answer, as they end, those together that a pass finished; `width` are computed at once.

        Prompts whose index is in `done` aren't asked: an earlier call has finished them, with all that were
        in the same groups.

        Beams give the answers of a prompt together: `asked` holds it once, and Tokens come for each answer.
        """
        ...

    def stream(self, asked: Asked) -> Iterator[int]:
        """The tokens of one answer, each as soon as it's chosen; closing this ends the computation."""
        ...
