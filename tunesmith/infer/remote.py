"""A model behind an endpoint as a Completer: several calls at once, answers in order, failures counted.

A call that fails finally is an answer that ended in "error", with the reason: it is counted and left out of
every figure. Where every call would fail (a wrong key, a model that isn't there, nobody listening, ten rows
one after the other), asking ends with an error instead, and what was answered stays.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import GenerateError
from tunesmith.infer.client import CalledOff, CallError, Client, Patience, proxies_for
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import Endpoint, check_endpoints, parse, request_body
from tunesmith.records import Completion, Conversation, FinishReason

AT_ONCE = 8
FAILURES_IN_A_ROW = 10


@dataclass
class RemoteModel:
    """A model behind an endpoint (a Completer). `batch_size` calls are under way at once."""

    endpoint: Endpoint
    sampling: Sampling = field(default_factory=lambda: Sampling.model_validate({}))
    batch_size: int = AT_ONCE
    patience: Patience = field(default_factory=Patience)
    _newer_limit: bool = False

    @property
    def name(self) -> str:
        """The endpoint as it was written."""
        return self.endpoint.name

    def facts(self) -> dict[str, Any]:
        """All that is known of what decides its answers; a server may change its model unseen."""
        return {"model": self.name, "settings": json.loads(json.dumps(self.sampling.given()))}

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        """Answer each conversation in order. Raises GenerateError where asking has no sense."""
        waiting: dict[int, list[Completion]] = {}
        due = 0
        with closing(self.complete_batches(conversations)) as batches:
            for batch in batches:
                waiting |= batch
                while due in waiting:
                    yield waiting.pop(due)
                    due += 1

    def complete_batches(
        self, conversations: Sequence[Conversation], done: Container[int] = frozenset()
    ) -> Generator[dict[int, list[Completion]]]:
        """The same by index, each as it's done, without the conversations that are in `done`."""
        client = Client(
            f"{self.endpoint.url}/chat/completions",
            self.endpoint.key(),
            self.patience,
            proxies_for(self.endpoint.host, here=self.endpoint.here),
        )
        left: queue.SimpleQueue[int] = queue.SimpleQueue()
        for at in range(len(conversations)):
            if at not in done:
                left.put(at)
        count = left.qsize()
        came: queue.SimpleQueue[tuple[int, list[Completion] | BaseException]] = queue.SimpleQueue()

        def work() -> None:
            while True:
                try:
                    at = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    came.put((at, self._answers(client, conversations[at])))
                except CalledOff:
                    return
                except BaseException as error:
                    came.put((at, error))
                    if getattr(error, "everywhere", True):
                        client.call_off()  # here, where the next call would begin
                        return

        # Daemons: a process that is told to end doesn't wait for a server.
        for _ in range(min(self.batch_size, count)):
            threading.Thread(target=work, name="tunesmith-endpoint", daemon=True).start()
        failed = 0
        try:
            for _ in range(count):
                at, answers = came.get()
                if isinstance(answers, CallError):
                    failed += 1
                    if answers.everywhere or failed == FAILURES_IN_A_ROW:
                        raise self._hopeless(answers, failed)
                    answers = [self._failed(str(answers))] * self.sampling.answers
                elif isinstance(answers, BaseException):
                    raise answers
                else:
                    failed = 0
                yield {at: answers}
        finally:
            client.call_off()

    def _answers(self, client: Client, conversation: Conversation) -> list[Completion]:
        began = time.perf_counter()
        body = request_body(self.endpoint, conversation, self.sampling)
        try:
            reply = client.post(self._limited(body))
        except CallError as error:
            # Newer models of OpenAI's refuse the older name of the limit, which other servers know alone.
            if self._newer_limit or "max_completion_tokens" not in str(error):
                raise
            self._newer_limit = True
            reply = client.post(self._limited(body))
        return read_reply(reply, self.sampling.answers, time.perf_counter() - began)

    def _limited(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self._newer_limit:
            return body
        return {("max_completion_tokens" if name == "max_tokens" else name): v for name, v in body.items()}

    def _failed(self, why: str) -> Completion:
        return Completion("", "error", 0, 0, error=why)

    def _hopeless(self, error: CallError, failed: int) -> GenerateError:
        many = "" if error.everywhere else f" ({failed} rows failed one after the other)"
        return GenerateError(
            f"{self.name} can't be asked: {error}{many}.",
            fix="Check the URL, the model's name and the key (URL#MODEL@VARIABLE), and that the server runs. "
            "What was answered is kept: the same command goes on.",
        )


def connect(
    name: str,
    *,
    dtype: str = "auto",
    template: str | None = None,
    sampling: Sampling | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> RemoteModel:
    """The model behind an endpoint. `note` is told where rows go, unless that is this machine.

    Raises UsageError and SettingsError as `check_endpoints` does. Nothing is sent yet.
    """
    settings = sampling or Sampling.model_validate({})
    check_endpoints((name,), settings, dtype=dtype, template=template)
    endpoint = parse(name)
    if line := endpoint.leaving():
        note(line)
    return RemoteModel(endpoint, settings)


def read_reply(reply: Mapping[str, Any], answers: int, seconds: float) -> list[Completion]:
    """The answers in a chat completion; tokens are the server's own count. Raises CallError."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        told = str(reply.get("error") or "")
        raise CallError("the reply has no choices" + (f": {told}" if told else ""))
    if len(choices) < answers:
        raise CallError(f"{answers} answers were asked for and {len(choices)} came")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, total = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    found = []
    for at, choice in enumerate(choices[:answers]):
        message = choice.get("message")
        if not isinstance(message, dict):
            raise CallError("the reply has a choice without a message")
        text = message.get("content") or message.get("refusal") or ""
        if not isinstance(text, str):
            raise CallError("the reply's content isn't a text")
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            raise CallError("the server's filter withheld the answer")
        finish: FinishReason = "length" if reason == "length" else "stop"
        # The server counts all answers together.
        tokens = total // answers + (at < total % answers)
        found.append(Completion(text, finish, prompt, tokens, seconds))
    return found


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
