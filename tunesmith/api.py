"""The public functions: what the command line calls, and what `import tunesmith` offers.

check      read data files and say what is in them
train      a job -> a run folder
plan       what a job will take in memory, disk and time, and whether it fits
verify     a job's gradients against the naive computation
verify_resume  a training that is killed and gone on with, against one that isn't
runs, open_run, summary    look at run folders
load       a model or a run that answers: model.chat(…), model.stream(…), model.complete(…)
generate   answers for every prompt of a file
sweep      the same prompts under many settings
blind_new  a test by people of two models' answers, sealed
evaluate   figures of one model on rows with answers
compare    figures of two, row by row
report     write a run's report.html again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunesmith import rundir
from tunesmith.data import check as data_check
from tunesmith.data.check import Dataset, read_prompts
from tunesmith.data.read import joined
from tunesmith.data.template import Renderer
from tunesmith.errors import DataError, RunError, UsageError
from tunesmith.evaluate import curve, measure
from tunesmith.evaluate import sweep as sweeping
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.blind import new as blind
from tunesmith.evaluate.measure import Result
from tunesmith.evaluate.metrics import Named
from tunesmith.evaluate.predicted import read_predictions
from tunesmith.evaluate.questions import Questions, choose_metrics, read_questions
from tunesmith.evaluate.report import write_report
from tunesmith.infer import local
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import generate as answers_of
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import Existing, Summary, answer_into, check_output, claim_output
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir
from tunesmith.settings import build
from tunesmith.train import fit, resume_check
from tunesmith.train import verify as verification
from tunesmith.train.config import RESUMED_STEPS, VERIFIED_TOKENS, Job, job_from, load_job_or_run
from tunesmith.train.listener import Lines, Listener
from tunesmith.train.plan import Plan, Planner, calibrate, target_of
from tunesmith.train.resume import asked_for, choose
from tunesmith.train.run import train as train_job
from tunesmith.train.signals import AtOnce

SAMPLE_TOKENS = 64


def check(files: str | Sequence[str], *, info: str | None = None) -> Dataset:
    """Read data files and recognise their format; bad rows are listed in the result, never left out unseen.

    `info` is a LLaMA-Factory dataset_info.json; `files` are then names in it. Raises DataError for files
    that can't be read at all, all of them at once.
    """
    dataset, problems = data_check.survey([files] if isinstance(files, str) else list(files), info)
    if problems:
        raise joined(problems)
    return dataset


def train(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    listener: Listener | None = None,
    resume: bool | None = None,
    force: bool = False,
) -> RunDir:
    """Train what a job says; returns its run folder, which then holds adapter, figures and report.

    An unfinished run of the same job is gone on with, at its exact next step. `resume=True` wants one, and
    may make a finished one longer ("train.epochs=5"); `resume=False` always begins a new one. `force` goes
    on although data, tokenizer, base or settings are others, and says so.

    `job` is a YAML path, a mapping or a Job; `settings` are "key=value" words that win over it. Without a
    `listener` notes, progress and the run's folder are printed on stderr; `listener=tunesmith.Silent()` says
    nothing.
    Raises TunesmithError: SettingsError, DataError, ModelError, RunError or TrainError.
    """
    heard, asked = listener or Lines(), asked_for(job, settings)
    going_on = choose(asked, resume=resume, force=force, note=heard.note)
    todo = going_on.job if going_on else asked.job
    known = going_on.run.path if going_on else todo.output and Path(todo.output)
    with nullcontext(known) if known else rundir.claimed(asked.stem) as output:
        try:
            run = train_job(todo, output, listener=heard, answer=_sample_answers, continued=going_on)
        except BaseException as error:
            if not isinstance(error, AtOnce | RunError):  # one wants the end, the other changed nothing
                _draw_what_there_is(RunDir(output))
            raise
    curve.write_png(run)
    report(run)
    if listener is None:
        Lines().note(f"Run: {run.path}\nReport: {run.report_file}")
    return run


def plan(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    card: str | None = None,
    memory: str | None = None,
    probe: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a training would take, before anything is downloaded or trained; `.fits` is the verdict.

    For this machine, or for a `card` by name ("4090") or `memory` ("24GB"). `probe`: run three real steps
    where the model is here, in a process of their own. Where it doesn't fit, `.fitting` has the words of a
    job that does. `job` may be a run's folder too. Raises SettingsError, DataError, ModelError.
    """
    resolved = _job(job, settings)
    target = target_of(resolved, card, memory)  # a card that isn't known is told before anything is counted
    note("Counting rows and a step of shapes alone …")
    planner = Planner(resolved, target)
    if planner.described.origin == "built-in table":
        note(f"The hub can't be reached: what {resolved.model} is like is taken from the built-in table.")
    made = planner.plan(resolved)
    if probe and made.fits and made.target.here and planner.described.source is not None:
        calibrate(made, planner, note)
    if not made.fits:
        made.fitting = fit.search(made, planner, note)
    return made


