"""What offline pages of results are built with: templates, labels in two languages, scripts known by hash.

Everything in a page is text: values are escaped by jinja, data for scripts stands in JSON blocks that can't
end their element, and the page's policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from tunesmith.evaluate.chinese import in_chinese


def environment() -> Environment:
    """jinja for pages: autoescaped, strict about names; `t(english, chinese)` and the filter `told`."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: part(*name.split("/", 1))),
    )
    made.globals |= {"t": both}
    made.filters |= {"told": told}
    return made


def rendered(made: Environment, template: str, *, css: list[str], js: list[str], **values: Any) -> str:
    """A page as text; `css` and `js` are parts (`report/page.css`) that are written into it in their order.

    A lone surrogate, which JSON can carry and no file can, is written as its escape.
    """
    style = "".join(part(*name.split("/", 1)) for name in css)
    script = "".join(part(*name.split("/", 1)) for name in js)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = made.get_template(template).render(
        **values, css=Markup(style), js=Markup(script), js_hash=digest
    )  # our own parts
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def part(folder: str, name: str) -> str:
    """A part of a page, from evaluate/FOLDER."""
    return (files(f"tunesmith.evaluate.{folder}") / name).read_text(encoding="utf-8")


def both(english: str, chinese: str) -> Markup:
    """A label in both languages; the page shows one."""
    return Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh">{}</span>').format(
        english, chinese
    )


def told(text: Any) -> Markup:
    """A sentence of ours in both languages; anything else as it is."""
    english = text if isinstance(text, str) else str(text)
    chinese = in_chinese(english)
    return escape(english) if chinese == english else both(english, chinese)


def data_block(content: Any) -> Markup:
    """JSON for the page's script, as the content of <script type="application/json">.

    `<` would end the element or open a comment in it, U+2028 and U+2029 end a line of JavaScript: escapes of
    JSON's stand for them. Raises ValueError for NaN, which JSON doesn't know.
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
