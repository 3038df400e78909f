"""Calls to a judge, through a worklog: a call that was made is never made again, however the process ended.

A line of the worklog is a call: the request, the reply, its tokens and seconds, and the verdict that was read
from it, or why none could be. A reply that can't be read gets one request to mend it; a call that fails, and
a reply that stays malformed, have no verdict and are counted.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.evaluate.answerers import Watch, tell
from tunesmith.evaluate.judge.prompts import Language, repair_prompt
from tunesmith.evaluate.judge.replies import Malformed, Parse, Verdict
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import answered
from tunesmith.infer.remote import RemoteModel
from tunesmith.records import Completer, Completion, Conversation, Message, Origin
from tunesmith.worklog import Worklog

CALLS, REPAIRS = "calls", "repairs"

Why = Literal["", "failed", "malformed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a question: the verdict, or why there is none; and its calls, one or two."""

    verdict: Verdict | None
    why: Why
    problem: str
    calls: tuple[Mapping[str, Any], ...]


def ask(
    worklog: Worklog,
    judge: Completer,
    prompts: Sequence[str],
    parse: Parse,
    language: Language,
    watch: Watch | None = None,
) -> list[Outcome]:
    """The judge's verdict on each prompt, in order. Raises what the judge raises; what came stays."""
    first = [_conversation(at, Message("user", prompt)) for at, prompt in enumerate(prompts)]
    _calls(worklog, CALLS, judge, first, frozenset(), parse, watch)
    calls = worklog.rows(CALLS)
    broken = [at for at, call in calls.items() if call["problem"] and not call["error"]]
    again = {
        at: _conversation(
            at,
            *first[at].messages,
            Message("assistant", calls[at]["reply"]),
            Message("user", repair_prompt(language, calls[at]["problem"])),
        )
        for at in broken
    }
    if again:
        asked = [again.get(at, one) for at, one in enumerate(first)]
        _calls(worklog, REPAIRS, judge, asked, set(range(len(first))) - set(broken), parse, watch)
    repairs = worklog.rows(REPAIRS)
    return [_outcome([calls[at], *([repairs[at]] if at in again else [])]) for at in range(len(prompts))]


def _calls(
    worklog: Worklog,
    kind: str,
    judge: Completer,
    asked: Sequence[Conversation],
    others: Container[int],
    parse: Parse,
    watch: Watch | None,
) -> None:
    there = answered(worklog.rows(kind))
    wanted = [at for at in range(len(asked)) if at not in others]
    done = {at for at in range(len(asked)) if at in others or at in there}
    what = f"{judge.name} judges" if kind == CALLS else f"{judge.name} mends malformed replies"
    tell(watch, what, sum(at in there for at in wanted), len(wanted))
    if len(done) == len(asked):
        return
    with closing(_answers(judge, asked, done)) as batches:
        for batch in batches:
            worklog.append(kind, {at: _line(asked[at], answer, parse) for at, answer in batch.items()})
            done |= set(batch)
            tell(watch, what, sum(at in done for at in wanted), len(wanted))


def _answers(
    judge: Completer, asked: Sequence[Conversation], done: Container[int]
) -> Generator[dict[int, Completion]]:
    if isinstance(judge, LocalModel | RemoteModel):
        with closing(judge.complete_batches(asked, done)) as batches:
            for batch in batches:
                yield {at: answers[0] for at, answers in batch.items()}
        return
    left = [at for at in range(len(asked)) if at not in done]
    for at, answers in zip(left, judge.complete([asked[at] for at in left]), strict=True):
        yield {at: answers[0]}


def _line(asked: Conversation, answer: Completion, parse: Parse) -> dict[str, Any]:
    verdict, problem = None, ""
    if answer.finish != "error":
        try:
            verdict = parse(answer.text)
        except Malformed as error:
            problem = f"{error}; the limit of tokens cut it" if answer.finish == "length" else str(error)
    return {
        "request": [message.as_dict() for message in asked.messages],
        "reply": answer.text,
        "finish": answer.finish,
        "error": answer.error,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.completion_tokens,
        "seconds": round(answer.seconds, 4),
        "verdict": verdict,
        "problem": problem,
    }


def _outcome(calls: Sequence[Mapping[str, Any]]) -> Outcome:
    last = calls[-1]
    why: Why = "failed" if last["finish"] == "error" else "" if last["verdict"] else "malformed"
    return Outcome(last["verdict"], why, last["error"] or last["problem"], tuple(calls))


def _conversation(at: int, *messages: Message) -> Conversation:
    return Conversation(messages, Origin("judge", at + 1, at))
