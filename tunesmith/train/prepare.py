"""From a job to a training that could start: data read and encoded, model loaded, fast paths chosen.

Nothing is written here, so that `train`, `plan` and `verify` share it, and what can fail cheaply (settings,
data, template, target names) fails before a run folder exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from tunesmith.data.check import Dataset, load_data
from tunesmith.data.encode import EncodedData, Example, encode
from tunesmith.data.report import build_report
from tunesmith.data.template import Renderer
from tunesmith.device import pick
from tunesmith.disk import free_space
from tunesmith.errors import PlanError
from tunesmith.model import adapters, quantize, targets
from tunesmith.model.families import can_pack
from tunesmith.model.load import (
    context_length,
    end_ids,
    fingerprint,
    first_use,
    load_model,
    load_tokenizer,
    local_folder,
    outline,
)
from tunesmith.model.source import Source, resolve
from tunesmith.records import Conversation, Record
from tunesmith.rundir import RunDir
from tunesmith.train import compiling, estimate, fast_paths, optim, probe
from tunesmith.train.config import LEAST_KEPT, Job
from tunesmith.train.examine import Aim, Examination, Examiner
from tunesmith.train.listener import Listener
from tunesmith.train.objectives import sft
from tunesmith.train.optim import check_schedule, check_tensors
from tunesmith.train.seeds import seed_everything
from tunesmith.train.track import Tracking
from tunesmith.train.training import Training, default_tokens_per_step
from tunesmith.words import are, counted, size

Note = Callable[[str], None]

APPROXIMATE = "Approximate"
FEW_STEPS = 10
FEW_ROWS = 20
LARGE_RUN = 10**9  # bytes on disk that are worth a word


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
    notes: list[str]  # what the listener was told, for the run's log
    approximate: list[str]  # what isn't exact, and how far off it is
    examination: Examination | None = None


def prepare(job: Job, output: Path, listener: Listener, examine: Examiner | None = None) -> Prepared:
    """Do everything that comes before the first step, writing nothing.

    `examine` makes what `train.evaluate` asks for; nothing is evaluated by answers without it. Raises a
    TunesmithError of the part that failed.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        listener.note(text)

    seed_everything(job.train.seed)
    device = pick(job.train.dtype)
    train_rows, valid_rows = load_data(job.data, job.train.seed)
    examination = examine(job, valid_rows) if examine and job.train.evaluate else None
    source = resolve(job.model, job.revision)
    note(f"Model {job.model}, on {device.name}, {device.dtype_name}.")
    if waiting := first_use(source):
        listener.note(waiting)
    targets.check_names(outline(source), job.adapter)
    tokenizer = load_tokenizer(source)
    renderer = Renderer(
        tokenizer, job.data.template, end_ids=end_ids(source), thinking=thinks(train_rows.records)
    )
    encoded = encode(train_rows.records, renderer, job.data)
    valid_encoded = encode(valid_rows.records, renderer, job.data, part="data.valid") if valid_rows else None
    report = build_report(train_rows, valid_rows, encoded, valid_encoded, renderer)
    listener.data(report)

    job = with_step_size(job, encoded.examples)
    model = load_model(source, device, quantization=job.quantization)
    quantised = _quantised(job, model, source)
    _check_context(model, encoded, valid_encoded)
    packing, why = can_pack(model.config) if job.data.packing else (False, "data.packing is false")
    base = fingerprint(source)
    model = adapters.prepare(model, job.adapter, seed=job.train.seed, base_fingerprint=base)
    check_tensors(model, job.train)
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
        aim=examination.aim if examination else Aim(),
    )
    check_schedule(job.train, training.steps)
    training, settled = fast_paths.settle(training, why)
    job = probe.settle(training, job, note)
    told = optim.notes(model, job.train)
    for line in (
        *quantised,
        *told,
        *said,
        *settled,
        *fast_paths.others_off(job, model),
        *_warnings(job, training),
    ):
        note(line)
    _compile(training, job, note)
    approximate = [line for line in (*quantised, *told) if line.startswith(APPROXIMATE)]
    return Prepared(
        job, source, base, renderer, train_rows, valid_rows, report, training, notes, approximate, examination
    )


def _quantised(job: Job, model: PreTrainedModel, source: Source) -> list[str]:
    """The line that says how far a quantised base is from the one it was made of."""
    if job.quantization is None:
        return []
    error = quantize.relative_error(model, local_folder(source))
    off = "" if error is None else f" Its weights are {error:.2%} off (relative, a sample of the layers)."
    return [f"{APPROXIMATE}: the base is held as {job.quantization.type}.{off} Gradients are exact for it."]


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


