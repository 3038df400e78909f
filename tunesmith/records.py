"""What a row of the user's data becomes. No torch: reading and checking data starts at once.

Origin          where a row came from: file and line
Message         one turn
Conversation    turns in order: what SFT trains on
Preference      one prompt, a chosen and a rejected reply
Labelled        a conversation marked good or bad
Text            raw text for domain adaptation
Completion      an answer, with why it ended
Completer       anything that answers a conversation: a local model, a run, an endpoint
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a row: file path as given, 1-based line where the row starts, 0-based row number."""

    path: str
    line: int
    row: int

    def __str__(self) -> str:
        # A JSON array on one line has all its rows in line 1.
        return f"{self.path}:{self.line}" + (f" (row {self.row + 1})" if self.line == 1 and self.row else "")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `train` is the row's own word on whether this turn is trained on (None: the job's `train_on` decides).
    `name` says who or which tool speaks, `tool_call_id` which call a tool's turn answers; "" where not said.
    """

    role: Role
    content: str
    train: bool | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    tool_call_id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name:
            message["name"] = self.name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. Training needs at least one assistant turn; a prompt alone ends with the user's."""

    messages: tuple[Message, ...]
    origin: Origin
    id: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    references: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Conversation:
        """The same conversation without its last assistant turn: what a model is asked."""
        turns = self.messages
        if turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        return Conversation(turns, self.origin, self.id, self.tools, self.references, self.meta)

    @property
    def number(self) -> int:
        """The row's number in its file; where several files were read together, over all of them."""
        return int(self.meta.get("number", self.origin.row))

    @property
    def key(self) -> str:
        """What predictions are joined by: the row's own id, else its number."""
        return self.id or str(self.number)

    @property
    def question(self) -> str:
        """What was asked, for people: the user's words, with a role before each of several turns."""
        turns = self.prompt.messages
        if len(turns) == 1:
            return turns[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)

    @property
    def last_asked(self) -> str:
        """The text of the last user turn before the answer; empty where there is none."""
        return next((turn.content for turn in reversed(self.prompt.messages) if turn.role == "user"), "")

    @property
    def answer(self) -> str | None:
        """The last assistant turn's text, or None where the row has no answer."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse reply."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    id: str = ""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation that somebody marked good (True) or bad (False)."""

    conversation: Conversation
    label: bool


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text, every token of which is trained on."""

    text: str
    origin: Origin
    id: str = ""


Record = Conversation | Preference | Labelled | Text

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A generated token, the logarithm of its probability, and (token, logarithm) of the likeliest there."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `finish` is "stop" (end token or stop string), "length" (limit reached) or "error".

    `scores` has a TokenScore for each token, the one that ended it included, where they were asked for.
    `error` says why there is none, where it ended in "error": such an answer counts in no figure.
    """

    text: str
    finish: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    scores: tuple[TokenScore, ...] = ()
    error: str = ""


class Completer(Protocol):
    """Anything that answers conversations, in order, one completion list (n answers) a conversation."""

    @property
    def name(self) -> str:
        """What tables and reports call it."""
        ...

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        """Answer each conversation, yielding as soon as each is done, in the order given."""
        ...
