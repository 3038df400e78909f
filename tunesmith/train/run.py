"""One training from job to run folder: prepare -> loop -> final weights."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import PreTrainedModel

from tunesmith import disk, rundir
from tunesmith.data.check import Dataset
from tunesmith.data.template import Renderer
from tunesmith.data.trained_rows import write_trained_rows
from tunesmith.errors import TrainError
from tunesmith.model import adapters
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.config import Job
from tunesmith.train.forward import mixed_precision
from tunesmith.train.listener import Listener, Silent, Undisturbed, how_it_ended, report_text, what_is_trained
from tunesmith.train.loop import Outcome, run_loop
from tunesmith.train.optim import check_installed as check_optimizer
from tunesmith.train.prepare import Prepared, prepare
from tunesmith.train.track import check_ready, tracking

AnswerHook = Callable[[PreTrainedModel, Renderer, Sequence[Conversation]], list[str]]

log = logging.getLogger("tunesmith")


def train(
    job: Job, output: Path, *, listener: Listener | None = None, answer: AnswerHook | None = None
) -> RunDir:
    """Train as the job says and leave everything in the run folder `output`, which must be new or empty.

    `answer` writes the sample answers (infer gives it). Raises a TunesmithError of the part that failed.
    """
    listener = Undisturbed(listener or Silent())
    rundir.check_free(output)
    check_ready(job.train.track)
    check_optimizer(job.train)
    ready = prepare(job, output, listener)
    training = ready.training
    training.sample = _sampler(ready, listener, answer)
    facts = _facts(ready)

    run = rundir.create(output)
    with run.lock(), _log_file(run), tracking(job.train.track, run, facts["job"]) as training.tracking:
        disk.write_json(run.data_report_file, ready.report)
        disk.write_atomic(run.job_file, yaml.safe_dump(facts, allow_unicode=True, sort_keys=False))
        log.info("%s", report_text(ready.report))
        for note in ready.notes:
            log.info("%s", note)
        log.info("%s", what_is_trained(training.steps, facts))
        listener.started(training.steps, facts)
        try:
            outcome = run_loop(training)
        finally:
            records = [ready.train_rows.records[row] for row in sorted(training.learnt)]
            write_trained_rows(run, records, job.adapter.continue_from)
        _save_final(run, cast(PreTrainedModel, training.model), ready.renderer, outcome, facts)
        log.info("%s", how_it_ended(outcome.summary()))
    listener.finished({"run": str(run.path), **outcome.summary()})
    return run


def _sampler(ready: Prepared, listener: Listener, answer: AnswerHook | None) -> Callable[[int], None]:
    """A function that answers the first validation prompts and keeps the answers in samples.jsonl."""
    settings, rows, run = ready.job.train, ready.valid_rows, ready.training.run
    model, device = cast(PreTrainedModel, ready.training.model), ready.training.device
    conversations = [r for r in (rows.records if rows else []) if isinstance(r, Conversation) and r.answer]
    asked = conversations[: settings.sample_prompts] if settings.sample_every and answer else []

    def sample(step: int) -> None:
        if not asked or answer is None:
            return
        # Sampling draws no random numbers from the training's generators, so that it never changes results.
        # Mixed precision: after freeze, layers of two number formats follow each other.
        with torch.random.fork_rng(), mixed_precision(device, model):
            model.eval()
            texts = answer(model, ready.renderer, [c.prompt for c in asked])
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
        "quantization": facts["job"]["quantization"],
        "template": facts["template"],
        "version": facts["versions"]["tunesmith"],
    }
    uses_peft = facts["job"]["adapter"]["type"] in ("lora", "dora")
    with disk.new_folder(run.adapter if uses_peft else run.model) as folder:
        adapters.save(model, renderer.save, folder, meta=meta)


def _facts(ready: Prepared) -> dict[str, Any]:
    """What job.yaml holds: the job as resolved, and everything needed to tell two runs apart."""
    job, source, renderer, training = ready.job, ready.source, ready.renderer, ready.training
    trainable, parameters = adapters.trainable_count(cast(PreTrainedModel, training.model))
    return {
        "job": job.model_dump(mode="json"),
        "base": {
            "name": job.model,
            "kind": source.kind,
            "path": str(source.path),
            "revision": source.revision,
            "fingerprint": ready.base_fingerprint,
        },
        "template": {"name": renderer.name, "sha256": renderer.sha256, "thinking": renderer.thinking},
        "trainable": trainable,
        "parameters": parameters,
        "device": training.device.name,
        "dtype": training.device.dtype_name,
        "threads": torch.get_num_threads(),
        "steps": training.steps,
        # Which of the ways to the same gradients was taken.
        "packing": training.packing,
        "segments": training.segments,
        "sharing": training.sharing,
        "compiled": training.compiled.active,
        "approximate": ready.approximate,
        "folder": str(Path.cwd()),  # what relative paths of the job are relative to
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": _hashes(ready.train_rows, ready.valid_rows),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tunesmith", "torch", "transformers", "peft", "tokenizers")},
        },
    }


def _hashes(*sets: Dataset | None) -> dict[str, str]:
    """sha256 of every data file that was read."""
    return {file.path: file.sha256 for data in sets if data is not None for file in data.files}


@contextmanager
def _log_file(run: RunDir) -> Iterator[None]:
    """log.txt: what happened and every warning of a library, with the time; a failure with its cause."""
    with disk.disk_errors(run.log_file):
        handler = logging.FileHandler(run.log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [log, logging.getLogger("py.warnings"), logging.getLogger("transformers")]
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except KeyboardInterrupt:
        if not run.job_file.is_file():
            run.discard()
            raise KeyboardInterrupt("Interrupted before the first step; nothing was written.") from None
        step, left = run.stopped_at()
        log.error("stopped: interrupted at %s", step)
        raise KeyboardInterrupt(
            f"Interrupted at {step}. {run.path} keeps its records; {left}.\n"
            f"Next:   tunesmith runs show {run.path}\n"
            f"        tunesmith train {run.job_file} output=…     (anew, in another folder)"
        ) from None
    except BaseException as error:
        ended = isinstance(error, SystemExit)
        told = f"ended by a signal (exit code {error})" if ended else str(error) or type(error).__name__
        log.error("stopped: %s", told, exc_info=not (ended or isinstance(error, TrainError)))
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)
