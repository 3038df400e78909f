"""From characters to tokens: where a reply begins and ends in a render, and which tokens those are.

T tokens of one render; characters are counted from its beginning; ranges are half open.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

from tunesmith.errors import DataError, TemplateError
from tunesmith.records import Conversation, Origin

NOTE_BORDER = "prompt and reply tokenised apart, because a token lay across their border"
NOTE_EOS = "the template ends a reply with no special token; the eos token was added"
NOTE_NO_END = "earlier replies without an end token, because the template writes none"
NOTE_ADDED = "text that the template writes in front of the reply isn't trained on"
NOTE_BLOCKS = "the template's generation blocks leave out the end token; it is trained on all the same"

Offsets = list[tuple[int, int]]
_MARK = "\ue000\ue001\ue002"  # private use: no template writes it, and hardly any row


@dataclass(frozen=True, slots=True)
class Reply:
    """One trained reply in token positions: `header` <= `start` < `stop`.

    ids[header:start] is what asks for the reply (the assistant header), ids[start:stop] the reply with its
    end token.
    """

    header: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row in tokens, whole. `label_mask[t]`: token t is trained on; position 0 never is.

    `bos`: the first token is BOS. `notes`: what had to be done to this row, in words that are counted.
    """

    input_ids: list[int]
    label_mask: list[bool]
    origin: Origin
    replies: tuple[Reply, ...] = ()
    bos: bool = False
    notes: tuple[str, ...] = ()


class Rendering(Protocol):
    """What the mask needs of a renderer."""

    @property
    def end_like(self) -> frozenset[int]:
        """Ids that can end a turn: special tokens and eos."""

    @property
    def eos_id(self) -> int | None: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def switches_thinking(self) -> bool:
        """The template knows `enable_thinking`."""

    def render(self, conversation: Conversation, count: int, *, prompt: bool, thinking: bool) -> str:
        """The first `count` messages as text; `prompt` adds what asks for the next reply."""

    def tokenise(self, text: str) -> tuple[list[int], Offsets]:
        """Ids, and each token's place in the text."""

    def decode(self, ids: Sequence[int]) -> str: ...
    def generation_mask(self, conversation: Conversation, count: int, *, thinking: bool) -> list[bool] | None:
        """The tokens in the template's generation blocks; None where it has none."""


@dataclass(frozen=True, slots=True)
class Turn:
    index: int  # of the message
    border: int  # character where the prompt ends
    end: int  # character where the template's text for this message ends
    token: int  # first token after the border