def verify(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    tokens: int = VERIFIED_TOKENS,
    note: Callable[[str], None] = lambda _: None,
) -> verification.Verdict:
    """Compare the gradients of a job's first rows (about `tokens`) with the naive computation in fp32.

    `.exact` is True where all fast paths agree. `job` may be a run's folder too. Raises PlanError where
    memory can't hold the model in fp32.
    """
    return verification.verify(_job(job, settings), tokens, note)


def verify_resume(
    job: Job | Mapping[str, Any] | str | Path,
    *settings: str,
    steps: int = RESUMED_STEPS,
    note: Callable[[str], None] = lambda _: None,
) -> resume_check.Verdict:
    """Kill a real training of the job half-way through `steps` steps, go on with it, and compare.

    `.equal` is True where it ended as an uninterrupted one, byte for byte. `job` may be a run's folder too.
    """
    return resume_check.verify_resume(_job(job, settings), steps, note)


def load(
    model: str | Path | RunDir, *, dtype: str = "auto", template: str | None = None, note: Note | None = None,
    **sampling: Any,
) -> LocalModel:  # fmt: skip
    """A model that answers: an alias, hub id, folder, GGUF file or run. `sampling` holds for all its answers.

    `load(run).chat("…")` answers; `note` is told what isn't as usual. Raises Model-, Run- or TemplateError.
    """
    settings = build(Sampling, sampling)
    return local.load(_name(model), dtype=dtype, template=template, sampling=settings, note=note)


def generate(
    model: str | Path | RunDir,
    prompts: str | Sequence[Conversation],
    output: str | Path,
    *,
    existing: Existing = "refuse",
    dtype: str = "auto",
    template: str | None = None,
    batch_size: int = 16,
    watch: Callable[[Summary], None] | None = None,
    note: Note | None = None,
    **sampling: Any,
) -> Summary:
    """Answer every prompt of a file, in any row format, into a JSONL file; returns counts, tokens, seconds.

    Until the last one is in, answers are in OUTPUT.partial, which outlives a kill: resume continues it.
    `existing` says what happens to an output that is there: refuse, resume or replace. `batch_size` counts
    the sequences computed at once; `watch` is told after each prompt, `note` as in `load`. Raises DataError,
    SettingsError, UsageError, RunError.
    """
    settings = build(Sampling, sampling)
    check_output(Path(output), existing)
    conversations = read_prompts(prompts) if isinstance(prompts, str) else prompts
    if not conversations:
        raise DataError(f"{prompts or 'The list'} holds no prompts.", fix="Give at least one.")
    with claim_output(Path(output), existing) as held:
        answerer = load(model, dtype=dtype, template=template, note=note, **settings.given())
        answerer.batch_size = batch_size
        return answer_into(held, answerer, conversations, existing=existing, watch=watch)


def evaluate(
    model: str | Path | RunDir | None = None,
    data: str | Questions | None = None,
    *,
    predictions: str | None = None,
    references: str | None = None,
    metrics: Named | Sequence[Named] | None = None,
    by: str | Sequence[str] = (),
    document: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    **sampling: Any,
) -> Result:
    """Loss, perplexity and metrics of one model on rows with answers; `.content` is what `--json` prints.

    `data` is a file, or rows that `read_questions` gave. `references` is a file with the answers, a line a
    row, where the rows lack them. `metrics` are names, FILE.py:function, or functions (prediction,
    references, prompt) -> a number. `by` names columns whose values get figures of their own, `document` the
    one that says which document a row is from. Answers are greedy unless `sampling` says otherwise.
    `predictions` is a file of answers (id, prompt, prediction, references) that is scored without a model.
    `watch(what, done, rows)` is told of each row, `note` what an interrupted call had done already.
    """
    if predictions is not None:
        rows = read_questions(data, references, limit) if isinstance(data, str) else data
        questions, answers = read_predictions(predictions, rows, by=_listed(by), document=document)
        return measure.measure_predictions(
            answers, questions, choose_metrics(metrics, questions),
            output=_path(output), watch=watch, note=note,
        )  # fmt: skip
    if model is None or data is None:
        raise UsageError("There is nothing to measure.", fix="Give a model and data, or predictions=FILE.")
    questions = data if isinstance(data, Questions) else _questions(data, references, limit, by, document)
    chosen = choose_metrics(metrics, questions)
    return measure.measure_one(
        _name(model), questions, chosen, build(Sampling, sampling),
        output=_path(output), dtype=dtype, template=template, watch=watch, note=note,
    )  # fmt: skip


def compare(
    a: str | Path | RunDir,
    b: str | Path | RunDir | None = None,
    *,
    data: str | Questions,
    references: str | None = None,
    metrics: Named | Sequence[Named] | None = None,
    by: str | Sequence[str] = (),
    document: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    **sampling: Any,
) -> Result:
    """Two models on the same rows, with paired differences; a run alone is measured against its base.

    `.content` is what `--json` prints, `.measured.rows()` the answers of both, side by side.
    `watch(what, done, rows)` is told of each row, `note` what an interrupted call had done already.
    """
    questions = data if isinstance(data, Questions) else _questions(data, references, limit, by, document)
    chosen = choose_metrics(metrics, questions)
    second = None if b is None else _name(b)
    return measure.measure_two(
        _name(a), second, questions, chosen, build(Sampling, sampling),
        output=_path(output), dtype=dtype, template=template, watch=watch, note=note,
    )  # fmt: skip


