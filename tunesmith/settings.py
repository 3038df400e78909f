"""Typed settings: defaults <- YAML file <- `key=value` words of the command line.

Each option is declared once, in a stage's `config.py`, as a field of a `Settings` class. An unknown key is an
error that names the nearest known one; all problems of a file are reported together. Settings are frozen.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from tunesmith.errors import SettingsError

S = TypeVar("S", bound="Settings")
FULL_WIDTH = "："


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, strict=True, allow_inf_nan=False
    )
    listed_by: ClassVar[str] = "tunesmith train --settings"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SettingsError with the line for broken YAML or a non-mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = f"Did you mean {path.with_name(near[0])}? " if near else ""
        raise SettingsError(
            f"There is no file {path}.", fix=f"{hint}Give the path of a job file (YAML)."
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path} isn't UTF-8 (byte {error.start}).", fix="Save the file as UTF-8."
        ) from None
    except OSError as error:
        raise SettingsError(
            f"{path} can't be read: {error.strerror}.", fix="Check the path and its permissions."
        ) from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if number := _wide_near(text, error):
            raise _full_width(f"{path}:{number}") from None
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it isn't valid YAML"
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []
        if "\\t" in problem or any("\t" in part[: len(part) - len(part.lstrip())] for part in line):
            raise SettingsError(
                f"{path}{where}: a tab stands at the beginning of this line.",
                fix="YAML is indented with spaces only: use two spaces instead of each tab.",
            ) from None
        if path.suffix in (".jsonl", ".csv", ".tsv", ".parquet", ".txt"):
            raise SettingsError(
                f"{path} is data, not a job.",
                fix=f"Name it in a job file, for example in job.yaml: data: {{train: {path.name}}}",
            ) from None
        raise SettingsError(
            f"{path}{where}: {problem}.", fix="Write `key: value` lines, nested ones indented by two spaces."
        ) from None
    if wide := _wide_key(content):
        number = _line_with(text, wide.partition("\n")[0])
        raise _full_width(f"{path}:{number}" if number else str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"{path} holds a {type(content).__name__}, not settings.",
            fix="Write `key: value` lines. Data files are named in a job: `data: {train: FILE}`.",
        )
    return content


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["train.epochs=3", "adapter.rank=8"]` -> nested mapping; values are read as YAML."""
    content: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise SettingsError(
                f"{word!r} isn't a setting.", fix="Write key=value, for example train.epochs=3."
            )
        node = content
        *parents, last = key.strip().split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if isinstance(child, str) and parent == parents[-1]:
                child = node[parent] = {"type": child}  # `adapter=freeze adapter.last_layers=2`
            if not isinstance(child, dict):
                raise SettingsError(
                    f"{word!r} contradicts an earlier word about {parent!r}.", fix="Keep one of them."
                )
            node = child
        earlier = node.get(last)
        try:
            given = yaml.load(value, Loader=_Loader) if value else ""
        except yaml.YAMLError:
            raise SettingsError(
                f"The value of {word!r} can't be read.", fix="Quote it: 'key=\"value\"'."
            ) from None
        if isinstance(earlier, dict) and not isinstance(given, str):
            raise SettingsError(f"{word!r} contradicts an earlier word about it.", fix="Keep one of them.")
        node[last] = {**earlier, "type": given} if isinstance(earlier, dict) else given
        if isinstance(node[last], dict) and _wide_key(node[last]):
            raise _full_width(repr(word))
    return content


def _wide_key(content: Any) -> str:
    """The first key with a full-width colon, or the whole of a text that holds one; else nothing."""
    if isinstance(content, str):
        return content if FULL_WIDTH in content else ""
    if not isinstance(content, Mapping):
        return ""
    found = [str(key) for key in content if FULL_WIDTH in str(key)]
    found += [_wide_key(value) for value in content.values() if isinstance(value, Mapping)]
    return next(filter(None, found), "")


def _wide_near(text: str, error: yaml.YAMLError) -> int | None:
    """The number of a line with a full-width colon at the place of an error: often it is met a line later."""
    lines = text.splitlines()
    marks = [getattr(error, "context_mark", None), getattr(error, "problem_mark", None)]
    near = [line for mark in marks if mark is not None for line in (mark.line, mark.line - 1)]
    at = (line for line in near if 0 <= line < len(lines) and FULL_WIDTH in lines[line].partition("#")[0])
    return next((line + 1 for line in at), None)


def _line_with(text: str, part: str) -> int | None:
    """The number of the first line with `part` that is no comment."""
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if part in line.partition(" #")[0]), None)


