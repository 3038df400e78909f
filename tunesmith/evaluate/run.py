"""Measure one model on rows with answers: its loss, its own answers, their scores.

Answers are written to a file as they come, so that hours of work survive an interruption: to OUTPUT.partial,
which becomes OUTPUT when the last row is in. One that an earlier attempt left stays: OUTPUT.partial-2 is the
next, and so on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from tunesmith.device import peak_memory
from tunesmith.disk import disk_errors
from tunesmith.errors import GenerateError
from tunesmith.evaluate.metrics import Metric, is_empty
from tunesmith.evaluate.perplexity import Loss, RowLoss, answer_loss, intervals, total
from tunesmith.evaluate.statistics import mean_interval
from tunesmith.infer.local import LocalModel
from tunesmith.records import Completer, Completion, Conversation

Watch = Callable[[str, int, int], None]
"""Called with what is being done, rows done, rows in all."""


@dataclass(frozen=True)
class Base:
    """The base under a tuned model as a Completer: the same load with its adapter switched off."""

    tuned: LocalModel
    name: str

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        with self.tuned.base():
            yield from self.tuned.complete(conversations)


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: what was asked, what came, how it scored. `loss` is the reference's, not the answer's."""

    id: str
    prompt: str
    references: tuple[str, ...]
    completion: Completion
    scores: Mapping[str, float]
    loss: RowLoss | None = None

    def answer_json(self) -> dict[str, Any]:
        done = self.completion
        return {
            "prediction": done.text,
            "scores": dict(self.scores),
            "finish": done.finish,
            "tokens": done.completion_tokens,
            "seconds": round(done.seconds, 4),
            **({"nll": self.loss.nll_sum, "label_tokens": self.loss.tokens} if self.loss else {}),
        }

    def to_json(self) -> dict[str, Any]:
        asked = {"id": self.id, "prompt": self.prompt}
        answer = self.answer_json()
        return {
            **asked,
            "prediction": answer.pop("prediction"),
            "references": list(self.references),
            **answer,
        }


