"""One training from job to run folder: data -> model -> loop -> final weights.

Everything that can fail cheaply (settings, data, template, target names) fails before the run folder exists.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from tunesmith import rundir
from tunesmith.data.check import Dataset, load_data
from tunesmith.data.encode import EncodedData, encode
from tunesmith.data.pack import computed_tokens
from tunesmith.data.report import build_report
from tunesmith.data.template import Renderer
from tunesmith.device import Device, pick
from tunesmith.errors import PlanError, TrainError
from tunesmith.model import adapters
from tunesmith.model.attention import can_segment, can_share
from tunesmith.model.families import can_pack
from tunesmith.model.load import context_length, end_ids, fingerprint, load_model, load_tokenizer
from tunesmith.model.source import Source, resolve
from tunesmith.records import Conversation, Record
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.config import Job
from tunesmith.train.forward import mixed_precision
from tunesmith.train.listener import Listener, Silent
from tunesmith.train.loop import Outcome, Training, default_tokens_per_step, run_loop
from tunesmith.train.objectives import sft
from tunesmith.train.optim import check_schedule
from tunesmith.train.seeds import seed_everything
from tunesmith.train.track import Tracking, check_ready, tracking
from tunesmith.words import are, counted

AnswerHook = Callable[[PreTrainedModel, Renderer, Sequence[Conversation]], list[str]]

FEW_STEPS = 10
FEW_ROWS = 20

log = logging.getLogger("tunesmith")


def train(
    job: Job, output: Path, *, listener: Listener | None = None, answer: AnswerHook | None = None
) -> RunDir:
    """Train as the job says and leave everything in the run folder `output`, which must be new or empty.

    `answer` writes the sample answers (infer gives it). Raises a TunesmithError of the part that failed.
    """
    listener = listener or Silent()
    rundir.check_free(output)
    check_ready(job.train.track)
    seed_everything(job.train.seed)
    device = pick(job.train.dtype)
    train_rows, valid_rows = load_data(job.data, job.train.seed)
    source = resolve(job.model, job.revision)
    listener.note(f"Model {job.model}, on {device.name}, {_dtype_name(device)}.")
    tokenizer = load_tokenizer(source)
    renderer = Renderer(
        tokenizer, job.data.template, end_ids=end_ids(source), thinking=_thinks(train_rows.records)
    )
    encoded = encode(train_rows.records, renderer, job.data)
    valid_encoded = encode(valid_rows.records, renderer, job.data) if valid_rows else None
    report = build_report(train_rows, valid_rows, encoded, valid_encoded, renderer)
    listener.data(report)

    job = _with_step_size(job, encoded)
    model = load_model(source, device)
    _check_context(model, encoded, valid_encoded)
    packing, why = can_pack(model.config) if job.data.packing else (False, "")
    if why:
        listener.note(f"Rows aren't packed: {why}.")
    base = fingerprint(source)
    model = adapters.prepare(model, job.adapter, seed=job.train.seed, base_fingerprint=base)
    if job.train.checkpoint_activations:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    segments, sharing = _fast_paths(job, model, packing, listener)

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
        sample=_sampler(job, RunDir(output), model, renderer, device, valid_rows, listener, answer),
        segments=segments,
        sharing=sharing,
    )
    if sharing:
        _note_sharing(training)
    check_schedule(job.train, training.steps)
    for note in _warnings(job, training):
        listener.note(note)
    facts = _facts(
        job, source, base, device, model, renderer, training.steps, _hashes(train_rows, valid_rows)
    )

    run = rundir.create(output)
    with run.lock(), _log_file(run), tracking(job.train.track, run, facts["job"]) as training.tracking:
        rundir.write_json(run.data_report_file, report)
        rundir.write_atomic(run.job_file, yaml.safe_dump(facts, allow_unicode=True, sort_keys=False))
        log.info("training starts: %s steps", training.steps)
        listener.started(training.steps, facts)
        outcome = run_loop(training)
        _save_final(run, model, renderer, outcome, facts)
        log.info("training finished: %s", outcome)
    listener.finished({"run": str(run.path), **outcome.summary()})
    return run


def _with_step_size(job: Job, encoded: EncodedData) -> Job:
    """The job with its default step size written out, so that the run's job.yaml says what was done."""
    if job.train.tokens_per_step is not None or job.train.batch_size is not None:
        return job
    size = default_tokens_per_step([len(example.input_ids) for example in encoded.examples])
    return job.model_copy(update={"train": job.train.model_copy(update={"tokens_per_step": size})})


def _warnings(job: Job, training: Training) -> list[str]:
    """What a person should know before waiting for the result."""
    told = []
    if training.steps < FEW_STEPS:
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
    context = context_length(training.model)
    longest = job.data.max_length
    if context is not None and longest > context and "max_length" in job.data.model_fields_set:
        told.append(
            f"Note: data.max_length is {longest:,}, but this model reads {context:,} tokens at most. No row "
            "is longer, so nothing is lost; longer ones would be refused."
        )
    if job.adapter.init != "default" and training.device.dtype is not torch.float32:
        told.append("Note: PiSSA rounds what is left of the base to bf16; with train.dtype=fp32 it is exact.")
    return told


def _thinks(records: Sequence[Record]) -> bool:
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
            f"{len(beyond)} of {counted(len(examples), 'example')} {are(len(beyond))} longer "
            f"than the model reads, {context} tokens.",
            details=[f"{example.origin}: {len(example.input_ids)} tokens" for example in beyond],
            fix=f"Set data.max_length={context}, and choose with data.too_long what happens to longer ones.",
        )


