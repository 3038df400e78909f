"""What answers: a loaded model, a file of prompts, a sweep of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.api.folders import name_of
from tunesmith.data.check import read_prompts
from tunesmith.errors import DataError
from tunesmith.evaluate import sweep as sweeping
from tunesmith.evaluate.answerers import Note
from tunesmith.infer import local
from tunesmith.infer.answerer import answerer
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import Existing, Summary, answer_into, check_output, claim_output
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir
from tunesmith.settings import build


def load(
    model: str | Path | RunDir, *, dtype: str = "auto", template: str | None = None, note: Note | None = None,
    **sampling: Any,
) -> LocalModel:  # fmt: skip
    """A model that answers: an alias, hub id, folder, GGUF file or run. `sampling` holds for all its answers.

    `load(run).chat("…")` answers; `note` is told what isn't as usual. Raises Model-, Run- or TemplateError.
    """
    settings = build(Sampling, sampling)
    return local.load(name_of(model), dtype=dtype, template=template, sampling=settings, note=note)


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
    check_endpoints((name_of(model),), settings, dtype=dtype, template=template)
    check_output(Path(output), existing)
    conversations = read_prompts(prompts) if isinstance(prompts, str) else prompts
    if not conversations:
        raise DataError(f"{prompts or 'The list'} holds no prompts.", fix="Give at least one.")
    with claim_output(Path(output), existing) as held:
        found = answerer(name_of(model), dtype=dtype, template=template, sampling=settings, note=note)
        found.batch_size = batch_size
        return answer_into(held, found, conversations, existing=existing, watch=watch)


def sweep(
    model: str | Path | RunDir | LocalModel, prompts: str | Sequence[str | Conversation],
    settings: Sequence[str | sweeping.Combination], *, watch: sweeping.Watch = lambda *_: None,
) -> sweeping.Sweep:  # fmt: skip
    """Answer the same prompts under each combination of `["temperature=0.1,0.7"]`: `.columns`, `.html()`."""
    answerer = model if isinstance(model, LocalModel) else load(model)
    return sweeping.sweep(answerer, sweeping.asked(prompts), sweeping.chosen(settings), watch)
