"""Public benchmarks; apart from the rest, since the harness takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.api.folders import name_of
from tunesmith.evaluate import benchmark as benchmarks
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.benchmark import Benchmarked
from tunesmith.evaluate.harness_extra import check_harness
from tunesmith.rundir import RunDir


def benchmark(
    model: str | Path | RunDir,
    tasks: str | Sequence[str],
    *,
    include: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    dtype: str = "auto",
    output: str | Path | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Benchmarked:
    """Run tasks of lm-evaluation-harness on a model or run, without merging its adapter (extra `harness`).

    `tasks` are names, `include` a folder with YAML tasks of one's own, `shots` the solved examples before a
    question, `limit` the first questions of each task, `chat` writes prompts by the chat template.
    `.content` is what `--json` prints. Raises MissingExtraError, UsageError, DataError.
    """
    check_harness()
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    return benchmarks.benchmark(
        name_of(model), names, include=None if include is None else Path(include), shots=shots, limit=limit,
        chat=chat, dtype=dtype, output=None if output is None else Path(output), watch=watch, note=note,
    )  # fmt: skip