@dataclass
class Evaluation:
    """One model's rows and figures. `seconds` is the wall-clock time of answering."""

    model: str
    rows: list[RowResult]
    metrics: tuple[Metric, ...]
    loss: Loss | None
    seconds: float
    facts: Mapping[str, Any]
    output: Path

    @property
    def n(self) -> int:
        return len(self.rows)

    def scores(self, metric: str) -> list[float]:
        """One score a row."""
        return [row.scores[metric] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """{"n", "metrics": {name: {value, low, high}}, "loss", "perplexity", …, "intervals": {"loss": {value,
        low, high}, …}}; JSON knows no None here: figures that could not be had are left out.
        """
        texts = [row.completion.text for row in self.rows]
        content: dict[str, Any] = {
            "kind": "evaluation",
            "model": self.model,
            "n": self.n,
            "metrics": {
                m.name: mean_interval(self.scores(m.name), binary=m.binary).to_json() for m in self.metrics
            },
        }
        if self.loss is not None:
            content |= {"loss": self.loss.loss, "perplexity": self.loss.perplexity}
            content |= {"bits_per_byte": self.loss.bits_per_byte} if self.loss.bits_per_byte else {}
            content |= {"label_tokens": self.loss.tokens}
            bounds = intervals([row.loss for row in self.rows if row.loss is not None])
            content["intervals"] = {name: interval.to_json() for name, interval in bounds.items()}
        return content | {
            "empty": sum(map(is_empty, texts)),
            "cut": sum(row.completion.finish == "length" for row in self.rows),
            "mean_length": sum(map(len, texts)) / self.n,
            "completion_tokens": sum(row.completion.completion_tokens for row in self.rows),
            "seconds": round(self.seconds, 3),
            "predictions": str(self.output),
            **self.facts,
        }


def evaluate(
    model: Completer,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    output: Path,
    watch: Watch | None = None,
) -> Evaluation:
    """Measure `model` on conversations with references; its answers are written to `output` (JSONL).

    A line has id, prompt, prediction, references, scores, finish, tokens, seconds, and nll and label_tokens
    where the model is a local one. Raises what the model raises, and RunError if the disk can't be written.
    """
    losses = _losses(model, conversations, watch)
    rows: list[RowResult] = []
    begun = time.monotonic()
    prompts = [conversation.prompt for conversation in conversations]
    with _growing(output) as file, _closing(model.complete(prompts)) as answers:
        for at, conversation in enumerate(conversations):
            _tell(watch, f"{model.name} answers", at, len(conversations))
            completion = _only(next(answers, None), model, conversation)
            row = _scored(conversation, completion, metrics, losses[at] if losses else None)
            rows.append(row)
            with disk_errors(output):
                file.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
                file.flush()
    _tell(watch, f"{model.name} answers", len(conversations), len(conversations))
    seconds = time.monotonic() - begun
    loss = total(losses) if losses else None
    return Evaluation(model.name, rows, tuple(metrics), loss, seconds, _facts(model), output)


def _losses(
    model: Completer, conversations: Sequence[Conversation], watch: Watch | None
) -> list[RowLoss] | None:
    """Before any answer: rows that are too long are then known at once, and not after an hour."""
    if not isinstance(model, LocalModel | Base):
        return None
    _tell(watch, f"{model.name}: loss", 0, len(conversations))
    if isinstance(model, Base):
        with model.tuned.base():
            return answer_loss(model.tuned, conversations)
    return answer_loss(model, conversations)


def _scored(
    conversation: Conversation, completion: Completion, metrics: Sequence[Metric], loss: RowLoss | None
) -> RowResult:
    asked = [turn.content for turn in conversation.prompt.messages if turn.role == "user"]
    question = asked[-1] if asked else ""
    scores = {m.name: m.score(completion.text, conversation.references, question) for m in metrics}
    name = conversation.key
    return RowResult(name, conversation.question, conversation.references, completion, scores, loss)


def _only(answers: list[Completion] | None, model: Completer, conversation: Conversation) -> Completion:
    if answers is None:
        raise GenerateError(f"{model.name} gave no answer to {conversation.origin}.", fix="Run it again.")
    if len(answers) != 1:
        raise GenerateError(
            f"{model.name} gives {len(answers)} answers to each prompt; one can be scored.",
            fix="Leave num_return_sequences out.",
        )
    return answers[0]


def _facts(model: Completer) -> dict[str, Any]:
    local = model.tuned if isinstance(model, Base) else model
    if not isinstance(local, LocalModel):
        return {}
    return {
        "sampling": local.sampling.given(),
        "template": {"name": local.renderer.name, "sha256": local.renderer.sha256},
        "device": local.device.name,
        "dtype": str(local.device.dtype).removeprefix("torch."),
        "peak_memory_bytes": peak_memory(local.device.kind),
    }


@contextmanager
def _closing(answers: Iterator[list[Completion]]) -> Iterator[Iterator[list[Completion]]]:
    """End a generator here and now: an adapter that it has switched off must be on for what follows."""
    try:
        yield answers
    finally:
        if isinstance(answers, Generator):
            answers.close()


@contextmanager
def _growing(output: Path) -> Iterator[IO[str]]:
    """A file that grows as OUTPUT.partial and gets its name when it is whole; without a line it vanishes."""
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        file, partial = _new_partial(output)
    try:
        yield file
    except BaseException:
        file.close()
        if not partial.stat().st_size:
            partial.unlink()
        raise
    file.close()
    with disk_errors(output):
        partial.replace(output)


def _new_partial(output: Path) -> tuple[IO[str], Path]:
    """The first of OUTPUT.partial, OUTPUT.partial-2, … that isn't there, open for writing."""
    for number in count(1):
        partial = output.with_name(f"{output.name}.partial{'' if number == 1 else f'-{number}'}")
        try:
            return partial.open("x", encoding="utf-8"), partial
        except FileExistsError:
            continue
    raise AssertionError("there are always more numbers")


def _tell(watch: Watch | None, what: str, done: int, rows: int) -> None:
    if watch is not None:
        watch(what, done, rows)
