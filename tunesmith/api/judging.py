"""What judges: a model's verdicts on answers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.api.folders import name_of
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.judge import measure
from tunesmith.evaluate.judge.asked import TOKENS, Request
from tunesmith.evaluate.judge.measure import Judged
from tunesmith.evaluate.judge.prompts import Language
from tunesmith.infer.config import Sampling
from tunesmith.rundir import RunDir
from tunesmith.settings import build


def judge(
    a: str | Path | RunDir,
    b: str | Path | RunDir | None = None,
    *,
    judge: str | Path | RunDir,
    data: str | None = None,
    truth: str | None = None,
    rubric: str | None = None,
    language: Language | None = None,
    limit: int | None = None,
    references: bool = True,
    tokens: int = TOKENS,
    dtype: str = "auto",
    template: str | None = None,
    blind: str | Path | None = None,
    output: str | Path | None = None,
    again: bool = False,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    **sampling: Any,
) -> Judged:
    """Have a model judge A against B in both orders, or grade A (and B) by a `rubric`.

    `.content` of the result is what `--json` prints, `.file` where it stands.
    A and B are models, runs, endpoints (URL#MODEL) or files of answers (.jsonl); so is `judge`, but for a
    file. `data` has the prompts, `truth` their answers where they stand apart; `references` lets the judge
    see them. `rubric` is "builtin" or a YAML file, `blind` the folder of an unsealed blind test of the same
    answers. `sampling` holds for A and B; the judge is greedy and writes `tokens` tokens at most. What an
    earlier call has paid for isn't asked again, unless `again`.
    """
    request = Request(
        name_of(a), None if b is None else name_of(b), name_of(judge), data, truth, rubric, language, limit,
        references, tokens, dtype, template, None if blind is None else Path(blind),
        None if output is None else Path(output), again,
    )  # fmt: skip
    return measure.judge(request, build(Sampling, sampling), watch=watch, note=note)
