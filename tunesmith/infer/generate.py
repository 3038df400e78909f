"""Answers from a model in memory: many prompts in batches, or one as a stream of text.

The renderer makes every prompt, as in training. An answer's text is decoded from the generated tokens alone;
nothing is ever cut from the prompt's characters. What computes the tokens is a backend (backend.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from tunesmith.data.template import Renderer
from tunesmith.errors import GenerateError, SettingsError, TunesmithError
from tunesmith.infer.answer import Growing, ended
from tunesmith.infer.backend import Asked, Backend, Tokens
from tunesmith.infer.batch_backend import BatchBackend
from tunesmith.infer.choosing import Choice, row_generator
from tunesmith.infer.config import NEW_TOKENS, Sampling
from tunesmith.infer.decoding import slow_because
from tunesmith.infer.guide import SchemaGuides
from tunesmith.infer.transformers_backend import TransformersBackend
from tunesmith.model.adapters import adapter_off
from tunesmith.model.fused_lora import can_mix
from tunesmith.model.load import context_length
from tunesmith.records import Completion, Conversation


def generate(
    model: PreTrainedModel,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    *,
    batch_size: int = 16,
) -> Iterator[list[Completion]]:
    """Answer each conversation, in the given order, each as soon as it and those before it are done.

    `batch_size` counts the sequences computed at once: prompts x answers, or prompts x beams. What is drawn
    for a row depends on the seed, the row's number in its file and the answer's number, not on its batch.
    `seconds` of an answer is its share of the time of the sequences computed with it.

    Raises before anything runs, naming every prompt that can't be rendered or leaves no room for an answer.
    """
    return _in_order(generate_batches(model, renderer, conversations, sampling, batch_size=batch_size))


def generate_batches(
    model: PreTrainedModel,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    done: Container[int] = frozenset(),
) -> Generator[dict[int, list[Completion]]]:
    """What `generate` gives, a batch at a time as it's done, by the index of the conversation.

    Conversations whose index is in `done` aren't asked. They still count where beginnings are shared, and
    with beams in batches, so that the others are computed as if none were done: bit for bit with beams and
    where rows are computed in C++ (a row's sums don't depend on its company there), else but for rounding.
    """
    job = _Job(model, renderer, sampling)
    return job.in_batches(job.prompts(conversations), batch_size, done)


def generate_both(
    model: PreTrainedModel,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    *,
    batch_size: int = 16,
) -> Iterator[tuple[list[Completion], list[Completion]]]:
    """As `generate`, from the base and from the tuned model: both answer in the same batches.

    With a seed both draw by the same chance. Raises as `generate`.
    """
    job = _Job(model, renderer, sampling)
    prompts = [
        replace(one, index=2 * one.index + on, adapter=bool(on))
        for one in job.prompts(conversations)
        for on in (0, 1)
    ]
    answers = _in_order(job.in_batches(prompts, batch_size))
    return zip(answers, answers, strict=True)


def stream(
    model: PreTrainedModel, renderer: Renderer, conversation: Conversation, sampling: Sampling
) -> Generator[str, None, Completion]:
    """One answer, piece by piece; together the pieces are exactly the text that `generate` gives.

    A piece holds whole characters, and nothing that may turn out to belong to a stop text. The generator
    returns the Completion. Closing it ends the computation before `close` returns.

    Raises SettingsError for beams or several answers, GenerateError for a prompt that leaves no room.
    """
    if conflicts := sampling.streaming_conflicts():
        raise SettingsError("The answer can't be shown while it's written.", details=conflicts)
    job = _Job(model, renderer, sampling)
    (prompt,) = job.prompts([conversation])
    return job.pieces(prompt)


class _Job:
    """What stays the same over all prompts of a call."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, sampling: Sampling) -> None:
        # PEFT's wrapper adds nothing to `generate`; the model inside has the adapter in its layers.
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.whole = model
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.sampling = sampling
        self.stop = sampling.stop or ()
        self.end_ids = frozenset(sampling.eos_token_id or renderer.stop_ids)
        self.pad_id = self._pad_id()
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self.context = context_length(self.model)
        self._check_ids()
        self.guides: SchemaGuides | None = None
        if sampling.json_schema is not None:
            self.guides = SchemaGuides(
                self.tokenizer, sampling.json_schema, sorted(self.end_ids), self._size()
            )

    def prompts(self, conversations: Sequence[Conversation]) -> list[Asked]:
        found: list[Asked] = []
        problems: list[TunesmithError] = []
        for index, conversation in enumerate(conversations):
            try:
                found.append(self._prompt(index, conversation))
            except TunesmithError as error:
                problems.append(error)
        if len(problems) > 1:
            fixes = dict.fromkeys(problem.fix for problem in problems)
            raise GenerateError(
                f"{len(problems)} of {len(conversations)} prompts can't be answered.",
                details=[problem.what for problem in problems],
                fix=" ".join(fixes),
            )
        if problems:
            raise problems[0]
        return found

    def in_batches(
        self, prompts: Sequence[Asked], batch_size: int, done: Container[int] = frozenset()
    ) -> Generator[dict[int, list[Completion]]]:
        # Beams of a prompt share its row; drawn answers to it are rows of their own.
        repeats = 1 if self.sampling.beams > 1 else self.sampling.answers
        asked = [replace(one, answer=n) for one in prompts for n in range(repeats)]
        found: dict[int, dict[int, Completion]] = {}
        for group in self._backend(asked).answers(asked, batch_size, done):
            whole: dict[int, list[Completion]] = {}
            for tokens in group:
                index = tokens.asked.index
                answers = found.setdefault(index, {})
                # Beams come one after the other, the best first.
                answers[len(answers) if repeats == 1 else tokens.asked.answer] = self._completion(tokens)
                if len(answers) == self.sampling.answers:
                    whole[index] = [answer for _, answer in sorted(found.pop(index).items())]
            if whole:
                yield whole

    def pieces(self, prompt: Asked) -> Generator[str, None, Completion]:
        began = time.perf_counter()
        growing = Growing(self.tokenizer, self.end_ids, self.stop)
        backend = self._backend([prompt])
        tokens = backend.stream(prompt)
        try:
            for token in tokens:
                if piece := growing.add(token):
                    yield piece
            completion = self._completion(Tokens(prompt, growing.ids, time.perf_counter() - began))
            if piece := growing.rest(completion.text):
                yield piece
            return completion
        finally:
            tokens.close()  # type: ignore[attr-defined]

    def _completion(self, tokens: Tokens) -> Completion:
        asked = tokens.asked
        answer = ended(self.tokenizer, tokens.ids, limit=asked.limit, end_ids=self.end_ids, stop=self.stop)
        scores = tuple(tokens.scores[: answer.tokens])
        return Completion(answer.text, answer.finish, len(asked.ids), answer.tokens, tokens.seconds, scores)

    def _backend(self, asked: Sequence[Asked]) -> Backend:
        mixed = len({one.adapter for one in asked}) > 1
        if self.sampling.beams > 1 or slow_because(self.model) or (mixed and not can_mix(self.model)):
            return TransformersBackend(
                self.model, self.tokenizer, self.sampling, end_ids=sorted(self.end_ids), pad_id=self.pad_id,
                context=self.context, choice=self._choice, base=lambda: adapter_off(self.whole),
            )  # fmt: skip
        return BatchBackend(
            self.model, self.tokenizer, self.sampling, end_ids=self.end_ids, choice=self._choice
        )

    def _choice(self, asked: Asked) -> Choice:
        chance = row_generator(self.seed, asked.row, asked.answer)
        return Choice(asked.ids, self.sampling, chance, self.guides.new() if self.guides else None)

    def _prompt(self, index: int, conversation: Conversation) -> Asked:
        ids = self.renderer.prompt_ids(conversation)
        if not ids:
            raise GenerateError(
                f"{conversation.origin}: the prompt is empty.", fix="Write something to answer."
            )
        total = self.sampling.max_length
        room = self.sampling.max_new_tokens or NEW_TOKENS if total is None else total - len(ids)
        size = f"{conversation.origin}: the prompt has {len(ids)} tokens"
        if room < 1:
            raise GenerateError(
                f"{size} and max_length, which counts prompt and answer, is {total}.",
                fix="Raise max_length, or set max_new_tokens instead.",
            )
        if self.context is not None:
            room = min(room, self.context - len(ids))
        if room < 1:
            raise GenerateError(
                f"{size} and the model reads {self.context}, prompt and answer together.",
                fix="Shorten the prompt, or use a model that reads longer texts.",
            )
        return Asked(index, conversation.number, 0, ids, room)

    def _pad_id(self) -> int:
        if self.sampling.pad_token_id is not None:
            return self.sampling.pad_token_id
        # Padding is masked, so that any id does; one that ends answers makes the output easy to read. A
        # tokenizer's own may lie beyond the embedding: a [PAD] that was added without resizing the model.
        for candidate in (self.tokenizer.pad_token_id, *sorted(self.end_ids)):
            if candidate is not None and candidate < self._size():
                return int(candidate)
        return 0

    def _size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _check_ids(self) -> None:
        size = self._size()
        given = {"pad_token_id": [self.pad_id], "eos_token_id": self.sampling.eos_token_id or ()}
        wrong = [f"{name} {i}" for name, ids in given.items() for i in ids if i >= size]
        if wrong:
            raise SettingsError(
                f"The model has no such token: {', '.join(wrong)}.", fix=f"Its ids are 0 to {size - 1}."
            )


def _in_order(batches: Iterator[dict[int, list[Completion]]]) -> Iterator[list[Completion]]:
    done: dict[int, list[Completion]] = {}
    due = 0
    for batch in batches:
        done.update(batch)
        while due in done:
            yield done.pop(due)
            due += 1
