"""A model to talk to, from a name: a base model, a finished run, or a folder with an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunesmith.data.template import TEMPLATES, Renderer
from tunesmith.device import Device
from tunesmith.errors import GenerateError, ModelError, TemplateError
from tunesmith.infer.config import Sampling
from tunesmith.infer.decoding import prepare
from tunesmith.infer.found import Found, find
from tunesmith.infer.generate import generate, generate_batches, generate_both, stream
from tunesmith.model import adapters
from tunesmith.model.load import context_length, end_ids, first_use, load_model, load_tokenizer
from tunesmith.records import ROLES, Completion, Conversation, Message, Origin
from tunesmith.rundir import RunDir
from tunesmith.settings import build


@dataclass
class LocalModel:
    """A model on this machine that answers conversations (a Completer).

    `run` is the run it came from, `adapter` the folder of the adapter over its base model, which `base`
    switches off; both may be None. `sampling` holds for every answer that isn't told otherwise.
    `weights` tells models of one name apart: a hash of the base's fingerprint and the adapter's file.
    """

    name: str
    model: PreTrainedModel
    renderer: Renderer
    device: Device
    run: RunDir | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling.model_validate({}))
    batch_size: int = 16
    adapter: Path | None = None
    weights: str = ""

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        """Answer each conversation in order, yielding as soon as each is done.

        Raises before anything runs, naming every prompt that can't be rendered or leaves no room.
        """
        return generate(self.model, self.renderer, conversations, self.sampling, batch_size=self.batch_size)

    def complete_both(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[list[Completion], list[Completion]]]:
        """Answers of the base and of the tuned model, computed in the same batches from one load.

        Raises ModelError where there is no adapter to switch off, and what `complete` raises.
        """
        self._check_adapter()
        return generate_both(
            self.model, self.renderer, conversations, self.sampling, batch_size=self.batch_size
        )

    def complete_batches(
        self, conversations: Sequence[Conversation], done: Container[int] = frozenset()
    ) -> Generator[dict[int, list[Completion]]]:
        """The same by index, a batch at a time as it's done, without the conversations that are in `done`."""
        return generate_batches(
            self.model, self.renderer, conversations, self.sampling, batch_size=self.batch_size, done=done
        )

    def facts(self) -> dict[str, Any]:
        """All of a model that decides what it answers: name, weights, template, number format, settings."""
        return {
            "model": self.name,
            "weights": self.weights,
            "template": self.renderer.sha256[:16],
            "dtype": str(self.device.dtype).removeprefix("torch."),
            "settings": json.loads(json.dumps(self.sampling.given())),
        }

    def stream(self, conversation: Conversation) -> Generator[str, None, Completion]:
        """One answer in pieces of whole characters; the generator returns the Completion.

        Raises SettingsError for settings that can't be streamed, GenerateError for a prompt without room.
        """
        return stream(self.model, self.renderer, conversation, self.sampling)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Answers inside are the base model's: the adapter is switched off, and on again afterwards.

        Raises ModelError where there is no adapter to switch off.
        """
        self._check_adapter()
        with adapters.adapter_off(self.model):
            yield

    def _check_adapter(self) -> None:
        if self.adapter is not None:
            return
        if self.run is None:
            raise ModelError(
                f"{self.name} has no adapter: it is no run but a model by itself, with no base beneath it.",
                fix="Take a run (tunesmith runs list), whose base is asked beside it.",
            )
        raise ModelError(
            f"{self.name} was tuned as a whole: there is no base model inside to switch to.",
            fix="Load the base model by its own name and ask it beside this one.",
        )

    def chat(self, messages: str | Sequence[Message | Mapping[str, Any]], **sampling: Any) -> str:
        """The answer to a message, or to the messages of a conversation, as text.

        `sampling` are settings by name, laid over the model's own; None takes one of those away.

        Raises SettingsError for wrong settings, GenerateError for messages that can't be answered.
        """
        settings = build(Sampling, {**self.sampling.given(), **sampling})
        conversation = Conversation(_messages(messages), Origin("chat", 1, 0))
        (answers,) = generate(self.model, self.renderer, [conversation], settings)
        return answers[0].text

    @property
    def context(self) -> int | None:
        """Tokens the model can read, prompt and answer together; None where it names no limit."""
        return context_length(self.model)


def load(
    name: str,
    *,
    dtype: str = "auto",
    template: str | None = None,
    sampling: Sampling | None = None,
    note: Callable[[str], None] | None = None,
) -> LocalModel:
    """Load a model by alias, hub id, folder or GGUF file, or by the folder of a run or an adapter.

    Weights that were tuned as a whole keep the number format they were saved in, unless `dtype` names one.
    A run's own template is used, and checked against the one it was trained with; `template` (a name or a
    .jinja file) replaces it.

    With `note` what answers need on this machine is built now, and a line says what isn't as usual.

    Raises SettingsError for an unknown dtype, RunError for a run without final weights, ModelError for a
    base that isn't the one trained on, TemplateError for a changed template, and what `resolve` raises.
    """
    found = find(name, dtype)
    if note is not None and (waiting := first_use(found.base)):
        note(waiting)
    model = load_model(found.base, found.device, quantization=found.quantization)
    if found.adapter is not None:
        model = adapters.attach(model, found.adapter)
    return over(found, model, template=template, sampling=sampling, note=note)


def over(
    found: Found,
    model: PreTrainedModel,
    *,
    template: str | None = None,
    sampling: Sampling | None = None,
    note: Callable[[str], None] | None = None,
) -> LocalModel:
    """What `load` gives, of a model in memory that has its adapter put on. Raises TemplateError."""
    tokenizer = load_tokenizer(found.tokenizer)
    # Asked as it was trained: a model that learnt to think gets the prompt that thinking begins with.
    thinking = bool((found.meta.get("template") or {}).get("thinking"))
    renderer = Renderer(tokenizer, template, end_ids=end_ids(model), thinking=thinking)
    if not renderer.text:
        raise TemplateError(
            f"{found.name} has no chat template (base models have none), so it can't be asked.",
            fix=f"Choose one with --template (in Python: template=…): {', '.join(TEMPLATES)} or FILE.jinja.",
        )
    if template is None and found.meta:
        _check_template(renderer, found.meta, found.folder)
    if note is not None:
        prepare(model.get_base_model() if hasattr(model, "get_base_model") else model, note)
    return LocalModel(
        found.name,
        model,
        renderer,
        found.device,
        found.run,
        sampling or Sampling.model_validate({}),
        adapter=found.adapter,
        weights=found.identity,
    )


def _check_template(renderer: Renderer, meta: Mapping[str, Any], folder: Path) -> None:
    expected = (meta.get("template") or {}).get("sha256")
    if expected and renderer.sha256 != expected:
        raise TemplateError(
            f"The chat template in {folder} isn't the one that this model was trained with.",
            fix="Restore the folder's files as they were saved. With template=… you can give one yourself, "
            "but a model answers badly to prompts that look different from its training.",
        )


def _messages(given: str | Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    turns = [Message("user", given)] if isinstance(given, str) else list(given)
    messages = []
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, Message):
            messages.append(turn)
            continue
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise GenerateError(
                f"Message {number} needs a role ({', '.join(ROLES)}) and a text as content.",
                fix='Write {"role": "user", "content": "…"}.',
            )
        messages.append(Message(role, content))
    if not messages:
        raise GenerateError("There is no message to answer.", fix="Give a text, or one or more messages.")
    return tuple(messages)
