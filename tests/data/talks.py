"""Conversations for the tests of template and mask, and what became a label of them."""

from __future__ import annotations

from tests.families import tiny_tokenizer
from tunesmith.data.template import Encoded, Renderer
from tunesmith.records import Conversation, Message, Origin

ORIGIN = Origin("rows.jsonl", 7, 6)


def talk(*turns: str | Message, system: str | None = None) -> Conversation:
    """Turns in alternation, the user first."""
    messages = [] if system is None else [Message("system", system)]
    for i, turn in enumerate(turns):
        role = "assistant" if i % 2 else "user"
        messages.append(turn if isinstance(turn, Message) else Message(role, turn))
    return Conversation(tuple(messages), ORIGIN)


def reply(text: str, train: bool | None = None) -> Message:
    return Message("assistant", text, train)


def labels(encoded: Encoded, renderer: Renderer) -> list[str]:
    """The trained runs as text."""
    runs: list[list[int]] = []
    for t, label in enumerate(encoded.label_mask):
        if label:
            if t == 0 or not encoded.label_mask[t - 1]:
                runs.append([])
            runs[-1].append(encoded.input_ids[t])
    return [renderer.decode(run) for run in runs]


def with_template(family: str, template: str) -> Renderer:
    tokenizer = tiny_tokenizer(family)
    tokenizer.chat_template = template
    return Renderer(tokenizer)
