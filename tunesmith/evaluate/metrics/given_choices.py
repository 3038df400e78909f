"""Multiple choice by likelihood: the choices that a row gives, and whether the likeliest is the right one."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.overlap import exact_match
from tunesmith.records import Conversation


def about_letters(conversations: Sequence[Conversation], metrics: Sequence[Metric]) -> list[str]:
    """A sentence on rows that are asked for a letter (`choice`) without being shown what it stands for."""
    if all(metric.name != "choice" for metric in metrics):
        return []
    without = 0
    for row in conversations:
        asked = "\n".join(message.content for message in row.prompt.messages)
        without += any(choice.strip() not in asked for choice in choices_of(row))
    if not without:
        return []
    return [
        f"{without} of {len(conversations)} prompts don't show the row's choices, so that the model can't "
        "know what a letter stands for: the metric `choice` says little of them. Write the choices into the "
        "question."
    ]


def choices_of(row: Conversation) -> list[str]:
    """The choices of a row: `choices` (texts, {letter: text}, or {"text": […]}), else the columns A, B, …"""
    columns = row.meta.get("columns", {})
    found = columns.get("choices")
    if isinstance(found, Mapping):
        found = found["text"] if isinstance(found.get("text"), list) else list(found.values())
    if not isinstance(found, list):
        letters = string.ascii_uppercase
        count = next((at for at, letter in enumerate(letters) if columns.get(letter) in (None, "")), 26)
        found = [columns[letter] for letter in letters[:count]]
    return [str(each) for each in found]


def right_choice(row: Conversation) -> str | None:
    """The choice that the row's reference names, by its text or its letter."""
    choices, truth = choices_of(row), row.references[0].strip()
    same = [choice for choice in choices if choice.strip() == truth]
    same = same or [choice for choice in choices if exact_match(choice, [truth])]
    if same:
        return same[0]
    at = string.ascii_uppercase.find(truth.upper()) if len(truth) == 1 else -1
    return choices[at] if 0 <= at < len(choices) else None


def letter(at: int) -> str:
    """What a choice is called: A, B, C, …, behind Z its number."""
    return string.ascii_uppercase[at] if at < len(string.ascii_uppercase) else str(at + 1)


def lettered(text: str, choices: Sequence[str]) -> str:
    """`C. H2O` of one of the choices; any other text as it is."""
    return f"{letter(choices.index(text))}. {text}" if text in choices else text


# What is scored is the text of that choice; the reference, the text of the right one.
CHOICES = (
    Metric(
        "choices_acc", exact_match, True, "the likeliest of the row's choices is the right one",
        evidence="likeliest",
    ),
    Metric(
        "choices_acc_norm", exact_match, True, "the same, likelihood per byte of the choice",
        evidence="likeliest_per_byte",
    ),
)  # fmt: skip
