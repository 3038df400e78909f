"""From generated tokens to an answer: where it ends, its text, and what of it can be shown already."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunesmith.records import FinishReason

CUT_CHARACTER = "\ufffd"  # what decoding gives for the first bytes of a character without its last


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated tokens: special tokens left out, spaces as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def contains(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the stop texts is in the text."""
    return any(mark in text for mark in stop)


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer's text, why it ended, and its tokens, the one that ended it included."""

    text: str
    finish: FinishReason
    tokens: int


def ended(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    limit: int,
    end_ids: Collection[int],
    stop: Sequence[str],
) -> Ended:
    """The answer in a row of generated tokens, whatever fills the row after its end.

    It ends before the first stop text, before the first end token, or at the limit. A character that the
    limit cut in two is left out.
    """
    ids = ids[:limit]
    end = next((i for i, token in enumerate(ids) if token in end_ids), None)
    body = ids[:end]
    text = decode(tokenizer, body)
    if contains(text, stop):
        # Generation went on at most to the next token; after that the row is filled up.
        tokens = _first_with(tokenizer, body, stop)
        text = decode(tokenizer, body[:tokens])
        return Ended(text[: _cut(text, stop)], "stop", tokens)
    text = text.rstrip(CUT_CHARACTER)
    return Ended(text, "length", len(ids)) if end is None else Ended(text, "stop", end + 1)


class Growing:
    """An answer while it's written: each token in, the text out that nothing later can change."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int], stop: Sequence[str]):
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.stop = stop
        self.ids: list[int] = []
        self.shown = 0

    def add(self, token: int) -> str:
        """The new text that can be shown; often none, while a character or a stop text has only begun."""
        self.ids.append(token)
        if token in self.end_ids:
            return ""
        text = decode(self.tokenizer, self.ids)
        safe = text[: _cut(text, self.stop)].rstrip(CUT_CHARACTER)
        safe = safe[: len(safe) - _begun(safe, self.stop)]
        return self._new(safe)

    def rest(self, text: str) -> str:
        """What of the finished answer's text hasn't been shown yet."""
        return self._new(text)

    def _new(self, text: str) -> str:
        piece = text[self.shown :]
        self.shown = max(self.shown, len(text))
        return piece


def _cut(text: str, stop: Sequence[str]) -> int:
    return min((at for mark in stop if (at := text.find(mark)) >= 0), default=len(text))


def _begun(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of the text with which a stop text may have begun."""
    return max(
        (
            size
            for mark in stop
            for size in range(1, min(len(mark), len(text) + 1))
            if text.endswith(mark[:size])
        ),
        default=0,
    )


def _first_with(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str]) -> int:
    """How many tokens write the first stop text: the smallest number whose text holds one."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if contains(decode(tokenizer, ids[:middle]), stop):
            high = middle
        else:
            low = middle + 1
    return low
