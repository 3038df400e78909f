"""Records to examples: tokens, label mask, length policy, and a count of all that happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.config import DataSettings
from tunesmith.data.labels import Encoded
from tunesmith.data.lengths import Window, fit
from tunesmith.data.template import Renderer
from tunesmith.errors import DataError, TemplateError, TunesmithError
from tunesmith.records import Conversation, Labelled, Origin, Preference, Record, Text
from tunesmith.words import are, counted


@dataclass(frozen=True, slots=True)
class Example:
    """What is trained on: one row, one of its replies, or one window of it.

    `label_mask[t]`: token t is predicted and trained; position 0 never is, nothing stands before it.
    `row`: index of its record.
    """

    input_ids: list[int]
    label_mask: list[bool]
    origin: Origin
    row: int


@dataclass
class EncodedData:
    """Examples in the order of their rows, and the counts for data-report.json (see `encode`)."""

    examples: list[Example]
    report: dict[str, Any] = field(default_factory=dict)


def encode(
    records: Sequence[Record], renderer: Renderer, settings: DataSettings, *, part: str = "data.train"
) -> EncodedData:
    """Tokens and label masks of all records, each within `settings.max_length`; `part` names them in errors.

    The report has `rows` = `kept` + `dropped`; `cut` and `split` rows among the kept ones; `examples`,
    `tokens`, `label_tokens`, `longest`; `labels_cut` and `end_tokens_cut`, lost to the length policy; `notes`
    (words: rows); `named`: every row that was dropped, cut or split, with its tokens before, after, and why.

    Raises DataError or TemplateError, every row listed, for rows that can't be trained on (unless
    `settings.bad_rows` is drop), for rows that are too long with `too_long: error`, and if nothing is left.
    """
    if not records:
        raise DataError("There are no rows to train on.", fix=f"Check the files that {part} names.")
    _require_sft(records)
    if any(isinstance(record, Conversation) for record in records):
        renderer.require_template()
    work = _Work(renderer, settings, part)
    for row, record in enumerate(records):
        if isinstance(record, Conversation | Text):
            work.add(row, record)
    work.raise_problems(len(records))
    data = EncodedData(work.examples, work.report(len(records)))
    if not data.examples:
        reasons = Counter(entry["reason"] for entry in work.named)
        first = {entry["reason"]: entry["origin"] for entry in reversed(work.named)}
        marked = "Mark replies with `train: true`, or use" if settings.train_on == "marked" else "Check"
        raise DataError(
            f"None of the rows of {part} ({len(records)}) is left to train on.",
            details=[
                f"{counted(count, 'row')}: {reason} (the first: {first[reason]})"
                for reason, count in reasons.most_common()
            ],
            fix=f"{marked} {part}, data.train_on, data.max_length and data.too_long.",
        )
    return data


class _Work:
    """One pass over the records, keeping count."""

    def __init__(self, renderer: Renderer, settings: DataSettings, part: str) -> None:
        self.renderer, self.settings, self.part = renderer, settings, part
        self.examples: list[Example] = []
        self.named: list[dict[str, Any]] = []
        self.notes: Counter[str] = Counter()
        self.refused: list[TunesmithError] = []
        self.too_long: list[tuple[Origin, int]] = []
        self.outcome: Counter[str] = Counter()
        self.labels_cut = self.end_tokens_cut = 0

    def add(self, row: int, record: Conversation | Text) -> None:
        try:
            whole = self.renderer.encode(record, self.settings.train_on)
        except (DataError, TemplateError) as error:
            self.refused.append(error)
            reason = error.what.removeprefix(f"{record.origin}: ")
            self._name(row, record.origin, "dropped", reason, 0, 0)
            self.outcome["dropped"] += 1
            return
        if not whole:
            self._name(row, record.origin, "dropped", self._nothing_trained(), 0, 0)
            self.outcome["dropped"] += 1
            return
        self.notes.update({note for encoded in whole for note in encoded.notes})
        results = {self._fit(row, encoded) for encoded in whole}
        # A row of several examples counts as kept while one of them is left.
        kept = results - {"dropped"}
        self.outcome["kept" if kept else "dropped"] += 1
        self.outcome.update(kept - {"kept"})

    def _fit(self, row: int, encoded: Encoded) -> str:
        size, limit = len(encoded.input_ids), self.settings.max_length
        if size > limit:
            self.too_long.append((encoded.origin, size))
        windows, reason = fit(encoded, limit, self.settings.too_long)
        for window in windows:
            ids = [encoded.input_ids[p] for p in window.positions]
            self.examples.append(Example(ids, window.label_mask, encoded.origin, row))
        if not windows:
            self._name(row, encoded.origin, "dropped", reason, size, 0)
            return "dropped"
        if size <= limit:
            return "kept"
        what = "split" if self.settings.too_long == "split" else "cut"
        self._name_cut(row, encoded, windows, what, reason)
        return what

    def _name_cut(self, row: int, encoded: Encoded, windows: list[Window], what: str, reason: str) -> None:
        trained = {p for w in windows for p, mark in zip(w.positions, w.label_mask, strict=True) if mark}
        labels = {p for p, mark in enumerate(encoded.label_mask) if mark}
        ends = {reply.stop - 1 for reply in encoded.replies} or {len(encoded.input_ids) - 1}
        lost = len(labels - trained)
        ends_lost = len((ends & labels) - trained)
        self.labels_cut += lost
        self.end_tokens_cut += ends_lost
        reason = reason or f"longer than {self.settings.max_length} tokens"
        kept = sum(len(window.positions) for window in windows)
        self._name(row, encoded.origin, what, reason, len(encoded.input_ids), kept)
        self.named[-1].update(windows=len(windows), labels_lost=lost, end_tokens_lost=ends_lost)

    def raise_problems(self, rows: int) -> None:
        """One error that lists every row, by the strict settings."""
        if self.refused and self.settings.bad_rows == "error":
            kind = TemplateError if all(isinstance(e, TemplateError) for e in self.refused) else DataError
            raise kind(
                f"{len(self.refused)} of {rows} rows of {self.part} can't be trained on.",
                details=[error.what for error in self.refused],
                fix=" ".join(dict.fromkeys(error.fix for error in self.refused)),
            )
        if self.too_long and self.settings.too_long == "error":
            longest = max(size for _, size in self.too_long)
            raise DataError(
                f"{counted(len(self.too_long), 'example')} {are(len(self.too_long))} longer "
                "than data.max_length, "
                f"{self.settings.max_length} tokens.",
                details=[f"{origin}: {size} tokens" for origin, size in self.too_long],
                fix="Choose with data.too_long what happens to them: split (windows, for long texts), drop, "
                f"truncate_left or truncate_right; data.max_length={longest} would fit these.",
            )

    def report(self, rows: int) -> dict[str, Any]:
        sizes = [len(example.input_ids) for example in self.examples]
        return {
            "rows": rows,
            "kept": self.outcome["kept"],
            "dropped": self.outcome["dropped"],
            "cut": self.outcome["cut"],
            "split": self.outcome["split"],
            "examples": len(self.examples),
            "tokens": sum(sizes),
            "label_tokens": sum(sum(example.label_mask) for example in self.examples),
            "longest": max(sizes, default=0),
            "max_length": self.settings.max_length,
            "too_long": self.settings.too_long,
            "train_on": self.settings.train_on,
            "labels_cut": self.labels_cut,
            "end_tokens_cut": self.end_tokens_cut,
            "notes": dict(self.notes.most_common()),
            "named": self.named,
        }

    def _name(self, row: int, origin: Origin, what: str, reason: str, tokens: int, kept: int) -> None:
        self.named.append(
            {
                "origin": str(origin),
                "row": row,
                "what": what,
                "reason": reason,
                "tokens": tokens,
                "kept_tokens": kept,
            }
        )

    def _nothing_trained(self) -> str:
        if self.settings.train_on == "marked":
            return "no reply is marked `train: true`"
        return "no reply to train on (none there, or all marked `train: false`)"


def _require_sft(records: Sequence[Record]) -> None:
    wrong = [record for record in records if isinstance(record, Preference | Labelled)]
    if wrong:
        first = wrong[0]
        origin = first.origin if isinstance(first, Preference) else first.conversation.origin
        kind = "preference" if isinstance(first, Preference) else "labelled"
        raise DataError(
            f"{len(wrong)} of {len(records)} rows are {kind} rows (the first: {origin}); objective sft "
            "needs conversations or text.",
            fix="Give rows with one reply each; `tunesmith data check` shows what a file holds.",
        )
