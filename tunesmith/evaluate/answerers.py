"""Who is measured besides a local model, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.infer.local import LocalModel
from tunesmith.records import Completion, Conversation

Watch = Callable[[str, int, int], None]
"""Called with what is being done, rows done, rows in all."""
Note = Callable[[str], None]
"""Called with a sentence for the person."""


@dataclass(frozen=True)
class Base:
    """The base under a tuned model as a Completer: the same load with its adapter switched off."""

    tuned: LocalModel
    name: str

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        with self.tuned.base():
            yield from self.tuned.complete(conversations)

    def complete_batches(
        self, conversations: Sequence[Conversation], done: Container[int] = frozenset()
    ) -> Generator[dict[int, list[Completion]]]:
        with self.tuned.base():
            yield from self.tuned.complete_batches(conversations, done)


def tell(watch: Watch | None, what: str, done: int, rows: int) -> None:
    """Tell `watch`, if there is one."""
    if watch is not None:
        watch(what, done, rows)
