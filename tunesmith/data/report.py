"""data-report.json, and the same as the table that a person reads before training starts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tunesmith.data.check import Dataset

if TYPE_CHECKING:
    from tunesmith.data.encode import EncodedData
    from tunesmith.data.template import Renderer


def build_report(
    train: Dataset,
    valid: Dataset | None,
    train_encoded: EncodedData,
    valid_encoded: EncodedData | None,
    renderer: Renderer,
) -> dict[str, Any]:
    """Every count of kept, cut, dropped and masked rows, with the rows named; fit for JSON.

    `train` and `valid` (None without validation rows) each hold what `load_data` counted (`files`,
    `bad_rows`, `duplicates`, `overlap`, …) and what `encode` did; `template` says what rendered them.
    """
    report: dict[str, Any] = {
        "train": _part(train, train_encoded),
        "valid": None if valid is None or valid_encoded is None else _part(valid, valid_encoded),
        "template": {
            "name": renderer.name,
            "sha256": renderer.sha256,
            "stop_tokens": [renderer.decode([token]) for token in sorted(renderer.stop_ids)],
        },
    }
    if "strftime_now" in renderer.text:
        report["template"]["note"] = "the template writes today's date into every prompt"
    return report


def report_table(report: dict[str, Any]) -> Table:
    """The counts side by side, then in words what was done to how many rows."""
    table = Table(title="Data", title_justify="left")
    table.add_column("")
    parts = [(name, report[name]) for name in ("train", "valid") if report.get(name)]
    for name, _ in parts:
        table.add_column(name, justify="right")
    for title, show, always in _LINES:
        values = [show(part) for _, part in parts]
        if always or any(value not in ("0", "") for value in values):
            table.add_row(title, *values)
    words = dict.fromkeys(note for _, part in parts for note in part["notes"])
    words |= dict.fromkeys(reason for _, part in parts for reason in _dropped(part))
    if words:
        table.add_section()
    for word in words:
        counts = [part["notes"].get(word) or _dropped(part)[word] for _, part in parts]
        table.add_row(word, *(f"{count:,}" for count in counts))
    template = report["template"]
    table.add_section()
    table.add_row("template", template["name"])
    table.add_row("an answer ends with", " ".join(template["stop_tokens"]))
    if template.get("note"):
        table.add_row(template["note"])
    return table


def named_rows(report: dict[str, Any], most: int = 5) -> list[str]:
    """A line for each row that is left out, dropped, cut or split: file, line, why; `most` of them."""
    lines = []
    for part in (report[name] for name in ("train", "valid") if report.get(name)):
        lines += [f"{bad['origin']}: left out: {bad['reason']}" for bad in part["bad_rows"]]
        for row in part["named"]:
            kept = f", {row['kept_tokens']} of {row['tokens']} tokens kept" if row["what"] == "cut" else ""
            lines.append(f"{row['origin']}: {row['what']}: {row['reason']}{kept}")
    if (more := len(lines) - most) > 0:
        lines[most:] = [f"… and {more:,} more: data-report.json in the run's folder names all."]
    return lines


def _part(dataset: Dataset, encoded: EncodedData) -> dict[str, Any]:
    read = dataset.to_json()
    # `rows` is what was encoded, kept + dropped; the files may hold more (bad rows, weights, a share).
    read["rows_in_files"] = read.pop("rows")
    return {**read, **encoded.report}


def _share(part: dict[str, Any]) -> str:
    share = part["label_tokens"] / part["tokens"] if part["tokens"] else 0.0
    return f"{part['label_tokens']:,} ({share:.0%})"


def _dropped(part: dict[str, Any]) -> Counter[str]:
    """Reason: rows dropped for it."""
    return Counter(f"dropped: {e['reason']}" for e in part["named"] if e["what"] == "dropped")


# title, how a part shows it, whether it is shown when it's nothing
_LINES = (
    ("rows", lambda part: f"{part['rows']:,}", True),
    ("unreadable, left out", lambda part: f"{len(part['bad_rows']):,}", False),
    ("left out by weight", lambda part: f"{part['left_out']:,}", False),
    ("repeated by weight", lambda part: f"{part['repeated']:,}", False),
    ("exact duplicates", lambda part: f"{part['duplicates']:,}", False),
    ("also in train", lambda part: f"{part['overlap']:,}", False),
    ("kept", lambda part: f"{part['kept']:,}", True),
    ("of these cut", lambda part: f"{part['cut']:,}", False),
    ("of these split", lambda part: f"{part['split']:,}", False),
    ("dropped", lambda part: f"{part['dropped']:,}", True),
    ("labels lost by cutting", lambda part: f"{part['labels_cut']:,}", False),
    ("end tokens lost by cutting", lambda part: f"{part['end_tokens_cut']:,}", False),
    ("examples", lambda part: f"{part['examples']:,}", True),
    ("tokens", lambda part: f"{part['tokens']:,}", True),
    ("trained on", _share, True),
    ("longest example", lambda part: f"{part['longest']:,} of {part['max_length']:,}", True),
)
