"""What a job computes, counted before anything is loaded: rows, tokens, steps, microbatches.

With the model's tokenizer on this machine everything is counted exactly, by the functions that training
itself uses; without it, lengths are guessed from characters and nothing counts as shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.data.check import Dataset, load_data
from tunesmith.data.encode import Example, encode
from tunesmith.data.prefixes import sort_rows, unique_tokens
from tunesmith.data.prompts import read_prompts
from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.model.describe import Description
from tunesmith.model.families import can_pack
from tunesmith.model.load import end_ids, load_tokenizer
from tunesmith.model.source import Source
from tunesmith.records import Conversation, Labelled, Record, Text
from tunesmith.rundir import RunDir
from tunesmith.train import fast_paths
from tunesmith.train.config import Job
from tunesmith.train.listener import Silent
from tunesmith.train.objectives import sft
from tunesmith.train.prepare import thinks
from tunesmith.train.track import Tracking
from tunesmith.train.training import PACK_MULTIPLE, Training

# Tokens for each character, of the usual vocabularies of 50,000 to 150,000 tokens.
HAN_TOKENS, OTHER_TOKENS, TOKENS_A_MESSAGE = 0.8, 0.27, 5


@dataclass(frozen=True)
class Rows:
    """Examples to train and to validate on; `exact`: counted with the model's tokenizer. `prompts`: tokens of
    those that are answered while training runs (train.evaluate).
    """

    train: Sequence[Example]
    valid: Sequence[Example]
    exact: bool
    prompts: Sequence[int] = ()


@dataclass(frozen=True)
class Workload:
    """A whole training in numbers; a microbatch's figures are those of the largest.

    `tokens`: of all rows; `computed`: what rows share once; `laid`: with padding and the packs' filler.
    """

    rows: int
    steps: int
    tokens: int
    computed: int
    laid: int
    labels: int
    squares: int
    valid_tokens: int
    valid_labels: int
    microbatch: int
    microbatch_rows: int
    microbatch_labels: int
    microbatches_a_step: int
    lengths: int
    packed: bool
    segments: bool
    exact: bool

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def read_rows(job: Job, description: Description) -> Rows:
    """The job's examples. Raises DataError or TemplateError as training would."""
    train, valid = load_data(job.data, job.train.seed)
    source = description.source
    folder = description.folder
    if source is None and folder is not None and _has_tokenizer(folder):
        source = Source(description.name, "folder", folder)
    asked = _asked(job, valid)
    if source is None:
        sizes = [sum(_lengths(prompt)) for prompt in asked]
        return Rows(_guessed(train, job), _guessed(valid, job) if valid else (), False, sizes)
    renderer = Renderer(
        load_tokenizer(source), job.data.template, end_ids=end_ids(source), thinking=thinks(train.records)
    )
    held_out = encode(valid.records, renderer, job.data, part="data.valid").examples if valid else ()
    sizes = [len(renderer.prompt_ids(prompt)) for prompt in asked]
    return Rows(encode(train.records, renderer, job.data).examples, held_out, True, sizes)


def count(job: Job, model: nn.Module, rows: Rows, device: Device) -> Workload:
    """Lay the rows out as training does; `model` may be one of shapes alone."""
    packed = bool(job.data.packing and can_pack(model.config)[0])
    segments, sharing = False, False
    if device.kind != "mps":
        segments, sharing, _ = fast_paths.choose(job, model, packed)
    training = Training(
        model=model,
        objective=sft(),
        train=rows.train,
        valid=rows.valid,
        settings=job.train,
        device=device,
        packing=packed,
        pad_id=0,
        run=RunDir(Path("unused")),
        listener=Silent(),
        tracking=Tracking(()),
        segments=segments,
        sharing=sharing and rows.exact,
    )
    training, _ = fast_paths.settle(training, "")
    ids = [example.input_ids for example in rows.train]
    lengths = [len(row) for row in ids]
    label_counts = [sum(example.label_mask) for example in rows.train]
    steps = [step for plan in training.plans for step in plan]
    batches = [b for step in steps for b in step.microbatches]
    raw = [sum(lengths[i] for i in batch) for batch in batches]
    computed = [unique_tokens(sort_rows(ids, b), lengths) for b in batches] if training.sharing else raw
    if training.segments:
        laid = [size + -size % PACK_MULTIPLE for size in computed]
    elif training.packing:
        laid = computed
    else:
        laid = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    labels = [sum(label_counts[i] for i in batch) for batch in batches]
    if training.packing and not training.segments:
        squares = float(sum(size**2 for size in laid))
    else:
        # Rows see what they share: the squares of whole rows are an upper bound of attention's share.
        whole = [sum(lengths[i] ** 2 for i in batch) for batch in batches]
        squares = sum(w * c / max(1, r) for w, c, r in zip(whole, computed, raw, strict=True))
    largest = max(range(len(batches)), key=lambda at: (laid[at], labels[at]))
    return Workload(
        rows=len(rows.train),
        steps=training.steps,
        tokens=sum(raw),
        computed=sum(computed),
        laid=sum(laid),
        labels=sum(labels),
        squares=int(squares),
        valid_tokens=sum(len(example.input_ids) for example in rows.valid),
        valid_labels=sum(sum(example.label_mask) for example in rows.valid),
        microbatch=laid[largest],
        microbatch_rows=1 if training.packing else len(batches[largest]),
        microbatch_labels=max(labels),
        microbatches_a_step=max(len(step.microbatches) for step in steps),
        lengths=len(set(laid)),
        packed=training.packing,
        segments=training.segments,
        exact=rows.exact,
    )


def _asked(job: Job, valid: Dataset | None) -> list[Conversation]:
    """The prompts that `train.evaluate` asks."""
    if (settings := job.train.evaluate) is None:
        return []
    if settings.prompts is not None:
        return [row.prompt for row in read_prompts(settings.prompts)[: settings.limit]]
    rows = [r for r in (valid.records if valid else []) if isinstance(r, Conversation) and r.answer]
    return [row.prompt for row in rows[: settings.limit]]


def _guessed(data: Dataset, job: Job) -> list[Example]:
    made = []
    for row, record in enumerate(data.records):
        whole, labelled = _lengths(record)
        whole = max(2, min(whole, job.data.max_length))
        labelled = max(1, min(labelled, whole - 1))
        mask = [False] * (whole - labelled) + [True] * labelled
        # Tokens of no meaning that no other row begins with.
        origin = record.conversation.origin if isinstance(record, Labelled) else record.origin
        made.append(Example([row] * whole, mask, origin, row))
    return made


def _lengths(record: Record) -> tuple[int, int]:
    """Guessed (tokens, label tokens) of a row."""
    if isinstance(record, Text):
        return _tokens(record.text), _tokens(record.text)
    if not isinstance(record, Conversation):
        return 2, 1
    sizes = [(m.role, _tokens(m.content) + TOKENS_A_MESSAGE) for m in record.messages]
    return sum(n for _, n in sizes), sum(n for role, n in sizes if role == "assistant")


def _tokens(text: str) -> int:
    han = sum(character >= "\u3000" for character in text)
    return round(han * HAN_TOKENS + (len(text) - han) * OTHER_TOKENS)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def device_for(kind: str, dtype: torch.dtype) -> Device:
    """A device that needn't be here, for plans."""
    return Device(torch.device(kind), dtype, kind)