def _fast_paths(job: Job, model: PreTrainedModel, packing: bool, listener: Listener) -> tuple[bool, bool]:
    """Whether to attend by segments, and whether rows share their beginnings; says what is off and why."""
    if not packing:
        return False, False
    segments, why = can_segment(model)
    if not segments:
        listener.note(f"Attention is torch's own, at the cost of a pack's square: {why}.")
        return False, False
    if not job.data.share_prefixes:
        return True, False
    sharing, why = can_share(model)
    if job.train.neftune:
        sharing, why = False, "with NEFTune each row draws its own noise"
    if not sharing:
        listener.note(f"Common beginnings of rows are computed for each row: {why}.")
    return True, sharing


def _note_sharing(training: Training) -> None:
    """What sharing saves, counted over the first epoch."""
    steps = training.plans[0] if training.plans else []
    rows = [example.input_ids for example in training.train]
    raw = sum(len(rows[i]) for step in steps for pack in step.microbatches for i in pack)
    unique = computed_tokens(steps, rows)
    if unique < raw:
        training.listener.note(
            f"Common beginnings are computed once: {unique:,} of {raw:,} tokens an epoch, "
            f"up to {raw / unique:.1f} times as fast."
        )


def _sampler(
    job: Job,
    run: RunDir,
    model: PreTrainedModel,
    renderer: Renderer,
    device: Device,
    rows: Dataset | None,
    listener: Listener,
    answer: AnswerHook | None,
) -> Callable[[int], None]:
    """A function that answers the first validation prompts and keeps the answers in samples.jsonl."""
    conversations = [r for r in (rows.records if rows else []) if isinstance(r, Conversation) and r.answer]
    asked = conversations[: job.train.sample_prompts] if job.train.sample_every and answer else []

    def sample(step: int) -> None:
        if not asked or answer is None:
            return
        # Sampling draws no random numbers from the training's generators, so that it never changes results.
        # Mixed precision: after freeze, layers of two number formats follow each other.
        with torch.random.fork_rng(), mixed_precision(device):
            model.eval()
            texts = answer(model, renderer, [c.prompt for c in asked])
            model.train()
        for conversation, text in zip(asked, texts, strict=True):
            prompt = conversation.prompt.messages[-1].content
            line = {"step": step, "prompt": prompt, "answer": text, "reference": conversation.answer}
            run.append(run.samples_file, line)
            listener.sampled(line)

    return sample


def _save_final(
    run: RunDir, model: PreTrainedModel, renderer: Renderer, outcome: Outcome, facts: Mapping[str, Any]
) -> None:
    """The best weights by validation loss, or the last ones without validation, as adapter/ or model/."""
    if outcome.best is not None and outcome.best_step != outcome.step:
        checkpoint.load(outcome.best, model)
    meta = {
        "step": outcome.best_step or outcome.step,
        "model": facts["base"]["name"],
        "revision": facts["base"]["revision"],
        "kind": facts["base"]["kind"],
        "base_path": facts["base"]["path"],
        "base_fingerprint": facts["base"]["fingerprint"],
        "adapter": facts["job"]["adapter"],
        "template": facts["template"],
        "version": facts["versions"]["tunesmith"],
    }
    uses_peft = facts["job"]["adapter"]["type"] in ("lora", "dora")
    with rundir.new_folder(run.adapter if uses_peft else run.model) as folder:
        adapters.save(model, renderer.save, folder, meta=meta)


def _facts(
    job: Job,
    source: Source,
    base: str,
    device: Device,
    model: PreTrainedModel,
    renderer: Renderer,
    steps: int,
    data_sha256: dict[str, str],
) -> dict[str, Any]:
    """What job.yaml holds: the job as resolved, and everything needed to tell two runs apart."""
    trainable, parameters = adapters.trainable_count(model)
    return {
        "job": job.model_dump(mode="json"),
        "base": {
            "name": job.model,
            "kind": source.kind,
            "path": str(source.path),
            "revision": source.revision,
            "fingerprint": base,
        },
        "template": {"name": renderer.name, "sha256": renderer.sha256, "thinking": renderer.thinking},
        "trainable": trainable,
        "parameters": parameters,
        "device": device.name,
        "dtype": _dtype_name(device),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": data_sha256,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tunesmith", "torch", "transformers", "peft", "tokenizers")},
        },
    }


def _hashes(*sets: Dataset | None) -> dict[str, str]:
    """sha256 of every data file that was read."""
    return {file.path: file.sha256 for data in sets if data is not None for file in data.files}


def _pad_id(renderer: Renderer) -> int:
    """Any token serves: padding is told apart by length, never by its id."""
    pad, eos = renderer.tokenizer.pad_token_id, renderer.tokenizer.eos_token_id
    return int(pad if pad is not None else eos if eos is not None else 0)


def _dtype_name(device: Device) -> str:
    return str(device.dtype).removeprefix("torch.")


@contextmanager
def _log_file(run: RunDir) -> Iterator[None]:
    """log.txt: what happened and every warning of a library, with the time; a failure with its cause."""
    with rundir.disk_errors(run.log_file):
        handler = logging.FileHandler(run.log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [log, logging.getLogger("py.warnings"), logging.getLogger("transformers")]
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        log.error("stopped: %s", error, exc_info=not isinstance(error, TrainError | KeyboardInterrupt))
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)
