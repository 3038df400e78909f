"""Public benchmarks: tasks of lm-evaluation-harness on a model or a run, with the result among its others.

RUN/eval/<tasks>.benchmark.json    figures by task; without a run in eval/ of the working folder
RUN/eval/<tasks>.benchmark.jsonl   a line a question: what was asked, what came, how it scored
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.disk import write_json
from tunesmith.errors import DataError, TunesmithError, UsageError
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.harness import HarnessModel
from tunesmith.evaluate.report.write import renew_report
from tunesmith.evaluate.results import beside
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import load
from tunesmith.rundir import RunDir, is_run
from tunesmith.settings import nearest
from tunesmith.worklog import claim, write_lines

try:
    import lm_eval
    from lm_eval.tasks import TaskManager
except ImportError:  # `check_harness` (benchmarks.py) has told so
    lm_eval = None

SEED = 1234  # of the few-shot examples that tasks draw; the harness's own default
RESAMPLES = 1000
FACTS = ("weights", "dtype", "template")


@dataclass(frozen=True)
class Benchmarked:
    """What came out, as JSON, and where it was written."""

    content: dict[str, Any]
    file: Path


def benchmark(
    name: str,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    dtype: str = "auto",
    output: Path | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Benchmarked:
    """Run tasks by name on a model or run; `include` is a folder with tasks of one's own (YAML).

    `shots` are the solved examples before each question, `chat` writes prompts by the chat template. Raises
    UsageError for an unknown task, DataError for one whose data can't be had.
    """
    run = RunDir(Path(name)) if Path(name).is_dir() and is_run(Path(name)) else None
    manager = _manager(tasks, include)
    predictions = output or _output(run, name, tasks, [shots, limit, chat, str(include), dtype])
    if predictions.suffix != ".jsonl":
        predictions = predictions.with_name(predictions.name.removesuffix(".json") + ".jsonl")
    with claim(predictions, "The same command begins anew."), _quiet():
        with _told(tasks):  # before a model is loaded: most of what goes wrong is a task's data
            loaded = _loaded(manager, tasks, shots)
        model = load(name, dtype=dtype, sampling=Sampling.model_validate({}))
        note(f"{', '.join(tasks)} on {name}, lm-evaluation-harness {_version()}")
        found = lm_eval.evaluate(
            lm=HarnessModel(model, watch or (lambda *_: None)),
            task_dict=loaded,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=RESAMPLES,
        )
        content = {
            "kind": "benchmark",
            "model": name,
            "tasks": {task: _figures(found, task) for task in found["results"]},
            "harness": _version(),
            "settings": {"shots": shots, "limit": limit, "chat": chat, "seed": SEED},
            "predictions": str(predictions),
            **{
                fact: value
                for fact, value in model.facts().items()
                if fact in ("weights", "dtype", "template")
            },
        }
        write_lines(predictions, list(_lines(found)))
        file = beside(predictions, ".json")
        write_json(file, content)
        renew_report(file)
    return Benchmarked(content, file)


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """What knows these tasks. Raises UsageError for one that nobody knows."""
    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):  # reading all public ones takes twenty seconds
            return own
    manager = TaskManager(include_path=None if include is None else str(include))
    known = manager.all_tasks
    wrong = [task for task in tasks if task not in known]
    if wrong:
        raise UsageError(
            f"There is no task {wrong[0]!r}{nearest(wrong[0], known)}.",
            details=[f"{task}{nearest(task, known)}" for task in wrong[1:]],
            fix="Tasks are those of lm-evaluation-harness (`lm-eval ls tasks`), and YAML files in --include.",
        )
    return manager


def _loaded(manager: Any, tasks: Sequence[str], shots: int | None) -> Any:
    """The tasks with their data, solved examples and seeds set as lm_eval.simple_evaluate sets them.

    That function itself runs git and asks the machine about itself, for a log that isn't kept here.
    """
    random.seed(0)
    np.random.seed(SEED)
    loaded = manager.load(list(tasks))
    for task in loaded["tasks"].values():
        fixed = task.get_config("num_fewshot")
        if fixed != 0 and (shots is not None or fixed is None):  # 0 is a task's own word
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


@contextmanager
def _told(tasks: Sequence[str]) -> Iterator[None]:
    """What goes wrong while a task gets its data, as an error for people."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:  # whatever the library, the hub client or a task's own code raises
        why = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"The data of {', '.join(tasks)} can't be had.",
            details=[f"{type(error).__name__}: {why}"],
            fix="Tasks read data sets of the Hugging Face hub: run it once with a network, or give tasks "
            "over files of your own with --include FOLDER (docs/eval.md).",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's own lines about its working aside; warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _figures(found: Mapping[str, Any], task: str) -> dict[str, Any]:
    """{"metrics": {"acc,none": {value, stderr}}, "n", "version", "shots"} of a task."""
    result = found["results"][task]
    metrics: dict[str, Any] = {}
    for name, value in result.items():
        metric, _, filtered = name.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = result.get(f"{metric}_stderr,{filtered}")
        key = metric if filtered == "none" else name
        metrics[key] = {"value": value, **({"stderr": error} if isinstance(error, int | float) else {})}
    samples = (found.get("n-samples") or {}).get(task) or {}
    return {
        "metrics": metrics,
        "n": samples.get("effective"),
        "version": (found.get("versions") or {}).get(task),
        "shots": (found.get("n-shot") or {}).get(task),
    }


def _lines(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, samples in (found.get("samples") or {}).items():
        for sample in samples:
            line = {
                "task": task,
                **{key: value for key, value in sample.items() if not key.endswith("_hash")},
            }
            yield json.loads(json.dumps(line, default=str))


def _output(run: RunDir | None, name: str, tasks: Sequence[str], asked: object) -> Path:
    folder = run.eval if run is not None else Path("eval")
    who = "" if run is not None else f"{Path(name.rstrip('/')).name.replace(':', '-')}."
    digest = hashlib.sha256(json.dumps([name, list(tasks), asked]).encode()).hexdigest()[:8]
    first = tasks[0] if len(tasks) == 1 else f"{tasks[0]}-and-{len(tasks) - 1}"
    return folder / f"{who}{first}.benchmark-{digest}.jsonl"


def _version() -> str:
    return importlib.metadata.version("lm-eval")
