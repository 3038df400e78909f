"""Which tokens of a conversation are trained on: the difference between the prompt and the full render.

    prompt   <|im_start|>user\\n你好<|im_end|>\\n<|im_start|>assistant\\n
    full     <|im_start|>user\\n你好<|im_end|>\\n<|im_start|>assistant\\n您好！<|im_end|>\\n
    labels                                                            ^^^^^^^^^^^^^

The prompt is exactly what the model is given at chat time, so the labels are exactly what it has to write
then: the reply and the token that ends its turn. White space after the end token isn't a label.
A row whose prompts are no beginnings of its full render (templates that rewrite earlier replies) becomes one
example for each trained reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.config import TrainOn
from tunesmith.data.labels import (
    NOTE_BORDER,
    Encoded,
    Labeller,
    Rendering,
    Turn,
    border_token,
    common,
    refuse,
)
from tunesmith.errors import TemplateError
from tunesmith.records import Conversation, Message

NOTE_TURNS = "one example for each trained reply, because the template renders earlier replies differently"
NOTE_TAIL = "messages after the last trained reply left out: nothing is learnt from them"
NOTE_NOT_REPLY = "messages marked `train: true` that aren't replies; only replies are trained on"


def encode_conversation(rendering: Rendering, conversation: Conversation, train_on: TrainOn) -> list[Encoded]:
    """The row's examples; none where no message is to be trained on.

    Raises TemplateError or DataError, naming the row, if it can't be trained on exactly.
    """
    if train_on == "everything":
        return [_everything(rendering, conversation)]
    trained = _trained_turns(conversation, train_on)
    if not trained:
        return []
    if trained[0] == 0:
        refuse(conversation, "it begins with a reply that nothing asks for")
    notes = []
    if trained[-1] + 1 < len(conversation.messages):
        notes.append(NOTE_TAIL)
    if any(m.train and m.role != "assistant" for m in conversation.messages):
        notes.append(NOTE_NOT_REPLY)
    if (whole := _whole(rendering, conversation, trained, notes)) is not None:
        return [whole]
    if len(trained) > 1:
        notes.append(NOTE_TURNS)
    return [_single(rendering, conversation, turn, notes) for turn in trained]


def _trained_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
    replies = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
    if train_on == "marked":
        return [i for i in replies if conversation.messages[i].train is True]
    if train_on == "last_reply":
        replies = replies[-1:]
    return [i for i in replies if conversation.messages[i].train is not False]


def _whole(
    rendering: Rendering, conversation: Conversation, trained: list[int], notes: Sequence[str]
) -> Encoded | None:
    """The row as one example, or None if some prompt isn't, text and ids, the beginning of it."""
    flags = {_reasons(conversation.messages[i]) for i in trained}
    if len(flags) > 1 and rendering.switches_thinking:
        return None
    thinking, count = flags.pop(), trained[-1] + 1
    full = rendering.render(conversation, count, prompt=False, thinking=thinking)
    ids, offsets = rendering.tokenise(full)
    turns = []
    for index in trained:
        prompt = rendering.render(conversation, index, prompt=True, thinking=thinking)
        token = border_token(rendering, ids, offsets, prompt) if full.startswith(prompt) else None
        if token is None:
            return None
        end = len(full)
        if index + 1 < count:
            until = rendering.render(conversation, index + 1, prompt=False, thinking=thinking)
            end = common(full, until)
        turns.append(Turn(index, len(prompt), end, token))
    return Labeller(rendering, conversation, count, full, ids, offsets, list(notes), thinking).label(turns)


def _single(rendering: Rendering, conversation: Conversation, index: int, notes: Sequence[str]) -> Encoded:
    """One reply and the prompt that chat would give for it."""
    thinking = _reasons(conversation.messages[index])
    full = rendering.render(conversation, index + 1, prompt=False, thinking=thinking)
    prompt = rendering.render(conversation, index, prompt=True, thinking=thinking)
    if not full.startswith(prompt):
        raise TemplateError(
            f"{conversation.origin}: the template asks for a reply with {prompt[-40:]!r}, but writes "
            f"something else before the reply itself ({full[common(full, prompt) :][:40]!r}): the model "
            "would be trained on a prompt that it never gets.",
            fix="Use another template (data.template), or rows whose replies fit this one.",
        )
    notes = list(notes)
    ids, offsets = rendering.tokenise(full)
    token = border_token(rendering, ids, offsets, prompt)
    if token is None:
        head, head_offsets = rendering.tokenise(prompt)
        tail, tail_offsets = rendering.tokenise(full[len(prompt) :])
        if rendering.decode(head + tail) != rendering.decode(ids):
            refuse(
                conversation, "its prompt and its reply can't be tokenised apart without changing the text"
            )
        ids, token = head + tail, len(head)
        offsets = head_offsets + [(a + len(prompt), b + len(prompt)) for a, b in tail_offsets]
        notes.append(NOTE_BORDER)
    turn = Turn(index, len(prompt), len(full), token)
    return Labeller(rendering, conversation, index + 1, full, ids, offsets, notes, thinking).label([turn])


def _everything(rendering: Rendering, conversation: Conversation) -> Encoded:
    """All tokens but the first are labels, except those of messages with `train: false`."""
    messages = conversation.messages
    replies = [i for i, m in enumerate(messages) if m.role == "assistant"]
    thinking = bool(replies) and _reasons(messages[replies[-1]])
    full = rendering.render(conversation, len(messages), prompt=False, thinking=thinking)
    ids, offsets = rendering.tokenise(full)
    labeller = Labeller(rendering, conversation, len(messages), full, ids, offsets, [], thinking)
    encoded = labeller.mark_reply(replies[-1]) if replies and replies[-1] else labeller.unmarked()
    mask = [False] + [True] * (len(encoded.input_ids) - 1)
    cursor = 0
    for index, message in enumerate(messages):
        start, stop = labeller.content_range(index, cursor, len(full))
        if message.train is False:
            end = labeller.end_token(stop, len(full), last=False)
            until = offsets[end][1] if end is not None else stop
            for t, (a, b) in enumerate(offsets[: len(mask)]):
                if a < until and b > start:
                    mask[t] = False
        cursor = stop
    return Encoded(encoded.input_ids, mask, encoded.origin, encoded.replies, encoded.bos, encoded.notes)


def _reasons(message: Message) -> bool:
    return "</think>" in message.content