class Labeller:
    """Lays characters of one render, that of the first `count` messages, on its tokens."""

    def __init__(
        self,
        rendering: Rendering,
        conversation: Conversation,
        count: int,
        full: str,
        ids: list[int],
        offsets: Offsets,
        notes: list[str],
        thinking: bool,
    ) -> None:
        self.rendering, self.conversation, self.count, self.full = rendering, conversation, count, full
        self.ids, self.offsets, self.notes, self.thinking = ids, offsets, notes, thinking

    def label(self, turns: Sequence[Turn]) -> Encoded:
        """Mark the replies of `turns`; the last one ends the render."""
        ids, mask = self.ids, [False] * len(self.ids)
        replies, ends = [], []
        asking = self._asking(turns[-1])
        for turn in turns:
            start, stop, end = self._reply(turn)
            mask[start:stop] = [True] * (stop - start)
            replies.append(Reply(self._header(turn, asking), start, stop))
            ends.append(end)
        mask = self._apply_generation_blocks(mask, turns, ends)
        if None in ends[:-1]:
            self.notes.append(NOTE_NO_END)
        if ends[-1] is None:
            # Nothing would tell the model to stop: eos follows the reply at once, white space after it goes.
            if (eos := self.rendering.eos_id) is None:
                refuse(
                    self.conversation, "the template ends replies with no special token, and there is no eos"
                )
            last = replies[-1]
            ids, mask = [*ids[: last.stop], eos], [*mask[: last.stop], True]
            replies[-1] = Reply(last.header, last.start, last.stop + 1)
            self.notes.append(NOTE_EOS)
        mask[0] = False
        return Encoded(
            ids, mask, self.conversation.origin, tuple(replies), self._bos(), tuple(dict.fromkeys(self.notes))
        )

    def mark_reply(self, index: int) -> Encoded:
        """The render with the reply `index` marked, where its prompt is the beginning of the render."""
        prompt = self.rendering.render(self.conversation, index, prompt=True, thinking=self.thinking)
        token = None
        if self.full.startswith(prompt):
            token = border_token(self.rendering, self.ids, self.offsets, prompt)
        if token is None or index + 1 < len(self.conversation.messages):
            return self.unmarked()
        return self.label([Turn(index, len(prompt), len(self.full), token)])

    def unmarked(self) -> Encoded:
        """The render without any reply marked."""
        return Encoded(
            self.ids, [False] * len(self.ids), self.conversation.origin, (), self._bos(), tuple(self.notes)
        )

    def end_token(self, stop: int, end: int, *, last: bool) -> int | None:
        """The special token that ends a turn: the first one (or the last) in characters [stop, end)."""
        found = None
        for t in range(bisect_left(self.offsets, (stop, -1)), len(self.offsets)):
            if self.offsets[t][1] > end:
                break
            if self.ids[t] in self.rendering.end_like:
                found = t
                if not last:
                    break
        return found

    def content_range(self, index: int, border: int, end: int) -> tuple[int, int]:
        """Characters [start, stop) of a message within [border, end), white space at its ends left aside."""
        message = self.conversation.messages[index]
        content = message.content.strip()
        part = self.full[border:end]
        if message.tool_calls and not all(_call_name(call) in part for call in message.tool_calls):
            refuse(self.conversation, "the template leaves out a tool call of its reply")
        if (start := self._find(content, index, _MARK, border, end)) >= 0:
            return start, start + len(content)
        # Thinking templates take the reply apart and write the white space between its parts anew.
        thought, mark, answer = content.rpartition("</think>")
        if mark:
            thought, answer = thought.rpartition("<think>")[2].strip(), answer.strip()
            first = self._find(thought, index, f"<think>\n{_MARK}\n</think>\n\n{answer}", border, end)
            marked = f"<think>\n{thought}\n</think>\n\n{_MARK}"
            second = self._find(answer, index, marked, max(first, border), end)
            if first >= 0 and second >= 0:
                tag = self.full.rfind("<think>", border, first)
                return (tag if tag >= 0 else first), second + len(answer)
        return refuse(
            self.conversation,
            f"the text of its {message.role} message doesn't appear in what the template makes of it",
        )

    def _find(self, text: str, index: int, marked: str, border: int, end: int) -> int:
        """Where `text` of a message begins within [border, end); -1 where it isn't.

        A short text may stand in the template's own words too. Then the message is rendered as `marked`, a
        mark in the place of the text, and the mark's place is the text's.
        """
        at = self.full.find(text, border, end)
        if at < 0 or not text or self.full.find(text, at + 1, end) < 0:
            return at
        messages = list(self.conversation.messages)
        messages[index] = replace(messages[index], content=marked)
        other = replace(self.conversation, messages=tuple(messages))
        render = self.rendering.render(other, self.count, prompt=False, thinking=self.thinking)
        before, found, _ = render.partition(_MARK)
        at = len(before)
        while self.full[at : at + 1].isspace():
            at += 1
        if found and self.full.startswith(before) and self.full.startswith(text, at):
            return at
        return refuse(
            self.conversation,
            f"{text!r}, the text of its {messages[index].role} message, stands more than once in what the "
            "template makes of it, and it can't be told which of them is the message",
        )

    def _reply(self, turn: Turn) -> tuple[int, int, int | None]:
        """Tokens [start, stop) of a reply with its end token, and the end token's position."""
        message = self.conversation.messages[turn.index]
        first, stop = self.content_range(turn.index, turn.border, turn.end)
        if self.full[turn.border : first].strip():
            self.notes.append(NOTE_ADDED)
        else:
            # White space before the reply (" reply" after "[/INST]") isn't in the prompt: the model writes it
            first = turn.border
        start = turn.token
        while start < len(self.ids) and self.offsets[start][1] <= first:
            start += 1
        # Calls may hold special tokens of their own, so their turn ends with the last one.
        end = self.end_token(stop, turn.end, last=bool(message.tool_calls))
        until = end + 1 if end is not None else bisect_left(self.offsets, (max(stop, first), -1), lo=start)
        return start, until, end

    def _bos(self) -> bool:
        # SmolLM2's BOS is the <|im_start|> of every turn: that one isn't worth keeping.
        bos = self.rendering.bos_id
        return bos is not None and self.ids[:1] == [bos] and self.ids.count(bos) == 1

    def _asking(self, turn: Turn) -> str:
        """What asks for the reply, the assistant header; empty where the template has none."""
        try:
            before = self.rendering.render(
                self.conversation, turn.index, prompt=False, thinking=self.thinking
            )
        except TemplateError:
            return ""
        return self.full[common(before, self.full[: turn.border]) : turn.border]

    def _header(self, turn: Turn, asking: str) -> int:
        """First token of what asks for the reply: `asking`, as for the last one, or else what it is here."""
        if not self.full.endswith(asking, 0, turn.border):
            asking = self._asking(turn)
        border = turn.border - len(asking)
        return next((t for t in range(turn.token) if self.offsets[t][1] > border), turn.token)

    def _apply_generation_blocks(
        self, mask: list[bool], turns: Sequence[Turn], ends: Sequence[int | None]
    ) -> list[bool]:
        """The mask narrowed to the template's generation blocks, once they prove sound."""
        blocks = self.rendering.generation_mask(
            self.conversation, turns[-1].index + 1, thinking=self.thinking
        )
        if blocks is None or len(blocks) != len(mask):
            return mask
        outside = any(b and not a for a, b in zip(self._assistant_tokens(turns), blocks, strict=True))
        if outside or not any(blocks):
            what = (
                "no token"
                if not any(blocks)
                else "every token"
                if all(blocks)
                else "tokens outside the replies"
            )
            raise TemplateError(
                f"{self.conversation.origin}: the template's generation blocks mark {what}.",
                fix="Correct {% generation %} in the template, or take it out: the mask is then the "
                "difference between prompt and full text.",
            )
        if not all(blocks[end] for end in ends if end is not None):
            self.notes.append(NOTE_BLOCKS)
            return mask
        return [a and b for a, b in zip(mask, blocks, strict=True)]

    def _assistant_tokens(self, turns: Sequence[Turn]) -> list[bool]:
        allowed = [False] * len(self.ids)
        known = {turn.index: (turn.border, turn.end) for turn in turns}
        for index in range(1, turns[-1].index):
            if self.conversation.messages[index].role == "assistant" and index not in known:
                asked = self.rendering.render(self.conversation, index, prompt=True, thinking=self.thinking)
                until = self.rendering.render(
                    self.conversation, index + 1, prompt=False, thinking=self.thinking
                )
                known[index] = (common(asked, self.full), common(until, self.full))
        for border, end in known.values():
            for t, (a, b) in enumerate(self.offsets):
                allowed[t] = allowed[t] or (b > border and a < end)
        return allowed


def border_token(rendering: Rendering, ids: list[int], offsets: Offsets, prompt: str) -> int | None:
    """The first token after the prompt; None unless the tokens before it are the prompt's own ids."""
    token = bisect_left(offsets, (len(prompt), -1))
    return token if ids[:token] == rendering.tokenise(prompt)[0] else None


def common(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def refuse(conversation: Conversation, reason: str) -> NoReturn:
    raise DataError(
        f"{conversation.origin}: {reason}.",
        fix="Correct the row, or leave bad rows out with data.bad_rows: drop.",
    )


def _call_name(call: object) -> str:
    function = call.get("function", call) if hasattr(call, "get") else {}
    return str(function.get("name", "")) if hasattr(function, "get") else ""
