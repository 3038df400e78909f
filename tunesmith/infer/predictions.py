"""Answers to a whole file of prompts, written as they come: JSONL, one line a prompt, in the prompts' order.

A line says what made it: model and weights, template, number format and settings. A file that was interrupted
is only ever continued by the same ones.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tunesmith.disk import disk_errors
from tunesmith.errors import RunError, UsageError
from tunesmith.records import Completion, Conversation
from tunesmith.settings import nearest

if TYPE_CHECKING:
    from tunesmith.infer.local import LocalModel

Existing = Literal["refuse", "resume", "replace"]
"""What happens to an output file that is there already."""

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
    model: LocalModel,
    prompts: Sequence[Conversation],
    output: Path,
    *,
    existing: Existing = "refuse",
    watch: Callable[[Summary], None] | None = None,
) -> Summary:
    """Answer every prompt and append each answer to `output` as soon as it and those before it are done.

    `watch` is told after each prompt. Whenever this ends, by an interruption too, the file holds whole lines
    only. Raises RunError for a file that is there already, or that another model, other settings or other
    prompts began.
    """
    check_output(output, existing)
    done = _resume(model, prompts, output) if existing == "resume" and output.exists() else 0
    summary = Summary(str(output), len(prompts), resumed=done)
    began = time.perf_counter()
    answered = model.complete(prompts[done:])
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        handle = output.open("ab" if done else "wb", buffering=0)
    with handle:
        for conversation, completions in zip(prompts[done:], answered, strict=True):
            line = json.dumps(prediction(model, conversation, completions), ensure_ascii=False)
            _append(handle.fileno(), output, line + "\n")
            summary.answered += 1
            summary.answers += len(completions)
            summary.tokens += sum(one.completion_tokens for one in completions)
            summary.finish.update(one.finish for one in completions)
            summary.seconds = time.perf_counter() - began
            if watch is not None:
                watch(summary)
    return summary


def check_output(output: Path, existing: Existing) -> None:
    """Raise RunError if the file is there already and nothing was said about it, or UsageError."""
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


def prediction(
    model: LocalModel, conversation: Conversation, completions: Sequence[Completion]
) -> dict[str, Any]:
    """A line of the output: the first answer; all of them under `predictions` where several were asked."""
    first = completions[0]
    line: dict[str, Any] = {
        **_asked(conversation),
        "prediction": first.text,
        "references": list(conversation.references),
        "finish": first.finish,
        "tokens": first.completion_tokens,
        **_made_by(model),
    }
    if len(completions) > 1:
        line["predictions"] = [
            {"text": one.text, "finish": one.finish, "tokens": one.completion_tokens} for one in completions
        ]
    return line


def _asked(conversation: Conversation) -> dict[str, str]:
    return {"id": conversation.key, "prompt": conversation.question}


def _made_by(model: LocalModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "weights": model.weights,
        "template": model.renderer.sha256[:16],
        "dtype": str(model.device.dtype).removeprefix("torch."),
        "settings": json.loads(json.dumps(model.sampling.given())),
    }


def _resume(model: LocalModel, prompts: Sequence[Conversation], output: Path) -> int:
    """How many prompts the file answers already; a line that was cut in the middle is taken out of it."""
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    if len(lines) > len(prompts):
        raise _not_ours(output, f"it has {len(lines)} lines, and there are {len(prompts)} prompts")
    for number, (text, conversation) in enumerate(zip(lines, prompts, strict=False), 1):
        try:
            line = json.loads(text)
        except ValueError:
            raise _not_ours(output, f"line {number} isn't JSON") from None
        for name, value in {**_asked(conversation), **_made_by(model)}.items():
            if not isinstance(line, dict) or name not in line:
                raise _not_ours(output, f"line {number} doesn't say its {name}")
            if line[name] != value:
                raise _not_ours(output, f"line {number} has {OTHERS.get(name, 'another ' + name)}")
    with disk_errors(output), output.open("rb+") as handle:
        handle.truncate(len(whole))
    return len(lines)


def _not_ours(output: Path, why: str) -> RunError:
    return RunError(
        f"{output} can't be continued: {why}.",
        fix="Give the model, settings and prompts that it was begun with, or another file.",
    )


def _append(handle: int, output: Path, line: str) -> None:
    """Write a whole line or nothing: what a full disk took of it is taken back."""
    before = os.fstat(handle).st_size
    rest = line.encode("utf-8", errors="backslashreplace")
    with disk_errors(output):
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
        except BaseException:
            os.ftruncate(handle, before)
            raise
