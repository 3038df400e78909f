"""One training from job to run folder: prepare -> loop -> final weights; or from a checkpoint on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import PreTrainedModel

from tunesmith import disk, rundir
from tunesmith.data.template import Renderer
from tunesmith.data.trained_rows import write_trained_rows
from tunesmith.errors import RunError
from tunesmith.model import adapters
from tunesmith.records import Conversation, Record, Text
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint, going_on
from tunesmith.train.answers import AnswerHook, examiner, sampler
from tunesmith.train.config import Job
from tunesmith.train.ending import log_file, stopped_by, told_in_log
from tunesmith.train.examine import Examiner
from tunesmith.train.facts import facts_of, result_meta
from tunesmith.train.going_on import Start
from tunesmith.train.identity import made_from
from tunesmith.train.listener import (
    Listener,
    Silent,
    Undisturbed,
    how_it_ended,
    one_line,
    report_text,
    what_is_trained,
)
from tunesmith.train.loop import Outcome, run_loop
from tunesmith.train.optim import check_installed as check_optimizer
from tunesmith.train.prepare import Prepared, prepare, require_disk
from tunesmith.train.resume import Continued
from tunesmith.train.signals import Stopped
from tunesmith.train.track import check_ready, tracking

log = logging.getLogger("tunesmith")


def train(
    job: Job,
    output: Path,
    *,
    listener: Listener | None = None,
    answer: AnswerHook | None = None,
    examine: Examiner | None = None,
    continued: Continued | None = None,
) -> RunDir:
    """Train as the job says and leave everything in the run folder `output`, which must be new or empty.

    `continued`: the run that this goes on with; `job` and `output` are then its own. `answer` writes the
    sample answers (infer gives it), `examine` scores those of `train.evaluate` (evaluate gives it). Raises a
    TunesmithError of the part that failed.
    """
    listener = Undisturbed(listener or Silent())
    with ExitStack() as held:
        check_ready(job.train.track)
        check_optimizer(job.train)
        if continued is None:
            rundir.check_free(output)
            ready = prepare(job, output, listener, examine)
            require_disk(ready)
            run = rundir.create(output)
            held.enter_context(run.lock())
            disk.remove_leftovers(run.path)
            return _train(ready, run, facts_of(job, ready), listener, answer)
        run = continued.run
        held.enter_context(run.lock())
        disk.remove_leftovers(run.path)
        if run.weights is not None and not continued.other_length:
            listener.note(f"{run.path} is finished: more train.epochs or train.max_steps make it longer.")
            return run
        start = going_on.begin(continued, listener.note)
        ready = prepare(job, output, listener, examine)
        facts = going_on.check(continued, start, ready, facts_of(job, ready), listener.note)
        require_disk(ready)
        going_on.set_result_aside(run, start.step)
        return _train(ready, run, facts, listener, answer, start)


def _train(
    ready: Prepared,
    run: RunDir,
    facts: dict[str, Any],
    listener: Listener,
    answer: AnswerHook | None,
    start: Start | None = None,
) -> RunDir:
    """From the first or the next step to the final weights, in a run that this process holds."""
    training, job = ready.training, ready.job
    training.sample = sampler(ready, listener, answer)
    training.examine = examiner(ready, listener)
    training.guards.text = lambda example: _first_words(ready.train_rows.records[example.row])
    training.made_from = made_from(facts)
    # First of all: a folder with this record can be gone on with, whatever comes next.
    disk.write_atomic(run.job_file, yaml.safe_dump(facts, allow_unicode=True, sort_keys=False))
    with log_file(run, new=start is None):
        disk.write_json(run.data_report_file, ready.report)
        if start is not None:
            start.put_back_records(training)
        again = start.trackers if start else None
        with tracking(job.train.track, run, facts["job"], again) as training.tracking:
            log.info("%s", report_text(ready.report))
            for note in [*ready.notes, *(start.notes if start else ())]:
                log.info("%s", note)
            log.info("%s", what_is_trained(training.steps, facts))
            listener.started(training.steps, facts)
            try:
                outcome = run_loop(training, start.contents if start else None)
            except BaseException as ended:
                with told_in_log():  # what ended it is what is told
                    _write_rows(ready, run)
                if isinstance(ended, Stopped):
                    raise stopped_by(ended, run, listener.note) from None
                raise
            _write_rows(ready, run)
            model = cast(PreTrainedModel, training.model)
            _save_final(run, model, ready.renderer, outcome, facts, listener.note)
            log.info("%s", how_it_ended(outcome.summary()))
    listener.finished({"run": str(run.path), **outcome.summary()})
    return run


def _write_rows(ready: Prepared, run: RunDir) -> None:
    """What the run's folder says of single rows: those that were learnt from, and those that cost most."""
    training = ready.training
    training.guards.write(run)
    records = [ready.train_rows.records[row] for row in sorted(training.learnt)]
    write_trained_rows(run, records, ready.job.adapter.continue_from)


def _first_words(record: Record) -> str:
    """The beginning of what a row asks and of what it answers."""
    if isinstance(record, Conversation):
        asked = record.prompt.messages
        return f"{one_line(asked[-1].content, 100) if asked else ''} → {one_line(record.answer or '', 100)}"
    return one_line(record.text, 200) if isinstance(record, Text) else ""


def _save_final(
    run: RunDir,
    model: PreTrainedModel,
    renderer: Renderer,
    outcome: Outcome,
    facts: Mapping[str, Any],
    note: Callable[[str], None],
) -> None:
    """The best weights by what chooses them, or the last ones where nothing does, as adapter/ or model/."""
    step = outcome.step
    if outcome.best is not None and outcome.best_step is not None:
        try:
            if outcome.best_step != step:
                checkpoint.load(outcome.best, model)
            step = outcome.best_step
        except RunError as error:  # at the end of it all: rather other weights than none
            note(f"{error.what} It was the best; the result has the weights of step {step}, the last.")
    meta = result_meta(facts, step)
    uses_peft = facts["job"]["adapter"]["type"] in ("lora", "dora")
    with disk.new_folder(run.adapter if uses_peft else run.model, "result") as folder:
        adapters.save(model, renderer.save, folder, meta=meta)
