"""LLaMA-Factory's dataset_info.json, read as its users expect, but nothing in it is ignored.

Source order: hf_hub_url / ms_hub_url, script_url (refused: it would run code), cloud_file_name (refused),
file_name, relative to the file's folder. Where `columns` is given, a column left out of it is none, not its
default; an empty text is none too. Without `columns`: prompt=instruction, query=input, response=output,
messages=conversations. An unknown key is an error with the nearest known one.

Where a path names rows, FOLDER/NAME is the entry NAME of FOLDER/dataset_info.json if there is no such file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.dataset_hub import download, download_modelscope
from tunesmith.data.encoding import decode
from tunesmith.data.json_rows import read_object
from tunesmith.data.read import RawRow, files_of, read_bytes
from tunesmith.data.row_format import PARTS, Format, Tags
from tunesmith.errors import DataError, SettingsError
from tunesmith.settings import nearest

FILE = "dataset_info.json"
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
KEYS: Mapping[str, type] = {
    **dict.fromkeys(SOURCES, str), "file_sha1": str, "formatting": str, "ranking": bool,
    "subset": str, "split": str, "folder": str, "num_samples": int, "columns": dict, "tags": dict,
    "mask_history": bool,
}  # fmt: skip
MEDIA = ("images", "videos", "audios")
COLUMNS = (*(part for part in PARTS if part != "text"), *MEDIA)
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
FORMATTINGS = ("alpaca", "sharegpt", "openai")


class Resolved(NamedTuple):
    """What an entry names: its files, the format of their rows, and how many rows to draw (None: all)."""

    paths: list[str]
    format: Format
    num_samples: int | None


def resolve(info: Path, name: str) -> Resolved:
    """The entry `name` of a dataset_info.json (or of the folder that holds one), its files downloaded.

    Raises SettingsError with every problem of a wrong entry, and DataError where its files can't be had.
    """
    file = info / FILE if info.is_dir() else info
    entries = read_object(decode(read_bytes(str(file)), str(file))[0], str(file))
    entry = entries.get(name)
    if entry is None:
        raise SettingsError(
            f"{file} has no data set {name!r}{nearest(name, list(entries))}.",
            fix=f"Names in it: {', '.join(list(entries)[:20]) or 'none'}.",
        )
    where = f"{file}, {name!r}"
    problems = _problems(entry)
    if problems:
        raise SettingsError(
            f"The entry {name!r} of {file} is wrong.",
            details=problems,
            fix=f"Known keys: {', '.join(KEYS)}. A column left out of `columns` is none, not its default.",
        )
    return Resolved(_paths(entry, file.parent, where), _format(entry, name), entry.get("num_samples"))


def named(path: str) -> Resolved | None:
    """What `path` means as FOLDER/NAME: the entry NAME of FOLDER/dataset_info.json; None where it is a file.

    Raises as `resolve`.
    """
    place = Path(path)
    if "://" in str(path) or place.exists() or place.name not in entries_beside(place):
        return None
    return resolve(place.parent, place.name)


def entries_beside(file: Path) -> dict[str, Any]:
    """The entries of the dataset_info.json in a file's folder, by name; none where there is none to read."""
    info = file.parent / FILE
    try:
        return dict(read_object(decode(read_bytes(str(info)), str(info))[0], str(info)))
    except DataError:
        return {}


def check_columns(rows: Sequence[RawRow], format: Format) -> None:
    """Raises DataError for a column that the entry names and no row has."""
    seen = dict.fromkeys(column for row in rows if isinstance(row.value, dict) for column in row.value)
    # Defaults that aren't there (alpaca's input, say) are only missing where rows need them.
    by_name = not format.reason.endswith(_DEFAULTS)
    named = tuple(format.columns.values()) if by_name else format.required
    missing = [column for column in named if column not in seen]
    if missing and rows:
        raise DataError(
            f"{rows[0].origin.path} has no column {' and '.join(map(repr, missing))}, which "
            + ("dataset_info.json names." if by_name else "is the default of dataset_info.json."),
            details=[f"{column!r}{nearest(column, list(seen))}" for column in missing],
            fix=f"Columns in the file: {', '.join(seen) or 'none'}.",
        )


_DEFAULTS = "with its default columns"


def _problems(entry: Any) -> list[str]:
    """Everything wrong with an entry, before anything of it is used."""
    if not isinstance(entry, dict):
        return ["it isn't an object with keys such as file_name"]
    found = []
    for key, value in entry.items():
        kind = KEYS.get(key)
        if kind is None:
            found.append(f"unknown key {key!r}{nearest(key, list(KEYS))}")
        elif value is not None and type(value) is not kind:
            words = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object"}
            found.append(f"{key} must be {words[kind]} (it is {value!r})")
    for key, known in (("columns", COLUMNS), ("tags", tuple(TAGS))):
        inner = entry.get(key)
        for part, value in inner.items() if isinstance(inner, dict) else ():
            if part not in known:
                found.append(f"unknown key {key}.{part}{nearest(part, known)}")
            elif value is not None and not isinstance(value, str):
                found.append(f"{key}.{part} must be a text (it is {value!r})")
    return found or _contradictions(entry)


