"""What leaves the machine with a report: no secret, and no name of the person's home folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "(hidden)"


def without_secrets(value: Any) -> Any:
    """A copy of nested settings in which what may be a secret is `(hidden)`: by its key or its look."""
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if _SECRET_KEY.search(str(key)) and inner is not None else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        return _SECRET_TEXT.sub(HIDDEN, _CREDENTIALS.sub(rf"\1{HIDDEN}@", value))
    return value


def short_paths(value: Any, *, foreign: bool = True) -> Any:
    """A copy in which the home folder is written `~`, wherever a path stands inside a text.

    `foreign`: other people's too, as in a run made on another machine (not in prompts and answers, whose
    words stay as they are).
    """
    if isinstance(value, Mapping):
        return {str(key): short_paths(inner, foreign=foreign) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [short_paths(inner, foreign=foreign) for inner in value]
    return _shorten(value, foreign) if isinstance(value, str) else value


def _shorten(text: str, foreign: bool) -> str:
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w/.~-]){re.escape(home)}(?![\w.-])", "~", text)
    if not foreign:
        return text
    return re.sub(r"(?<![\w/.~-])(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s:'\"]+", "~", text)


# `tokens_per_step` counts tokens; `hub_token` is one.
_SECRET_KEY = re.compile(
    r"(?:^|[_.-])(?:token|secret|passwd|password|passphrase|credentials?|authorization|cookie"
    r"|(?:api|access|private|auth|secret)[_-]?key|apikey)$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{16,}|github_pat_\w{16,}|AKIA[A-Z0-9]{12,}"
    r"|ms-[0-9a-f]{8}-[0-9a-f-]{20,}|[Bb]earer\s+[\w.~+/-]{12,}=*)"
)
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@", re.IGNORECASE)
