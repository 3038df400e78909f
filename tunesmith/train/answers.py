"""Answers of the model that is being trained: samples to look at, and those that metrics score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel

from tunesmith.data.template import Renderer
from tunesmith.errors import TrainError, lacks_memory
from tunesmith.records import Conversation
from tunesmith.train.examine import Examined
from tunesmith.train.forward import mixed_precision
from tunesmith.train.listener import Listener
from tunesmith.train.prepare import Prepared
from tunesmith.train.training import Training

AnswerHook = Callable[[PreTrainedModel, Renderer, Sequence[Conversation]], list[str]]


def sampler(ready: Prepared, listener: Listener, answer: AnswerHook | None) -> Callable[[int], None]:
    """A function that answers the first validation prompts and keeps the answers in samples.jsonl."""
    settings, rows, training = ready.job.train, ready.valid_rows, ready.training
    conversations = [r for r in (rows.records if rows else []) if isinstance(r, Conversation) and r.answer]
    asked = conversations[: settings.sample_prompts] if settings.sample_every and answer else []

    def sample(step: int) -> None:
        if not asked or answer is None:
            return
        with _untouched(training):
            texts = answer(_model(training), ready.renderer, [c.prompt for c in asked])
        for conversation, text in zip(asked, texts, strict=True):
            prompt = conversation.prompt.messages[-1].content
            line = {"step": step, "prompt": prompt, "answer": text, "reference": conversation.answer}
            training.samples.append(line)
            listener.sampled(line)

    return sample


def examiner(ready: Prepared, listener: Listener) -> Callable[[int], Examined] | None:
    """A function that lets the model answer what `train.evaluate` asks; None where it asks nothing.

    The first answers go to samples.jsonl, unless samples of their own do.
    """
    examination, training, settings = ready.examination, ready.training, ready.job.train
    if examination is None:
        return None

    def examine(step: int) -> Examined:
        try:
            with _untouched(training):
                found = examination.examine(_model(training), ready.renderer, training.device)
        except Exception as error:
            if not lacks_memory(error):
                raise
            raise TrainError(
                f"Memory ran out while the model answered (train.evaluate), after step {step}.",
                fix="Set train.evaluate.batch_size lower, and give the same command again: it goes on.",
            ) from error
        for answered in found.answers[: 0 if settings.sample_every else settings.sample_prompts]:
            line = {"step": step, **vars(answered)}
            training.samples.append(line)
            listener.sampled(line)
        return found

    return examine


@contextmanager
def _untouched(training: Training) -> Iterator[None]:
    """The training afterwards as before: its generators, and the model's mode. A signal ends it at once."""
    model = training.model
    # Mixed precision: after freeze, layers of two number formats follow each other.
    with training.stop.at_once(), torch.random.fork_rng(), mixed_precision(training.device, model):
        model.eval()
        try:
            yield
        finally:
            model.train()


def _model(training: Training) -> PreTrainedModel:
    return cast(PreTrainedModel, training.model)
