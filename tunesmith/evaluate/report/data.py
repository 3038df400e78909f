"""The data report of a run as the page shows it: counts side by side, files, notes, rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN_NAMED = 100

DATA_LINES = (
    ("rows", "Rows", "数据行"),
    ("bad_rows", "Unreadable", "无法解析"),
    ("duplicates", "Exact duplicates", "完全重复"),
    ("kept", "Kept", "保留"),
    ("cut", "Cut", "截断"),
    ("split", "Split", "拆分"),
    ("dropped", "Dropped", "丢弃"),
    ("labels_cut", "Label tokens lost by cutting", "因截断失去的标签 token"),
    ("end_tokens_cut", "End tokens lost by cutting", "因截断失去的结束符"),
    ("examples", "Examples", "训练样本"),
    ("tokens", "Tokens", "token 数"),
    ("label_tokens", "Label tokens (trained on)", "标签 token（计入损失）"),
    ("longest", "Longest example (tokens)", "最长样本（token）"),
)


def counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts side by side for train and valid, files with their formats, notes."""
    parts = [(name, report[name]) for name in ("train", "valid") if report.get(name)]
    lines = []
    for key, english, chinese in DATA_LINES:
        values = [part.get(key) for _, part in parts]
        values = [len(v) if isinstance(v, list) else v for v in values]
        if any(v is not None for v in values):
            lines.append((english, chinese, [number(v) for v in values]))
    sources = [
        (name, file.get("path"), file.get("reason") or file.get("format"), file.get("rows"))
        for name, part in parts
        for file in part.get("files") or []
        if isinstance(file, dict)
    ]
    notes = [(name, note, count) for name, part in parts for note, count in _notes(part.get("notes"))]
    return {"parts": [name for name, _ in parts], "lines": lines, "files": sources, "notes": notes}


def _notes(notes: Any) -> list[tuple[str, Any]]:
    return list(notes.items()) if isinstance(notes, dict) else [(str(note), None) for note in notes or []]


def named(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every row that was dropped, cut, split or unreadable, with its place and the reason."""
    rows = []
    for name in ("train", "valid"):
        part = report.get(name) or {}
        for bad in part.get("bad_rows") or []:
            origin, reason = (
                (bad.get("origin"), bad.get("reason")) if isinstance(bad, dict) else ("", str(bad))
            )
            rows.append((name, origin, "unreadable", reason))
        for entry in part.get("named") or []:
            rows.append((name, entry.get("origin"), entry.get("what"), entry.get("reason")))
    return {"rows": rows[:SHOWN_NAMED], "more": max(0, len(rows) - SHOWN_NAMED)}


def number(value: Any) -> str:
    """1,234; a dash for what isn't there."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
