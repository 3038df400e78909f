"""Answers to a whole file of prompts: JSONL, one line a prompt, in the prompts' order.

A line says what made it: model and weights, template, number format and settings. What was interrupted is
only ever continued by the same ones.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tunesmith.data.prompts import prompts_sha256
from tunesmith.errors import RunError, UsageError
from tunesmith.infer.remote import RemoteModel
from tunesmith.infer.scores import logprobs
from tunesmith.records import Completion, Conversation
from tunesmith.settings import nearest
from tunesmith.worklog import Claim, begun_for, check_free, claim, write_lines

if TYPE_CHECKING:
    from tunesmith.infer.answerer import Answerer

Existing = Literal["refuse", "resume", "replace"]
"""What happens to an output file that is there already."""

ANSWERS = "answers"
AGAIN = "The same command with --resume goes on."
OTHERS = {"weights": "other weights", "settings": "other settings"}


@dataclass
class Summary:
    """What a call wrote so far: `answered` prompts of `prompts`, `resumed` by an earlier call."""

    output: str
    prompts: int
    resumed: int = 0
    answered: int = 0
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finish: Counter[str] = field(default_factory=Counter)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall-clock time."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output": self.output,
            "prompts": self.prompts,
            "resumed": self.resumed,
            "answered": self.answered,
            "answers": self.answers,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "finish": dict(self.finish),
        }


def write_predictions(
    model: Answerer,
    prompts: Sequence[Conversation],
    output: Path,
    *,
    existing: Existing = "refuse",
    watch: Callable[[Summary], None] | None = None,
) -> Summary:
    """Answer every prompt into `output`, which is written when the last answer is in.

    Meanwhile the answers are in OUTPUT.partial (see worklog.py), batch by batch as they are done; `watch` is
    told of each. Raises RunError for an output that is there already, that another model, other settings or
    other prompts began, or that another process is writing.
    """
    with claim_output(output, existing) as held:
        return answer_into(held, model, prompts, existing=existing, watch=watch)


@contextmanager
def claim_output(output: Path, existing: Existing) -> Iterator[Claim]:
    """Hold an output that may be written; see `check_output` and `worklog.claim` for what they raise."""
    check_output(output, existing)
    with claim(output, AGAIN) as held:
        yield held


def answer_into(
    held: Claim,
    model: Answerer,
    prompts: Sequence[Conversation],
    *,
    existing: Existing = "refuse",
    watch: Callable[[Summary], None] | None = None,
) -> Summary:
    """`write_predictions` into an output that is held already."""
    output = held.output
    facts = {**model.facts(), "prompts": prompts_sha256(prompts)[:16]}
    worklog = held.only_worklog(facts, len(prompts), fresh=existing != "resume")
    if existing == "resume" and worklog.empty and (lines := _earlier(model, prompts, output)):
        worklog.append(ANSWERS, lines)
    done = answered(worklog.rows(ANSWERS))
    summary = Summary(str(output), len(prompts), resumed=len(done))
    began = time.perf_counter()
    for batch in model.complete_batches(prompts, done):
        rows = {at: prediction(model, prompts[at], answers) for at, answers in batch.items()}
        worklog.append(ANSWERS, rows)
        for completions in batch.values():
            summary.answered += 1
            summary.answers += len(completions)
            summary.tokens += sum(one.completion_tokens for one in completions)
            summary.finish.update(one.finish for one in completions)
            summary.seconds = time.perf_counter() - began
            if watch is not None:
                watch(summary)
    lines = worklog.rows(ANSWERS)
    write_lines(output, [lines[at] for at in range(len(prompts))])
    return summary


def answered(rows: Mapping[int, Mapping[str, Any]]) -> frozenset[int]:
    """Of the answers in a worklog those that are there: what failed is asked again."""
    return frozenset(at for at, row in rows.items() if row["finish"] != "error")


def check_output(output: Path, existing: Existing) -> None:
    """Raise RunError if the file, or a part of it, is there and nothing was said about it, or UsageError."""
    if existing not in get_args(Existing):
        raise UsageError(
            f"existing={existing!r} isn't known{nearest(existing, get_args(Existing))}.",
            fix=f"Choose from: {', '.join(get_args(Existing))}.",
        )
    if output.is_dir():
        raise RunError(f"{output} is a folder.", fix=f"Give a file, for example {output / 'answers.jsonl'}.")
    if output.exists() and existing == "refuse":
        raise RunError(
            f"{output} is there already.",
            fix="Add --resume to continue it, --force to replace it, or give another file.",
        )
    check_free(output)
    if existing == "refuse" and (begun := begun_for(output)):
        raise RunError(
            f"An interrupted call left {begun[0].size()} in {begun[0].file}.",
            fix="Add --resume to continue it, --force to begin anew, or give another file.",
        )


def prediction(
    model: Answerer, conversation: Conversation, completions: Sequence[Completion]
) -> dict[str, Any]:
    """A line of the output: the first answer; all of them under `predictions` where several were asked."""
    first = completions[0]
    line: dict[str, Any] = {
        **_asked(conversation),
        "prediction": first.text,
        "references": list(conversation.references),
        "finish": first.finish,
        "tokens": first.completion_tokens,
        **({"error": first.error} if first.error else {}),
        **model.facts(),
    }
    if first.scores and not isinstance(model, RemoteModel):
        line["logprobs"] = logprobs(model.renderer.tokenizer, first.scores)
    if len(completions) > 1:
        line["predictions"] = [
            {
                "text": one.text,
                "finish": one.finish,
                "tokens": one.completion_tokens,
                **(
                    {"logprobs": logprobs(model.renderer.tokenizer, one.scores)}
                    if one.scores and not isinstance(model, RemoteModel)
                    else {}
                ),
            }
            for one in completions
        ]
    return line


def _asked(conversation: Conversation) -> dict[str, str]:
    return {"id": conversation.key, "prompt": conversation.question}


def _earlier(model: Answerer, prompts: Sequence[Conversation], output: Path) -> dict[int, dict[str, Any]]:
    """The answers that a file of answers holds already; a line that was cut in the middle isn't one."""
    if not output.exists():
        return {}
    content = output.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    if len(lines) > len(prompts):
        raise _not_ours(output, f"it has {len(lines)} lines, and there are {len(prompts)} prompts")
    found = {}
    for at, (text, conversation) in enumerate(zip(lines, prompts, strict=False)):
        try:
            line = json.loads(text)
        except ValueError:
            raise _not_ours(output, f"line {at + 1} isn't JSON") from None
        for name, value in {**_asked(conversation), **model.facts()}.items():
            if not isinstance(line, dict) or name not in line:
                raise _not_ours(output, f"line {at + 1} doesn't say its {name}")
            if line[name] != value:
                raise _not_ours(output, f"line {at + 1} has {OTHERS.get(name, 'another ' + name)}")
        if line.get("finish") != "error":
            found[at] = line
    return found


def _not_ours(output: Path, why: str) -> RunError:
    return RunError(
        f"{output} can't be continued: {why}.",
        fix="Give the model, settings and prompts that it was begun with, or another file.",
    )
