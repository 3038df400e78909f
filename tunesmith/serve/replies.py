"""Answers as OpenAI's API gives them: whole, or in pieces while they are written.

A `Written` follows one answer token by token and gives out what can be shown of it; the rest is JSON.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.infer.answer import CUT_CHARACTER, Ended, Growing, decode, ended
from tunesmith.infer.scores import logprobs
from tunesmith.records import TokenScore
from tunesmith.serve.fields import Kind

OBJECT: Mapping[Kind, str] = {"chat": "chat.completion", "text": "text_completion"}


class Written:
    """One answer as it is written. Nothing that may turn out to belong to a stop text is given out.

    With `scores`, a token's log-probabilities come with the text that it writes, and none come for a token
    whose text isn't part of the answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_ids: Collection[int],
        stop: Sequence[str],
        limit: int,
        scored: bool,
    ) -> None:
        self.tokenizer, self.end_ids, self.stop, self.limit = tokenizer, end_ids, stop, limit
        self.growing = Growing(tokenizer, end_ids, stop)
        self.scores: list[TokenScore] | None = [] if scored else None
        self.begins: list[int] = []  # of each token, in the text
        self.told = 0  # scores that were given out
        self.end: Ended | None = None

    def add(self, token: int, score: TokenScore | None) -> str:
        """The text that can be shown now."""
        if self.scores is not None and score is not None:
            self.scores.append(score)
            self.begins.append(len(decode(self.tokenizer, self.growing.ids).rstrip(CUT_CHARACTER)))
        return self.growing.add(token)

    def finish(self) -> str:
        """The rest of the text, when no token comes any more; `end` says how it ended."""
        ids = self.growing.ids
        self.end = ended(self.tokenizer, ids, limit=self.limit, end_ids=self.end_ids, stop=self.stop)
        return self.growing.rest(self.end.text)

    def new_scores(self) -> list[dict[str, Any]]:
        """The log-probabilities of the tokens whose text has been given out since this was last asked."""
        if self.scores is None:
            return []
        shown = self.growing.shown
        count = len(self.scores)
        if self.growing.ids and self.growing.ids[-1] in self.end_ids:
            count -= 1
        last = next((at for at in range(self.told, count) if self.begins[at] >= shown), count)
        found = logprobs(self.tokenizer, self.scores[self.told : last])
        self.told = max(self.told, last)
        return [_without_id(one) for one in found]


@dataclass(frozen=True)
class Reply:
    """What all parts of a reply say: its id, when it was made, and by which model."""

    kind: Kind
    model: str
    fingerprint: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, texts: Sequence[str], scores: Sequence[list[dict[str, Any]] | None], ends: Sequence[Ended]
    ) -> dict[str, Any]:
        """The object of a reply that isn't streamed."""
        choices = []
        for index, (text, own, end) in enumerate(zip(texts, scores, ends, strict=True)):
            choice: dict[str, Any] = {"index": index, "finish_reason": end.finish}
            if self.kind == "chat":
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                choice["logprobs"] = None if own is None else {"content": own, "refusal": None}
            else:
                choice["text"] = text
                choice["logprobs"] = None if own is None else _as_lists(own, 0)
            choices.append(choice)
        return {**self._head(OBJECT[self.kind]), "choices": choices, "usage": self.usage(ends)}

    def part(
        self,
        index: int,
        text: str,
        *,
        scores: list[dict[str, Any]] | None = None,
        begin: int = 0,
        first: bool = False,
        finish: str | None = None,
        usage: bool = False,
    ) -> dict[str, Any]:
        """A part of a stream; `begin`: where in its answer the text begins; `usage`: it comes at the end."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        if self.kind == "chat":
            role = {"role": "assistant"} if first else {}
            choice["delta"] = {**role, "content": text} if text or first else {}
            choice["logprobs"] = {"content": scores, "refusal": None} if scores else None
        else:
            choice["text"] = text
            choice["logprobs"] = _as_lists(scores, begin) if scores else None
        later = {"usage": None} if usage else {}
        return {**self._head(self._part_object), "choices": [choice], **later}

    def last(self, ends: Sequence[Ended]) -> dict[str, Any]:
        """The part with the counts."""
        return {**self._head(self._part_object), "choices": [], "usage": self.usage(ends)}

    def usage(self, ends: Sequence[Ended]) -> dict[str, int]:
        """Tokens read, and written by all answers together; the token that ends an answer counts."""
        written = sum(end.tokens for end in ends)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    @property
    def _part_object(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else OBJECT[self.kind]

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        head = {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint}


def model_object(name: str, base: str | None, created: int) -> dict[str, Any]:
    """An entry of /v1/models; `parent` is the base of an adapter."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tunesmith", "parent": base}


def _as_lists(scores: list[dict[str, Any]], begin: int) -> dict[str, Any]:
    """The older form, of completions: lists side by side."""
    offsets, at = [], begin
    for one in scores:
        offsets.append(at)
        at += len(one["token"])
    return {
        "tokens": [one["token"] for one in scores],
        "token_logprobs": [one["logprob"] for one in scores],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one["top_logprobs"]} or None for one in scores
        ],
        "text_offset": offsets,
    }


def _without_id(one: Mapping[str, Any]) -> dict[str, Any]:
    """As in OpenAI's API, which doesn't give a token's number."""
    tops = [{name: value for name, value in top.items() if name != "id"} for top in one["top_logprobs"]]
    return {name: value for name, value in one.items() if name != "id"} | {"top_logprobs": tops}