def require_disk(ready: Prepared) -> None:
    """Raise PlanError where the run folder's disk can't hold what the training will leave in it."""
    run, needed = ready.training.run.path, sum(_run_bytes(ready.job, ready.training))
    there = sum(file.stat().st_size for file in run.rglob("*.safetensors")) if run.is_dir() else 0
    if (free := free_space(run)) < needed - there:
        raise PlanError(
            f"{run} will take about {size(needed)}, and its disk has {size(free)} left.",
            fix="Free some space, or give another folder (output=…)."
            + (
                " Fewer checkpoints can be kept, too (train.keep)."
                if ready.job.train.keep > LEAST_KEPT
                else ""
            ),
        )


def _run_bytes(job: Job, training: Training) -> tuple[int, int]:
    """Bytes of all checkpoints, one that is being written among them, and of the result."""
    _, parameters = adapters.trainable_count(training.model)
    files = estimate.run_bytes(
        job, training.model, steps=training.steps, validated=bool(training.valid), parameters=parameters
    )
    return files["checkpoints"] + files["checkpoint"], files["final"]


def _check_context(model: PreTrainedModel, *data: EncodedData | None) -> None:
    """Raise PlanError for examples with more tokens than the model has positions for."""
    context = context_length(model)
    examples = [example for part in data if part is not None for example in part.examples]
    beyond = [e for e in examples if context is not None and len(e.input_ids) > context]
    if beyond:
        raise PlanError(
            f"{len(beyond)} of {counted(len(examples), 'example')} {are(len(beyond))} longer "
            f"than the model reads, {context} tokens.",
            details=[f"{example.origin}: {len(example.input_ids)} tokens" for example in beyond],
            fix=f"Set data.max_length={context}, and choose with data.too_long what happens to longer ones.",
        )


def _warnings(job: Job, training: Training) -> list[str]:
    """What a person should know before waiting for the result."""
    told = []
    # Who has set max_steps knows how few they are, and more epochs wouldn't change it.
    if training.steps < FEW_STEPS and job.train.max_steps is None:
        told.append(
            f"Note: {counted(len(training.train), 'example')} "
            f"{'gives' if len(training.train) == 1 else 'give'} only {counted(training.steps, 'step')}; more "
            "train.epochs, or smaller steps (train.tokens_per_step, train.batch_size), let the model learn "
            "more."
        )
    if 0 < len(training.valid) < FEW_ROWS:
        told.append(
            f"Note: the validation loss is that of {counted(len(training.valid), 'example')} only: a rough "
            "guess. "
            "data.valid takes more rows."
        )
    checkpoints, final = _run_bytes(job, training)
    if (space := checkpoints + final) > LARGE_RUN:
        told.append(f"The run's folder will take about {size(space)}, {size(checkpoints)} in checkpoints.")
    context = context_length(cast(PreTrainedModel, training.model))
    longest = job.data.max_length
    if context is not None and longest > context and "max_length" in job.data.model_fields_set:
        told.append(
            f"Note: data.max_length is {longest:,}, but this model reads {context:,} tokens at most. No row "
            "is longer, so nothing is lost; longer ones would be refused."
        )
    if job.adapter.init != "default" and training.device.dtype is not torch.float32:
        told.append("Note: PiSSA rounds what is left of the base to bf16; with train.dtype=fp32 it is exact.")
    return told


def _compile(training: Training, job: Job, note: Note) -> None:
    """Compile layers and loss where the job or the length of the run asks for it."""
    _, parameters = adapters.trainable_count(training.model)
    eager = training.objective
    training.objective = sft(job.train.label_smoothing, fused=True)
    training.compiled = compiling.start(
        job.train.compile,
        lambda: targets.decoder_layers(training.model),
        training.trial_pass,
        note,
        earns=compiling.worthwhile(parameters, training.tokens, training.device),
        device=training.device,
    )
    if not training.compiled.active:
        training.objective = eager


def _pad_id(renderer: Renderer) -> int:
    """Any token serves: padding is told apart by length, never by its id."""
    pad, eos = renderer.tokenizer.pad_token_id, renderer.tokenizer.eos_token_id
    return int(pad if pad is not None else eos if eos is not None else 0)
