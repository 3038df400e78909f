"""An OpenAI-compatible endpoint by name: where it is, which model, which key, and what it can be asked.

    http://127.0.0.1:8000/v1#qwen2.5-7b                      a server on this machine, without a key
    https://api.deepseek.com/v1#deepseek-chat@DEEPSEEK_API_KEY

Before the `#` the URL below which the server has `/chat/completions`, behind it the model's name there, and
after an `@` the environment variable with the key. A key goes to the one host that it was named for, and
stands in no file. No torch.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tunesmith.errors import SettingsError, UsageError
from tunesmith.infer.config import NEW_TOKENS, Sampling
from tunesmith.records import Conversation
from tunesmith.redact import HIDDEN, without_secrets

STOPS = 4  # texts that end an answer, as OpenAI's API allows
EXAMPLE = "http://127.0.0.1:8000/v1#model-name"
# What transformers knows and the API doesn't, with the values at which these do nothing.
NEUTRAL: dict[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
}
KNOWN = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "num_return_sequences",
    "stop",
    "json_schema",
    "seed",
)
_KEY = re.compile(r"@([A-Z_][A-Z0-9_]*)$")  # names of models have an @ too, but not in capitals to their end


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a URL. `name` is how it was written, `key_variable` "" where it takes no key."""

    name: str
    url: str
    model: str
    key_variable: str = ""

    @property
    def parts(self) -> SplitResult:
        """The URL's scheme, host, port and path."""
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        """The host's name or number."""
        return self.parts.hostname or ""

    @property
    def here(self) -> bool:
        """Whether it is this machine: then nothing leaves it, and no proxy is asked."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def key(self) -> str:
        """The key, or "". Raises UsageError where the variable isn't set, or holds what can't be sent."""
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise UsageError(
                f"{self.name} takes its key from {self.key_variable}, which isn't set.",
                fix=f"Set it in this shell: export {self.key_variable}=…",
            )
        if not (key.isascii() and key.isprintable() and " " not in key):  # or it would end the header
            raise UsageError(
                f"What {self.key_variable} holds isn't a key: it has spaces or other characters.",
                fix="Set it to the key alone.",
            )
        return key

    def leaving(self) -> str:
        """What a person must know before rows are sent, in a line; "" for this machine."""
        if self.here:
            return ""
        open_to_all = self.parts.scheme == "http"
        also = " and the key" if self.key_variable else ""
        return f"Rows{also} are sent to {self.host}, which isn't this machine" + (
            ", unencrypted." if open_to_all else "."
        )


def is_endpoint(name: str) -> bool:
    """Whether the name of a model means an endpoint."""
    return name.lower().startswith(("http://", "https://"))


def parse(name: str) -> Endpoint:
    """The endpoint that a word means. Raises UsageError, which doesn't repeat what may be a key."""
    address, _, written = name.partition("#")
    found = _KEY.search(written)
    model = written[: found.start()] if found else written
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{address} isn't a URL: {error}.", fix=f"Write {EXAMPLE}.") from None
    problems = []
    if "@" in parts.netloc:
        address = f"{parts.scheme}://{HIDDEN}@{parts.netloc.rpartition('@')[2]}{parts.path}"
        problems.append("a URL holds no user, password or key: put the key into an environment variable")
    if not parts.hostname:
        problems.append("there is no host")
    if parts.query:
        address = address.partition("?")[0]
        problems.append("the URL has a query (?…), which isn't sent")
    if without_secrets(written) != written:
        problems.append("behind the @ stands the name of an environment variable, and never the key itself")
    elif not model.strip():
        problems.append("the model's name is missing, after a #")
    if not parts.path.strip("/") and parts.hostname and not problems:
        problems.append("the path is missing; for most servers it is /v1")
    if problems:
        raise UsageError(
            f"{address} can't be asked.",
            details=problems,
            fix=f"Write URL#MODEL, or URL#MODEL@VARIABLE with the name of the variable that holds the key: "
            f"{EXAMPLE}.",
        )
    url = address.rstrip("/").removesuffix("/chat/completions")
    return Endpoint(name, url, model, found[1] if found else "")


def check_endpoints(
    names: Sequence[str], sampling: Sampling, *, dtype: str = "auto", template: str | None = None
) -> None:
    """Raise, before anything runs, for endpoints that can't be asked so; other names pass.

    SettingsError names each setting that OpenAI's API doesn't know, UsageError the rest.
    """
    for name in names:
        if not is_endpoint(name):
            continue
        parse(name).key()
        if problems := unknown_settings(sampling):
            raise SettingsError(
                f"{name} can't be asked with these settings: OpenAI's API doesn't know them.",
                details=problems,
                fix=f"Leave them out; it takes {', '.join(KNOWN)}.",
            )
        ours = [word for word, given in (("dtype", dtype != "auto"), ("template", template)) if given]
        if ours:
            raise UsageError(
                f"{name} has its weights and its template elsewhere: {' and '.join(ours)} can't be chosen.",
                fix="Leave that out for an endpoint.",
            )


def unknown_settings(sampling: Sampling) -> list[str]:
    """The settings that were given and that the API has no word for, each with its reason."""
    given = {name: value for name, value in sampling.given().items() if name not in KNOWN}
    wrong = [name for name, value in given.items() if NEUTRAL.get(name, ...) != value]
    reasons = {
        "max_length": "only the answer's length can be limited: max_new_tokens",
        "logprobs": "tokens are kept by their ids, which it doesn't give",
    }
    problems = [f"{name}: {reasons[name]}" if name in reasons else name for name in wrong]
    if sampling.stop is not None and len(sampling.stop) > STOPS:
        problems.append(f"stop: {len(sampling.stop)} texts, and it takes {STOPS}")
    return problems


def request_body(endpoint: Endpoint, conversation: Conversation, sampling: Sampling) -> dict[str, Any]:
    """What is sent: answers are greedy (temperature 0) unless a sampling setting is given, as everywhere."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [message.as_dict() for message in conversation.messages],
        "max_tokens": sampling.max_new_tokens or NEW_TOKENS,
        "temperature": (1.0 if sampling.temperature is None else sampling.temperature)
        if sampling.samples
        else 0,
    }
    names = ("top_p", "presence_penalty", "frequency_penalty", "seed")
    body |= {name: value for name in names if (value := getattr(sampling, name)) is not None}
    if conversation.tools:
        body["tools"] = [_tool(tool) for tool in conversation.tools]
    if sampling.answers > 1:
        body["n"] = sampling.answers
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
