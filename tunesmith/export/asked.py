"""What the gate asks: texts to tokenise, prompts to answer, passages to read; fixed but the run's prompts.

The prompts of a run are those that were answered while it trained (samples.jsonl) and the first rows of its
validation file, or of its training file, where that is still there; without any, two fixed questions. All are
rendered as in `chat`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.check import read_prompts
from tunesmith.data.template import Renderer
from tunesmith.errors import TunesmithError
from tunesmith.export import strings
from tunesmith.export.subject import Subject
from tunesmith.records import Conversation, Message, Origin

TEXTS = 5000
PROMPTS = 4
ANSWER_TOKENS = 48
LONGEST = 256  # tokens of a sequence whose logits are compared
LOGIT_BYTES = 2**28  # that the reference's logits may take, of one model
MOST, LEAST = 768, 96  # positions that are compared

PASSAGES = (
    "The committee met on Tuesday to discuss the new library. It will open at 9:30 a.m. and close at 8 p.m., "
    "except on public holidays, when readers may return books through the slot beside the door.",
    "图书馆每天上午八点开放，晚上十点关闭。学生凭校园卡入馆，每人最多可借十本书，期限为三十天，逾期每天罚款一角。",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('empty')\n"
    "    return sum(values) / len(values)\n",
    "明月松间照，清泉石上流。 Bright moonlight falls between the pines 🌙; 1,024 × 3 = 3,072."
    "\n\n- one\n- 二\n",
)  # fmt: skip
QUESTIONS = ("What is the capital of France, and what is it known for?", "请用一句话介绍中国的长城。")
TURNS = (
    (("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Count to three.")),
    (("user", "你好"), ("assistant", "你好！有什么可以帮你？"), ("user", "写一句诗。\n要有月亮。")),
    (
        ("system", "You are terse."),
        ("user", "def f(x):\n\treturn x  # 👍🏽"),
    ),
    (("user", "  two  spaces \n\n and lines  "),),
)


@dataclass(frozen=True)
class Prompt:
    """A prompt that is answered: `text` is what is shown, `own` whether it is one of the run's."""

    text: str
    token_ids: list[int]
    own: bool


@dataclass(frozen=True)
class Asked:
    """All of it. `rendered` are whole conversations as text, `passages` token ids."""

    texts: list[str]
    rendered: list[str]
    prompts: list[Prompt]
    passages: list[list[int]]


def asked_of(subject: Subject, renderer: Renderer) -> Asked:
    """What this subject is asked."""
    special = sorted({t.content for t in renderer.tokenizer.added_tokens_decoder.values() if t.content})
    begin = [renderer.bos_id] if renderer.adds_bos and renderer.bos_id is not None else []
    passages = [[*begin, *renderer.tokenise(text)[0]][:LONGEST] for text in PASSAGES]
    prompts = list(_prompts(subject, renderer)) if renderer.text else _beginnings(renderer, begin)
    conversations = [_conversation(*turns) for turns in TURNS] + [c for c, _ in _conversations(subject)]
    rendered = list(_rendered(conversations, renderer)) if renderer.text else []
    return Asked(strings.texts(special[:64], TEXTS), rendered, prompts, passages)


def positions(vocabulary: int) -> int:
    """How many positions are compared: fewer where a row of logits is large."""
    return max(LEAST, min(MOST, LOGIT_BYTES // (4 * vocabulary)))


def _prompts(subject: Subject, renderer: Renderer) -> Iterator[Prompt]:
    for conversation, own in _conversations(subject):
        try:
            ids = renderer.prompt_ids(conversation)
        except TunesmithError:
            continue  # a text of the fixed questions or of another template that this one refuses
        yield Prompt(conversation.messages[-1].content, ids[-LONGEST:], own)


def _beginnings(renderer: Renderer, begin: list[int]) -> list[Prompt]:
    """Without a template there are no conversations: the model goes on with a text."""
    texts = [text[: len(text) // 2] for text in PASSAGES[:2]]
    return [Prompt(text, [*begin, *renderer.tokenise(text)[0]][:LONGEST], own=False) for text in texts]


def _conversations(subject: Subject) -> list[tuple[Conversation, bool]]:
    own = _of_samples(subject)
    if len(own) < PROMPTS:
        asked = {conversation.messages[-1].content for conversation in own}
        own += [c for c in _of_data(subject.record) if c.messages and c.messages[-1].content not in asked]
    fixed = [(_conversation(("user", text)), False) for text in QUESTIONS]
    return [(one, True) for one in own][:PROMPTS] or fixed


def _of_samples(subject: Subject) -> list[Conversation]:
    if subject.run is None:
        return []
    found = dict.fromkeys(str(line["prompt"]) for line in subject.run.samples() if line.get("prompt"))
    return [_conversation(("user", text)) for text in found]


def _of_data(record: Mapping[str, Any]) -> list[Conversation]:
    """The first rows of the validation file; where that is a share of the training rows, of those."""
    data = (record.get("job") or {}).get("data") or {}
    parts = [data.get(part) for part in ("valid", "train")]
    for file in [file for files in parts if isinstance(files, list) for file in files]:
        path = Path(str(record.get("folder", ""))) / str(
            file.get("path", "") if isinstance(file, dict) else file
        )
        try:
            if path.is_file():
                return read_prompts(str(path))[:PROMPTS]
        except TunesmithError:
            continue
    return []


def _rendered(conversations: list[Conversation], renderer: Renderer) -> Iterator[str]:
    for conversation in conversations:
        for count, prompt in ((len(conversation.messages), True), (len(conversation.messages) - 1, False)):
            try:
                if count:
                    yield renderer.render(conversation, count, prompt=prompt, thinking=renderer.thinking)
            except TunesmithError:
                continue  # some templates know no system message


def _conversation(*turns: tuple[Any, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns), Origin("export", 1, 0))
