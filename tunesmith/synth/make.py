"""Chunks -> rows: the maker writes them, checks and the judge sort them, in the documents' order.

Chunks go in waves: what one wave's calls bring is filtered and judged before the next is asked for, so that a
limit leaves whole rows. All that decides a row stands in the ledger: the same calls give the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tunesmith.records import Message
from tunesmith.synth.asking import Asker
from tunesmith.synth.chunk import Chunk
from tunesmith.synth.config import Kind, Request
from tunesmith.synth.filters import flags, problem
from tunesmith.synth.ledger import Call, Reply
from tunesmith.synth.likeness import Likeness
from tunesmith.synth.prepare import Prepared
from tunesmith.synth.prompts import CONTINUE, judge_prompt, make_prompt, repair_prompt, versions
from tunesmith.synth.replies import Malformed, read_rows, read_verdict, stands_in
from tunesmith.synth.rows import Row

WAVE = 16  # chunks
SHOWN = 200  # characters of a reply that can't be read
ALIKE = 0.8  # of the questions' 3-grams
Watch = Callable[[str, int, int], None]


@dataclass
class Made:
    """All rows, kept and rejected, and the chunks that gave none, with the reason."""

    rows: list[Row] = field(default_factory=list)
    without: list[tuple[Chunk, Kind, str, str]] = field(default_factory=list)  # …, and what exactly

    def kept(self) -> list[Row]:
        """Those that are to be written."""
        return [row for row in self.rows if not row.why and not row.waiting]


@dataclass
class Progress:
    """Calls answered, of those that will be needed: a guess, by the share of the judge's so far.

    `first_guess` is how many the judge gets for each of the maker's.
    """

    watch: Watch
    first_guess: float
    to_make: int
    needed: int = 0
    judged: int = 0
    asked: int = 0
    done: int = 0

    def wave(self, calls: int) -> None:
        """So many are asked of the maker."""
        self.to_make, self.needed, self.asked = self.to_make - calls, self.needed + calls, self.asked + calls

    def judging(self, calls: int) -> None:
        """So many are asked of the judge."""
        self.needed, self.judged = self.needed + calls, self.judged + calls

    def tick(self, calls: int) -> None:
        """So many are answered."""
        self.done += calls
        known = self.judged / self.asked if self.judged else self.first_guess
        waiting = 0 if self.judged else self.first_guess * self.asked  # of the first wave
        total = max(self.done, round(self.needed + waiting + self.to_make * (1 + known)))
        self.watch("making rows", self.done, total)


def make_rows(prepared: Prepared, maker: Asker | None, judge: Asker | None, watch: Watch) -> Made:
    """Ask for, filter and judge all rows. Raises what the models raise; what came is in the ledger."""
    progress = _progress(prepared, judging=judge is not None, watch=watch)
    maker = maker and replace(maker, tick=progress.tick)
    judge = judge and replace(judge, tick=progress.tick)
    request, made = prepared.request, Made()
    continued: dict[str, list[Row]] = {}
    if "continue" in request.kinds:
        for row in _continued(prepared, made):
            continued.setdefault(row.chunk.id, []).append(row)
    seen = Likeness(3)
    prompts = versions(request.made_kinds)
    for begin in range(0, len(prepared.used), WAVE):
        wave = prepared.used[begin : begin + WAVE]
        rows: list[Row] = []
        if maker is not None and request.made_kinds:
            progress.wave(len(wave) * len(request.made_kinds))
            rows = _written(prepared, wave, maker, prompts, made)
            _filter(rows, request, seen)
            if judge is not None:
                good = [row for row in rows if not row.why]
                progress.judging(len(good))
                _judged(good, judge, prompts, request)
        by_chunk = {chunk.id: [*continued.get(chunk.id, [])] for chunk in wave}
        for row in rows:
            by_chunk[row.chunk.id].append(row)
        made.rows += [row for group in by_chunk.values() for row in group]
    _hold_out(made, request)
    return made


def _progress(prepared: Prepared, *, judging: bool, watch: Watch) -> Progress:
    request = prepared.request
    kinds = request.made_kinds
    rows = sum(1 if kind == "summary" else request.per_chunk for kind in kinds)
    return Progress(watch, rows / len(kinds) if kinds and judging else 0.0, len(prepared.used) * len(kinds))


def _continued(prepared: Prepared, made: Made) -> list[Row]:
    """A passage and the next one of its section; of a poem, its halves. No model is asked."""
    rows, used = [], {chunk.id for chunk in prepared.used}
    following = {
        a.id: b
        for a, b in pairwise(prepared.chunks)
        if a.section == b.section and b.id not in prepared.left_out and not b.verse
    }
    for chunk in prepared.chunks:
        if chunk.id not in used:
            continue
        language = prepared.language(chunk)
        words = prepared.request.instruction or CONTINUE[language]
        place = (chunk, prepared.part(chunk), language, words)
        if chunk.verse:
            if halves := _halves(chunk.text):
                rows.append(Row("continue", 1, *place, answer=halves[1], below=halves[0]))
                continue
        elif after := following.get(chunk.id):
            rows.append(Row("continue", 1, *place, answer=after.text, below=chunk.text, follows=after))
            continue
        made.without.append((chunk, "continue", "nothing follows in its section", ""))
    return rows


def _halves(poem: str) -> tuple[str, str] | None:
    """The two halves of a poem by lines; its title stays with the first."""
    lines = [line for line in poem.split("\n") if line.strip()]
    if len(lines) < 2:
        return None
    middle = (len(lines) + 1) // 2
    return "\n".join(lines[:middle]), "\n".join(lines[middle:])


def _written(
    prepared: Prepared, wave: Sequence[Chunk], maker: Asker, prompts: dict[str, str], made: Made
) -> list[Row]:
    request = prepared.request
    wanted = [(chunk, kind) for chunk in wave for kind in request.made_kinds]
    calls = []
    for chunk, kind in wanted:
        language = prepared.language(chunk)
        count = 1 if kind == "summary" else request.per_chunk
        prompt = f"{kind}.{language} {prompts[f'{kind}.{language}']}"
        asked = Message("user", make_prompt(kind, language, chunk, count))
        calls.append(Call("make", chunk.id, prompt, (asked,)))
    languages = [prepared.language(chunk) for chunk, _ in wanted]
    found = ask_twice(maker, calls, read_rows, languages, "--tokens")
    rows = []
    for (chunk, kind), (pairs, why, about) in zip(wanted, found, strict=True):
        if not pairs:
            made.without.append((chunk, kind, why or "the model found nothing to ask", about))
            continue
        below = chunk.text if kind == "summary" else ""
        limit = 1 if kind == "summary" else request.per_chunk
        for number, (question, answer) in enumerate(pairs, 1):
            row = Row(
                kind, number, chunk, prepared.part(chunk), prepared.language(chunk), question, answer, below
            )
            if number > limit:
                row.why, row.about = "more than was asked for", f"{limit} asked for"
            rows.append(row)
    return rows


NOT_ASKED, FAILED, MALFORMED = "not asked yet", "the call failed", "the reply was malformed twice"


def ask_twice(
    asker: Asker, calls: Sequence[Call], read: Callable[[str], Any], languages: Sequence[Any], limit: str
) -> list[tuple[Any, str, str]]:
    """What each reply says, or None, why, and what exactly; a malformed reply is asked for once more.

    One that was cut off isn't: the same `limit`, an option's name, would cut it again.
    """
    replies = asker.ask(calls)
    cut = f"cut off at {asker.tokens} tokens: {limit} allows more"
    found: list[tuple[Any, str, str]] = []
    again: dict[int, Call] = {}
    for at, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        value, why, about, problem = _read(reply, read, cut)
        found.append((value, why, about))
        if problem is not None and reply is not None:
            # An empty turn is refused by many servers and templates.
            before = Message("assistant", reply.text.strip() or "…")
            words = Message("user", repair_prompt(languages[at], problem.problem[languages[at]]))
            messages = (*call.messages, before, words)
            again[at] = Call(f"{call.purpose} again", call.chunk, call.prompt, messages)
    for at, reply in zip(again, asker.ask(list(again.values())) if again else [], strict=True):
        found[at] = _read(reply, read, cut)[:3]
    return found


def _read(
    reply: Reply | None, read: Callable[[str], Any], cut: str
) -> tuple[Any, str, str, Malformed | None]:
    if reply is None:
        return None, NOT_ASKED, "", None
    if reply.finish == "error":
        return None, FAILED, reply.error, None
    try:
        return read(reply.text), "", "", None
    except Malformed as error:
        about = f"{error}: {reply.text.strip()[:SHOWN]}"
        return (None, cut, about, None) if reply.finish == "length" else (None, MALFORMED, about, error)


def _filter(rows: Sequence[Row], request: Request, seen: Likeness) -> None:
    """Mark what needs no judge. `seen` has the questions before these, of all parts."""
    for row in rows:
        if row.why:
            continue
        row.why, row.about = problem(row.kind, row.question, row.answer, row.chunk.text)
        if row.why:
            continue
        found = flags(row.question, row.answer, row.chunk.text)
        row.flags = [f"{name}: {about}" for name, about in found]
        if found and request.flagged == "drop":
            row.why, row.about = found[0]
            continue
        if row.kind == "summary":
            continue  # requests for summaries are alike, their passages aren't
        likeness, other = seen.nearest(row.question)
        if likeness >= ALIKE:
            row.why, row.about = "nearly another question", other
        else:
            seen.add(row.id, row.question)


def _judged(rows: Sequence[Row], judge: Asker, prompts: dict[str, str], request: Request) -> None:
    calls = [
        Call(
            "judge",
            row.chunk.id,
            f"judge.{row.language} {prompts[f'judge.{row.language}']}",
            (Message("user", judge_prompt(row.kind, row.language, row.chunk, row.question, row.answer)),),
        )
        for row in rows
    ]
    found = ask_twice(judge, calls, read_verdict, [row.language for row in rows], "--judge-tokens")
    for row, (verdict, why, about) in zip(rows, found, strict=True):
        if why == NOT_ASKED:
            row.waiting = True
        elif why:
            row.why, row.about = f"judge: {why}", about
        else:
            row.verdict = verdict
            row.why, row.about = _sentence(verdict, row.chunk.text, request)


def _sentence(verdict: dict[str, Any], passage: str, request: Request) -> tuple[str, str]:
    if low := [name for name, least in request.least.items() if verdict[name] < least]:
        scores = ", ".join(f"{name} {verdict[name]} of {request.least[name]}" for name in low)
        return f"judge: {low[0]} too low", scores
    if not stands_in(verdict["quote"], passage):
        return "judge: its quote isn't in the passage", verdict["quote"]
    return "", ""


def _hold_out(made: Made, request: Request) -> None:
    """Take the last row of some training chunks out of training, to see later what was learnt."""
    by_chunk: dict[str, list[Row]] = {}
    for row in made.kept():
        if row.part == "train" and row.kind in ("qa", "instruct"):
            by_chunk.setdefault(row.chunk.id, []).append(row)
    able = [group[-1] for group in by_chunk.values() if len(group) > 1]
    number = round(request.recall * len(by_chunk))
    random.Random(request.seed).shuffle(able)
    for row in able[:number]:
        row.part = "recall"
