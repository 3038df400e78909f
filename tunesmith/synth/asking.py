"""Calls to a model through the ledger, within a limit of calls and of money.

A batch is handed over whole with the indices that are done, as an interrupted one was: a local model computes
those left in the company they would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.records import Completion, Conversation
from tunesmith.synth.config import Price
from tunesmith.synth.ledger import Call, Ledger, Reply


class Model(Protocol):
    """A Completer that says what decides its answers, and answers out of order."""

    @property
    def name(self) -> str:
        """What tables and reports call it."""
        ...

    def facts(self) -> dict[str, Any]:
        """Name, weights and settings."""
        ...

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        """Answer in order."""
        ...

    def complete_batches(
        self, conversations: Sequence[Conversation], done: Container[int] = frozenset()
    ) -> Generator[dict[int, list[Completion]]]:
        """Answer those that aren't done, each as it comes, by index."""
        ...


@dataclass
class Budget:
    """How much may still be asked, counted over all of an output's calls. `stopped` says what ended it."""

    ledger: Ledger
    prices: Mapping[str, Price]  # by the model's name
    max_calls: int | None = None
    max_cost: float | None = None
    stopped: str = ""

    def room(self, calls: Sequence[Call], model: str, tokens: int) -> int:
        """How many of these may be asked at once, the first ones; at what they can cost at most."""
        allowed = len(calls)
        sums = self.ledger.sums()
        if self.max_calls is not None:
            allowed = min(allowed, max(0, self.max_calls - sum(one.calls for one in sums)))
            if not allowed:
                self.stopped = f"--max-calls {self.max_calls} is reached"
                return 0
        price = self.prices.get(model)
        if self.max_cost is None or price is None:
            return allowed
        left = self.max_cost - self.cost()
        for number, call in enumerate(calls[:allowed]):
            # Usual tokenizers make fewer tokens than there are characters, in Chinese too.
            left -= price.of(sum(len(message.content) + 16 for message in call.messages), tokens)
            if left < 0:
                if not number:
                    spent = f"(spent so far: {self.cost():.4g})"
                    self.stopped = f"--max-cost {self.max_cost:g} leaves no room for another call {spent}"
                return number
        return allowed

    def cost(self) -> float:
        """What all calls so far cost."""
        return sum(
            self.prices[one.model].of(one.prompt_tokens, one.completion_tokens)
            for one in self.ledger.sums()
            if one.model in self.prices
        )


@dataclass(frozen=True)
class Asker:
    """A model that is asked through the ledger. `tokens` is the limit of its replies.

    `tick` is told how many replies are there, as they come.
    """

    model: Model
    ledger: Ledger
    budget: Budget
    tokens: int
    tick: Callable[[int], None] = lambda _: None

    def ask(self, calls: Sequence[Call]) -> list[Reply | None]:
        """A reply to each call; None where the budget ended before it. A failed call has its `error`.

        Raises what the model raises; what came before is kept.
        """
        facts = self.model.facts()
        keys = [call.key(facts) for call in calls]
        replies: dict[str, Reply] = self.ledger.found(keys)
        first = {key: at for at, key in reversed(list(enumerate(keys)))}
        left = [at for at, key in enumerate(keys) if key not in replies and first[key] == at]
        self.tick(len(calls) - len(left))
        conversations = [call.conversation(at) for at, call in enumerate(calls)]
        while left:
            number = self.budget.room([calls[at] for at in left], self.model.name, self.tokens)
            if not number:
                break
            now = set(left[:number])
            left = left[number:]
            others = set(range(len(calls))) - now
            with closing(self.model.complete_batches(conversations, others)) as batches:
                for batch in batches:
                    came = {at: answers[0] for at, answers in batch.items()}
                    self.ledger.add(facts, [(calls[at], one) for at, one in came.items()])
                    self.tick(len(came))
                    replies |= {keys[at]: Reply(one.text, one.finish, one.error) for at, one in came.items()}
        return [replies.get(key) for key in keys]
