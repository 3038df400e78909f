"""What makes training rows from documents: one model writes, another judges."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import SettingsError, UsageError
from tunesmith.infer.answerer import Answerer, answerer
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints, is_endpoint
from tunesmith.infer.found import find
from tunesmith.infer.local import LocalModel
from tunesmith.model.load import load_tokenizer
from tunesmith.settings import build
from tunesmith.synth.chunk import Count
from tunesmith.synth.config import CHARACTERS, Request
from tunesmith.synth.replies import rows_schema, verdict_schema
from tunesmith.synth.run import Result, run

_OPTIONS = {field.name for field in fields(Request)} - {"documents", "output"}


def make(
    documents: str | Path | Sequence[str | Path] | Request,
    output: str | Path | None = None,
    *,
    watch: Callable[[str, int, int], None] = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Result:
    """Make training rows from documents into a JSONL file: `.content` of the result is the report.

    `options` are the fields of `tunesmith.synth.config.Request` (`model`, `judge`, `kinds`, `size`, `valid`,
    `max_calls`, …); other names are sampling settings of the maker. A model is an alias, folder, run or
    endpoint (URL#MODEL). Calls that an earlier process made aren't made again. Raises SettingsError,
    UsageError, DataError, RunError, what the models raise, and GenerateError where no row came out.
    """
    given = {name: value for name, value in options.items() if name in _OPTIONS}
    sampling = build(Sampling, {name: value for name, value in options.items() if name not in _OPTIONS})
    if isinstance(documents, Request):
        request = replace(documents, **given)
    elif output is None:
        raise UsageError("There is no output.", fix="Give the rows' file: make(documents, 'rows.jsonl').")
    else:
        several = [documents] if isinstance(documents, str | Path) else documents
        request = Request(tuple(map(Path, several)), Path(output), **given)
    request.check()
    check_sampling(request, sampling)
    count = _count_by(request.count_by)
    return run(request, lambda: _connect(request, sampling, note), count=count, watch=watch, note=note)


def check_sampling(request: Request, sampling: Sampling) -> None:
    """Raise for endpoints that can't be asked so, and for settings that pay for answers nobody reads."""
    check_endpoints([name for name in (request.model,) if name], sampling)
    check_endpoints([name for name in (request.judge,) if name], Sampling.model_validate({}))
    if sampling.answers > 1:
        raise SettingsError("One reply is read of each call.", fix="Leave num_return_sequences out.")
    if sampling.max_new_tokens is not None or sampling.json_schema is not None:
        raise SettingsError(
            "The maker's replies have a limit and a form of their own.",
            fix="Leave max_new_tokens and json_schema out; --tokens (in Python: tokens=…) is the limit.",
        )


def _connect(
    request: Request, sampling: Sampling, note: Callable[[str], None]
) -> tuple[Answerer | None, Answerer | None]:
    """The maker and the judge; a local model that is both is loaded once."""
    if not request.made_kinds or request.model is None:
        return None, None
    given = {"max_new_tokens": request.tokens, **sampling.given()}
    maker = answerer(
        request.model,
        sampling=build(Sampling, given | _form(request.model, rows_schema(request.per_chunk))),
        note=note,
    )
    if not request.judging or request.judge is None:
        return maker, None
    held = build(Sampling, {"max_new_tokens": request.judge_tokens, **_form(request.judge, verdict_schema())})
    if request.judge == request.model and isinstance(maker, LocalModel):
        return maker, replace(maker, sampling=held)
    return maker, answerer(request.judge, sampling=held, note=note)


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Decoding is held to the form of the reply where it can be."""
    here = not is_endpoint(name) and importlib.util.find_spec("llguidance") is not None
    return {"json_schema": schema} if here else {}


def _count_by(name: str) -> Count | None:
    if name == CHARACTERS:
        return None
    if is_endpoint(name):
        raise SettingsError(
            f"--count-by {name}: an endpoint counts no tokens beforehand.",
            fix="Name a model on this machine or the hub with the same tokenizer, or count characters.",
        )
    tokenizer = load_tokenizer(find(name).tokenizer)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
