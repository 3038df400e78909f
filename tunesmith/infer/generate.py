"""Answers from a model in memory: many prompts in batches, or one as a stream of text.

The renderer makes every prompt, as in training. An answer's text is decoded from the generated tokens alone;
nothing is ever cut from the prompt's characters.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer

from tunesmith.data.template import Renderer
from tunesmith.errors import GenerateError, SettingsError, TunesmithError
from tunesmith.infer.answer import Growing, ended
from tunesmith.infer.config import NEW_TOKENS, Sampling
from tunesmith.infer.sampling import criteria, generation_config, processors, row_generator
from tunesmith.model.load import context_length
from tunesmith.records import Completion, Conversation

WINDOW = 8  # batches that are sorted by length together: little padding, and the first answers come soon

# `generate` reads the model's own generation_config, which is put aside meanwhile: one answer at a time.
_turn = threading.RLock()


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
    `seconds` of an answer is its share of its batch's time.

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

    Conversations whose index is in `done` aren't asked. They keep their places: where whole batches are done,
    the others are computed as if none were, bit for bit.
    """
    job = _Job(model, renderer, sampling)
    return job.in_batches(job.prompts(conversations), batch_size, done)


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


@dataclass(frozen=True, slots=True)
class _Prompt:
    index: int  # in the list given
    row: int  # in the user's file: what its chance depends on
    ids: list[int]
    limit: int  # new tokens at most


class _Job:
    """What stays the same over all prompts of a call."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, sampling: Sampling) -> None:
        # PEFT's wrapper adds nothing to `generate`; the model inside has the adapter in its layers.
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.sampling = sampling
        self.stop = sampling.stop or ()
        self.end_ids = frozenset(sampling.eos_token_id or renderer.stop_ids)
        self.pad_id = self._pad_id()
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self.context = context_length(self.model)
        self._check_ids()

    def prompts(self, conversations: Sequence[Conversation]) -> list[_Prompt]:
        found: list[_Prompt] = []
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
        self, prompts: Sequence[_Prompt], batch_size: int, done: Container[int]
    ) -> Generator[dict[int, list[Completion]]]:
        size = max(1, batch_size // max(self.sampling.beams, self.sampling.answers))
        for start in range(0, len(prompts), size * WINDOW):
            for batch in _batches(prompts[start : start + size * WINDOW], size, self.context):
                if left := [prompt for prompt in batch if prompt.index not in done]:
                    yield self._answer(left)

    def pieces(self, prompt: _Prompt) -> Generator[str, None, Completion]:
        tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        cancelled = threading.Event()
        ids: list[int] = []

        def work() -> None:
            try:
                (row,) = self._run([(prompt, 0)], cancelled=cancelled, streamer=_NewTokens(tokens))
                ids.extend(row)
                tokens.put(None)
            except BaseException as error:
                tokens.put(error)

        began = time.perf_counter()
        growing = Growing(self.tokenizer, self.end_ids, self.stop)
        worker = threading.Thread(target=work, name="answer")
        worker.start()
        try:
            while (token := tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                if piece := growing.add(token):
                    yield piece
            completion = self._completion(prompt, ids, time.perf_counter() - began)
            if piece := growing.rest(completion.text):
                yield piece
            return completion
        finally:
            cancelled.set()
            worker.join()

    def _answer(self, batch: Sequence[_Prompt]) -> dict[int, list[Completion]]:
        began = time.perf_counter()
        # Beams of a prompt share its row; drawn answers to it are rows of their own.
        repeats = 1 if self.sampling.beams > 1 else self.sampling.answers
        answers = self._run([(prompt, n) for prompt in batch for n in range(repeats)])
        seconds = (time.perf_counter() - began) / len(answers)
        each = self.sampling.answers
        return {
            prompt.index: [
                self._completion(prompt, ids, seconds) for ids in answers[i * each : (i + 1) * each]
            ]
            for i, prompt in enumerate(batch)
        }

    def _completion(self, prompt: _Prompt, ids: Sequence[int], seconds: float) -> Completion:
        answer = ended(self.tokenizer, ids, limit=prompt.limit, end_ids=self.end_ids, stop=self.stop)
        return Completion(answer.text, answer.finish, len(prompt.ids), answer.tokens, seconds)

    def _run(
        self,
        rows: Sequence[tuple[_Prompt, int]],
        *,
        cancelled: threading.Event | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """New tokens of each row (prompt, number of its answer), filled up after its end."""
        width = max(len(prompt.ids) for prompt, _ in rows)
        padding = [width - len(prompt.ids) for prompt, _ in rows]
        limits = [prompt.limit for prompt, _ in rows]
        input_ids = torch.tensor([[self.pad_id] * p + r.ids for p, (r, _) in zip(padding, rows, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (width - p) for p in padding])
        generators = [row_generator(self.seed, prompt.row, n) for prompt, n in rows]
        with _answering(self.model):
            output = self.model.generate(
                input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=generation_config(
                    self.sampling,
                    new_tokens=max(limits),
                    end_ids=sorted(self.end_ids),
                    pad_id=self.pad_id,
                ),
                logits_processor=processors(
                    self.sampling, padding=padding, width=width, generators=generators
                ),
                stopping_criteria=criteria(
                    self.tokenizer, self.sampling, width=width, limits=limits, cancelled=cancelled
                ),
                streamer=streamer,
            )
        new_ids: list[list[int]] = output[:, width:].tolist()
        return new_ids

    def _prompt(self, index: int, conversation: Conversation) -> _Prompt:
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
        return _Prompt(index, conversation.number, ids, room)

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


class _NewTokens(BaseStreamer):  # type: ignore[misc]
    """Hands each new token on; the prompt, which `generate` puts first, is left out."""

    def __init__(self, tokens: queue.SimpleQueue[int | BaseException | None]) -> None:
        self.tokens = tokens
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.tokens.put(int(value.item()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


def _in_order(batches: Iterator[dict[int, list[Completion]]]) -> Iterator[list[Completion]]:
    done: dict[int, list[Completion]] = {}
    due = 0
    for batch in batches:
        done.update(batch)
        while due in done:
            yield done.pop(due)
            due += 1


def _batches(prompts: Sequence[_Prompt], size: int, context: int | None) -> list[list[_Prompt]]:
    """Prompts of similar length together; the batch with the earliest prompt first."""
    batches: list[list[_Prompt]] = []
    for prompt in sorted(prompts, key=lambda p: (len(p.ids), p.index)):
        grown = [*batches[-1], prompt] if batches else [prompt]
        # A row that has ended is carried along until the last one ends; it mustn't run out of positions.
        last_position = len(prompt.ids) + max(p.limit for p in grown)
        if batches and len(grown) <= size and (context is None or last_position <= context):
            batches[-1] = grown
        else:
            batches.append([prompt])
    return sorted(batches, key=lambda batch: min(p.index for p in batch))


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """The model without dropout and without defaults of its own, both given back afterwards."""
    with _turn:
        was_training, own = model.training, model.generation_config
        model.eval()
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = own
            model.train(was_training)
