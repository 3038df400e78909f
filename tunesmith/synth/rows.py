"""A row, from passage to verdict, and how it is written in each format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.synth.chunk import Chunk
from tunesmith.synth.config import Form, Kind, Language


@dataclass
class Row:
    """A question with its answer and what they came from.

    `below` is the text that stands under the question (a passage to be summed up or continued), `follows` the
    chunk whose text the answer is. `why` says why the row was rejected, `about` what exactly; `waiting` that
    the judge wasn't asked yet. `recall`: kept out of training although its passage is trained on.
    """

    kind: Kind
    number: int
    chunk: Chunk
    part: str
    language: Language
    question: str
    answer: str
    below: str = ""
    follows: Chunk | None = None
    why: str = ""
    about: str = ""
    waiting: bool = False
    flags: list[str] = field(default_factory=list)
    verdict: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The same in every run over the same document."""
        return f"{self.kind}-{self.chunk.id}-{self.number}"

    def written(self, form: Form, system: str) -> dict[str, Any]:
        """The row as `tunesmith data` reads it."""
        asked = f"{self.question}\n\n{self.below}" if self.below else self.question
        if form == "alpaca":
            row = {"id": self.id, "instruction": self.question, "input": self.below, "output": self.answer}
            return row | ({"system": system} if system else {})
        before = [{"role": "system", "content": system}] if system else []
        question = {"role": "user", "content": asked}
        answer = {"role": "assistant", "content": self.answer}
        if form == "messages":
            return {"id": self.id, "messages": [*before, question, answer]}
        if system:
            return {"id": self.id, "prompt": [*before, question], "completion": [answer]}
        return {"id": self.id, "prompt": asked, "completion": self.answer}

    def source(self, maker: str, judge: str) -> dict[str, Any]:
        """Where it comes from: chunk, file, offsets, models, scores."""
        found: dict[str, Any] = {"id": self.id, "part": self.part, "kind": self.kind, **_place(self.chunk)}
        if self.follows is not None:
            found["answer_from"] = _place(self.follows)
        if self.kind != "continue":
            found["maker"] = maker
            found["passage"] = self.chunk.text
        if self.verdict is not None:
            found |= {"judge": judge, "verdict": self.verdict}
        if self.flags:
            found["flags"] = self.flags
        return found

    def rejected(self) -> dict[str, Any]:
        """What a person needs to see whether it was rightly rejected."""
        return {
            "of": "row", "id": self.id, "part": self.part, "reason": self.why, "about": self.about,
            "question": self.question, "answer": self.answer, **_place(self.chunk),
            "passage": self.chunk.text,
            **({"verdict": self.verdict} if self.verdict is not None else {}),
        }  # fmt: skip


def rejected_chunk(chunk: Chunk, reason: str, about: str, kind: str = "") -> dict[str, Any]:
    """A chunk that gave no row, of a kind or at all; `about`: what exactly, or which chunk it repeats."""
    made = {"kind": kind} if kind else {}
    return {"of": "chunk", **made, "reason": reason, "about": about, **_place(chunk), "passage": chunk.text}


def _place(chunk: Chunk) -> dict[str, Any]:
    return {
        "chunk": chunk.id, "file": chunk.document.name, "sha256": chunk.document.sha256, "start": chunk.start,
        "end": chunk.end, "headings": list(chunk.headings),
    }  # fmt: skip