def sweep(
    model: str | Path | RunDir | LocalModel, prompts: str | Sequence[str | Conversation],
    settings: Sequence[str | sweeping.Combination], *, watch: sweeping.Watch = lambda *_: None,
) -> sweeping.Sweep:  # fmt: skip
    """Answer the same prompts under each combination of `["temperature=0.1,0.7"]`: `.columns`, `.html()`."""
    answerer = model if isinstance(model, LocalModel) else load(model)
    return sweeping.sweep(answerer, sweeping.asked(prompts), sweeping.chosen(settings), watch)


def blind_new(
    a: str | Path | RunDir,
    b: str | Path | RunDir,
    *,
    data: str | None = None,
    output: str | Path | None = None,
    items: int = blind.ITEMS,
    repeats: float = blind.REPEATS,
    title: str = "",
    ask: str = "",
    references: bool = False,
    dtype: str = "auto",
    template: str | None = None,
    watch: Callable[[Summary], None] | None = None,
    **sampling: Any,
) -> blind.Made:
    """A blind test of two models, runs or files of answers (.jsonl), sealed, in the folder `.test.path`.

    Models answer `items` rows of `data`, one model after the other; a call that was interrupted is continued
    by the same call. `repeats` is the share of items that are shown again, `ask` the question to raters;
    `references` shows them the rows' own answers. Raises DataError, SettingsError, UsageError, RunError.
    """
    settings = build(Sampling, sampling).given()
    asked = {"dtype": dtype, "template": template, **settings}
    request = blind.Request(_name(a), _name(b), data, items, repeats, title, ask, references, asked)

    def answer(name: str, prompts: Sequence[Conversation], file: Path) -> object:
        return generate(
            name, prompts, file, existing="resume", dtype=dtype, template=template, watch=watch, **settings
        )

    return blind.new(request, answer, output=_path(output))


def open_run(path: str | Path) -> RunDir:
    """The run in a folder. Raises RunError with the runs nearby if there is none."""
    return rundir.open_run(Path(path))


def runs(root: str | Path = "runs") -> list[RunDir]:
    """Every run below a folder, the oldest first."""
    return rundir.list_runs(Path(root))


def report(run: RunDir | str | Path) -> Path:
    """Write the run's report.html from what the folder holds now; returns its path."""
    return write_report(run if isinstance(run, RunDir) else open_run(Path(run)))


def summary(run: RunDir) -> dict[str, Any]:
    """The main figures of a run: steps, tokens, seconds, validation loss before and after."""
    lines = run.metrics()
    steps = [line for line in lines if "loss" in line]
    losses = [(line["valid_loss"], line["step"]) for line in lines if "valid_loss" in line]
    after = min((x for x in losses if x[1] > 0), default=(None, None))
    return {
        "run": str(run.path),
        "state": run.state(),
        "steps": steps[-1]["step"] if steps else 0,
        "seconds": steps[-1]["seconds"] if steps else 0.0,
        "tokens": sum(line["tokens"] for line in steps),
        "label_tokens": sum(line["label_tokens"] for line in steps),
        "valid_loss": {
            "before": next((loss for loss, step in losses if step == 0), None),
            "after": after[0],
            "step": after[1],
        },
        "weights": str(run.weights) if run.weights else None,
        "report": str(run.report_file),
    }


def _draw_what_there_is(run: RunDir) -> None:
    """Curve and report of a training that was stopped; what stopped it is told, whatever becomes of these."""
    if not run.metrics_file.is_file() or not run.job_file.is_file():
        return
    with suppress(Exception, KeyboardInterrupt):
        curve.write_png(run)
        report(run)


def _sample_answers(
    model: PreTrainedModel, renderer: Renderer, conversations: Sequence[Conversation]
) -> list[str]:
    """Short greedy answers, for a look while training runs."""
    sampling = Sampling.model_validate({"max_new_tokens": SAMPLE_TOKENS})
    return [answers[0].text for answers in answers_of(model, renderer, conversations, sampling)]


def _job(job: Job | Mapping[str, Any] | str | Path, settings: Sequence[str]) -> Job:
    """The job in a file, a run's folder or a mapping."""
    return load_job_or_run(Path(job), settings) if isinstance(job, str | Path) else job_from(job, settings)


def _questions(
    data: str, references: str | None, limit: int | None, by: str | Sequence[str], document: str | None
) -> Questions:
    return read_questions(data, references, limit, by=_listed(by), document=document)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _name(model: str | Path | RunDir) -> str:
    return str(model.path if isinstance(model, RunDir) else model)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
