"""The page for raters: one file with everything in it, to be sent, or to be given out by the local server.

What goes in is test.json's prompts and answers, laid out as left and right; the sealed part isn't read here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from tunesmith.disk import write_atomic
from tunesmith.errors import RunError
from tunesmith.evaluate.blind.folder import open_test


def blind_page(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the file of a blind test for raters elsewhere; returns its path.

    Raises RunError if the folder holds no test, or once it is unsealed.
    """
    test = open_test(Path(folder))
    if at := test.unsealed():
        raise RunError(f"The test was unsealed at {at}.", fix="Make a new one: tunesmith blind new.")
    file = Path(output) if output else test.page_file
    if file.is_dir():
        raise RunError(f"{file} is a folder.", fix=f"Give a file: --output {file / 'page.html'}.")
    write_atomic(file, page(test.public()))
    return file


def page(public: Mapping[str, Any], *, server: bool = False) -> str:
    """The page as text. From a file it can reach nothing, from the server nothing but that."""
    css, js = _part("page.css"), _part("page.js")
    shown = {name: public[name] for name in ("test", "ask", "items")}
    data = json.dumps({**shown, "server": server}, ensure_ascii=False)
    # What would end the script element, or open a comment in it, is written as an escape of JSON's.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Template(_part("page.html")).substitute(
        title=html.escape(str(public.get("title") or "") or "Blind test · 盲测"),
        policy=policy(server=server),
        css=css,
        js=js,
        test=data,
    )


def policy(*, server: bool) -> str:
    """The page's Content-Security-Policy: its own script and style by their hashes, and nothing else."""
    reached = "; connect-src 'self'" if server else ""
    return (
        f"default-src 'none'; style-src {_hash('page.css')}; script-src {_hash('page.js')}{reached}; "
        "base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    return (files("tunesmith.evaluate.blind") / name).read_text(encoding="utf-8")


def _hash(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_part(name).encode()).digest()).decode()}'"