def _full_width(where: str) -> SettingsError:
    return SettingsError(
        f"{where}: {FULL_WIDTH!r} is a full-width colon, which YAML doesn't know.",
        fix="Write ': ', a colon of the English keyboard and a space.",
    )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid over it, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(
    cls: type[S], content: Mapping[str, Any], source: str = "", typed: Mapping[str, Any] | None = None
) -> S:
    """A settings object from a mapping. Raises one SettingsError that lists every problem.

    `source` names the file that the content comes from, `typed` holds the part of it that `key=value` words
    gave: each problem is told with the place where it can be mended.
    """
    try:
        return cls.model_validate(dict(content))
    except ValidationError as error:
        details = [_describe(cls, problem) for problem in error.errors()]
        count = f"{len(details)} settings are" if len(details) > 1 else "A setting is"
        file = f"in {source}" if source else ""
        places = [_place(cls, problem, typed or {}, file) for problem in error.errors()]
        one = len({*places}) == 1
        where = f" {places[0]}" if one and places[0] else ""
        if not one:
            details = [f"{text}, {place}" for text, place in zip(details, places, strict=True)]
        raise SettingsError(
            f"{count} wrong{where}.",
            details=details,
            fix=f"`{cls.listed_by}` lists every setting with its default.",
        ) from None


def as_tuple(value: Any) -> Any:
    """A YAML list as the tuple that a frozen setting is; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def known_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting of a class as a dotted name, in declaration order."""
    names = []
    for name, field in cls.model_fields.items():
        names.append(prefix + name)
        if (inner := settings_class(field)) is not None:
            names += known_keys(inner, f"{prefix}{name}.")
    return names


def nearest(word: str, known: Sequence[str], *, lead: str = "") -> str:
    """` (did you mean 'X'?)` for the closest known word, else nothing; the sentence goes on after it.

    `lead` is what all known words begin with, such as a slash: it makes none of them closer.
    """
    names = [one.removeprefix(lead) for one in known]
    near = difflib.get_close_matches(word.removeprefix(lead), names, n=1, cutoff=0.6)
    return meant(lead + near[0]) if near else ""


def meant(word: str) -> str:
    """` (did you mean 'X'?)`."""
    return f" (did you mean {word!r}?)"


def _describe(cls: type[BaseModel], problem: Any) -> str:
    # pydantic names the kinds it tried (`function-before…`, `tuple[…]`, `float`) among the settings.
    names = {key.rpartition(".")[2] for key in known_keys(cls)}
    loc, last = problem["loc"], len(problem["loc"]) - 1
    unknown = problem["type"] in ("extra_forbidden", "missing")
    path = [
        str(part)
        for i, part in enumerate(loc)
        if part in names or isinstance(part, int) or (unknown and i == last)
    ]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{_suggestion(cls, path)}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type") and (
        kind := _class_at(cls, path)
    ):
        return f"{name} is a group of settings: write {name}: {{{_example(kind, problem.get('input'))}}}"
    if problem["type"] == "missing":
        return f"{name} is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should be "):
        message = "must be " + message.removeprefix("Input should be ")
    given = problem.get("input")
    shown = f" (it is {given!r})" if path and not isinstance(given, dict) else ""
    return (
        f"{name} {message}{shown}"
        if message.startswith("must")
        else f"{name}: {message}{shown}"
        if name
        else message
    )


def _place(cls: type[BaseModel], problem: Any, typed: Mapping[str, Any], file: str) -> str:
    """Where the wrong setting stands; a contradiction may be due to the file, the words, or both."""
    names = {key.rpartition(".")[2] for key in known_keys(cls)}
    given: Any = typed
    for i, part in enumerate(problem["loc"]):
        if not isinstance(given, Mapping):
            break
        if part in given:
            given = given[part]
        elif part in names or i == len(problem["loc"]) - 1:  # else it's a kind that pydantic tried
            return file
    if not isinstance(given, Mapping) or problem["type"] == "extra_forbidden":
        return "on the command line"
    return f"{file} and on the command line" if given and file else file


def _suggestion(cls: type[BaseModel], path: Sequence[str]) -> str:
    known = known_keys(cls)
    others: Mapping[str, Sequence[str]] = getattr(cls, "ELSEWHERE", {})
    if here := [key for key, names in others.items() if path[-1] in names]:
        return f"; here it is {here[0]!r}"
    parent, wrong = ".".join(path[:-1]), path[-1]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    if near := difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.6):
        return meant(".".join([*path[:-1], near[0]]))
    # The right word in the wrong place (`epochs` beside `train`) is the commonest mistake.
    if elsewhere := [k for k in known if k.rpartition(".")[2] == wrong]:
        return meant(elsewhere[0])
    return nearest(".".join(path), known) or (f" (known here: {', '.join(siblings)})" if siblings else "")


def _class_at(cls: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The settings class that a dotted name is a group of."""
    found: type[BaseModel] | None = cls
    for part in path:
        field = found.model_fields.get(part) if found else None
        found = settings_class(field) if field else None
    return found


def _example(kind: type[BaseModel], given: Any) -> str:
    """A setting of a group as it is written; a text that was given is taken for the one that it needs."""
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    if required:
        return f"{required[0]}: {given if isinstance(given, str) and given else '…'}"
    name, field = next(iter(kind.model_fields.items()))
    return f"{name}: {field.default}"


def settings_class(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a group of settings, None for a single value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _names_beside(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.iterdir()]
    except OSError:
        return []


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-4` as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is set twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
