"""What an export must be like: the tuned model, adapter unmerged, asked before the files are read.

Logits are compared in fp32 arithmetic (arithmetic.py). The weights are those that `chat` holds: the base in
its 16-bit format, the adapter beside it.

A run that was trained on a quantised base has two tuned models. The export is held to the one on the 16-bit
base, which is what was merged; how far that is from the one on the quantised base is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.errors import MissingExtraError
from tunesmith.export import loaded
from tunesmith.export.arithmetic import in_fp32
from tunesmith.export.asked import ANSWER_TOKENS, LONGEST, Asked, asked_of, positions
from tunesmith.export.loaded import TransformersModel
from tunesmith.export.subject import Subject, sixteen_bit
from tunesmith.infer.found import Found
from tunesmith.model import adapters
from tunesmith.model.config import QuantizationSettings
from tunesmith.model.load import load_model

Logits = NDArray[np.float32]
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Heard:
    """What one model said: logits of each sequence, and the answers' tokens."""

    logits: list[Logits]
    answers: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The tuned model by what it said. `base` and `quantised` are None where they weren't asked, `notes` say
    why.

    `sequences` are what logits are compared on: the passages, then each prompt with the tuned model's answer.
    """

    asked: Asked
    sequences: list[list[int]]
    token_ids: list[list[int]]
    template: str
    metadata: dict[str, Any]
    tuned: Heard
    base: list[Logits] | None
    quantised: Heard | None
    quantisation: str | None
    arithmetic: torch.dtype
    notes: list[str]
    decode: Callable[[Sequence[int]], str]


def gate_device(subject: Subject) -> Device:
    """Where the gate computes, in fp32."""
    return replace(subject.found.device, dtype=torch.float32)


def hear(subject: Subject, renderer: Renderer, dtype: torch.dtype, watch: Watch) -> Reference:
    """Load the tuned model and ask it everything; then its base, and the one on the quantised base."""
    asked, device, notes = asked_of(subject, renderer), gate_device(subject), list[str]()
    found = subject.found
    with _tuned(found, device, held_dtype(subject, dtype)) as model:
        asks = TransformersModel(model, renderer.tokenizer, ends=renderer.stop_ids)
        answers = [
            _answer(asks, prompt.token_ids, at, asked, "tuned model", watch)
            for at, prompt in enumerate(asked.prompts)
        ]
        vocabulary = int(loaded.of_model(model)["vocabulary"])
        sequences = _sequences(asked, answers, positions(vocabulary))
        tuned = Heard(_logits(asks, sequences, "tuned model", watch), answers)
        metadata = {
            **loaded.of_model(model),
            **loaded.of_tokenizer(renderer.tokenizer),
            "ends": sorted(renderer.stop_ids),
        }
        base = None
        if found.adapter is not None:
            with adapters.adapter_off(model):
                base = _logits(asks, sequences, "base model", watch)
    if found.adapter is None:
        base = _whole_base(subject, device, renderer, sequences, vocabulary, notes, watch)
    quantised, kind = _quantised(subject, device, renderer, asked, sequences, notes, watch)
    token_ids = TransformersModel.token_ids(asks, [*asked.texts, *asked.rendered])
    return Reference(
        asked,
        sequences,
        token_ids,
        renderer.text,
        metadata,
        tuned,
        base,
        quantised,
        kind,
        device.dtype,
        notes,
        renderer.decode,
    )


def listen(model: Any, reference: Reference, watch: Watch) -> Heard:
    """The same logits and answers of a model that was read back (protocol.Exported)."""
    answers = [
        _answer(model, prompt.token_ids, at, reference.asked, "exported model", watch)
        for at, prompt in enumerate(reference.asked.prompts)
    ]
    return Heard(_logits(model, reference.sequences, "exported model", watch), answers)


def held_dtype(subject: Subject, dtype: torch.dtype) -> torch.dtype:
    """What the tuned model's base is held in: its files' 16-bit format, else chat's; fp32 for an fp32 export.

    A base in fp32 or fp16 would else be rounded on one side only.
    """
    return dtype if dtype is torch.float32 else sixteen_bit(subject) or subject.found.device.dtype


@contextmanager
def _tuned(found: Found, device: Device, dtype: torch.dtype) -> Iterator[Any]:
    model: Any = load_model(found.base, device, dtype=dtype)
    if found.adapter is not None:
        model = adapters.attach(model, found.adapter)
    yield in_fp32(model)


def _whole_base(
    subject: Subject, device: Device, renderer: Renderer, sequences: list[list[int]], vocabulary: int,
    notes: list[str], watch: Watch,
) -> list[Logits] | None:  # fmt: skip
    """Logits of what a model was tuned from as a whole."""
    if not subject.tuned:
        return None
    if (source := subject.trained_base) is None:
        notes.append("The base isn't on this machine: how far the tuned model is from it wasn't measured.")
        return None
    model = load_model(source, device, dtype=subject.found.device.dtype)
    model = in_fp32(model)
    if int(loaded.of_model(model)["vocabulary"]) != vocabulary:
        notes.append("The base has another vocabulary than what was tuned: the two can't be compared.")
        return None
    return _logits(TransformersModel(model, renderer.tokenizer), sequences, "base model", watch)


def _quantised(
    subject: Subject, device: Device, renderer: Renderer, asked: Asked, sequences: list[list[int]],
    notes: list[str], watch: Watch,
) -> tuple[Heard | None, str | None]:  # fmt: skip
    """What the adapter says over the base that it was trained on, where that was quantised."""
    settings: QuantizationSettings | None = subject.found.quantization
    if settings is None or subject.found.adapter is None:
        return None, None
    try:
        model: Any = load_model(subject.found.base, device, quantization=settings)
    except MissingExtraError as error:
        notes.append(f"The model over the {settings.type} base wasn't compared: {error.what}")
        return None, settings.type
    model = adapters.attach(model, subject.found.adapter)
    asks = TransformersModel(model, renderer.tokenizer, ends=renderer.stop_ids)
    told = f"tuned model over {settings.type}"
    notes.append(
        f"Losses and scores of the training are those over the {settings.type} base; what it is worth over "
        "the base in 16 bits, `tunesmith compare` says."
    )
    answers = [
        _answer(asks, prompt.token_ids, at, asked, told, watch) for at, prompt in enumerate(asked.prompts)
    ]
    return Heard(_logits(asks, sequences, told, watch), answers), settings.type


def _sequences(asked: Asked, answers: Sequence[list[int]], room: int) -> list[list[int]]:
    """Prompts with their answers first, then passages, while there is room; some of each at least."""
    wanted = [(p.token_ids + answer)[-LONGEST:] for p, answer in zip(asked.prompts, answers, strict=True)]
    kept: list[list[int]] = []
    half = max(1, room // 2)
    for ids in wanted:
        if kept and sum(map(len, kept)) + len(ids) > half:
            break
        kept.append(ids[-half:])
    for ids in asked.passages:
        left = room - sum(map(len, kept))
        if left < 8:
            break
        kept.append(ids[:left])
    return kept


def _logits(asks: Any, sequences: Sequence[list[int]], who: str, watch: Watch) -> list[Logits]:
    found = []
    for at, ids in enumerate(sequences):
        watch(f"{who} reads", at, len(sequences))
        found.append(asks.logits(ids))
    watch(f"{who} reads", len(sequences), len(sequences))
    return found


def _answer(asks: Any, ids: list[int], at: int, asked: Asked, who: str, watch: Watch) -> list[int]:
    watch(f"{who} answers", at, len(asked.prompts))
    found: list[int] = asks.greedy(ids, ANSWER_TOKENS)
    watch(f"{who} answers", at + 1, len(asked.prompts))
    return found
