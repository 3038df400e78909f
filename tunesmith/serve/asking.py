"""What a request of OpenAI's API asks for, by the tables of fields.py; all its problems at once. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import SettingsError
from tunesmith.infer.config import SAMPLING_ONLY, Sampling, for_chat
from tunesmith.records import Message
from tunesmith.serve.fields import (
    ANSWERS,
    BOUNDS,
    KNOWN,
    LABELS,
    LONGEST_STOP,
    MESSAGE_NEUTRAL,
    MESSAGES,
    PROMPTS,
    ROLES,
    SETTINGS,
    STOPS,
    TOLD,
    TOP_LOGPROBS,
    UNSUPPORTED,
    Kind,
)
from tunesmith.settings import nearest


def defaults_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that hold where a request says nothing, as it could have said them itself.

    Without a word on how to choose they are a chat's. Raises SettingsError for wrong ones and for others.
    """
    allowed = (*SETTINGS.values(), "stop")
    if others := [name for name in asked if name in Sampling.model_fields and name not in allowed]:
        raise SettingsError(
            f"{', '.join(others)} can't be given to a server: requests couldn't say otherwise.",
            fix=f"It takes {', '.join(allowed)}.",
        )
    return for_chat(asked).given()


class Refused(Exception):
    """What a client is told instead of an answer: an HTTP status, and the fields of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "requests" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Wanted:
    """A request that can be answered, as far as can be told without the model.

    `prompts` are conversations (chat), or texts and lists of tokens (completions), each to be answered `n`
    times.
    """

    kind: Kind
    model: str
    prompts: Sequence[Sequence[Message] | str | Sequence[int]]
    sampling: Sampling
    n: int = 1
    stream: bool = False
    include_usage: bool = False


def read(kind: Kind, body: Mapping[str, Any], defaults: Mapping[str, Any]) -> Wanted:
    """What a request asks for; `defaults` are settings that hold where it says nothing.

    Raises Refused, which names every problem and, as `param`, the field of the first.
    """
    form = _Form(kind, body)
    form.check_names()
    model = form.model()
    if kind == "chat":
        prompts: Sequence[Any] = [form.messages()]
        schema = form.schema()
    else:
        prompts, schema = form.prompts(), None
    n = form.number("n", 1, ANSWERS, 1) or 1
    if n * len(prompts) > ANSWERS:
        form.wrong("n", f"n times the number of prompts is {n * len(prompts)}; {ANSWERS} is the most")
    stream = form.flag("stream")
    include_usage = form.stream_options(stream)
    settings = {**form.settings(), **form.stop(), **form.limit(), **form.logprobs()}
    if schema is not None:
        settings["json_schema"] = schema
    sampling = form.sampling(defaults, settings)
    if form.problems or sampling is None:
        param, first = form.problems[0]
        rest = "".join(f" Also: {text}." for _, text in form.problems[1:TOLD])
        rest += f" And {form.count - TOLD} more." if form.count > TOLD else ""
        raise Refused(400, f"{first}.{rest}", param=param)
    return Wanted(kind, model, prompts, sampling, n, stream, include_usage)


@dataclass
class _Form:
    """A request's body, and what is wrong with it so far: fields and words."""

    kind: Kind
    body: Mapping[str, Any]
    problems: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    def wrong(self, param: str, text: str) -> None:
        self.count += 1
        if len(self.problems) < TOLD:
            self.problems.append((_shown(param), text))

    def check_names(self) -> None:
        known, refused = KNOWN[self.kind], UNSUPPORTED[self.kind]
        for name, value in self.body.items():
            if name in known or name in LABELS or value is None:
                continue
            if name not in refused:
                meant = {"max_new_tokens": "max_tokens", "json_schema": "response_format"}.get(name, "")
                told = len(self.problems) < TOLD and len(name) <= 60
                hint = f" (did you mean {meant!r}?)" if meant else nearest(name, known) if told else ""
                self.wrong(name, f"{_shown(name)} isn't a field that this server knows{hint}")
            elif not _one_of(value, refused[name]):
                self.wrong(name, f"{name} isn't supported by this server: leave it out")

    def model(self) -> str:
        model = self.body.get("model")
        if not isinstance(model, str) or not model:
            self.wrong("model", "model is missing: name one of those that GET /v1/models lists")
            return ""
        return model

    def messages(self) -> tuple[Message, ...]:
        given = self.body.get("messages")
        if not isinstance(given, list) or not given:
            self.wrong(
                "messages",
                'messages is missing or empty: write [{"role": "user", "content": "your question"}]',
            )
            return ()
        if len(given) > MESSAGES:
            self.wrong("messages", f"messages holds {len(given)} messages; {MESSAGES} is the most")
            return ()
        found = tuple(self._message(at, one) for at, one in enumerate(given))
        if not self.problems:
            if found[-1].role == "assistant":
                self.wrong(
                    "messages",
                    "the last message is the assistant's, and an answer that is begun can't be gone on with: "
                    "end with the user's message",
                )
            elif all(one.role == "system" for one in found):
                self.wrong("messages", "there is no message of the user to answer")
            elif not found[-1].content.strip():
                self.wrong("messages", "the last message is empty: there is nothing to answer")
        return found

    def _message(self, at: int, one: Any) -> Message:
        where = f"messages[{at}]"
        if not isinstance(one, dict):
            self.wrong(where, f"{where} isn't an object with role and content")
            return Message("user", "")
        role = one.get("role")
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(ROLES)
            tools = ": tools aren't supported" if role in ("tool", "function") else ""
            self.wrong(f"{where}.role", f"{where}.role must be one of {known}{tools}")
        for name, value in one.items():
            if name in ("role", "content") or value is None:
                continue
            if name not in MESSAGE_NEUTRAL:
                self.wrong(f"{where}.{name}", f"{where}.{_shown(name)} isn't known: give role and content")
            elif not _one_of(value, MESSAGE_NEUTRAL[name]):
                self.wrong(f"{where}.{name}", f"{where}.{name} isn't supported by this server: leave it out")
        return Message(ROLES.get(str(role), "user"), self._content(where, one.get("content")))

    def _content(self, where: str, content: Any) -> str:
        if isinstance(content, str):
            return self._text(f"{where}.content", content)
        if not isinstance(content, list) or not content:
            self.wrong(f"{where}.content", f"{where}.content must be a text, or a list of text parts")
            return ""
        texts = []
        for at, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str) or set(part) - {"type", "text"}:
                what = f": {kind} isn't supported" if isinstance(kind, str) and kind != "text" else ""
                self.wrong(
                    f"{where}.content[{at}]",
                    f'{where}.content[{at}] must be {{"type": "text", "text": "…"}}{_shown(what)}',
                )
            else:
                texts.append(self._text(f"{where}.content[{at}]", part["text"]))
        return "".join(texts)

    def _text(self, where: str, text: str) -> str:
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.wrong(where, f"{where} holds half a character (a lone surrogate), which is no text")
            return ""
        return text

    def prompts(self) -> list[str | list[int]]:
        given = self.body.get("prompt")
        tokens = isinstance(given, list) and bool(given) and all(map(_whole, given))
        several = given if isinstance(given, list) and not tokens else [given]
        if not several or len(several) > PROMPTS:
            self.wrong("prompt", f"prompt must be a text, or a list of up to {PROMPTS}")
            return []
        found: list[str | list[int]] = []
        for one in several:
            if isinstance(one, str) and one:
                found.append(self._text("prompt", one))
            elif isinstance(one, list) and one and all(map(_whole, one)):
                found.append(one)
            else:
                self.wrong("prompt", "prompt is missing or empty: give a text that the model goes on with")
                break
        return found

    def settings(self) -> dict[str, Any]:
        given = {name: self.body[name] for name in SETTINGS if self.body.get(name) is not None}
        given.pop("max_tokens", None)
        return {SETTINGS[name]: value for name, value in given.items()}

    def limit(self) -> dict[str, Any]:
        names = [n for n in ("max_tokens", "max_completion_tokens") if self.body.get(n) is not None]
        if self.kind == "text":
            names = [name for name in names if name == "max_tokens"]
        values = {name: self.number(name, 1, 2**31, None) for name in names}
        if len(set(values.values())) > 1:
            self.wrong(
                "max_tokens", "max_tokens and max_completion_tokens say different things: give one of them"
            )
        value = next(iter(values.values()), None)
        return {} if value is None else {"max_new_tokens": value}

    def stop(self) -> dict[str, Any]:
        given = self.body.get("stop")
        if given is None or given == []:
            return {}
        texts = [given] if isinstance(given, str) else given
        good = isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)
        if not good or len(texts) > STOPS:
            self.wrong("stop", f"stop must be a text, or a list of up to {STOPS}, none of them empty")
            return {}
        if any(len(text) > LONGEST_STOP for text in texts):
            self.wrong("stop", f"a text of stop has {LONGEST_STOP} characters at most")
            return {}
        return {"stop": tuple(self._text("stop", text) for text in texts)}

    def logprobs(self) -> dict[str, Any]:
        if self.kind == "text":
            top = self.number("logprobs", 0, TOP_LOGPROBS, None)
            return {} if top is None else {"logprobs": top}
        wanted, top = self.flag("logprobs"), self.number("top_logprobs", 0, TOP_LOGPROBS, None)
        if top and not wanted:
            self.wrong("top_logprobs", "top_logprobs goes with logprobs: set logprobs to true")
        return {"logprobs": top or 0} if wanted else {}

    def stream_options(self, stream: bool) -> bool:
        given = self.body.get("stream_options")
        if given is None:
            return False
        if not stream:
            self.wrong("stream_options", "stream_options goes with stream: set stream to true")
            return False
        neutral = {"include_usage": (True, False, None), "include_obfuscation": (False, None)}
        if not isinstance(given, dict) or any(
            name not in neutral or not _one_of(value, neutral[name]) for name, value in given.items()
        ):
            self.wrong("stream_options", "stream_options takes include_usage, true or false, alone")
            return False
        return given.get("include_usage") is True

    def schema(self) -> Mapping[str, Any] | None:
        given = self.body.get("response_format")
        if given is None:
            return None
        kind = given.get("type") if isinstance(given, dict) else None
        if kind == "text" and set(given) == {"type"}:
            return None
        if kind == "json_object" and set(given) == {"type"}:
            return {"type": "object"}
        inner = given.get("json_schema") if kind == "json_schema" else None
        # An object, never a text: that would be the name of a file.
        if isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
            unknown = [*(set(given) - {"type", "json_schema"})]
            unknown += set(inner) - {"name", "description", "schema", "strict"}
            if not unknown:
                schema: Mapping[str, Any] = inner["schema"]
                return schema
        self.wrong(
            "response_format",
            'response_format must be {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
            '"json_schema": {"name": "…", "schema": {…}}}',
        )
        return None

    def flag(self, name: str) -> bool:
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, f"{name} must be true or false")
        return value is True

    def number(self, name: str, least: int, most: int, default: int | None) -> int | None:
        value = self.body.get(name)
        if value is None:
            return default
        if not _whole(value) or not least <= value <= most:
            upper = f"to {most}" if most < 2**31 else "on"
            self.wrong(name, f"{name} must be a whole number from {least} {upper}")
            return default
        return int(value)

    def sampling(self, defaults: Mapping[str, Any], given: dict[str, Any]) -> Sampling | None:
        """The settings over the server's own. Temperature 0 means the likeliest token, as in OpenAI's API."""
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
            if _whole(given.get(name)):
                given[name] = float(given[name])
        if _whole(given.get("repetition_penalty")):
            given["repetition_penalty"] = float(given["repetition_penalty"])
        for name, (least, most) in BOUNDS.items():
            value = given.get(name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value == 0:
                continue
            if not least <= value <= most:
                self.wrong(name, f"{name} must be from {least:g} to {most:g}{' or 0' * (least == 1e-3)}")
                return None
        defaults = dict(defaults)
        if any(name in given for name in SAMPLING_ONLY):
            defaults.pop("do_sample", None)
        if given.get("do_sample") is False or (
            "temperature" in given and isinstance(given["temperature"], float) and given["temperature"] == 0
        ):
            for name in SAMPLING_ONLY:
                defaults.pop(name, None)
        if "temperature" in given and given["temperature"] == 0:
            given = {name: v for name, v in given.items() if name not in SAMPLING_ONLY} | {"do_sample": False}
        if "json_schema" in given and "stop" not in given:
            defaults.pop("stop", None)
        try:
            return for_chat({**defaults, **given})
        except SettingsError as error:
            names = {setting: name for name, setting in SETTINGS.items()}
            for detail in error.details or (error.what,):
                setting = detail.split()[0].strip(":=,'\"")
                param = "response_format" if setting == "json_schema" else names.get(setting, setting)
                self.wrong(param, detail)
            return None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(value: Any, neutral: Sequence[Any]) -> bool:
    """Equal, and of the same type: `false` isn't 0 here."""
    return value is None or any(type(value) is type(one) and value == one for one in neutral)


def _shown(name: str) -> str:
    return name if len(name) <= 60 else name[:60] + "…"
