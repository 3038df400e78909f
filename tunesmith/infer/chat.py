"""A chat as it is apart from any screen: what was said, the settings, and the commands that change both.

Nothing is ever cut from the conversation behind the person's back: when it no longer fits, `say` says which
turns don't, and `/forget` drops them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.disk import disk_errors
from tunesmith.errors import GenerateError, SettingsError
from tunesmith.infer.config import NEW_TOKENS, Sampling, for_chat
from tunesmith.records import Completion, Conversation, Message, Origin
from tunesmith.settings import nearest, parse_overrides
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.infer.local import LocalModel

LEAST_ROOM = 16  # tokens that an answer should have at least; below that the conversation counts as full


@dataclass
class Chat:
    """One conversation with one model. `asked` holds the settings that the person gave, by name."""

    model: LocalModel
    system: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    turns: list[tuple[str, str]] = field(default_factory=list)
    adapter_on: bool = True

    def __post_init__(self) -> None:
        self.model.sampling = checked(self.asked)

    def say(self, text: str) -> Generator[str, None, Completion]:
        """The answer to a message, in pieces. Both are remembered; a broken-off answer as far as it got.

        Raises GenerateError, naming the turns that no longer fit, when there's no room for an answer;
        whatever is raised, the message is then not part of the conversation.
        """
        conversation = self._conversation(self.turns, text)
        self._check_room(text)
        shown: list[str] = []
        try:
            with nullcontext() if self.adapter_on else self.model.base():
                pieces = self.model.stream(conversation)
                try:
                    while True:
                        piece = next(pieces)
                        shown.append(piece)
                        yield piece
                except StopIteration as end:
                    completion: Completion = end.value
                    # An empty answer is an answer too.
                    shown = shown or [""]
                    return completion
                finally:
                    pieces.close()
        finally:
            if shown:
                self.turns.append((text, "".join(shown)))

    def compare(self, text: str) -> tuple[str, str]:
        """The answers of the base and of the tuned model to a message; neither is remembered.

        Without a text the last message is asked again. Raises ModelError where there is no adapter,
        SettingsError where there is nothing to ask, GenerateError without room for an answer.
        """
        turns = self.turns
        if not text:
            if not turns:
                raise SettingsError(
                    "There is no message yet that both could answer.", fix="Write /compare and a message."
                )
            turns, text = turns[:-1], turns[-1][0]
        ((base, tuned),) = self.model.complete_both([self._conversation(turns, text)])
        return base[0].text, tuned[0].text

    def command(self, line: str) -> str | None:
        """Carry out a line such as `/set temperature 0.7` and say what happened; None: the chat is over.

        Raises SettingsError or ModelError for what can't be done; nothing is changed then.
        """
        word, _, rest = line.strip().partition(" ")
        command = COMMANDS.get(ALIASES.get(word, word))
        if command is None:
            raise SettingsError(
                f"There is no command {word}{nearest(word, list(COMMANDS), lead='/')}.",
                fix="/help lists them. To send text that begins with /, put another / before it.",
            )
        return command.run(self, rest.strip())

    def _conversation(self, turns: list[tuple[str, str]], text: str) -> Conversation:
        messages = [Message("system", self.system)] if self.system else []
        for question, answer in turns:
            messages += [Message("user", question), Message("assistant", answer)]
        messages.append(Message("user", text))
        # The row is the turn's number: with a seed, each turn draws anew and a repeated chat draws the same.
        return Conversation(tuple(messages), Origin("chat", len(self.turns) + 1, len(self.turns)))

    def _check_room(self, text: str) -> None:
        limit, sampling = self.model.context, self.model.sampling
        if sampling.max_length is not None:
            limit = min(limit or sampling.max_length, sampling.max_length)
        if limit is None:
            return
        wanted = min(LEAST_ROOM, sampling.max_new_tokens or NEW_TOKENS)

        def tokens(forgotten: int) -> int:
            return len(self.model.renderer.prompt_ids(self._conversation(self.turns[forgotten:], text)))

        if tokens(0) + wanted <= limit:
            return
        bound = "max_length is" if limit == sampling.max_length else "this model reads"
        for count in range(1, len(self.turns) + 1):
            if tokens(count) + wanted <= limit:
                turns = "Turn 1 no longer fits" if count == 1 else f"Turns 1 to {count} no longer fit"
                raise GenerateError(
                    f"The conversation is full: with this message it has {tokens(0)} tokens and {bound} "
                    f"{limit}. {turns}.",
                    fix=f"/forget {count} drops {'it' if count == 1 else 'them'}, /reset starts anew; then "
                    "send your message again.",
                )
        raise GenerateError(
            f"This message alone is too long: it has {tokens(len(self.turns))} tokens and {bound} {limit}.",
            fix="Shorten it." if not self.system else "Shorten it, or the system prompt (/system).",
        )


@dataclass(frozen=True)
class Command:
    """A command: how it's written, what it does in a line, and the function that does it."""

    usage: str
    help: str
    run: Callable[[Chat, str], str | None]


