"""What a row becomes, token by token, for the eye: trained on, context, cut.

In colours for a terminal; with brackets ([[trained]], {{cut}}) for a pipe or a screen reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.text import Text as RichText
from transformers import PreTrainedTokenizerBase

from tunesmith.data.config import DataSettings
from tunesmith.data.encode import Example
from tunesmith.data.labels import Encoded
from tunesmith.data.lengths import fit
from tunesmith.data.template import Renderer
from tunesmith.errors import DataError, TemplateError
from tunesmith.records import Conversation, Origin, Record, Text

Kind = Literal["trained", "context", "cut"]

STYLES: dict[Kind, str] = {"trained": "green", "context": "dim", "cut": "red strike"}
BRACKETS: dict[Kind, tuple[str, str]] = {"trained": ("[[", "]]"), "context": ("", ""), "cut": ("{{", "}}")}


@dataclass(frozen=True, slots=True)
class Shown:
    """A row's tokens and what happens to each; `remark` says what else there is to know, in words."""

    origin: Origin
    ids: Sequence[int]
    kinds: Sequence[Kind]
    remark: str = ""


def trace(records: Iterable[Record], renderer: Renderer, settings: DataSettings) -> Iterator[Shown]:
    """What encoding does to each record; a refused one has no tokens, and the reason as its remark."""
    for record in records:
        if not isinstance(record, Conversation | Text):
            continue
        try:
            examples = renderer.encode(record, settings.train_on)
        except (DataError, TemplateError) as error:
            if not renderer.text and isinstance(record, Conversation):
                raise
            yield Shown(record.origin, (), (), error.what.removeprefix(f"{record.origin}: "))
            continue
        if not examples:
            yield Shown(record.origin, (), (), f"nothing to train on with train_on: {settings.train_on}")
        for encoded in examples:
            yield _trace(encoded, settings)


def show(
    rows: Iterable[Shown | Encoded | Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    plain: bool = False,
    most: int | None = None,
) -> list[RichText]:
    """One text with the legend, then two a row: its counts, and its tokens. `plain`: brackets, no colours.

    Of a row with more than `most` tokens, the first and the last are shown, and how many stand between them.
    """
    shown = [_legend(plain)]
    for row in rows:
        traced = row if isinstance(row, Shown) else _shown(row)
        shown += [_counts(traced, plain), _tokens(traced, tokenizer, plain, most)]
    return shown


def _trace(encoded: Encoded, settings: DataSettings) -> Shown:
    size = len(encoded.input_ids)
    if size > settings.max_length and settings.too_long == "error":
        stops = f"longer than {settings.max_length} tokens: training would stop (data.too_long=error)"
        return Shown(encoded.origin, encoded.input_ids, _kinds(encoded), "; ".join([stops, *encoded.notes]))
    windows, reason = fit(encoded, settings.max_length, settings.too_long)
    kinds: list[Kind] = ["cut"] * size
    for window in windows:
        for position, label in zip(window.positions, window.label_mask, strict=True):
            kinds[position] = "trained" if label else "context"
    remarks = [reason] if reason else []
    if len(windows) > 1:
        remarks.append(f"split into {len(windows)} examples")
    return Shown(encoded.origin, encoded.input_ids, kinds, "; ".join([*remarks, *encoded.notes]))


def _shown(row: Encoded | Example) -> Shown:
    notes = row.notes if isinstance(row, Encoded) else ()
    return Shown(row.origin, row.input_ids, _kinds(row), "; ".join(notes))


def _kinds(row: Encoded | Example) -> list[Kind]:
    return ["trained" if label else "context" for label in row.label_mask]


def _legend(plain: bool) -> RichText:
    meanings: dict[Kind, str] = {
        "trained": "trained on",
        "context": "context, read but not trained on",
        "cut": "cut by data.too_long",
    }
    text = RichText()
    for kind, meaning in meanings.items():
        text.append("  " if text else "")
        before, after = BRACKETS[kind] if plain else ("", "")
        text.append(f"{before}{meaning}{after}", style="" if plain else STYLES[kind])
    return text


def _counts(row: Shown, plain: bool) -> RichText:
    trained, cut = row.kinds.count("trained"), row.kinds.count("cut")
    text = RichText(str(row.origin), style="" if plain else "bold")
    if row.ids:
        text.append(f": {len(row.ids)} tokens, {trained} trained on")
    text.append(f", {cut} cut" if cut else "")
    text.append(f" ({row.remark})" if row.remark and row.ids else f": {row.remark}" if row.remark else "")
    return text


def _tokens(row: Shown, tokenizer: PreTrainedTokenizerBase, plain: bool, most: int | None) -> RichText:
    if most is None or len(row.ids) <= most:
        return _text(row, tokenizer, plain)
    head, tail = most - most // 2, len(row.ids) - most // 2
    text = _text(replace(row, ids=row.ids[:head], kinds=row.kinds[:head]), tokenizer, plain)
    trained = row.kinds[head:tail].count("trained")
    text.append(
        f"\n… {tail - head:,} tokens left out, {trained:,} of them trained on; --all shows them …\n",
        style="" if plain else "bold",
    )
    return text + _text(replace(row, ids=row.ids[tail:], kinds=row.kinds[tail:]), tokenizer, plain)


def _text(row: Shown, tokenizer: PreTrainedTokenizerBase, plain: bool) -> RichText:
    text = RichText()
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    open_kind: Kind = "context"
    for piece, kind, is_special in _pieces(row, tokenizer, special):
        if plain and kind != open_kind:
            text.append(BRACKETS[open_kind][1] + BRACKETS[kind][0])
            open_kind = kind
        style = "" if plain else STYLES[kind] + (" bold" if is_special else "")
        text.append(piece.replace("\n", "⏎\n"), style=style)
    if plain:
        text.append(BRACKETS[open_kind][1])
    return text


def _pieces(
    row: Shown, tokenizer: PreTrainedTokenizerBase, special: set[int]
) -> Iterator[tuple[str, Kind, bool]]:
    """Text as tokens complete it: a character spread over several tokens goes with its last one."""
    window = whole = told = (
        0  # ids[window:] are decoded; up to ids[whole] all is told, `told` characters of it
    )
    for at, (token, kind) in enumerate(zip(row.ids, row.kinds, strict=True), start=1):
        text = tokenizer.decode(list(row.ids[window:at]), skip_special_tokens=False)
        torn = text.endswith("\ufffd") and at < len(row.ids) and at - whole < _PATIENCE
        ready = text.rstrip("\ufffd") if torn else text
        if len(ready) > told:
            yield ready[told:], kind, token in special
            told = len(ready)
        if not torn:
            # The last whole token stays in the window: some tokenizers write a space only after something.
            window, whole = whole, at
            told = len(tokenizer.decode(list(row.ids[window:at]), skip_special_tokens=False))


_PATIENCE = 8
"""Tokens to wait for the rest of a character; bytes that never become one are shown as �."""
