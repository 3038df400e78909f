"""From a job to a training that could start: data read and encoded, model loaded, fast paths chosen.

Nothing is written here, so that `train`, `plan` and `verify` share it, and what can fail cheaply (settings,
data, template, target names) fails before a run folder exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.data.check import Dataset, load_data
from tunesmith.data.encode import EncodedData, Example, encode
from tunesmith.data.report import build_report
from tunesmith.data.template import Renderer
from tunesmith.device import pick
from tunesmith.errors import PlanError
from tunesmith.model import adapters
from tunesmith.model.families import can_pack
from tunesmith.model.load import context_length, end_ids, fingerprint, load_model, load_tokenizer
from tunesmith.model.source import Source, resolve
from tunesmith.records import Conversation, Record
from tunesmith.rundir import RunDir
from tunesmith.train import compiling, fast_paths
from tunesmith.train.config import Job
from tunesmith.train.listener import Listener
from tunesmith.train.loop import Training, default_tokens_per_step
from tunesmith.train.objectives import sft
from tunesmith.train.optim import check_schedule
from tunesmith.train.seeds import seed_everything
from tunesmith.train.track import Tracking

FEW_STEPS = 10
FEW_ROWS = 20


@dataclass
class Prepared:
    """A training that could start, and what it was made from. `job` has its defaults written out."""

    job: Job
    source: Source
    base_fingerprint: str
    renderer: Renderer
    train_rows: Dataset
    valid_rows: Dataset | None
    report: dict[str, Any]
    training: Training


def prepare(job: Job, output: Path, listener: Listener) -> Prepared:
    """Do everything that comes before the first step, writing nothing.

    Raises a TunesmithError of the part that failed.
    """
    seed_everything(job.train.seed)
    device = pick(job.train.dtype)
    train_rows, valid_rows = load_data(job.data, job.train.seed)
    source = resolve(job.model, job.revision)
    listener.note(f"Model {job.model}, on {device.name}, {device.dtype_name}.")
    tokenizer = load_tokenizer(source)
    renderer = Renderer(
        tokenizer, job.data.template, end_ids=end_ids(source), thinking=thinks(train_rows.records)
    )
    encoded = encode(train_rows.records, renderer, job.data)
    valid_encoded = encode(valid_rows.records, renderer, job.data) if valid_rows else None
    report = build_report(train_rows, valid_rows, encoded, valid_encoded, renderer)
    listener.data(report)

    job = with_step_size(job, encoded.examples)
    model = load_model(source, device)
    _check_context(model, encoded, valid_encoded)
    packing, why = can_pack(model.config) if job.data.packing else (False, "data.packing is false")
    base = fingerprint(source)
    model = adapters.prepare(model, job.adapter, seed=job.train.seed, base_fingerprint=base)
    if job.train.checkpoint_activations:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    segments, sharing, said = fast_paths.choose(job, model, packing)

    training = Training(
        model=model,
        objective=sft(job.train.label_smoothing),
        train=encoded.examples,
        valid=valid_encoded.examples if valid_encoded else (),
        settings=job.train,
        device=device,
        packing=packing,
        pad_id=_pad_id(renderer),
        run=RunDir(output),
        listener=listener,
        tracking=Tracking(()),
        segments=segments,
        sharing=sharing,
    )
    check_schedule(job.train, training.steps)
    training, settled = fast_paths.settle(training, why)
    for note in (*said, *settled, *fast_paths.others_off(job, model), *_warnings(job, training)):
        listener.note(note)
    _compile(training, job, listener)
    return Prepared(job, source, base, renderer, train_rows, valid_rows, report, training)


def with_step_size(job: Job, examples: Sequence[Example]) -> Job:
    """The job with its default step size written out, so that the run's job.yaml says what was done."""
    if job.train.tokens_per_step is not None or job.train.batch_size is not None:
        return job
    size = default_tokens_per_step([len(example.input_ids) for example in examples])
    return job.model_copy(update={"train": job.train.model_copy(update={"tokens_per_step": size})})


def thinks(records: Sequence[Record]) -> bool:
    """Whether most answers hold thinking: the result is then asked as those rows were, with thinking on."""
    answers = [r.answer for r in records if isinstance(r, Conversation) and r.answer is not None]
    return sum("</think>" in answer for answer in answers) * 2 > len(answers)


def _check_context(model: PreTrainedModel, *data: EncodedData | None) -> None:
    """Raise PlanError for examples with more tokens than the model has positions for."""
    context = context_length(model)
    examples = [example for part in data if part is not None for example in part.examples]
    beyond = [e for e in examples if context is not None and len(e.input_ids) > context]
    if beyond:
        raise PlanError(
            f"{len(beyond)} of {len(examples)} examples are longer than the model reads, {context} tokens.",
            details=[f"{example.origin}: {len(example.input_ids)} tokens" for example in beyond],
            fix=f"Set data.max_length={context}, and choose with data.too_long what happens to longer ones.",
        )


def _warnings(job: Job, training: Training) -> list[str]:
    """What a person should know before waiting for the result."""
    told = []
    if training.steps < FEW_STEPS:
        told.append(
            f"Note: {len(training.train):,} examples give only {training.steps} steps; more train.epochs, or "
            "smaller steps (train.tokens_per_step, train.batch_size), let the model learn more from them."
        )
    if 0 < len(training.valid) < FEW_ROWS:
        told.append(
            f"Note: the validation loss is that of {len(training.valid)} examples only: a rough guess. "
            "data.valid takes more rows."
        )
    if job.adapter.init != "default" and training.device.dtype is not torch.float32:
        told.append("Note: PiSSA rounds what is left of the base to bf16; with train.dtype=fp32 it is exact.")
    return told


def _compile(training: Training, job: Job, listener: Listener) -> None:
    """Compile layers and loss where the job or the length of the run asks for it."""
    _, parameters = adapters.trainable_count(training.model)
    eager = training.objective
    training.objective = sft(job.train.label_smoothing, fused=True)
    training.compiled = compiling.start(
        job.train.compile,
        lambda: adapters.decoder_layers(training.model),
        training.trial_pass,
        listener.note,
        earns=compiling.worthwhile(parameters, training.tokens, training.device),
    )
    if not training.compiled.active:
        training.objective = eager


def _pad_id(renderer: Renderer) -> int:
    """Any token serves: padding is told apart by length, never by its id."""
    pad, eos = renderer.tokenizer.pad_token_id, renderer.tokenizer.eos_token_id
    return int(pad if pad is not None else eos if eos is not None else 0)