def _contradictions(entry: Mapping[str, Any]) -> list[str]:
    found = []
    formatting = entry.get("formatting") or "alpaca"
    if formatting not in FORMATTINGS:
        near = nearest(formatting, FORMATTINGS)
        found.append(f"formatting {formatting!r} isn't known{near}; known: {', '.join(FORMATTINGS)}")
    source = _source(entry)
    if not source:
        found.append("it names no source: file_name, hf_hub_url or ms_hub_url")
    elif source == "script_url":
        found.append("script_url would run a script, which is never done; save its rows as a file")
    elif source in ("cloud_file_name", "om_hub_url"):
        found.append(f"{source} isn't supported; download the file and write file_name")
    elif source == "file_name":
        found += [
            f"{key} belongs to data sets of a hub, not to file_name"
            for key in ("subset", "folder")
            if entry.get(key)
        ]
        if entry.get("split") not in (None, "", "train"):
            found.append(f"a file has no split {entry['split']!r}; name the file of that split")
    if (number := entry.get("num_samples")) is not None and number < 1:
        found.append(f"num_samples must be at least 1 (it is {number})")
    columns = _columns(entry)
    found += [
        f"columns.{part}: rows with {part} can't be trained on here" for part in MEDIA if part in columns
    ]
    if formatting in FORMATTINGS:
        found += _missing_columns(entry, formatting, columns)
    names = [name for name in _tags(entry).values() if name]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        found.append(f"tags uses {', '.join(map(repr, doubled))} for two things")
    return found


def _missing_columns(entry: Mapping[str, Any], formatting: str, columns: Mapping[str, str]) -> list[str]:
    def left_out(part: str, default: str) -> str:
        named = f', "{part}": "{default}"' if default else f', "{part}": …'
        return f"columns leaves out {part}, so there is none; write it out: {{…{named}}}"

    found = []
    if formatting != "alpaca" and "messages" not in columns:
        found.append(left_out("messages", "conversations"))
    if formatting == "alpaca" and not {"prompt", "query"} & columns.keys():
        found.append(left_out("prompt", "instruction"))
    if entry.get("ranking"):
        found += [left_out(part, part) for part in ("chosen", "rejected") if part not in columns]
    elif formatting == "alpaca" and "response" not in columns and not _is_raw_text(columns):
        found.append(left_out("response", "output") + ' (raw text is {"prompt": "text"})')
    return found


def _format(entry: Mapping[str, Any], name: str) -> Format:
    formatting = entry.get("formatting") or "alpaca"
    columns = _columns(entry)
    reason = f"because dataset_info.json says so for {name!r}" + (
        "" if entry.get("columns") is not None else f", {_DEFAULTS}"
    )
    if formatting == "alpaca" and _is_raw_text(columns):
        return Format("text", f"text, {reason}", {"text": columns["prompt"]}, required=(columns["prompt"],))
    kept = COLUMNS if formatting != "alpaca" else [part for part in COLUMNS if part != "messages"]
    if formatting != "alpaca":
        kept = [part for part in COLUMNS if part not in ("prompt", "query", "response", "history")]
    columns = {part: column for part, column in columns.items() if part in kept}
    ranking, kto = bool(entry.get("ranking")), "kto_tag" in columns
    kind = {"openai": "messages"}.get(formatting, formatting)
    kind = "preference" if ranking else "labelled" if kto else kind
    needed = ("messages", "chosen", "rejected") if ranking else ("messages", "response")
    if ranking:
        columns = {part: column for part, column in columns.items() if part not in ("response", "kto_tag")}
    required = tuple(columns[part] for part in (*needed, "kto_tag") if part in columns)
    return Format(
        kind,
        f"{kind}, {reason}",
        columns,
        _format_tags(entry, formatting),
        required,
        bool(entry.get("mask_history")),
    )


def _columns(entry: Mapping[str, Any]) -> dict[str, str]:
    given = entry.get("columns")
    if given is not None:
        return {part: column for part, column in given.items() if column}
    if (entry.get("formatting") or "alpaca") != "alpaca":
        return {"messages": "conversations"}
    return {"prompt": "instruction", "query": "input", "response": "output"}


def _is_raw_text(columns: Mapping[str, str]) -> bool:
    # The way pretraining files are named there; with any other column name it is a forgotten `response`.
    return dict(columns) == {"prompt": "text"}


def _tags(entry: Mapping[str, Any]) -> dict[str, str]:
    return TAGS | {key: value or "" for key, value in (entry.get("tags") or {}).items()}


def _format_tags(entry: Mapping[str, Any], formatting: str) -> Tags:
    if formatting == "openai" and not entry.get("tags"):
        return Tags()
    tags = _tags(entry)
    roles = {
        "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
        "observation_tag": "tool", "function_tag": "function_call",
    }  # fmt: skip
    return Tags(
        tags["role_tag"], tags["content_tag"], {tags[tag]: role for tag, role in roles.items() if tags[tag]}
    )


def _source(entry: Mapping[str, Any]) -> str:
    return next((source for source in SOURCES if entry.get(source)), "")


def _paths(entry: Mapping[str, Any], folder: Path, where: str) -> list[str]:
    source = _source(entry)
    if source != "file_name":
        fetch = download if source == "hf_hub_url" else download_modelscope
        return fetch(
            entry[source],
            subset=entry.get("subset") or "",
            split=entry.get("split") or "train",
            folder=entry.get("folder") or "",
        )
    path = os.path.join(folder, entry["file_name"])  # noqa: PTH118 - keeps a relative path as people wrote it
    if "://" not in path and not os.path.exists(path):  # noqa: PTH110
        hint = nearest(os.path.basename(path), sorted(os.listdir(folder)))  # noqa: PTH119, PTH208
        raise DataError(
            f"There is no file {path}, which {where} names{hint}.",
            fix=f"Correct file_name; it is taken from the folder of the file that names it, {folder}.",
        )
    paths = files_of(path)
    if expected := entry.get("file_sha1"):
        found = (
            hashlib.sha1(read_bytes(path), usedforsecurity=False).hexdigest()
            if paths == [path]
            else "a folder"
        )
        if found != expected:
            raise DataError(
                f"{path} isn't the file that {where} means: its sha1 is {found}, not {expected}.",
                fix="If you changed the file on purpose, take file_sha1 out of the entry.",
            )
    return paths