def _help(chat: Chat, rest: str) -> str:  # noqa: ARG001
    lines = [(command.usage, command.help) for command in COMMANDS.values()]
    width = max(len(usage) for usage, _ in lines)
    return "\n".join(
        [f"{usage:<{width}}  {text}" for usage, text in lines]
        + [
            "",
            'A message of several lines stands between """ and """; a line that ends with \\ goes on, too.',
            "Ctrl-C stops an answer, Ctrl-D leaves.",
        ]
    )


def _system(chat: Chat, rest: str) -> str:
    if not rest:
        return f"The system prompt is: {chat.system}" if chat.system else "There is no system prompt."
    chat.system = "" if rest == "none" else rest
    return "The system prompt is set; it holds from the next message on." if chat.system else "It is gone."


def _reset(chat: Chat, rest: str) -> str:  # noqa: ARG001
    chat.turns.clear()
    return "A new conversation; system prompt and settings stay."


def _forget(chat: Chat, rest: str) -> str:
    count = int(rest) if rest.isdecimal() else 0 if rest else 1
    if not 0 < count <= len(chat.turns):
        raise SettingsError(
            f"/forget takes the number of turns to drop, from the first on; there are {len(chat.turns)}.",
            fix="Write /forget 1, for example.",
        )
    del chat.turns[:count]
    return f"{'The first turn is' if count == 1 else f'The first {count} turns are'} forgotten."


def _set(chat: Chat, rest: str) -> str:
    name, value = ([*re.split(r"[ =]", rest, maxsplit=1), ""])[:2]
    if not name or not value.strip():
        raise SettingsError(
            "/set takes a setting and its value.",
            fix="Write /set temperature 0.7, or /set temperature default. /show lists the settings.",
        )
    asked = {key: kept for key, kept in chat.asked.items() if key != name}
    if value.strip() != "default":
        asked.update(parse_overrides([f"{name}={value.strip()}"]))
    elif name not in Sampling.model_fields:
        raise SettingsError(
            f"There is no setting {name!r}{nearest(name, list(Sampling.model_fields))}.",
            fix="/show lists them.",
        )
    chat.model.sampling = checked(asked)
    chat.asked = asked
    given = chat.model.sampling.given()
    return f"{name} is {_shown(given[name])}." if name in given else f"{name} is not set."


def _show(chat: Chat, rest: str) -> str:  # noqa: ARG001
    given = chat.model.sampling.given()
    width = max(map(len, given), default=0)
    lines = [
        f"{name:<{width}}  {_shown(value)}" + ("" if name in chat.asked else "  (a chat's default)")
        for name, value in given.items()
    ]
    others = ", ".join(name for name in Sampling.model_fields if name not in given)
    return "\n".join([*lines, f"Not set: {others}."])


def _base(chat: Chat, rest: str) -> str:  # noqa: ARG001
    if chat.adapter_on:
        with chat.model.base():  # raises where there is no adapter
            pass
    chat.adapter_on = not chat.adapter_on
    if chat.adapter_on:
        return "The adapter is on: the tuned model answers."
    return "The adapter is off: the base model answers. /base again switches it on."


def _compare(chat: Chat, rest: str) -> str:
    base, tuned = chat.compare(rest)
    return f"[base]\n{base}\n[tuned]\n{tuned}"


def _save(chat: Chat, rest: str) -> str:
    path = _file(rest, "/save")
    content = {
        "messages": [message.as_dict() for message in chat._conversation(chat.turns, "").messages[:-1]],
        "settings": chat.asked,
        "model": chat.model.name,
    }
    with disk_errors(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        except FileExistsError:
            raise SettingsError(f"{path} is there already.", fix="Give another name.") from None
    return f"Saved: {path}, {counted(len(chat.turns), 'turn')}."


def _load(chat: Chat, rest: str) -> str:
    path = _file(rest, "/load")
    wrong = SettingsError(f"{path} isn't a chat that /save wrote.", fix="Give the file of a saved chat.")
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}.", fix="Check the name.") from None
    except ValueError:
        raise wrong from None
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise wrong
    turns = content["messages"]
    if not all(isinstance(turn, dict) for turn in turns):
        raise wrong
    said: list[tuple[Any, Any]] = [(turn.get("role"), turn.get("content")) for turn in turns]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(said) // 2) or not all(isinstance(t, str) for _, t in said):
        raise wrong
    settings = content.get("settings")
    if not isinstance(settings, dict) or not isinstance(system, str):
        raise wrong
    chat.model.sampling = checked(settings)
    chat.asked, chat.system = settings, system
    chat.turns = [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)]
    other = content.get("model") not in (None, chat.model.name)
    note = f" It was held with {content['model']}." if other else ""
    also = "system prompt and settings" if system else "settings"
    return f"Loaded: {counted(len(chat.turns), 'turn')}, with {also}.{note}"


def _file(rest: str, word: str) -> Path:
    if not rest:
        raise SettingsError(f"{word} takes a file.", fix=f"Write {word} chat.json.")
    return Path(rest).expanduser()


def _exit(chat: Chat, rest: str) -> None:  # noqa: ARG001
    return None


ALIASES = {"/quit": "/exit", "/bye": "/exit"}
COMMANDS: Mapping[str, Command] = {
    "/help": Command("/help", "this list", _help),
    "/system": Command(
        "/system TEXT", "set the system prompt; no text: show it; none: take it away", _system
    ),
    "/reset": Command("/reset", "start a new conversation", _reset),
    "/forget": Command("/forget N", "drop the first N turns of the conversation", _forget),
    "/set": Command("/set NAME VALUE", "change a setting, such as temperature 0.7; default: unset it", _set),
    "/show": Command("/show", "the settings and their values", _show),
    "/base": Command("/base", "switch the adapter off, and on again", _base),
    "/compare": Command(
        "/compare TEXT", "base and tuned model answer side by side; no text: the last message again", _compare
    ),
    "/save": Command("/save FILE", "write conversation, system prompt and settings to a file", _save),
    "/load": Command("/load FILE", "go on with a saved conversation", _load),
    "/exit": Command("/exit", "leave (also /quit, /bye, Ctrl-D)", _exit),
}


def checked(asked: Mapping[str, Any]) -> Sampling:
    """The settings of a chat, from those given by name; needs no model.

    Raises SettingsError for wrong ones, and for those whose answer can't be shown while it's written.
    """
    sampling = for_chat(asked)
    if conflicts := sampling.streaming_conflicts():
        raise SettingsError("A chat shows each answer while it's written.", details=conflicts)
    return sampling


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return repr(value) if isinstance(value, str) else str(value)
